"""Right values: the three faces, every dtype and option, against the exact oracle and the chain.

Integer data are exact in any order of summation, so every result bit is known. On real data the
promised chain fixes every bit. No tolerance anywhere.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import unshared
from arrays import (
    COMPLEX128,
    FLOAT32,
    FLOAT64,
    Layout,
    assert_same_bits,
    cast,
    guarded_input,
    guarded_output,
    integers,
    is_half,
    reals,
    same_bits,
)
from cases import CASES, FACES, OPERANDS, RESULT, Case, chain, exact, library, parse

# the chain is emulated step by step, so it is held against problems of at most so many steps
CHAINED = [case for case in CASES if case.work() <= 60_000]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_exact(face: str, dtype: np.dtype, case: Case, rng: np.random.Generator) -> None:
    """Fresh result, given `out`, and accumulation, in the case's memory orders, inside guards."""
    seats = OPERANDS[face]
    first, second = (
        guarded_input(
            integers(rng, case.shape(seat), dtype, case.terms(face)), Layout(case.order(seat))
        )
        for seat in seats
    )
    want = exact(face, case, first.array, second.array)
    got = library(face, case, first.array, second.array)
    assert_same_bits(got, cast(want, dtype), "fresh")

    shape, layout = case.shape(RESULT[face]), Layout(case.order(RESULT[face]))
    out = guarded_output(shape, dtype, layout)
    assert library(face, case, first.array, second.array, out=out.array) is out.array
    assert_same_bits(out.array, cast(want, dtype), "out=")
    out.check_written("out=")

    start = integers(rng, shape, dtype, case.terms(face))
    more = guarded_output(shape, dtype, layout, start)
    library(face, case, first.array, second.array, out=more.array, accumulate=True)
    assert_same_bits(more.array, cast(want + start.astype(want.dtype), dtype), "accumulate")
    for guarded in (out, more):
        guarded.check_surroundings(face)
    for guarded in (first, second):
        guarded.check_unchanged(face)


@pytest.mark.parametrize("kind", ["normal", "wide"])
@pytest.mark.parametrize("case", CHAINED, ids=str)
def test_chain(face: str, dtype: np.dtype, case: Case, kind: str, rng: np.random.Generator) -> None:
    """The written order of summation, bit for bit, from zero and from what `out` holds."""
    first, second = (reals(rng, case.shape(seat), dtype, kind) for seat in OPERANDS[face])
    if case.work() <= 20_000 or kind == "normal":
        got = library(face, case, first, second)
        assert_same_bits(got, chain(face, case, first, second), "fresh")
    start = reals(rng, case.shape(RESULT[face]), dtype, kind)
    want = chain(face, case, first, second, start)
    got = library(face, case, first, second, out=start, accumulate=True)
    assert_same_bits(got, want, "accumulate")


def test_chain_data_can_tell_orders_apart(rng: np.random.Generator) -> None:
    """The same sums in another order, and with rounded products, give other bits on these data."""
    case = parse("n4 a5>b6 i6x5 k3x2")
    turned = {"forward": 2, "grad_input": 3, "grad_weight": 0}
    for face in FACES:
        first, second = (reals(rng, case.shape(seat), FLOAT32) for seat in OPERANDS[face])
        want = chain(face, case, first, second)
        assert not same_bits(exact(face, case, first, second).astype(FLOAT32), want)
        if face == "grad_weight":
            first, second = first[::-1], second[::-1]  # the batch backwards
        elif face == "grad_input":
            axis = second.ndim - 4  # the output channels backwards
            first, second = first[:, ::-1], np.flip(second, axis)
        else:
            first, second = first[:, ::-1], np.flip(second, turned[face] + 1)
        assert not same_bits(chain(face, case, first, second), want), face


@pytest.mark.parametrize("line", ["n3 a2>b3 i4 k2", "n2 a1>b2 i2x3 k2x2 p1x0"])
def test_chain_keeps_subnormals(face: str, dtype: np.dtype, line: str) -> None:
    """Products and sums around the smallest subnormal: nothing is flushed, -0 is kept."""
    case = parse(line)
    rng = np.random.default_rng(3)
    seen: set[str] = set()
    for _ in range(6):
        first, second = (reals(rng, case.shape(s), dtype, "tiny") for s in OPERANDS[face])
        want = chain(face, case, first, second)
        assert_same_bits(library(face, case, first, second), want, face)
        wide = np.ascontiguousarray(want.astype(np.complex128))
        parts = np.abs(np.stack([wide.real, wide.imag]))
        small = float(np.finfo(np.float32).tiny)
        if dtype in (FLOAT64, COMPLEX128):
            small = float(np.finfo(np.float64).tiny)
        if dtype == np.float16:
            small = 2.0**-14
        seen |= {"subnormal"} if np.any((parts != 0) & (parts < small)) else set()
    assert seen == {"subnormal"}, "the data never reached a subnormal result"


