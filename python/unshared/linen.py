"""Locally connected layers for Flax Linen: `ConvLocal`, in place of ``flax.linen.ConvLocal``."""

from __future__ import annotations

import flax.linen
import jax
import jax.numpy as jnp

from unshared import ArgumentValueError
from unshared._flax import window

__all__ = ["ConvLocal"]


class ConvLocal(flax.linen.ConvLocal):  # type: ignore[misc]
    """A drop-in for ``flax.linen.ConvLocal``: same fields, same parameters, from the same keys.

    A checkpoint of one loads into the other, and the outputs agree within rounding. The fields are
    those of Flax's layer; in addition `feature_group_count` may differ from 1, with a kernel of
    ``(*out, C_in / feature_group_count * prod(kernel_size), features)``. `precision` is
    that of `unshared.jax.conv_general_dilated_local`: IEEE unless it is a word of ours.

    Raises
    ------
    ArgumentValueError, a ValueError
        When the layer is initialised or applied, if sizes do not fit, or the mask has another shape
        than the kernel.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, unshared.linen
    >>> layer = unshared.linen.ConvLocal(features=4, kernel_size=(3, 3), padding="CIRCULAR")
    >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 8, 8, 2)))
    >>> layer.apply(variables, jnp.ones((5, 8, 8, 2))).shape
    (5, 8, 8, 4)
    """

    @flax.linen.compact  # type: ignore[untyped-decorator]
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Apply the layer to inputs (*batch, *spatial, C_in), giving (*batch, *out, features)."""
        view = window(
            self.kernel_size,
            self.strides,
            self.padding,
            self.input_dilation,
            self.kernel_dilation,
            self.feature_group_count,
        )
        batch = inputs.shape[: -1 - len(view.kernel)]
        inputs = jnp.reshape(inputs, (-1, *inputs.shape[len(batch) :]))
        shape = view.kernel_shape(inputs, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        if self.mask is not None:
            if self.mask.shape != kernel.shape:
                raise ArgumentValueError(
                    f"unshared.ConvLocal: argument 'mask': expected the shape of the kernel, "
                    f"{kernel.shape}, found {self.mask.shape}"
                )
            kernel = kernel * self.mask
        bias = None
        if self.use_bias:
            bias = self.param(
                "bias", self.bias_init, (*shape[:-2], self.features), self.param_dtype
            )
        inputs, kernel, bias = self.promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        y = view.apply(inputs, kernel, bias, self.precision)
        return jnp.reshape(y, (*batch, *y.shape[1:]))
