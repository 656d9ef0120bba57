"""Two definitions of the three faces, independent of the library, in logical axis order.

`forward`, `grad_input`, `grad_weight`: float64 (or complex128) loops over output places and taps;
exact on integer data, where every order of summation agrees. `chain`: the canonical chain of fused
multiply-adds, one rounding per step in the promised order, so that it fixes every bit on any data.
Axes: x (N, C_in, *in), y (N, C_out, *out), w (*out, C_out, C_in/groups, *kernel).
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np

from fma import Array, fma

Sizes = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]


def out_sizes(
    size: Sizes,
    kernel: Sizes,
    stride: Sizes,
    padding: Pairs,
    dilation: Sizes,
    input_dilation: Sizes,
) -> Sizes:
    """Output extents; zero or negative where the kernel does not fit into the padded input."""
    out = []
    for i, k, s, (low, high), d, e in zip(
        size, kernel, stride, padding, dilation, input_dilation, strict=True
    ):
        spread = (i - 1) * e + 1 if i > 0 else 0
        out.append((spread + low + high - ((k - 1) * d + 1)) // s + 1)
    return tuple(out)


@lru_cache(maxsize=256)
def sources(
    size: Sizes,
    out: Sizes,
    kernel: Sizes,
    stride: Sizes,
    padding: Pairs,
    dilation: Sizes,
    input_dilation: Sizes,
) -> np.ndarray:
    """Flat input place that feeds output place o through tap k, or -1; shape (places, taps)."""
    table = []
    for o in itertools.product(*map(range, out)):
        row = []
        for k in itertools.product(*map(range, kernel)):
            flat, inside = 0, True
            for axis, extent in enumerate(size):
                at = o[axis] * stride[axis] + k[axis] * dilation[axis] - padding[axis][0]
                inside &= at % input_dilation[axis] == 0
                at //= input_dilation[axis]
                inside &= 0 <= at < extent
                flat = flat * extent + at
            row.append(flat if inside else -1)
        table.append(row)
    return np.array(table, np.int64).reshape(math.prod(out), math.prod(kernel))


class _Flat:
    """One problem with its spatial axes flattened: arrays as (place[, tap], group, channels)."""

    def __init__(
        self,
        size: Sizes,
        out: Sizes,
        kernel: Sizes,
        c_in: int,
        c_out: int,
        batch: int,
        stride: Sizes,
        padding: Pairs,
        dilation: Sizes,
        input_dilation: Sizes,
        groups: int,
    ) -> None:
        assert out == out_sizes(size, kernel, stride, padding, dilation, input_dilation)
        self.size, self.out, self.kernel = size, out, kernel
        self.n, self.g, self.a, self.b = batch, groups, c_in // groups, c_out // groups
        self.i, self.o, self.k = math.prod(size), math.prod(out), math.prod(kernel)
        self.table = sources(size, out, kernel, stride, padding, dilation, input_dilation)

    def read_x(self, x: Array) -> Array:  # -> (i, g, n, a)
        return x.reshape(self.n, self.g, self.a, self.i).transpose(3, 1, 0, 2)

    def read_y(self, y: Array) -> Array:  # -> (o, g, n, b)
        return y.reshape(self.n, self.g, self.b, self.o).transpose(3, 1, 0, 2)

    def read_w(self, w: Array) -> Array:  # -> (o, k, g, a, b)
        return w.reshape(self.o, self.g, self.b, self.a, self.k).transpose(0, 4, 1, 3, 2)

    def write_x(self, v: Array) -> Array:
        return v.transpose(2, 1, 3, 0).reshape(self.n, self.g * self.a, *self.size)

    def write_y(self, v: Array) -> Array:
        return v.transpose(2, 1, 3, 0).reshape(self.n, self.g * self.b, *self.out)

    def write_w(self, v: Array) -> Array:
        v = v.transpose(0, 2, 4, 3, 1)
        return v.reshape(*self.out, self.g * self.b, self.a, *self.kernel)

    def hits(self) -> list[tuple[int, int, int]]:
        """Every (output place, tap, input place) of the sum, row-major."""
        table = self.table.tolist()
        return [(o, k, i) for o, row in enumerate(table) for k, i in enumerate(row) if i >= 0]


def _problem(face: str, first: Array, second: Array, size: Sizes | None, options: dict) -> _Flat:
    """Sizes of the problem, each from the operand that owns it."""
    axes = first.ndim - 2
    batch, groups = first.shape[0], options["groups"]
    if face == "forward":
        x, w = first, second
        return _Flat(
            x.shape[2:],
            w.shape[:axes],
            w.shape[axes + 2 :],
            x.shape[1],
            w.shape[axes],
            batch,
            **options,
        )
    assert size is not None
    if face == "grad_input":
        dy, w = first, second
        c_in = w.shape[axes + 1] * groups
        return _Flat(size, dy.shape[2:], w.shape[axes + 2 :], c_in, dy.shape[1], batch, **options)
    x, dy = first, second
    return _Flat(x.shape[2:], dy.shape[2:], size, x.shape[1], dy.shape[1], batch, **options)


def _wide(array: Array) -> Array:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def forward(x: Array, w: Array, **options: object) -> Array:
    """y in float64 or complex128: exact on integers."""
    f = _problem("forward", x, w, None, options)
    xs, ws = np.ascontiguousarray(f.read_x(_wide(x))), np.ascontiguousarray(f.read_w(_wide(w)))
    y = np.zeros((f.o, f.g, f.n, f.b), xs.dtype)
    for o, k, i in f.hits():
        y[o] += xs[i] @ ws[o, k]
    return f.write_y(y)


def grad_input(dy: Array, w: Array, input_size: Sizes, **options: object) -> Array:
    """dx in float64 or complex128 (no conjugation): exact on integers."""
    f = _problem("grad_input", dy, w, input_size, options)
    ys = np.ascontiguousarray(f.read_y(_wide(dy)))
    ws = np.ascontiguousarray(f.read_w(_wide(w)).swapaxes(-1, -2))
    dx = np.zeros((f.i, f.g, f.n, f.a), ys.dtype)
    for o, k, i in f.hits():
        dx[i] += ys[o] @ ws[o, k]
    return f.write_x(dx)


def grad_weight(x: Array, dy: Array, kernel_size: Sizes, **options: object) -> Array:
    """dw in float64 or complex128 (no conjugation): exact on integers."""
    f = _problem("grad_weight", x, dy, kernel_size, options)
    xs = np.ascontiguousarray(f.read_x(_wide(x)).swapaxes(-1, -2))
    ys = np.ascontiguousarray(f.read_y(_wide(dy)))
    dw = np.zeros((f.o, f.k, f.g, f.a, f.b), xs.dtype)
    for o, k, i in f.hits():
        dw[o, k] += xs[i] @ ys[o]
    return f.write_w(dw)


def exact(face: str, first: Array, second: Array, *size: Sizes, **options: object) -> Array:
    """The exact value of a face by name; the same arguments as the library's function."""
    function = {"forward": forward, "grad_input": grad_input, "grad_weight": grad_weight}[face]
    return function(first, second, *size, **options)


