"""Test data: dtypes, values, comparison by bits, and arrays in any memory layout inside guarded
buffers.

Equality is always of bits; NaNs compare as a class because their payload is nobody's promise.
Guards: 64 elements before and after each array, and every gap between its elements, hold a pattern
that must survive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np

FLOAT32, FLOAT64, FLOAT16 = np.dtype("float32"), np.dtype("float64"), np.dtype("float16")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
COMPLEX64, COMPLEX128 = np.dtype("complex64"), np.dtype("complex128")
DTYPES = (FLOAT32, FLOAT64, FLOAT16, BFLOAT16, COMPLEX64, COMPLEX128)

# significand bits of the accumulator, of a stored element
_BITS = {
    FLOAT32: (24, 24),
    FLOAT64: (53, 53),
    FLOAT16: (24, 11),
    BFLOAT16: (24, 8),
    COMPLEX64: (24, 24),
    COMPLEX128: (53, 53),
}
MARGIN = 64


def is_half(dtype: np.dtype) -> bool:
    return dtype in (FLOAT16, BFLOAT16)


def integers(rng: np.random.Generator, shape: tuple, dtype: np.dtype, terms: int) -> np.ndarray:
    """Non-zero integers as large as `terms` products and one addend allow to be summed exactly.

    The largest possible: arithmetic in any narrower format than promised then shows.
    """
    accumulator, stored = _BITS[dtype]
    terms = max(terms, 1) * (2 if dtype.kind == "c" else 1) + 1
    limit = min(math.isqrt(2**accumulator // terms), 2**stored)
    assert limit >= 2, f"{terms} products of {dtype} leave no room for exact sums"

    def plane() -> np.ndarray:
        return rng.integers(1, limit, shape, endpoint=True) * rng.choice([-1, 1], shape)

    return (plane() + 1j * plane() if dtype.kind == "c" else plane()).astype(dtype)


def reals(
    rng: np.random.Generator, shape: tuple, dtype: np.dtype, kind: str = "normal"
) -> np.ndarray:
    """Real data: `normal`, `wide` (over many binades) or `tiny` (results are subnormal)."""

    def plane() -> np.ndarray:
        values = rng.standard_normal(shape)
        if kind == "wide":
            reach = 6 if dtype == FLOAT16 else 30
            values = np.sign(values) * 2.0 ** rng.uniform(-reach, reach, shape)
        if kind == "tiny":  # a product of two lies around the smallest subnormal of the dtype
            lowest = {FLOAT16: -24, BFLOAT16: -133, FLOAT64: -1074, COMPLEX128: -1074}.get(
                dtype, -149
            )
            values = values * 2.0 ** (lowest / 2 + rng.integers(0, 4, shape))
        return values

    return (plane() + 1j * plane() if dtype.kind == "c" else plane()).astype(dtype)


def cast(exact: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """An exact value (for half types: an integer that float32 holds) rounded once."""
    with np.errstate(over="ignore"):
        return exact.astype(np.float32).astype(dtype) if is_half(dtype) else exact.astype(dtype)


def bits(array: np.ndarray) -> np.ndarray:
    """The elements (real and imaginary parts apart) as unsigned integers."""
    array = np.ascontiguousarray(array)
    if array.dtype.kind == "c":
        array = array.view(array.real.dtype)
    return array.view(f"u{array.dtype.itemsize}")


def _nan(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array)
    if array.dtype.kind == "c":
        array = array.view(array.real.dtype)
    return np.isnan(array.astype(np.float32) if is_half(array.dtype) else array)


def same_bits(got: np.ndarray, want: np.ndarray) -> bool:
    if got.dtype != want.dtype or got.shape != want.shape:
        return False
    return bool(np.all((bits(got) == bits(want)) | (_nan(got) & _nan(want))))


def assert_same_bits(got: object, want: np.ndarray, label: object = "") -> None:
    """Equal dtype, shape and bits; the message says how many differ and where the first lies."""
    assert isinstance(got, np.ndarray), f"{label}: found {type(got)}, not an array"
    assert got.dtype == want.dtype, f"{label}: dtype {got.dtype}, expected {want.dtype}"
    assert got.shape == want.shape, f"{label}: shape {got.shape}, expected {want.shape}"
    if same_bits(got, want):
        return
    each = (bits(got) != bits(want)) & ~(_nan(got) & _nan(want))
    wrong = each.reshape(-1, 2 if want.dtype.kind == "c" else 1).any(axis=1).reshape(want.shape)
    at = tuple(int(j) for j in np.argwhere(wrong)[0])
    raise AssertionError(
        f"{label}: {np.count_nonzero(wrong)} of {wrong.size} elements differ; "
        f"first at {at}: found {got[at]!r}, expected {want[at]!r}"
    )


# --- layouts --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """A memory layout for any shape: axis order, steps between elements, direction, byte offset."""

    order: tuple[int, ...] | str = (
        "C"  # outermost axis first; or "C", "F", "last" (axis 1 innermost), "turned"
    )
    step: int = 1  # distance between neighbours of the innermost axis
    gap: int = 0  # unused elements after each run of any other axis
    flip: str = ""  # "all", "first" or "last": axes that run backwards
    offset: int = 0  # bytes between a 64-byte boundary and the first element of the buffer

    def axes(self, rank: int) -> tuple[int, ...]:
        if not isinstance(self.order, str):
            return self.order
        plain = tuple(range(rank))
        return {
            "C": plain,
            "F": plain[::-1],
            "last": (*plain[:1], *plain[2:], *plain[1:2]),
            "turned": (*plain[2:], *plain[:2]),
        }[self.order]

    def strides(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Element strides; an axis of extent 1 or 0 gets one as well."""
        strides, run = [0] * len(shape), self.step
        for axis in reversed(self.axes(len(shape))):
            strides[axis] = run
            run = run * max(shape[axis], 1) + self.gap
        backwards = {"": (), "all": range(len(shape)), "first": (0,), "last": (len(shape) - 1,)}
        for axis in backwards[self.flip]:
            strides[axis] = -strides[axis]
        return tuple(strides)


