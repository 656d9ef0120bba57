"""NaN, infinity and zero: which results they may touch.

The rule: taps in the padding are no part of any sum, so their weights cannot matter and their
weight gradient is exactly 0; inside the input no product is ever left out, so 0 * NaN and 0 * Inf
are NaN.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrays import COMPLEX64, FLOAT32, assert_same_bits, guarded_input, integers, reals, same_bits
from cases import CASES, FACES, OPERANDS, RESULT, Case, chain, exact, library, parse
from test_geometry import problems

SMALL = [case for case in CASES if 0 < case.work() <= 60_000 and min(case.i) > 0]


def _finite(array: np.ndarray) -> np.ndarray:
    return np.isfinite(array.astype(np.complex128))


def _check_footprint(case: Case, face: str, dtype: np.dtype, bad: float, seed: int) -> None:
    """One bad element: exactly the results whose sum contains it become bad, the rest keep bits."""
    rng = np.random.default_rng(seed)
    for turn in range(2):
        # small integers: no half type overflows by itself
        operands = [rng.integers(1, 9, case.shape(s)).astype(dtype) for s in OPERANDS[face]]
        clean = library(face, case, *operands)
        assert isinstance(clean, np.ndarray)
        at = tuple(int(rng.integers(d)) for d in operands[turn].shape)
        # who is touched: the same sum over indicators, where nothing can cancel
        ones = [np.ones(v.shape) for v in operands]
        ones[turn][...] = 0
        ones[turn][at] = 1
        touched = exact(face, case, *ones) != 0
        operands[turn][at] = bad * rng.choice([-1, 1])
        got = library(face, case, *operands)
        assert isinstance(got, np.ndarray)
        assert np.array_equal(~_finite(got), touched), f"{case} {face} operand {turn} at {at}"
        kept = np.where(touched, clean, got)
        assert same_bits(kept, clean), f"{case} {face} operand {turn} at {at}: bystanders changed"


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_footprint(face: str, dtype: np.dtype, case: Case, bad: float) -> None:
    _check_footprint(case, face, dtype, bad, 1)


@settings(max_examples=2000)
@given(
    problems(),
    st.sampled_from(FACES),
    st.sampled_from([FLOAT32, COMPLEX64]),
    st.sampled_from([np.nan, np.inf]),
    st.integers(0, 2**32 - 1),
)
def test_footprint_of_random_problems(
    case: Case, face: str, dtype: np.dtype, bad: float, seed: int
) -> None:
    _check_footprint(case, face, dtype, bad, seed)


PADDED = [case for case in SMALL if any(sum(pair) for pair in case.p) or max(case.e) > 1]


def _in_padding(case: Case) -> np.ndarray:
    """True at the weights whose tap lies in the padding (or between dilated inputs)."""
    x = np.ones(case.shape("x"))
    dy = np.ones(case.shape("y"))
    return exact("grad_weight", case, x, dy) == 0


@pytest.mark.parametrize("case", PADDED, ids=str)
def test_weights_in_the_padding_cannot_matter(
    dtype: np.dtype, case: Case, rng: np.random.Generator
) -> None:
    hidden = _in_padding(case)
    assert hidden.any()
    for face in ("forward", "grad_input"):
        first, w = (integers(rng, case.shape(s), dtype, case.terms(face)) for s in OPERANDS[face])
        want = library(face, case, first, w)
        assert isinstance(want, np.ndarray)
        for bad in (np.nan, np.inf):
            spoiled = np.where(hidden, np.array(bad, dtype), w)
            assert_same_bits(library(face, case, first, spoiled), want, face)


@pytest.mark.parametrize("case", PADDED, ids=str)
def test_weight_gradient_in_the_padding_is_zero(
    dtype: np.dtype, case: Case, rng: np.random.Generator
) -> None:
    hidden = _in_padding(case)
    zero = np.zeros(case.shape("w"), dtype)
    for bad in (np.nan, np.inf):
        x, dy = (np.full(case.shape(s), bad, dtype) for s in "xy")
        got = library("grad_weight", case, x, dy)
        assert isinstance(got, np.ndarray)
        assert np.array_equal(~_finite(got), ~hidden)
        assert_same_bits(np.where(hidden, got, zero), zero, "not exactly +0")
        start = reals(rng, case.shape("w"), dtype)
        kept = start.copy()
        library("grad_weight", case, x, dy, out=kept, accumulate=True)
        assert_same_bits(np.where(hidden, kept, zero), np.where(hidden, start, zero), "accumulate")


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_zero_times_infinity_is_nan(face: str, dtype: np.dtype, case: Case) -> None:
    """All zeros against all infinities: every result that has any term is NaN, the others 0."""
    ones = [np.ones(case.shape(s)) for s in OPERANDS[face]]
    touched = exact(face, case, *ones) != 0
    for bad in (np.inf, np.nan):
        for turn in range(2):
            operands = [np.zeros(v.shape, dtype) for v in ones]
            operands[turn][...] = bad
            got = library(face, case, *operands)
            assert isinstance(got, np.ndarray)
            assert np.array_equal(np.isnan(got.astype(np.complex128)), touched)
            nothing = np.zeros(got.shape, dtype)
            assert_same_bits(np.where(touched, nothing, got), nothing, "results without a term")


@pytest.mark.parametrize("case", [c for c in SMALL if c.work() <= 4000], ids=str)
def test_mixtures_follow_the_chain(
    face: str, dtype: np.dtype, case: Case, rng: np.random.Generator
) -> None:
    """Infinities of both signs, NaN, zeros of both signs, largest numbers among real data."""
    largest = float(np.finfo(np.float16).max) if dtype == np.float16 else 2.0**100
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, largest, -largest]

    def sprinkle(values: np.ndarray) -> np.ndarray:
        each = np.where(rng.random(values.shape) < 0.03, rng.choice(special, values.shape), values)
        if dtype.kind == "c":
            # assemble the planes one by one: inf + nan * 1j would spoil the real part
            values.real = np.where(
                rng.random(values.shape) < 0.03, rng.choice(special, values.shape), values.real
            )
            return values
        return each.astype(dtype)

    for accumulate in [False, True] * 3:
        first, second = (sprinkle(reals(rng, case.shape(s), dtype)) for s in OPERANDS[face])
        start = reals(rng, case.shape(RESULT[face]), dtype) if accumulate else None
        want = chain(face, case, first, second, start)
        more = {} if start is None else {"out": start, "accumulate": True}
        assert_same_bits(library(face, case, first, second, **more), want, face)


@pytest.mark.parametrize(
    "shape",
    ["n2 a2>b3 i4x3 k2x2 p1x0", "n5 a1>b1 i8x18 k3x3 p1"],  # the second's padding is computed with
)
def test_signed_zeros(face: str, dtype: np.dtype, shape: str) -> None:
    """A sum of nothing but -0 products is +0 (it starts there) unless `out` began it with -0."""
    case = parse(shape)
    operands = [np.ones(case.shape(s), dtype) for s in OPERANDS[face]]
    operands[0][...] = -0.0 if dtype.kind != "c" else complex(-0.0, 0.0)
    want = chain(face, case, *operands)
    assert_same_bits(library(face, case, *operands), want, face)
    assert not np.signbit(want.real.astype(np.float64)).any()
    start = np.full(case.shape(RESULT[face]), -0.0 if dtype.kind != "c" else complex(-0.0, -0.0))
    start = start.astype(dtype)
    want = chain(face, case, *operands, start)
    assert np.signbit(want.real.astype(np.float64)).any()
    got = library(face, case, *operands, out=start, accumulate=True)
    assert_same_bits(got, want, "from -0")


def test_bad_neighbours_in_the_batch(dtype: np.dtype, rng: np.random.Generator) -> None:
    """A sample's y and dx do not depend on what the other samples hold."""
    for line in ("n9 a3>b5 i6x5 k3x2 p1", "n17 a16>b8 i5x4 k3x2 x:nia y:nob w:oakb"):
        case = parse(line)
        for face in ("forward", "grad_input"):
            first, w = (reals(rng, case.shape(s), dtype) for s in OPERANDS[face])
            want = library(face, case, first, w)
            assert isinstance(want, np.ndarray)
            for n in (0, 4, case.n - 1):
                spoiled = np.full(first.shape, np.nan, dtype)
                spoiled[n] = first[n]
                got = library(face, case, guarded_input(spoiled).array, w)
                assert isinstance(got, np.ndarray)
                assert_same_bits(got[n], want[n], f"{line} {face} sample {n}")
