"""The layers as modules: torch.nn's names, arguments and manners, and an `input_size` besides.

`_Layer` is what both directions share; `_LocallyConnected` and `_LocallyConnectedTranspose` add
their constructors and what differs; 1d, 2d and 3d are a number. All sizes are worked out, and
checked, by the core.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from unshared import Problem, _core
from unshared.errors import ArgumentValueError
from unshared.torch.functional import Extents, Padding, batched, bits_of, with_bias
from unshared.torch.operators import FORWARD, GRAD_INPUT, order_of, product

Bias = bool | Literal["shared"]

_MODES = ("zeros", "reflect", "replicate", "circular")


class _Layer(nn.Module):
    face: ClassVar[int]
    spatial: ClassVar[int]
    shared: ClassVar[type[nn.Module]]  # the convolution that this is without its sharing
    in_channels: int
    input_size: tuple[int, ...]
    output_padding: tuple[int, ...] | None = None
    precision: str | None = None

    def _set(
        self,
        in_channels: int,
        out_channels: int,
        input_size: Extents,
        kernel_size: Extents,
        stride: Extents,
        padding: Padding,
        dilation: Extents,
        groups: int,
        bias: Bias,
        padding_mode: str,
        device: Any,
        dtype: Any,
    ) -> None:
        """What the constructors have in common."""
        if bias not in (True, False, None, "shared"):
            self._fail("bias", "True (one for each place), 'shared' or False", repr(bias))
        if padding_mode not in _MODES:
            self._fail("padding_mode", f"one of {_MODES}", repr(padding_mode))
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.input_size = self._per_axis("input_size", input_size)
        self.kernel_size = self._per_axis("kernel_size", kernel_size)
        self.stride = self._per_axis("stride", stride)
        self.padding = self._per_axis("padding", padding)
        self.dilation = self._per_axis("dilation", dilation)
        self.padding_mode = padding_mode
        self._shared_bias = bias == "shared"
        self._allocate(bool(bias), {"device": device, "dtype": dtype})
        self.reset_parameters()

    def _allocate(self, bias: bool, made: dict[str, Any]) -> None:
        weight, biases = self._settle()
        self.weight = nn.Parameter(torch.empty(weight, **made))
        self.bias = nn.Parameter(torch.empty(biases, **made)) if bias else None

    def _settle(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Work out everything that follows from the sizes; return the shapes of the parameters."""
        problem = self._problem(self.input_size, self.padding)
        self._pad: list[int] = []
        if self.padding_mode != "zeros":  # then x itself grows, and nothing is left to pad
            pads = problem.options["padding"]
            self._pad = [side for sides in reversed(pads) for side in sides]
            grown = (n + sum(sides) for n, sides in zip(self.input_size, pads, strict=True))
            problem = self._problem(tuple(grown), 0)
        self._sample = (self.in_channels, *self.input_size)
        self._geometry = str(problem)
        self._fan_in = self._terms(problem)
        self.output_size = problem.shape("y" if self.face == FORWARD else "x")[2:]
        places = () if self._shared_bias else self.output_size
        return problem.shape("w"), (self.out_channels, *places)

    def _problem(self, input_size: Any, padding: Any) -> Problem:
        return _core.layer(
            type(self).__name__, self.in_channels, self.out_channels, input_size, self.kernel_size,
            self.stride, padding, self.output_padding, self.dilation, self.groups,
        )  # fmt: skip

    def _terms(self, problem: Problem) -> int:
        raise NotImplementedError

    def _per_axis(self, name: str, value: Any) -> Any:
        if isinstance(value, str):
            return value
        if not isinstance(value, (tuple, list)):
            return (value,) * self.spatial
        if len(value) != self.spatial:
            self._fail(name, f"{self.spatial} value(s), one for each spatial axis", repr(value))
        return tuple(value)

    def _fail(self, argument: str, expected: str, found: str) -> NoReturn:
        raise ArgumentValueError.of(type(self).__name__, argument, expected, found)

    def reset_parameters(self) -> None:
        """Draw weights and bias anew from U(-b, b), b = 1 / sqrt(fan-in of one place)."""
        if self._fan_in > 0:
            bound = 1 / math.sqrt(self._fan_in)
            for parameter in self.parameters(recurse=False):
                real = torch.view_as_real(parameter) if parameter.is_complex() else parameter
                nn.init.uniform_(real, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        name = type(self).__name__
        x, unbatched = batched(name, x, self.spatial)
        if x.shape[1:] != self._sample:
            sizes = ", ".join(map(str, self._sample))
            self._fail(
                "x",
                f"shape (N, {sizes}) or ({sizes}), in_channels and the input_size this layer was "
                "built for: its weights are those of places",
                f"shape {tuple(x.shape[1:] if unbatched else x.shape)}",
            )
        if self._pad:
            x = nn.functional.pad(x, self._pad, mode=self.padding_mode)
        how = bits_of(name, self.precision)
        y = product(self.face, x, self.weight, self._geometry, order_of(x), how)
        y = with_bias(name, y, self.bias)
        return y[0] if unbatched else y

    def extra_repr(self) -> str:
        """Tell the arguments, those that have their default left out."""
        text = f"{self.in_channels}, {self.out_channels}, input_size={self.input_size}"
        text += f", kernel_size={self.kernel_size}, stride={self.stride}"
        for name, default in (("padding", 0), ("output_padding", 0), ("dilation", 1)):
            value = getattr(self, name)
            if value is not None and value != (default,) * self.spatial:
                text += f", {name}={value!r}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.bias is None:
            text += ", bias=False"
        elif self._shared_bias:
            text += ", bias='shared'"
        return text + (
            "" if self.padding_mode == "zeros" else f", padding_mode={self.padding_mode!r}"
        )

    @classmethod
    def from_conv(cls, conv: nn.Module, input_size: Extents) -> Self:
        """Start from a convolution with shared weights: a layer whose outputs equal its outputs.

        Parameters
        ----------
        conv : torch.nn.Conv1d, Conv2d or Conv3d (ConvTranspose1d, ... for a transposed layer)
        input_size : int or one int per spatial axis
            The spatial extents of the inputs to come.

        Returns
        -------
        The layer, with a copy of the weights at every place, and of the bias if there is one.

        Raises
        ------
        unshared.ArgumentValueError
            Not such a convolution, or one that does not fit the input.
        """
        if not isinstance(conv, cls.shared) or isinstance(conv.weight, UninitializedParameter):
            raise ArgumentValueError.of(
                cls.__name__, "conv", f"a torch.nn.{cls.shared.__name__} with weights", repr(conv)
            )
        options = {
            name: getattr(conv, name)
            for name in ("stride", "padding", "dilation", "groups", "padding_mode")
        }
        if cls.face == GRAD_INPUT:
            options["output_padding"] = conv.output_padding
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            input_size,
            conv.kernel_size,
            bias=conv.bias is not None,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
            **options,
        )
        with torch.no_grad():
            layer.weight.copy_(conv.weight)
            if layer.bias is not None:
                layer.bias.copy_(conv.bias.reshape(-1, *[1] * cls.spatial))
        layer.train(conv.training)
        return layer

    def to_conv(self) -> nn.Module:
        """Make a convolution with shared weights: the mean over all places, and of the bias.

        Returns
        -------
        torch.nn.Conv1d, Conv2d or Conv3d (ConvTranspose1d, ... of a transposed layer)

        Raises
        ------
        unshared.ArgumentValueError
            The padding is one that torch.nn cannot say (it differs at the two ends of an axis).
        """
        padding = self.padding
        if not isinstance(padding, str):
            pairs = [p if isinstance(p, (tuple, list)) else (p, p) for p in padding]
            if any(low != high for low, high in pairs):
                self._fail("padding", "as much below as above, for a convolution", repr(padding))
            padding = tuple(low for low, _ in pairs)
        options = {} if self.output_padding is None else {"output_padding": self.output_padding}
        conv = self.shared(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=self.bias is not None,
            padding_mode=self.padding_mode,
            device=self.weight.device,
            dtype=self.weight.dtype,
            **options,
        )
        with torch.no_grad():
            conv.weight.copy_(self.weight.flatten(0, self.spatial - 1).mean(0))
            if self.bias is not None:
                conv.bias.copy_(self.bias.reshape(self.out_channels, -1).mean(1))
        return conv.train(self.training)