# --- the canonical chain --------------------------------------------------------------------------


class _Sum:
    """The running sums of all result elements: a pair of planes for complex, one plane for real."""

    def __init__(self, start: Array) -> None:
        kind = start.dtype
        self.complex = kind.kind == "c"
        self.real = np.dtype(
            np.float64 if kind.itemsize == (16 if self.complex else 8) else np.float32
        )
        self.planes = [p.astype(self.real) for p in self.parts(start)]

    def parts(self, v: Array) -> list[Array]:
        return [v.real, v.imag] if self.complex else [v]

    def operand(self, v: Array) -> list[Array]:
        return [np.ascontiguousarray(p.astype(self.real)) for p in self.parts(v)]

    def step(self, at: tuple, p: list[Array], q: list[Array]) -> None:
        """One link of the chain for the elements `at`: planes[at] = fma(p, q, planes[at])."""
        re = fma(p[0], q[0], self.planes[0][at])
        if self.complex:
            im = fma(p[0], q[1], self.planes[1][at])
            re = fma(-p[1], q[1], re)
            self.planes[1][at] = fma(p[1], q[0], im)
        self.planes[0][at] = re

    def value(self, dtype: np.dtype) -> Array:
        if self.complex:
            result = np.empty(self.planes[0].shape, dtype)
            result.real, result.imag = self.planes
            return result
        with np.errstate(over="ignore"):
            return self.planes[0].astype(
                dtype
            )  # half types are rounded here, once, to nearest even


def chain(
    face: str,
    first: Array,
    second: Array,
    *size: Sizes,
    start: Array | None = None,
    **options: object,
) -> Array:
    """The face `face` as the promised chain, bit for bit; `start` is what `accumulate` begins from.

    Elements are taken together (they do not meet); the loops run over the links of the chain only.
    """
    f = _problem(face, first, second, size[0] if size else None, options)
    dtype = first.dtype
    if face == "forward":
        zero = np.zeros((f.o, f.g, f.n, f.b), dtype)
        total = _Sum(zero if start is None else f.read_y(start))
        xs, ws = total.operand(f.read_x(first)), total.operand(f.read_w(second))
        inside = [np.flatnonzero(f.table[:, k] >= 0) for k in range(f.k)]
        for a in range(f.a):
            for k, o in enumerate(inside):
                p = [v[f.table[o, k], :, :, a, None] for v in xs]
                q = [v[o, k, :, None, a, :] for v in ws]
                total.step((o,), p, q)
        return f.write_y(total.value(dtype))
    if face == "grad_input":
        zero = np.zeros((f.i, f.g, f.n, f.a), dtype)
        total = _Sum(zero if start is None else f.read_x(start))
        ys, ws = total.operand(f.read_y(first)), total.operand(f.read_w(second))
        for o in range(f.o):
            k = np.flatnonzero(f.table[o] >= 0)
            for b in range(f.b):
                p = [v[o, None, :, :, b, None] for v in ys]
                q = [v[o, k][:, :, None, :, b] for v in ws]
                total.step((f.table[o, k],), p, q)  # one tap per input place: no place repeats
        return f.write_x(total.value(dtype))
    zero = np.zeros((f.o, f.k, f.g, f.a, f.b), dtype)
    total = _Sum(zero if start is None else f.read_w(start))
    xs, ys = total.operand(f.read_x(first)), total.operand(f.read_y(second))
    o, k = np.nonzero(f.table >= 0)
    for n in range(f.n):
        p = [v[f.table[o, k], :, n, :, None] for v in xs]
        q = [v[o, :, n, None, :] for v in ys]
        total.step((o, k), p, q)
    return f.write_w(total.value(dtype))
