"""Memory: what is read and written, where results lie, and what an `out` may be.

Guards around every array (arrays.py) see each stray write, and NaN around inputs each stray read
that counts. What ranges of 2**31 and 2**32 elements do is in test_offsets.py.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import unshared
from arrays import (
    COMPLEX64,
    COMPLEX128,
    DTYPES,
    FLOAT32,
    FLOAT64,
    LAYOUTS,
    Layout,
    assert_same_bits,
    cast,
    guarded_input,
    guarded_output,
    integers,
)
from cases import CASES, FACES, OPERANDS, RESULT, Case, exact, library, parse

# full tiles and rests of every vector width, one problem for each kind of kernel one may think of
TILES = [
    "n17 a17>b18 i4x5 k2x3",
    "n17 a16>b33 i4x3 k2x2 x:nia y:nob w:oakb",
    "n16 a33>b16 i3x4 k2x2 x:nia y:nob w:obka",
    "n33 a3>b5 i4x5 k3x2 x:ian y:obn w:obak",
    "n5 a2>b3 i6x33 k3x3 w:bako",
    "n6 a12>b18 g3 i5x4 k3x2 s2x1 p1 x:nia y:nob",
]


@pytest.mark.parametrize("line", TILES)
def test_guards(face: str, dtype: np.dtype, line: str, rng: np.random.Generator) -> None:
    """In every layout nothing around the arrays is written, nor read into a result."""
    case = parse(line)
    plain = [integers(rng, case.shape(s), dtype, case.terms(face)) for s in OPERANDS[face]]
    want = cast(exact(face, case, *plain), dtype)
    orders = [Layout(case.order(s)) for s in (*OPERANDS[face], RESULT[face])]
    choices = [[order, *LAYOUTS.values()] for order in orders]
    for one, two, three in zip(choices[0], choices[1], choices[2], strict=True):
        first, second = guarded_input(plain[0], one), guarded_input(plain[1], two)
        out = guarded_output(want.shape, dtype, three)
        library(face, case, first.array, second.array, out=out.array)
        out.check_written(three)
        assert_same_bits(out.array, want, (one, two, three))
        out.check_surroundings(three)
        first.check_unchanged(one)
        second.check_unchanged(two)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_byte_offsets(face: str, dtype: np.dtype, threads: int, rng: np.random.Generator) -> None:
    """Pointers at every offset from a 64-byte boundary that the element type allows."""
    step = dtype.itemsize // (2 if dtype.kind == "c" else 1)
    for line in ("n3 a9>b17 i4x5 k2x3", "n17 a16>b8 i3x4 k2x2 x:nia y:nob w:oakb"):
        case = parse(line)
        plain = [integers(rng, case.shape(s), dtype, case.terms(face)) for s in OPERANDS[face]]
        want = cast(exact(face, case, *plain), dtype)
        seats = (*OPERANDS[face], RESULT[face])
        for offset in range(0, 64, step):
            shifts = (offset, (3 * offset + step) % 64, (64 - offset) % 64)
            one, two, three = (
                Layout(case.order(seat), offset=shift)
                for seat, shift in zip(seats, shifts, strict=True)
            )
            first, second = guarded_input(plain[0], one), guarded_input(plain[1], two)
            out = guarded_output(want.shape, dtype, three)
            library(face, case, first.array, second.array, out=out.array, num_threads=threads)
            assert_same_bits(out.array, want, f"{line} offsets {shifts}")
            out.check_surroundings(offset)


def test_idle_strides(face: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    """The stride of an axis of extent 1 means nothing, however wild."""
    case = parse("n1 a1>b2 i1x6 k1x3")
    plain = [integers(rng, case.shape(s), dtype, case.terms(face)) for s in OPERANDS[face]]
    want = cast(exact(face, case, *plain), dtype)

    def wild(array: np.ndarray, stride: int) -> np.ndarray:
        steps = [stride if d == 1 else s for d, s in zip(array.shape, array.strides, strict=True)]
        return as_strided(array, array.shape, steps)

    for stride in (0, -dtype.itemsize, 2**40 * dtype.itemsize, -(2**50) * dtype.itemsize):
        out = guarded_output(want.shape, dtype)
        library(
            face, case, wild(plain[0], stride), wild(plain[1], stride), out=wild(out.array, stride)
        )
        assert_same_bits(out.array, want, stride)
        out.check_surroundings(stride)


# --- results --------------------------------------------------------------------------------------


def _memory_order(array: np.ndarray) -> tuple[int, ...]:
    """Axes from the largest stride to the smallest."""
    assert min(array.shape) > 1
    return tuple(sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis])))


@pytest.mark.parametrize("face", ["forward", "grad_input"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_result_takes_the_memory_order_of_its_operand(
    face: str, axes: int, rng: np.random.Generator
) -> None:
    """y lies as x lies and dx as dy lies, without gaps."""
    sizes = {1: ((7,), (3,)), 2: ((6, 5), (2, 3)), 3: ((4, 5, 3), (2, 2, 2))}[axes]
    case = Case(
        n=3, a=4, b=5, i=sizes[0], k=sizes[1], s=(1,) * axes, p=((0, 0),) * axes, d=(1,) * axes,
        e=(1,) * axes,
    )  # fmt: skip
    plain = [integers(rng, case.shape(s), FLOAT32, case.terms(face)) for s in OPERANDS[face]]
    want = exact(face, case, *plain).astype(FLOAT32)
    orders = list(itertools.permutations(range(axes + 2)))
    for order in orders if axes < 3 else orders[::7]:
        for gap in (0, 2):
            first = guarded_input(plain[0], Layout(order, gap=gap))
            got = library(face, case, first.array, plain[1])
            assert isinstance(got, np.ndarray)
            assert_same_bits(got, want, order)
            assert _memory_order(got) == order
            assert np.prod(got.shape) * got.itemsize == got.strides[order[0]] * got.shape[order[0]]


def test_results_are_new_memory(face: str, rng: np.random.Generator) -> None:
    case = parse("n2 a3>b4 i5x4 k2x3")
    operands = [integers(rng, case.shape(s), FLOAT32, case.terms(face)) for s in OPERANDS[face]]
    got = library(face, case, *operands)
    assert isinstance(got, np.ndarray)
    assert got.flags.writeable
    assert not any(np.shares_memory(got, operand) for operand in operands)
    again = library(face, case, *operands)
    assert isinstance(again, np.ndarray)
    assert not np.shares_memory(got, again)
    kept = got.copy()
    del operands
    again[...] = 0
    assert_same_bits(got, kept, "a result outlives its operands")


def test_out_is_never_a_copy(face: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    """Whatever its strides, `out` itself is written and returned."""
    case = parse("n3 a4>b5 i5x4 k2x3")
    operands = [integers(rng, case.shape(s), dtype, case.terms(face)) for s in OPERANDS[face]]
    want = cast(exact(face, case, *operands), dtype)
    for name, layout in LAYOUTS.items():
        out = guarded_output(want.shape, dtype, layout)
        view = out.array[...]
        assert library(face, case, *operands, out=view) is view
        assert_same_bits(out.array, want, name)
        out.check_surroundings(name)


def _check_strides(case: Case, steps: tuple[int, ...], first: np.ndarray, dy: np.ndarray) -> bool:
    """grad_weight into element strides `steps`: exact if no elements meet, else refused."""
    shape = case.shape("w")
    places = np.zeros(1, np.int64)
    for extent, step in zip(shape, steps, strict=True):
        places = (places[:, None] + step * np.arange(extent)).ravel()
    start = 8 - places.min()
    buffer = np.full(start + places.max() + 9, 77, first.dtype)
    before = buffer.copy()
    out = as_strided(buffer[start:], shape, tuple(s * buffer.itemsize for s in steps))
    if len(np.unique(places)) < len(places):
        with pytest.raises(ValueError, match="out"):
            library("grad_weight", case, first, dy, out=out)
        assert_same_bits(buffer, before, f"{shape} {steps}")
        return False
    want = exact("grad_weight", case, first, dy).astype(first.dtype)
    before[start + places] = want.ravel()
    library("grad_weight", case, first, dy, out=out)
    assert_same_bits(buffer, before, f"{shape} {steps}")
    return True


def test_out_that_meets_itself_in_small_strides(rng: np.random.Generator) -> None:
    """All strides 0..9 of a small weight: the overlap test must be exact in both directions."""
    case = parse("n2 a1>b2 i4 k3")
    assert case.shape("w") == (2, 2, 1, 3)
    x, dy = (integers(rng, case.shape(s), FLOAT32, case.n) for s in "xy")
    counts = {True: 0, False: 0}
    for o, b, k in itertools.product(range(10), repeat=3):
        counts[_check_strides(case, (o, b, 0, k), x, dy)] += 1
    assert min(counts.values()) > 200


def test_out_that_meets_itself_in_random_strides(rng: np.random.Generator) -> None:
    counts = {True: 0, False: 0}
    for _ in range(3000):
        i, k, pad = (tuple(int(v) for v in rng.integers(1, 4, 2)) for _ in range(3))
        case = Case(
            n=2, a=int(rng.integers(1, 3)), b=int(rng.integers(1, 4)), i=i, k=k, s=(1, 2),
            p=tuple((q, 2) for q in pad), d=(1, 1), e=(1, 1),
        )  # fmt: skip
        x, dy = (rng.integers(1, 9, case.shape(s)).astype(FLOAT32) for s in "xy")
        reach = int(rng.choice([6, 40, 150]))
        steps = tuple(int(v) for v in rng.integers(-reach, reach + 1, 6))
        counts[_check_strides(case, steps, x, dy)] += 1
    assert min(counts.values()) > 200


def test_inputs_may_share_memory(dtype: np.dtype, rng: np.random.Generator) -> None:
    """The same array twice, and windows of one array that overlap, are only read."""
    case = parse("n2 a3>b3 i4 k1")
    both = integers(rng, case.shape("x"), dtype, case.n)
    guarded = guarded_input(both)
    want = cast(exact("grad_weight", case, both, both), dtype)
    assert_same_bits(library("grad_weight", case, guarded.array, guarded.array), want)
    guarded.check_unchanged()

    line = integers(rng, (40,), dtype, 8)
    size = dtype.itemsize
    windows = as_strided(line, (2, 2, 6), (5 * size, 3 * size, size))  # unfolded: elements repeat
    weights = as_strided(line[7:], (5, 3, 2, 2), (size, 2 * size, size, 3 * size))
    case = parse("n2 a2>b3 i6 k2")
    want = cast(exact("forward", case, windows.copy(), weights.copy()), dtype)
    assert_same_bits(library("forward", case, windows, weights), want)


def test_read_only_inputs(face: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    case = parse("n2 a3>b4 i5x4 k2x3")
    operands = [integers(rng, case.shape(s), dtype, case.terms(face)) for s in OPERANDS[face]]
    for operand in operands:
        operand.flags.writeable = False
    want = cast(exact(face, case, *operands), dtype)
    assert_same_bits(library(face, case, *operands), want, face)


# --- the layer this library began with: weights indexed by the input position ---------------------


class _Julia:
    """c[s,t,c2,b] = sum x[s+i,t+j,c1,b] * W[s+i,t+j,i,j,c1,c2], column-major, from 0 here."""

    def __init__(self, sizes: tuple[int, ...], dtype: np.dtype, rng: np.random.Generator) -> None:
        self.width, self.height, self.kw, self.kh, self.c1, self.c2, self.batch = sizes
        self.out = (self.width - self.kw + 1, self.height - self.kh + 1)
        terms = max(self.kw * self.kh * max(self.c1, self.c2), self.batch)

        def fortran(*shape: int) -> np.ndarray:
            return np.asfortranarray(integers(rng, shape, dtype, terms))

        self.x = fortran(self.width, self.height, self.c1, self.batch)
        self.w = fortran(self.width, self.height, self.kw, self.kh, self.c1, self.c2)
        self.dy = fortran(*self.out, self.c2, self.batch)

    def weights(self, w: np.ndarray) -> np.ndarray:
        """The library's (*out, C_out, C_in, *kernel) as a view: a tap also moves the place."""
        s, t, i, j, c1, c2 = w.strides
        shape = (*self.out, self.c2, self.c1, self.kw, self.kh)
        return as_strided(w, shape, (s, t, c2, c1, i + s, j + t))

    def expected(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """y, dW, dx by the formulas above, one index at a time over positions and taps."""
        kind = np.complex128 if self.x.dtype.kind == "c" else np.float64
        x, w, dy = (v.astype(kind) for v in (self.x, self.w, self.dy))
        y, dw, dx = np.zeros_like(dy), np.zeros_like(w), np.zeros_like(x)
        for s, t in itertools.product(*map(range, self.out)):
            for i, j in itertools.product(range(self.kw), range(self.kh)):
                y[s, t] += w[s + i, t + j, i, j].T @ x[s + i, t + j]
                dw[s + i, t + j, i, j] += x[s + i, t + j].conj() @ dy[s, t].T
                dx[s + i, t + j] += w[s + i, t + j, i, j].conj() @ dy[s, t]
        return y, dw, dx


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "sizes",
    [
        (10, 10, 3, 3, 2, 3, 3),
        (7, 5, 3, 2, 2, 3, 4),
        (6, 9, 2, 4, 5, 2, 1),
        (28, 28, 3, 3, 16, 16, 7),
    ],
    ids=str,
)
def test_input_indexed_weights(
    sizes: tuple[int, ...], dtype: np.dtype, rng: np.random.Generator
) -> None:
    """Read in place, both gradients accumulated in place through strided views, nothing copied."""
    julia = _Julia(sizes, dtype, rng)
    y, dw, dx = julia.expected()
    x, dy = julia.x.transpose(3, 2, 0, 1), julia.dy.transpose(3, 2, 0, 1)
    w = julia.weights(julia.w)
    got = unshared.forward(x, w)
    assert_same_bits(got, cast(y.transpose(3, 2, 0, 1), dtype), "forward")

    start = np.asfortranarray(rng.integers(-3, 4, julia.w.shape).astype(dtype))
    if dtype.itemsize == 2:
        start[...] = 0  # a sum with a start could round: keep to what is exact
    total = start.copy(order="F")
    view = julia.weights(total)
    assert (
        unshared.grad_weight(x.conj(), dy, (julia.kw, julia.kh), out=view, accumulate=True) is view
    )
    assert_same_bits(total, cast(dw + start.astype(dw.dtype), dtype), "grad_weight in place")
    used = np.zeros(julia.w.shape, bool)
    julia.weights(used)[...] = True
    assert not used.all()
    assert_same_bits(total[~used], start[~used], "weights that no place uses")

    grad = np.zeros_like(julia.x)
    view = grad.transpose(3, 2, 0, 1)
    size = (julia.width, julia.height)
    unshared.grad_input(dy, julia.weights(julia.w.conj()), size, out=view, accumulate=True)
    assert_same_bits(grad, cast(dx, dtype), "grad_input in place")


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64, COMPLEX64, COMPLEX128], ids=str)
def test_input_indexed_weights_without_accumulation(
    dtype: np.dtype, rng: np.random.Generator
) -> None:
    """Overwriting through the view leaves the unused entries as they were, too."""
    julia = _Julia((7, 6, 3, 2, 2, 3, 4), dtype, rng)
    dw = julia.expected()[1]
    total = np.full(julia.w.shape, np.nan, dtype, order="F")
    x, dy = julia.x.transpose(3, 2, 0, 1), julia.dy.transpose(3, 2, 0, 1)
    unshared.grad_weight(x.conj(), dy, (3, 2), out=julia.weights(total))
    used = np.zeros(julia.w.shape, bool)
    julia.weights(used)[...] = True
    assert_same_bits(np.where(used, total, 0).astype(dtype), cast(dw, dtype), "used")
    assert np.isnan(total[~used]).all()