class _LocallyConnected(_Layer):
    face = FORWARD

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: Extents,
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
        super().__init__()
        self._set(
            in_channels, out_channels, input_size, kernel_size, stride, padding, dilation, groups,
            bias, padding_mode, device, dtype,
        )  # fmt: skip

    def _terms(self, problem: Problem) -> int:
        return math.prod(problem.shape("w")[self.spatial + 1 :])


class _LocallyConnectedTranspose(_Layer):
    face = GRAD_INPUT

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: Extents,
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
        super().__init__()
        if padding_mode != "zeros":
            self._fail("padding_mode", "'zeros', the only one a transposed layer has", padding_mode)
        self.output_padding = self._per_axis("output_padding", output_padding)
        self._set(
            in_channels, out_channels, input_size, kernel_size, stride, padding, dilation, groups,
            bias, padding_mode, device, dtype,
        )  # fmt: skip

    def _terms(self, problem: Problem) -> int:
        return problem.terms("grad_input")


class LocallyConnected1d(_LocallyConnected):
    """As `LocallyConnected2d`, for x (N, C_in, L) or (C_in, L)."""

    spatial, shared = 1, nn.Conv1d


class LocallyConnected2d(_LocallyConnected):
    """A convolution of (N, C_in, H, W) or (C_in, H, W) with weights of its own at every place.

    Parameters
    ----------
    in_channels, out_channels : int
    input_size : int or one int per spatial axis
        The spatial extents of every input: weights belong to places, so they fix their number.
    kernel_size, stride, dilation : int or one int per spatial axis
    padding : int, one int or (low, high) pair per spatial axis, "valid" or "same"
    groups : int
    bias : bool or "shared"
        True for one for each place, "shared" for one for each output channel.
    padding_mode : "zeros", "reflect", "replicate" or "circular"
    device, dtype
        Of the parameters.

    Attributes
    ----------
    weight : Parameter (*out, C_out, C_in/groups, *kernel)
    bias : Parameter (C_out, *out) or (C_out,), or None
    output_size : tuple of int
        The spatial extents of every output.
    precision : None or str
        As in `locally_connected`; to be set after construction.

    Raises
    ------
    unshared.ArgumentTypeError, unshared.ArgumentValueError
        From the constructor, for sizes and options that do not fit each other; when called, for an
        input of another size.

    Notes
    -----
    Both parameters start from U(-b, b) with b = 1 / sqrt(C_in/groups * kernel), as those of
    torch.nn.Conv2d. All derivatives: docs/transformations-torch.md.

    Examples
    --------
    >>> import torch
    >>> from unshared.torch import LocallyConnected2d
    >>> layer = LocallyConnected2d(3, 8, input_size=32, kernel_size=3, padding="same")
    >>> layer(torch.zeros(4, 3, 32, 32)).shape
    torch.Size([4, 8, 32, 32])
    """

    spatial, shared = 2, nn.Conv2d