def test_trilinear(face: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    """<dy, F(x, w)> = <dX(dy, w), x> = <dW(x, dy), w>, exactly, with the library's own results."""
    limit, checked = 1 if is_half(dtype) else 8, 0  # results of half types stay below 2**8

    def values(shape: tuple[int, ...]) -> np.ndarray:
        plane = rng.integers(-limit, limit + 1, shape)
        if dtype.kind == "c":
            plane = plane + 1j * rng.integers(-limit, limit + 1, shape)
        return plane.astype(dtype)

    for case in CASES:
        if case.work() > 200_000 or (is_half(dtype) and case.terms(face) > 256):
            continue
        operands = {seat: values(case.shape(seat)) for seat in "xwy"}
        wide = {seat: v.astype(np.complex128) for seat, v in operands.items()}
        result = library(face, case, *(operands[seat] for seat in OPERANDS[face]))
        assert isinstance(result, np.ndarray)
        got = np.sum(wide[RESULT[face]] * result.astype(np.complex128))
        assert got == np.sum(wide["y"] * exact("forward", case, wide["x"], wide["w"])), str(case)
        checked += 1
    assert checked > 50


# every option at small sizes, each against every other
_STRIDE = {1: [(1,), (2,)], 2: [(1, 1), (2, 1), (2, 3)], 3: [(1, 1, 1), (1, 2, 3)]}
_PADDING = {
    1: [((0, 0),), ((1, 1),), ((0, 2),)],
    2: [((0, 0), (0, 0)), ((1, 1), (2, 2)), ((2, 0), (0, 1))],
    3: [((0, 0),) * 3, ((1, 0), (0, 2), (1, 1))],
}
_DILATION = {1: [(1,), (2,)], 2: [(1, 1), (2, 1), (1, 3)], 3: [(1, 1, 1), (2, 1, 1)]}
_SIZES = {1: ((6,), (3,)), 2: ((5, 6), (2, 3)), 3: ((3, 4, 4), (2, 1, 2))}


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_options_crossed(face: str, dtype: np.dtype, axes: int, rng: np.random.Generator) -> None:
    size, kernel = _SIZES[axes]
    count = 0
    for s, p, d, e, g, accumulate, threads in itertools.product(
        _STRIDE[axes],
        _PADDING[axes],
        _DILATION[axes],
        [(1,) * axes, (2, 1, 2)[:axes]],
        [1, 2],
        [False, True],
        [None, 3],
    ):
        if (accumulate, threads) == (True, None):
            continue
        case = Case(n=3, a=2 * g, b=3 * g, i=size, k=kernel, s=s, p=p, d=d, e=e, g=g)
        if min(case.out) <= 0:
            continue
        count += 1
        first, second = (
            integers(rng, case.shape(seat), dtype, case.terms(face)) for seat in OPERANDS[face]
        )
        want = exact(face, case, first, second)
        more: dict[str, object] = {"num_threads": threads}
        if accumulate:
            start = integers(rng, want.shape, dtype, case.terms(face))
            want = want + start.astype(want.dtype)
            more |= {"out": start, "accumulate": True}
        label = f"{case} {sorted(more)}"
        assert_same_bits(library(face, case, first, second, **more), cast(want, dtype), label)
    assert count >= 60


# --- the ways to say the same thing ---------------------------------------------------------------


def _both(case: Case, rng: np.random.Generator, face: str) -> tuple[np.ndarray, np.ndarray]:
    first, second = (reals(rng, case.shape(seat), FLOAT32) for seat in OPERANDS[face])
    return first, second


@pytest.mark.parametrize(
    ("line", "spellings"),
    [
        ("n2 a2>b3 i5x6 k3x2 p1", [1, (1, 1), [1, 1], ((1, 1), (1, 1)), np.int32(1)]),
        ("n2 a2>b3 i5x6 k3x2 p1x2", [(1, 2), ((1, 1), (2, 2)), [(1, 1), [2, 2]]]),
        ("n2 a2>b3 i5x6 k3x2 p0x2:1", [((0, 0), (2, 1)), [[0, 0], [2, 1]]]),
        ("n2 a2>b3 i5x6 k3x2", [0, "valid", (0, 0), ((0, 0), (0, 0))]),
        ("n2 a2>b3 i5x6 k3x5 p1x2", ["same"]),
        ("n2 a2>b3 i5x6 k2x4 p0:1x1:2", ["same"]),  # the odd one goes to the high side
        ("n2 a2>b3 i5x7 k3x2 d2x3 p2x1:2", ["same"]),
        ("n2 a2>b3 i7 k3 p2", [2, (2,), ((2, 2),)]),
        ("n2 a2>b3 i3x4x5 k3 p1", [1, (1, 1, 1), "same"]),
    ],
)
def test_padding_spellings(
    face: str, line: str, spellings: list[object], rng: np.random.Generator
) -> None:
    case = parse(line)
    first, second = _both(case, rng, face)
    want = chain(face, case, first, second)
    for padding in spellings:
        options = case.options | {"padding": padding}
        got = getattr(unshared, face)(first, second, *case.sizes(face), **options)
        assert_same_bits(got, want, padding)


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("n2 a4>b6 g2 i7x8 k3x2 s2 d1 e1", {"stride": 2, "groups": np.int64(2)}),
        ("n2 a2>b3 i7x8 k3x2 s2x1", {"stride": [2, 1]}),
        ("n2 a2>b3 i7x8 k3x2 d2", {"dilation": 2}),
        ("n2 a2>b3 i7x8 k3x2 d1x2", {"dilation": [np.uint8(1), 2]}),
        ("n2 a2>b3 i4x3 k3x2 e2", {"input_dilation": 2}),
        ("n2 a2>b3 i4x3 k3x2 e1x3", {"input_dilation": (1, np.int16(3))}),
        ("n2 a2>b3 i4x3 k3x2", {"precision": "ieee", "num_threads": np.int64(2)}),
        ("n2 a2>b3 i4x3 k3x2", {"precision": None, "num_threads": None, "accumulate": False}),
    ],
)
def test_option_spellings(
    face: str, line: str, options: dict[str, object], rng: np.random.Generator
) -> None:
    case = parse(line)
    first, second = _both(case, rng, face)
    got = getattr(unshared, face)(first, second, *case.sizes(face), **options)
    assert_same_bits(got, chain(face, case, first, second), options)