def test_all_cases_leave_inputs_alone_in_place(rng: np.random.Generator) -> None:
    """Bytes of both operands before and after, for every case and face, with reused outputs."""
    for case in CASES:
        for face in FACES:
            first, second = (
                guarded_input(
                    rng.standard_normal(case.shape(s)).astype(FLOAT32), Layout(case.order(s))
                )
                for s in OPERANDS[face]
            )
            result = library(face, case, first.array, second.array)
            library(face, case, first.array, second.array, out=result)
            first.check_unchanged(case)
            second.check_unchanged(case)


@pytest.mark.parametrize("order", ["nao", "noa"])
def test_large_results_begin_with_a_line(dtype: np.dtype, order: str) -> None:
    """Whatever their memory order: a kernel can write whole lines of them around the caches."""
    x = np.ones((2, 4, 300, 300), dtype)
    if order == "noa":
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    w = np.ones((300, 300, 3, 4, 1, 1), dtype)
    results = [unshared.forward(x, w), unshared.grad_weight(x, x[:, :3], 1)]
    for result in results:
        assert result.nbytes >= 2**20
        assert result.ctypes.data % 64 == 0
        assert result.dtype == dtype
        assert result.flags.writeable
    assert_same_bits(results[0], np.full(results[0].shape, 4, dtype))
    assert_same_bits(results[1], np.full(results[1].shape, 2, dtype))
