"""Locally connected layers for Flax NNX: `ConvLocal`, which Flax itself has for Linen only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

from unshared import ArgumentValueError
from unshared._flax import window

__all__ = ["ConvLocal"]


class ConvLocal(nnx.Module):  # type: ignore[misc]
    """A convolution whose weights are not shared: every output place has a kernel and a bias.

    Parameters
    ----------
    in_features, out_features : int
    kernel_size : int or n ints
        1 to 3 spatial axes.
    strides : int or n ints
    input_size : int or n ints
        Spatial extents of the inputs: they fix how many kernels there are.
    padding : "SAME", "VALID", "CIRCULAR", "REFLECT", "CAUSAL" (one axis), int, n ints or pairs
    input_dilation, kernel_dilation : int or n ints
    feature_group_count : int
    use_bias : bool
    mask : array, optional
        Of the kernel's shape; multiplied with it.
    dtype, param_dtype
        Of the computation (by default what inputs and parameters promote to), of the parameters.
    precision
        As in `unshared.jax.conv_general_dilated_local`: IEEE unless it is a word of ours.
    kernel_init, bias_init : initialiser
        By default LeCun's normal with the true fan-in ``C_in/groups * prod(kernel_size)``, and 0.
        (That of ``flax.linen.ConvLocal`` counts the output places into the fan-in.)
    rngs : nnx.Rngs

    Attributes
    ----------
    kernel : nnx.Param (*out, C_in/groups * prod(kernel_size), out_features)
        Channels slowest in the second last axis: the layout of Flax's Linen layer.
    bias : nnx.Param (*out, out_features), or None

    Raises
    ------
    ArgumentValueError, a ValueError
        If sizes do not fit; when called, if the inputs have another size than `input_size`.

    Examples
    --------
    >>> import jax.numpy as jnp, unshared.nnx
    >>> from flax import nnx
    >>> layer = unshared.nnx.ConvLocal(2, 4, (3, 3), input_size=(8, 8), rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((5, 8, 8, 2))).shape
    (5, 8, 8, 4)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = 1,
        *,
        input_size: int | Sequence[int],
        padding: Any = "SAME",
        input_dilation: int | Sequence[int] | None = 1,
        kernel_dilation: int | Sequence[int] | None = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        mask: jax.Array | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        precision: Any = None,
        kernel_init: Callable[..., Any] | None = None,
        bias_init: Callable[..., Any] = nnx.initializers.zeros,
        promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.window = window(
            kernel_size, strides, padding, input_dilation, kernel_dilation, feature_group_count
        )
        spatial = len(self.window.kernel)
        size = (input_size,) * spatial if isinstance(input_size, int) else tuple(input_size)
        self.input_shape = (*size, in_features)
        if len(size) != spatial or in_features % feature_group_count != 0:
            raise ArgumentValueError(
                f"unshared.ConvLocal: argument 'input_size': expected {spatial} extents and "
                f"in_features in {feature_group_count} group(s), found {size} and {in_features}"
            )
        sample = jax.ShapeDtypeStruct((1, *self.input_shape), param_dtype)
        shape = self.window.kernel_shape(sample, out_features)
        if kernel_init is None:
            kernel_init = nnx.initializers.variance_scaling(
                1.0, "fan_in", "truncated_normal", batch_axis=tuple(range(spatial))
            )
        if mask is not None and mask.shape != shape:
            raise ArgumentValueError(
                f"unshared.ConvLocal: argument 'mask': expected the shape of the kernel, {shape}, "
                f"found {mask.shape}"
            )
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        self.bias = nnx.data(None)
        if use_bias:
            self.bias = nnx.Param(
                bias_init(rngs.params(), (*shape[:-2], out_features), param_dtype)
            )
        self.mask = mask
        self.dtype, self.precision, self.promote_dtype = dtype, precision, promote_dtype

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Apply the layer to inputs (*batch, *spatial, C_in), giving (*batch, *out, C_out)."""
        batch = inputs.shape[: -len(self.input_shape)]
        if inputs.shape[len(batch) :] != self.input_shape:
            raise ArgumentValueError(
                f"unshared.ConvLocal: argument 'inputs': expected (*batch, "
                f"{', '.join(map(str, self.input_shape))}), as input_size and in_features say, "
                f"found shape {inputs.shape}"
            )
        inputs = jnp.reshape(inputs, (-1, *self.input_shape))
        kernel, bias = self.kernel[...], None if self.bias is None else self.bias[...]
        if self.mask is not None:
            kernel = kernel * self.mask
        inputs, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        y = self.window.apply(inputs, kernel, bias, self.precision)
        return jnp.reshape(y, (*batch, *y.shape[1:]))
