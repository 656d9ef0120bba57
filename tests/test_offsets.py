"""Element offsets beyond 2**31 and 2**32, in memory that is mapped but hardly ever touched.

An anonymous mapping without reservation costs only the pages in use. Each tensor in turn is spread
so that its ends lie `offset` elements apart; 32-bit arithmetic anywhere then reads or writes a
wrong place, or none.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import unshared
from arrays import COMPLEX128, FLOAT16, FLOAT32, FLOAT64, MARGIN, assert_same_bits, cast, integers
from cases import OPERANDS, RESULT, Case, exact, library, parse

OFFSETS = [2**31 - 1, 2**31, 2**31 + 1, 2**32 + 1]
MAP_NORESERVE = 0x4000  # not among the constants of the mmap module
FACES_SEATS = [
    ("forward", "xwy"),
    ("grad_input", "ywx"),
    ("grad_weight", "xyw"),
]


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class _Sparse:
    """A mapping in which arrays are spread out; `clear` gives its pages back, so that all is 0."""

    def __init__(self, size: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        self.map = mmap.mmap(-1, size, flags=flags)
        self.bytes = np.frombuffer(self.map, np.uint8)

    def clear(self) -> None:
        self.map.madvise(mmap.MADV_DONTNEED)

    def place(
        self,
        shape: tuple[int, ...],
        order: tuple[int, ...],
        dtype: np.dtype,
        axis: int,
        offset: int,
        backwards: bool,
    ) -> np.ndarray:
        """Dense in `order` but for `axis`, which is spread until the array spans `offset` elements.

        Exactly if the axis has two ends only; else the next multiple of its steps.
        """
        strides, run = [0] * len(shape), 1
        for j in reversed(order):
            if j != axis:
                strides[j] = run
                run *= shape[j]
        step = -((run - 1 - offset) // (shape[axis] - 1))
        strides[axis] = -step if backwards else step
        elements = self.bytes[: (offset + MARGIN) * dtype.itemsize].view(dtype)
        first = (shape[axis] - 1) * step if backwards else 0
        return as_strided(elements[first:], shape, tuple(s * dtype.itemsize for s in strides))


@pytest.fixture(scope="module")
def sparse() -> Iterator[_Sparse]:
    made = _Sparse((2**32 + 4096) * COMPLEX128.itemsize)
    yield made
    made.clear()


def _extent(array: np.ndarray) -> int:
    steps = zip(array.shape, array.strides, strict=True)
    return sum((d - 1) * abs(s) for d, s in steps) // array.itemsize


def _check(
    sparse: _Sparse, case: Case, face: str, far: str, axis: int, offset: int, dtype: np.dtype,
    backwards: bool, accumulate: bool,
) -> None:  # fmt: skip
    rng = np.random.default_rng(axis)
    seats = (*OPERANDS[face], RESULT[face])
    plain = [integers(rng, case.shape(s), dtype, case.terms(face)) for s in seats]
    want = exact(face, case, plain[0], plain[1])
    if accumulate:
        want = want + plain[2].astype(want.dtype)
    before = _resident()
    sparse.clear()
    spread = sparse.place(case.shape(far), case.order(far), dtype, axis, offset, backwards)
    index = seats.index(far)
    spread[...] = plain[index]
    plain[index] = spread
    library(face, case, plain[0], plain[1], out=plain[2], accumulate=accumulate, num_threads=2)
    assert_same_bits(plain[2][...], cast(want, dtype), f"{face} {far} axis {axis} {offset}")
    assert _resident() - before < 2**26, "far more memory was touched than the problem has"


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize(("face", "seats"), FACES_SEATS)
def test_far_elements(sparse: _Sparse, face: str, seats: str, offset: int) -> None:
    """Each tensor, spread along each of its axes, forwards and backwards."""
    lines = ["n3 a2>b3 i4x4 k2x3", "n17 a16>b18 i3x4 k2x3 x:nia y:nob w:oakb"]
    for line in lines:
        case = parse(line)
        for far in seats:
            for axis in range(len(case.shape(far))):
                for backwards in (False, True):
                    _check(sparse, case, face, far, axis, offset, FLOAT32, backwards, False)


@pytest.mark.parametrize("dtype", [FLOAT16, FLOAT64, COMPLEX128], ids=str)
@pytest.mark.parametrize(("face", "seats"), FACES_SEATS)
def test_far_elements_of_other_sizes(
    sparse: _Sparse, face: str, seats: str, dtype: np.dtype
) -> None:
    """The same with 2-, 8- and 16-byte elements, one axis each, accumulating."""
    case = parse("n3 a2>b3 i4x4 k2x3 p1x0")
    for far in seats:
        rank = len(case.shape(far))
        for turn, offset in enumerate(OFFSETS):
            _check(sparse, case, face, far, turn % rank, offset, dtype, bool(turn % 2), True)


@pytest.mark.parametrize(("face", "seats"), FACES_SEATS)
def test_far_groups_and_places(sparse: _Sparse, face: str, seats: str) -> None:
    """Groups and three spatial axes, where an offset is a sum of many parts."""
    for line in ("n2 a6>b9 g3 i5 k3 s2", "n2 a2>b3 i3x3x4 k2x2x3 s1x1x1 d1x1x1"):
        case = parse(line)
        for far in seats:
            for axis, extent in enumerate(case.shape(far)):
                if extent > 1:
                    _check(sparse, case, face, far, axis, 2**32 + 1, FLOAT32, False, False)


@pytest.mark.slow
def test_a_weight_of_more_than_2_to_the_31_elements(sparse: _Sparse) -> None:
    """Not spread but full: one place, one tap for each of 2**30 + 9 inputs, all but a few 0."""
    length = 2**30 + 9
    sparse.clear()
    elements = sparse.bytes.view(np.float16)
    x = elements[:length].reshape(1, 1, length)
    w = elements[length : 3 * length].reshape(1, 2, 1, length)
    assert w.size > 2**31
    for at, (p, q, r) in {0: (1, 2, 3), 2**29: (2, 5, 7), length - 1: (3, 11, 13)}.items():
        x[0, 0, at] = p
        w[0, 0, 0, at], w[0, 1, 0, at] = q, r
    got = unshared.forward(x, w)
    assert_same_bits(got, np.array([[[2 + 10 + 33], [3 + 14 + 39]]], np.float16))
    sparse.clear()


def test_extents_are_what_they_claim(sparse: _Sparse) -> None:
    """The arrangement itself: the far tensor really spans the offset, or 1 element more."""
    for offset in OFFSETS:
        array = sparse.place((3, 2, 4, 4), (0, 1, 2, 3), FLOAT32, 1, offset, True)
        assert offset <= _extent(array) < offset + 2
