"""The layer and its transpose as functions of tensors, as torch.nn.functional would have them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor

from unshared import _core
from unshared.errors import ArgumentTypeError, ArgumentValueError, Error
from unshared.torch.operators import (
    FORWARD,
    GRAD_INPUT,
    PRECISIONS,
    casting,
    order_of,
    product,
)
from unshared.torch.private import constant_when_compiled, plain

__all__ = ["locally_connected", "locally_connected_transpose"]

Extents = int | Sequence[int]
Padding = Extents | Sequence[tuple[int, int]] | str


def locally_connected(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    stride: Extents = 1,
    padding: Padding = 0,
    dilation: Extents = 1,
    groups: int = 1,
    *,
    precision: str | None = None,
) -> Tensor:
    """Apply a locally connected layer: a convolution with weights of its own at every place.

    ``y[n, b, o] = bias[b, o] + sum over a, k of x[n, a, o * stride + k * dilation - padding] *
    w[o, b, a, k]``, with the sizes of `torch.nn.functional.conv2d`.

    Parameters
    ----------
    x : Tensor (N, C_in, *in) or (C_in, *in)
        One, two or three spatial axes, any memory order, float32, float64, float16, bfloat16,
        complex64 or complex128.
    w : Tensor (*out, C_out, C_in/groups, *kernel)
        Of the same dtype and on the same device (autocast casts both).
    bias : Tensor (C_out, *out) or (C_out,), optional
        One for each place, or one for all.
    stride, dilation : int or one int per spatial axis
    padding : int, one int or (low, high) pair per spatial axis, "valid" or "same"
        Zeros around x; "same" makes ``out = ceil(in / stride)``.
    groups : int
    precision : None, "ieee", "tf32", "3xtf32" or "fast"
        The opt-ins of `unshared.forward` on CUDA, for the gradients, too. PyTorch's own switches
        (``torch.backends``) have no effect here.

    Returns
    -------
    Tensor (N, C_out, *out) or (C_out, *out)
        In the memory order of x (channels_last stays channels_last). Differentiable any number of
        times in reverse mode, once in forward mode; see docs/transformations-torch.md.

    Raises
    ------
    unshared.ArgumentTypeError, unshared.ArgumentValueError, unshared.UnsupportedError
        A TypeError, ValueError, NotImplementedError that names the argument, what was expected and
        what was found.

    Examples
    --------
    >>> import torch
    >>> from unshared.torch import locally_connected
    >>> locally_connected(torch.ones(2, 3, 8, 8), torch.ones(6, 6, 4, 3, 3, 3)).shape
    torch.Size([2, 4, 6, 6])
    """
    name = "locally_connected"
    spatial = _spatial(name, w)
    x, unbatched = batched(name, x, spatial)
    geometry = _geometry(name, x.shape, w.shape, stride, padding, None, dilation, groups)
    how = bits_of(name, precision)
    y = with_bias(name, product(FORWARD, x, w, geometry, order_of(x), how), bias)
    return y[0] if unbatched else y


def locally_connected_transpose(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    stride: Extents = 1,
    padding: Padding = 0,
    output_padding: Extents = 0,
    groups: int = 1,
    dilation: Extents = 1,
    *,
    precision: str | None = None,
) -> Tensor:
    """Apply the transposed layer: the gradient of `locally_connected` by its input.

    ``y[n, a, i] = bias[a, i] + sum over b and the (o, k) with o * stride + k * dilation - padding =
    i of x[n, b, o] * w[o, b, a, k]``, with the sizes of `torch.nn.functional.conv_transpose2d`.

    Parameters
    ----------
    x : Tensor (N, C_in, *in) or (C_in, *in)
    w : Tensor (*in, C_in, C_out/groups, *kernel)
        Every input place has weights of its own.
    bias : Tensor (C_out, *out) or (C_out,), optional
    stride, dilation, output_padding : int or one int per spatial axis
        ``out = (in - 1) * stride - low - high + (kernel - 1) * dilation + output_padding + 1``;
        output_padding is less than stride.
    padding : int, one int or (low, high) pair per spatial axis
        What it takes off y at either end.
    groups : int
    precision : None, "ieee", "tf32", "3xtf32" or "fast"
        As in `locally_connected`.

    Returns
    -------
    Tensor (N, C_out, *out) or (C_out, *out)

    Raises
    ------
    unshared.ArgumentTypeError, unshared.ArgumentValueError, unshared.UnsupportedError

    Examples
    --------
    >>> import torch
    >>> from unshared.torch import locally_connected_transpose
    >>> locally_connected_transpose(torch.ones(2, 3, 6, 6), torch.ones(6, 6, 3, 4, 3, 3)).shape
    torch.Size([2, 4, 8, 8])
    """
    name = "locally_connected_transpose"
    if output_padding is None:
        raise ArgumentTypeError.of(name, "output_padding", "whole numbers", "None")
    spatial = _spatial(name, w)
    x, unbatched = batched(name, x, spatial)
    geometry = _geometry(name, x.shape, w.shape, stride, padding, output_padding, dilation, groups)
    how = bits_of(name, precision)
    y = with_bias(name, product(GRAD_INPUT, x, w, geometry, order_of(x), how), bias)
    return y[0] if unbatched else y


# --- shared with the layers ----------------------------------------------------------------------
def bits_of(name: str, precision: str | None) -> int:
    """Turn a precision into bits for `product`; whether dtype and device have it, the core says."""
    if precision not in PRECISIONS:
        expected = "None, 'ieee', 'tf32', '3xtf32' or 'fast'"
        raise ArgumentValueError.of(name, "precision", expected, repr(precision))
    return PRECISIONS[precision]


def batched(name: str, x: Tensor, spatial: int) -> tuple[Tensor, bool]:
    """Give x a batch if it has none, and tell whether that was so."""
    if not isinstance(x, Tensor):
        raise ArgumentTypeError.of(name, "x", "a torch.Tensor", f"a {type(x).__name__}")
    rank = x.dim()
    if rank == spatial + 1:
        return x.unsqueeze(0), True
    if rank != spatial + 2:
        raise ArgumentValueError.of(
            name,
            "x",
            f"{spatial + 2} dimensions, (N, C_in, *in), or {spatial + 1} without N",
            f"shape {tuple(x.shape)}",
        )
    return x, False


def with_bias(name: str, y: Tensor, bias: Tensor | None) -> Tensor:
    """Add a bias of each place (C_out, *out) or of all (C_out,) to y, in place where one may."""
    if bias is None:
        return y
    if not isinstance(bias, Tensor):
        raise ArgumentTypeError.of(name, "bias", "a torch.Tensor", f"a {type(bias).__name__}")
    if bias.shape != y.shape[1:]:
        if bias.shape != y.shape[1:2]:
            places = tuple(y.shape[1:])
            raise ArgumentValueError.of(
                name,
                "bias",
                f"shape {places}, one for each place, or {places[:1]}, one for all",
                f"shape {tuple(bias.shape)}",
            )
        bias = bias.reshape(-1, *[1] * (y.dim() - 2))
    if bias.dtype != y.dtype:
        if not casting(y):
            raise ArgumentTypeError.of(name, "bias", f"dtype {y.dtype}", f"dtype {bias.dtype}")
        bias = bias.to(y.dtype)
    if bias.device != y.device:
        raise ArgumentValueError.of(
            name, "bias", f"one on {y.device}, as x is", f"one on {bias.device}"
        )
    return y.add_(bias) if plain(y) and not torch.compiler.is_compiling() else y + bias


# --- geometry ------------------------------------------------------------------------------------
def _geometry(name: str, x: Sequence[int], w: Sequence[int], *options: Any) -> str:
    """The geometry of a layer for tensors of these shapes, as operators take it.

    `options` are stride, padding, output_padding (None: not transposed), dilation, groups.
    """
    if not torch.compiler.is_compiling():
        try:
            return _kept_geometry(name, x, w, _kinds(options), *options)
        except TypeError:  # something that cannot be a key; or an error, which comes again
            return _kept_geometry.__wrapped__(name, x, w, None, *options)
    constant: str = _constant_geometry(
        name, tuple(map(index, x[2:])), tuple(map(index, w)), *map(_constant, options)
    )
    return constant


@constant_when_compiled
def _constant_geometry(name: str, input_size: Any, w: Any, *options: Any) -> str:
    return _kept_geometry.__wrapped__(name, (1, 1, *input_size), w, None, *options)


@functools.lru_cache(maxsize=4096, typed=True)
def _kept_geometry(name: str, x: Any, w: Any, _: Any, *options: Any) -> str:
    # The fewest channels there can be: those of the tensors are checked with the tensors.
    groups = options[-1]
    kernel_size = w[len(w) // 2 + 1 :]
    try:
        return str(_core.layer(name, groups, groups, x[2:], kernel_size, *options))
    except Error as error:
        if error.argument != "in_channels":
            raise
    return str(_core.layer(name, 1, 1, x[2:], kernel_size, *options))  # blames the groups


def _kinds(options: tuple[Any, ...]) -> str | None:
    """What tells options apart that are equal, yet not the same: (1, 1) and (1.0, 1.0)."""
    return repr(options) if tuple in map(type, options) else None


def _constant(option: Any) -> Any:
    """The same, a constant where the compiler would take a number for variable."""
    if isinstance(option, (list, tuple)):
        return tuple(map(_constant, option))
    return index(option) if isinstance(option, int) and not isinstance(option, bool) else option


def _spatial(name: str, w: Tensor) -> int:
    if not isinstance(w, Tensor):
        raise ArgumentTypeError.of(name, "w", "a torch.Tensor", f"a {type(w).__name__}")
    spatial = {4: 1, 6: 2, 8: 3}.get(w.dim())
    if spatial is None:
        raise ArgumentValueError.of(
            name,
            "w",
            "4, 6 or 8 dimensions, (*out, C_out, C_in/groups, *kernel)",
            f"shape {tuple(w.shape)}",
        )
    return spatial
