"""What the Flax layers of `unshared.linen` and `unshared.nnx` have in common.

Channels last, parameters as in ``flax.linen.ConvLocal``: a kernel ``(*out, C_in/groups * prod(k),
features)``, channels slowest within its second last axis, and a bias ``(*out, features)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from unshared import ArgumentValueError
from unshared.jax import convolve

_MODES = {"CIRCULAR": "wrap", "REFLECT": "reflect"}


class Window(NamedTuple):
    """How a layer looks at its input: every option with one entry per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    groups: int

    @property
    def dims(self) -> jax.lax.ConvDimensionNumbers:
        last = len(self.kernel) + 1
        data = (0, last, *range(1, last))
        return jax.lax.ConvDimensionNumbers(data, (last, last - 1, *range(last - 1)), data)

    def padded(self, inputs: jax.Array) -> tuple[jax.Array, Window]:
        """Inputs that need no padding of the kinds that the operation does not know."""
        dilated = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.kernel_dilation, strict=True)]
        if self.padding in _MODES:
            sides = [((extent - 1) // 2, extent // 2) for extent in dilated]
            widths = [(0, 0), *sides, (0, 0)]
            inputs = jnp.pad(inputs, widths, mode=_MODES[str(self.padding)])
            return inputs, self._replace(padding="VALID")
        if self.padding == "CAUSAL":
            if len(self.kernel) != 1:
                raise ArgumentValueError(
                    "unshared.ConvLocal: argument 'padding': expected 'CAUSAL' with one spatial "
                    f"axis only, found {len(self.kernel)}"
                )
            return inputs, self._replace(padding=((dilated[0] - 1, 0),))
        return inputs, self

    def places(self, inputs: Any) -> tuple[int, ...]:
        """Output extents for inputs of this shape: those of a convolution."""
        channels = inputs.shape[-1] // self.groups
        kernel = jax.ShapeDtypeStruct((*self.kernel, channels, self.groups), inputs.dtype)

        def convolution(lhs: Any, rhs: Any) -> Any:
            lhs, view = self.padded(lhs)
            return jax.lax.conv_general_dilated(
                lhs, rhs, view.strides, view.padding, view.input_dilation, view.kernel_dilation,
                view.dims, view.groups,
            )  # fmt: skip

        shape: tuple[int, ...] = jax.eval_shape(convolution, inputs, kernel).shape
        return shape[1:-1]

    def kernel_shape(self, inputs: Any, features: int) -> tuple[int, ...]:
        taps = inputs.shape[-1] // self.groups * math.prod(self.kernel)
        return (*self.places(inputs), taps, features)

    def apply(self, inputs: jax.Array, kernel: jax.Array, bias: Any, precision: Any) -> jax.Array:
        inputs, view = self.padded(inputs)
        y = convolve(
            "ConvLocal", inputs, kernel, view.strides, view.padding, view.kernel,
            view.input_dilation, view.kernel_dilation, view.dims, precision, view.groups,
        )  # fmt: skip
        return y if bias is None else y + bias


def window(
    kernel_size: int | Sequence[int],
    strides: int | Sequence[int] | None,
    padding: Any,
    input_dilation: int | Sequence[int] | None,
    kernel_dilation: int | Sequence[int] | None,
    groups: int,
) -> Window:
    """Options as users of Flax type them; None is 1."""
    kernel = (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)

    def each(value: int | Sequence[int] | None) -> tuple[int, ...]:
        return (value or 1,) * len(kernel) if value is None or isinstance(value, int) else (*value,)

    if isinstance(padding, int):
        padding = (padding,) * len(kernel)
    if not isinstance(padding, str):
        padding = tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)
        if len(padding) != len(kernel) or any(len(pair) != 2 for pair in padding):
            raise ArgumentValueError(
                "unshared.ConvLocal: argument 'padding': expected a word, a number, or a number or "
                f"pair for each of {len(kernel)} axes, found {padding}"
            )
    return Window(
        kernel, each(strides), padding, each(input_dilation), each(kernel_dilation), groups
    )