LAYOUTS = {
    "contiguous": Layout(),
    "transposed": Layout("F"),
    "channels-last": Layout("last"),
    "spatial-first": Layout("turned"),
    "sliced": Layout(step=2),
    "gaps": Layout(gap=3),
    "gaps-last": Layout("last", step=3, gap=1),
    "negative": Layout(flip="all"),
    "negative-first": Layout("F", flip="first"),
    "negative-last": Layout("last", flip="last", gap=2),
}

# canary: what an untouched output element looks like; poison: what lies around inputs (both NaN)
_CANARY = {
    1: b"\xa5",
    2: b"\xa5\x7f",
    4: b"\xa5\xa5\xe5\x7f",
    8: b"\xa5\xa5\xa5\xa5\xa5\xa5\xfd\x7f",
}
_POISON = {
    1: b"\x5a",
    2: b"\xed\xff",
    4: b"\x5a\x5a\xed\xff",
    8: b"\x5a\x5a\x5a\x5a\x5a\x5a\xfe\xff",
}


def pattern(dtype: np.dtype, table: dict[int, bytes]) -> bytes:
    parts = 2 if dtype.kind == "c" else 1
    return table[dtype.itemsize // parts] * parts


class Guarded:
    """An array in a layout, inside a buffer whose other bytes are watched."""

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype, layout: Layout, table: dict[int, bytes]
    ) -> None:
        self._mark = pattern(dtype, table)
        strides = layout.strides(shape)
        extent = sum((d - 1) * abs(s) for d, s in zip(shape, strides, strict=True) if d > 1) + 1
        first = MARGIN + sum(
            (d - 1) * -s for d, s in zip(shape, strides, strict=True) if s < 0 and d > 1
        )
        count = 2 * MARGIN + extent
        raw = self._raw = np.empty(count * dtype.itemsize + 128, np.uint8)
        skip = -raw.ctypes.data % 64 + layout.offset
        self._bytes = raw[skip : skip + count * dtype.itemsize]
        self._bytes.reshape(count, -1)[:] = np.frombuffer(self._mark, np.uint8)
        buffer = self._bytes.view(dtype)
        steps = tuple(s * dtype.itemsize for s in strides)
        self.array = np.lib.stride_tricks.as_strided(buffer[first:], shape, steps)
        inside = np.zeros(count, bool)
        np.lib.stride_tricks.as_strided(inside[first:], shape, strides)[...] = True
        self._outside = ~inside
        self._before: bytes | None = None

    def span(self) -> tuple[int, np.ndarray]:
        """The buffer with its margins, from a 64-byte boundary on: address and bytes."""
        skip = self._bytes.ctypes.data % 64
        start = self._bytes.ctypes.data - skip
        return start, np.lib.stride_tricks.as_strided(
            self._raw[start - self._raw.ctypes.data :], (skip + self._bytes.nbytes,), (1,)
        )

    def remember(self) -> None:
        self._before = self._bytes.tobytes()

    def check_unchanged(self, label: object = "") -> None:
        """Nothing at all was written: neither the array nor anything around it."""
        assert self._bytes.tobytes() == self._before, f"{label}: memory was written"

    def check_surroundings(self, label: object = "") -> None:
        """Nothing was written outside the array."""
        each = self._bytes.reshape(len(self._outside), -1)
        touched = (each != np.frombuffer(self._mark, np.uint8)).any(axis=1) & self._outside
        assert not touched.any(), f"{label}: {touched.sum()} elements written outside the array"

    def check_written(self, label: object = "") -> None:
        """Every element of the array was written (none still shows the mark)."""
        each = np.ascontiguousarray(self.array).reshape(-1).view(np.uint8)
        each = each.reshape(-1, len(self._mark))
        left = (each == np.frombuffer(self._mark, np.uint8)).all(axis=1)
        assert not left.any(), f"{label}: {left.sum()} elements of the result were never written"


def guarded_input(values: np.ndarray, layout: Layout = LAYOUTS["contiguous"]) -> Guarded:
    """`values` surrounded by NaN, in a layout."""
    guarded = Guarded(values.shape, values.dtype, layout, _POISON)
    guarded.array[...] = values
    guarded.remember()
    return guarded


def guarded_output(
    shape: tuple[int, ...],
    dtype: np.dtype,
    layout: Layout = LAYOUTS["contiguous"],
    start: np.ndarray | None = None,
) -> Guarded:
    """An output full of canaries (or of `start`) inside canaries, in a layout."""
    guarded = Guarded(shape, dtype, layout, _CANARY)
    if start is not None:
        guarded.array[...] = start
    guarded.remember()
    return guarded
