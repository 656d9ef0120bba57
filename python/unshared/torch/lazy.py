"""Layers that learn in_channels and input_size from their first input, as torch.nn's lazy ones do.

`_Lazy` stands before a layer's class and defers its parameters; after the first input the object is
of the plain class. A state_dict may be loaded before that; the input must then fit it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from unshared.torch import layers
from unshared.torch.functional import Extents, Padding, batched
from unshared.torch.layers import Bias


class _Lazy(LazyModuleMixin):
    in_channels: int
    input_size: tuple[int, ...]

    def _allocate(self, bias: bool, made: dict[str, Any]) -> None:
        self.weight = UninitializedParameter(**made)
        self.bias = UninitializedParameter(**made) if bias else None

    def reset_parameters(self) -> None:
        if self.in_channels != 0:
            super().reset_parameters()

    def initialize_parameters(self, x: Tensor) -> None:
        """Take in_channels and input_size from x."""
        if self.in_channels != 0:
            return
        x, _ = batched(type(self).__name__, x, self.spatial)
        self.in_channels, *input_size = map(int, x.shape[1:])
        self.input_size = tuple(input_size)
        weight, bias = self._settle()
        fresh = self.has_uninitialized_params()
        for name, shape in (("weight", weight), ("bias", bias)):
            parameter = getattr(self, name)
            if isinstance(parameter, UninitializedParameter):
                parameter.materialize(shape)
            elif parameter is not None and parameter.shape != shape:  # loaded before this input
                found = tuple(parameter.shape)
                self._fail(name, f"shape {shape}, as the first input has it", f"shape {found}")
        if fresh:
            self.reset_parameters()


class _LazyLocallyConnected(_Lazy):
    def __init__(
        self,
        out_channels: int,
        kernel_size: Extents,
        stride: Extents = 1,
        padding: Padding = 0,
        dilation: Extents = 1,
        groups: int = 1,
        bias: Bias = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            0, out_channels, 0, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
            device, dtype,
        )  # fmt: skip


class _LazyLocallyConnectedTranspose(_Lazy):
    def __init__(
        self,
        out_channels: int,
        kernel_size: Extents,
        stride: Extents = 1,
        padding: Padding = 0,
        output_padding: Extents = 0,
        groups: int = 1,
        bias: Bias = True,
        dilation: Extents = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            0, out_channels, 0, kernel_size, stride, padding, output_padding, groups, bias,
            dilation, padding_mode, device, dtype,
        )  # fmt: skip


class LazyLocallyConnected1d(_LazyLocallyConnected, layers.LocallyConnected1d):
    """A `LocallyConnected1d` with in_channels and input_size of its first input."""

    cls_to_become = layers.LocallyConnected1d


class LazyLocallyConnected2d(_LazyLocallyConnected, layers.LocallyConnected2d):
    """A `LocallyConnected2d` with in_channels and input_size of its first input."""

    cls_to_become = layers.LocallyConnected2d


class LazyLocallyConnected3d(_LazyLocallyConnected, layers.LocallyConnected3d):
    """A `LocallyConnected3d` with in_channels and input_size of its first input."""

    cls_to_become = layers.LocallyConnected3d


class LazyLocallyConnectedTranspose1d(
    _LazyLocallyConnectedTranspose, layers.LocallyConnectedTranspose1d
):
    """A `LocallyConnectedTranspose1d` with in_channels and input_size of its first input."""

    cls_to_become = layers.LocallyConnectedTranspose1d


class LazyLocallyConnectedTranspose2d(
    _LazyLocallyConnectedTranspose, layers.LocallyConnectedTranspose2d
):
    """A `LocallyConnectedTranspose2d` with in_channels and input_size of its first input."""

    cls_to_become = layers.LocallyConnectedTranspose2d


class LazyLocallyConnectedTranspose3d(
    _LazyLocallyConnectedTranspose, layers.LocallyConnectedTranspose3d
):
    """A `LocallyConnectedTranspose3d` with in_channels and input_size of its first input."""

    cls_to_become = layers.LocallyConnectedTranspose3d
