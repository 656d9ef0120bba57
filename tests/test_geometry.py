"""Every index in its place: all small geometries, one-hot probes, zero sizes, random problems.

The probe needs no oracle: with distinct inputs and one-hot weights an output names the input
element that it saw, and a plain padded frame says which one it must be.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import assume, given, seed, settings
from hypothesis import strategies as st

from arrays import (
    DTYPES,
    FLOAT32,
    FLOAT64,
    LAYOUTS,
    assert_same_bits,
    cast,
    guarded_input,
    guarded_output,
    integers,
    reals,
)
from cases import FACES, OPERANDS, RESULT, Case, chain, exact, library
from conftest import SEED
from oracle import Sizes

# --- all small two-axis geometries ----------------------------------------------------------------


def _one_axis() -> list[tuple[int, int, int, int, int]]:
    """All (size, kernel, stride, dilation, padding) up to 6, 3, 3, 3, 2 that have an output."""
    every = itertools.product(range(1, 7), range(1, 4), range(1, 4), range(1, 4), range(3))
    return [(i, k, s, d, p) for i, k, s, d, p in every if i + 2 * p >= (k - 1) * d + 1]


AXES = _one_axis()
PAIRS = len(AXES) ** 2


def _pair(index: int) -> Case:
    one, two = AXES[index // len(AXES)], AXES[index % len(AXES)]
    i, k, s, d, p = zip(one, two, strict=True)
    return Case(n=2, a=1, b=2, i=i, k=k, s=s, p=tuple((q, q) for q in p), d=d, e=(1, 1))


def _check_pairs(indices: range, face: str) -> int:
    rng = np.random.default_rng(indices.start)
    for index in indices:
        case = _pair(index)
        first, second = (rng.integers(1, 999, case.shape(s)) for s in OPERANDS[face])
        first, second = first.astype(FLOAT32), second.astype(FLOAT32)
        want = exact(face, case, first, second).astype(FLOAT32)
        assert_same_bits(library(face, case, first, second), want, case)
    return len(indices)


def test_one_axis_geometries_are_all_there() -> None:
    assert len(AXES) == 405
    assert PAIRS == 164_025


def test_small_geometries_sample(face: str) -> None:
    """Every 31st of the 164,025; 31 and 405 share no factor, so all pairs of options occur."""
    assert _check_pairs(range(FACES.index(face), PAIRS, 31), face) >= 5291


@pytest.mark.slow
@pytest.mark.parametrize("part", range(32))
def test_small_geometries_all(face: str, part: int) -> None:
    assert _check_pairs(range(part, PAIRS, 32), face) >= PAIRS // 32


# --- one-hot probes -------------------------------------------------------------------------------


def _frame(case: Case) -> np.ndarray:
    """The padded, dilated input with the number (1, 2, ...) of each input element; 0 is padding."""
    spread = [(i - 1) * e + 1 if i else 0 for i, e in zip(case.i, case.e, strict=True)]
    extents = [n + low + high for n, (low, high) in zip(spread, case.p, strict=True)]
    frame = np.zeros((case.a, *extents), np.int64)
    inner = tuple(slice(p[0], p[0] + n, e) for p, n, e in zip(case.p, spread, case.e, strict=True))
    frame[(slice(None), *inner)] = 1 + np.arange(case.a * math.prod(case.i)).reshape(-1, *case.i)
    return frame


def _seen(case: Case, frame: np.ndarray, a: int, k: Sizes) -> np.ndarray:
    """The input numbers that all places see through one tap: a strided slice of the frame."""
    window = tuple(
        slice(t * d, t * d + (o - 1) * s + 1, s)
        for t, d, o, s in zip(k, case.d, case.out, case.s, strict=True)
    )
    return frame[(a, *window)]


def _probe(case: Case) -> None:
    """One output channel per (input channel, tap), each weight one-hot."""
    frame = _frame(case)
    links = list(itertools.product(range(case.a), *map(range, case.k)))
    case = case.with_(b=len(links), n=1)
    x = (1 + np.arange(case.a * math.prod(case.i), dtype=FLOAT32)).reshape(case.shape("x"))
    hot = np.zeros((len(links), case.a, *case.k), FLOAT32)
    for b, link in enumerate(links):
        hot[(b, *link)] = 1
    w = np.broadcast_to(hot, case.shape("w"))  # zero strides: the same one-hot block at each place
    seen = np.stack([_seen(case, frame, a, k) for a, *k in links])
    assert_same_bits(library("forward", case, x, w), seen[None].astype(FLOAT32), case)

    # grad_weight: with dy = 1 the weight gradient at (place, channel, tap) is the input it saw
    dy = np.ones(case.shape("y"), FLOAT32)
    every = seen.reshape(case.a, *case.k, *case.out)
    axes = len(case.i)
    every = np.moveaxis(every, range(axes + 1), range(axes, 2 * axes + 1))
    want = np.broadcast_to(np.expand_dims(every, axes), case.shape("w")).astype(FLOAT32)
    assert_same_bits(library("grad_weight", case, x, dy), want, case)

    # grad_input: with dy the number of its own place, each input collects the places that saw it
    dy = (1 + np.arange(len(links) * math.prod(case.out), dtype=FLOAT32)).reshape(case.shape("y"))
    sums = np.zeros(case.a * math.prod(case.i) + 1, FLOAT64)
    np.add.at(sums, seen.ravel(), dy.astype(FLOAT64).ravel())
    want = sums[1:].reshape(case.shape("x")).astype(FLOAT32)
    assert_same_bits(library("grad_input", case, dy, w), want, case)


def test_probe_small_geometries() -> None:
    for index in range(5, PAIRS, 211):
        _probe(_pair(index).with_(a=2))


def test_probe_input_dilation_and_uneven_padding() -> None:
    count = 0
    ones = itertools.product([1, 3, 4], [1, 2, 3], [1, 2], [1, 2], [(0, 0), (0, 2), (3, 1)], [2, 3])
    for n, (i, k, s, d, p, e) in enumerate(ones):
        case = Case(
            n=1, a=2, b=1, i=(i, 5), k=(k, 2), s=(s, 1), p=(p, (n % 3, 1)), d=(d, 1), e=(e, 2)
        )
        if min(case.out) > 0:
            _probe(case)
            count += 1
    assert count > 150


def test_probe_one_and_three_axes() -> None:
    for i, k, s, d, p in AXES[::3]:
        _probe(Case(n=1, a=3, b=1, i=(i,), k=(k,), s=(s,), p=((p, p),), d=(d,), e=(1,)))
        _probe(
            Case(
                n=1,
                a=1,
                b=1,
                i=(3, i, 4),
                k=(2, k, 3),
                s=(1, s, 2),
                p=((0, 0), (p, p), (1, 0)),
                d=(2, d, 1),
                e=(1, 1, 1),
            )
        )


# --- zero sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("kernel", [0, 1, 3])
def test_zero_sizes(face: str, kernel: int, padding: int) -> None:
    """All of {0, 1, 3} over n, a, b, height, width, kernel: a defined result or a ValueError."""
    counts = {"value": 0, "error": 0}
    rng = np.random.default_rng(0)
    for n, a, b, *i in itertools.product([0, 1, 3], repeat=5):
        case = Case(
            n=n, a=a, b=b, i=tuple(i), k=(kernel,) * 2, s=(1, 1), p=((padding, padding),) * 2,
            d=(1, 1), e=(1, 1),
        )  # fmt: skip
        out = tuple(max(o, 0) for o in case.out)
        shapes = {
            "x": case.shape("x"),
            "y": (n, b, *out),
            "w": (*out, b, a, *case.k),
        }
        first, second = (
            integers(rng, shapes[seat], FLOAT32, case.terms(face)) for seat in OPERANDS[face]
        )
        result = guarded_output(shapes[RESULT[face]], FLOAT32)
        if kernel == 0 or min(case.out) <= 0:
            with pytest.raises(ValueError):
                library(face, case, first, second, out=result.array)
            result.check_unchanged(case)
            counts["error"] += 1
            continue
        want = exact(face, case, first, second).astype(FLOAT32)
        assert_same_bits(library(face, case, first, second), want, case)
        library(face, case, first, second, out=result.array)
        assert_same_bits(result.array, want, case)
        result.check_surroundings(case)
        start = integers(rng, want.shape, FLOAT32, 1)
        more = start.copy()
        library(face, case, first, second, out=more, accumulate=True)
        assert_same_bits(more, start + want, case)
        counts["value"] += 1
    assert sum(counts.values()) == 243
    assert (counts["value"] == 0) == (kernel == 0)
    assert counts["value"] == 243 or counts["error"] > 0


def test_zero_sizes_of_every_dtype(face: str, dtype: np.dtype) -> None:
    for sizes in ({"n": 0}, {"a": 0}, {"b": 0}, {"i": (0, 4)}):
        fields = {"n": 2, "a": 3, "b": 2, "i": (5, 4)} | sizes
        case = Case(**fields, k=(2, 3), s=(1, 1), p=((1, 1), (1, 1)), d=(1, 1), e=(1, 1))  # type: ignore[arg-type]
        first, second = (np.ones(case.shape(seat), dtype) for seat in OPERANDS[face])
        want = np.zeros(case.shape(RESULT[face]), dtype)
        out = guarded_output(want.shape, dtype)
        library(face, case, first, second, out=out.array)
        assert_same_bits(out.array, want, case)
        assert_same_bits(library(face, case, first, second), want, case)


def test_zero_sizes_with_groups() -> None:
    for n, a, b in [(2, 0, 4), (2, 4, 0), (0, 4, 4), (0, 0, 0)]:
        case = Case(n=n, a=a, b=b, i=(4,), k=(2,), s=(1,), p=((0, 0),), d=(1,), e=(1,), g=2)
        for face in FACES:
            first, second = (np.ones(case.shape(seat), FLOAT32) for seat in OPERANDS[face])
            want = np.zeros(case.shape(RESULT[face]), FLOAT32)
            assert_same_bits(library(face, case, first, second), want, case)


# --- random problems ------------------------------------------------------------------------------


@st.composite
def problems(draw: st.DrawFn) -> Case:
    """Any legal small problem of one to three axes."""

    def each(values: st.SearchStrategy[int]) -> Sizes:
        return tuple(draw(values) for _ in range(axes))

    axes = draw(st.integers(1, 3))
    top = {1: 20, 2: 7, 3: 4}[axes]
    g = draw(st.sampled_from([1, 1, 1, 2, 3]))
    case = Case(
        n=draw(st.integers(1, 5)),
        a=g * draw(st.integers(1, 9)),
        b=g * draw(st.integers(2, 9)),
        i=each(st.integers(1, top)),
        k=each(st.integers(1, 4)),
        s=each(st.integers(1, 3)),
        p=tuple((draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(axes)),
        d=each(st.integers(1, 3)),
        e=each(st.integers(1, 3)),
        g=g,
    )
    # make room for the kernel where it does not fit, rather than throw the draw away
    short = [max(1 - o, 0) * s for o, s in zip(case.out, case.s, strict=True)]
    grown = tuple((low, high + m) for (low, high), m in zip(case.p, short, strict=True))
    return case.with_(p=grown)


def _cheap() -> Iterator[st.SearchStrategy]:
    yield problems()
    yield st.sampled_from(FACES)
    yield st.sampled_from(DTYPES)
    yield st.sampled_from(sorted(LAYOUTS))
    yield st.sampled_from(sorted(LAYOUTS))
    yield st.sampled_from(sorted(LAYOUTS))
    yield st.sampled_from([None, 1, 2, 3])
    yield st.booleans()
    yield st.integers(0, 2**32 - 1)


def _check_random(
    case: Case,
    face: str,
    dtype: np.dtype,
    one: str,
    two: str,
    three: str,
    threads: int | None,
    accumulate: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    first, second = (
        guarded_input(integers(rng, case.shape(seat), dtype, case.terms(face)), LAYOUTS[name])
        for seat, name in zip(OPERANDS[face], (one, two), strict=True)
    )
    want = exact(face, case, first.array, second.array)
    start = None
    if accumulate:
        start = integers(rng, want.shape, dtype, case.terms(face))
        want = want + start.astype(want.dtype)
    out = guarded_output(want.shape, dtype, LAYOUTS[three], start)
    library(
        face, case, first.array, second.array, out=out.array, accumulate=accumulate,
        num_threads=threads,
    )  # fmt: skip
    assert_same_bits(out.array, cast(want, dtype), case)
    out.check_surroundings(case)
    first.check_unchanged(case)
    second.check_unchanged(case)


@settings(max_examples=4000)
@given(*_cheap())
def test_random_problems(
    case: Case,
    face: str,
    dtype: np.dtype,
    one: str,
    two: str,
    three: str,
    threads: int | None,
    accumulate: bool,
    seed: int,
) -> None:
    _check_random(case, face, dtype, one, two, three, threads, accumulate, seed)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_random_problems_many(part: int) -> None:
    run = given(*_cheap())(_check_random)
    run = settings(max_examples=5000, derandomize=False)(run)
    seed(SEED + 1 + part)(run)()


@settings(max_examples=1000)
@given(problems(), st.sampled_from(FACES), st.sampled_from(DTYPES), st.integers(0, 2**32 - 1))
def test_random_problems_follow_the_chain(
    case: Case, face: str, dtype: np.dtype, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    case = case.with_(n=min(case.n, 3))
    first, second = (reals(rng, case.shape(seat), dtype, "wide") for seat in OPERANDS[face])
    assume(case.work() <= 30_000)
    assert_same_bits(library(face, case, first, second), chain(face, case, first, second), case)