def test_size_arguments_may_be_numbers(rng: np.random.Generator) -> None:
    case = parse("n2 a2>b3 i5x5 k3x3")
    x, w, dy = (reals(rng, case.shape(s), FLOAT32) for s in "xwy")
    want = chain("grad_input", case, dy, w)
    for size in (5, (5, 5), [5, 5], np.int64(5)):
        assert_same_bits(unshared.grad_input(dy, w, size), want, size)
    assert_same_bits(unshared.grad_input(dy, w, input_size=(5, 5)), want)
    want = chain("grad_weight", case, x, dy)
    for size in (3, (3, 3), [3, 3]):
        assert_same_bits(unshared.grad_weight(x, dy, size), want, size)
    assert_same_bits(unshared.grad_weight(x=x, dy=dy, kernel_size=3), want)


def test_input_size_chooses_among_inputs(rng: np.random.Generator) -> None:
    """With a stride several input sizes give one output size; the rows no window reaches are 0."""
    for line in ("n2 a2>b3 i7x8 k3x2 s3x2", "n2 a2>b3 i8x9 k3x2 s3x2"):
        case = parse(line)
        assert case.out == (2, 4)
        dy, w = _both(case, rng, "grad_input")
        got = unshared.grad_input(dy, w, case.i, stride=(3, 2))
        assert_same_bits(got, chain("grad_input", case, dy, w), line)


def test_explain_and_build_info(face: str, rng: np.random.Generator) -> None:
    case = parse("n4 a3>b8 i12x10 k4x3 s2")
    first, second = _both(case, rng, face)
    out = guarded_output(case.shape(RESULT[face]), FLOAT32)
    said = unshared.explain(face, first, second, *case.sizes(face), **case.options, out=out.array)
    assert said.problem == str(case)
    assert said.flops == 2 * case.work()
    assert said.terms == exact(face, case, *(np.ones_like(v) for v in (first, second))).max()
    assert said.kernel
    out.check_unchanged("explain computes nothing")
    with pytest.raises(ValueError, match="stride"):
        unshared.explain(face, first, second, *case.sizes(face), stride=0)
    with pytest.raises((TypeError, ValueError)):
        unshared.explain("backward", first, second, *case.sizes(face))
    info = unshared.build_info()
    assert info["version"]
    assert info["isa_built"]