class LocallyConnected3d(_LocallyConnected):
    """As `LocallyConnected2d`, for x (N, C_in, D, H, W) or (C_in, D, H, W)."""

    spatial, shared = 3, nn.Conv3d


class LocallyConnectedTranspose1d(_LocallyConnectedTranspose):
    """As `LocallyConnectedTranspose2d`, for x (N, C_in, L) or (C_in, L)."""

    spatial, shared = 1, nn.ConvTranspose1d


class LocallyConnectedTranspose2d(_LocallyConnectedTranspose):
    """A transposed convolution of (N, C_in, H, W) or (C_in, H, W), each place with its weights.

    Parameters and attributes are those of `LocallyConnected2d`, with these differences.

    Parameters
    ----------
    padding : int, one int or (low, high) pair per spatial axis
        What it takes off the output at either end.
    output_padding : int or one int per spatial axis
        What it adds at the high end, less than stride.
    padding_mode : "zeros"

    Attributes
    ----------
    weight : Parameter (*in, C_in, C_out/groups, *kernel)

    Notes
    -----
    Both parameters start from U(-b, b) with b = 1 / sqrt(the most products in one output).

    Examples
    --------
    >>> import torch
    >>> from unshared.torch import LocallyConnectedTranspose2d
    >>> layer = LocallyConnectedTranspose2d(8, 3, input_size=16, kernel_size=4, stride=2, padding=1)
    >>> layer(torch.zeros(4, 8, 16, 16)).shape
    torch.Size([4, 3, 32, 32])
    """

    spatial, shared = 2, nn.ConvTranspose2d


class LocallyConnectedTranspose3d(_LocallyConnectedTranspose):
    """As `LocallyConnectedTranspose2d`, for x (N, C_in, D, H, W) or (C_in, D, H, W)."""

    spatial, shared = 3, nn.ConvTranspose3d
