"""The oracle against other definitions: fma against rational arithmetic, the loops against a padded
array.

Nothing of the library is called here: this file says why the other files may believe oracle.py.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import oracle
from arrays import COMPLEX128, DTYPES, FLOAT32, FLOAT64, assert_same_bits, cast, integers, reals
from cases import CASES, FACES, OPERANDS, Case, chain, exact, parse
from fma import exact as exact_fma
from fma import fma

SMALL = [case for case in CASES if case.work() <= 20_000]


def _bad_for_double_rounding() -> list[tuple[float, float, float]]:
    """float32 triples whose sum lies just beside a float32 tie, by less than float64 can see."""
    triples = []
    for tail in (2.0**-60, -(2.0**-60), 2.0**-120, -(2.0**-149)):
        for tie in (1.0 + 2.0**-23, 1.0, 2.0**24 - 1.0):
            half = float(np.spacing(np.float32(tie))) / 2
            # p * q = tie + half needs 25 bits: (tie + half) itself is a product of two float32
            # numbers
            # whenever it is even in units of half; take p * q = half * odd and c = tie instead
            triples += [(half, 1.0, tie), (half * (1 + 2.0**-23), 1.0, tie), (tail, 1.0, tie)]
    p = np.float32(1 + 2.0**-12)
    triples += [(float(p), float(p), float(-np.float32(p * p))), (float(p), float(p), 2.0**-149)]
    return triples


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("kind", ["normal", "near", "halfway", "cancelling", "extreme", "special"])
def test_fma_rounds_once(dtype: np.dtype, kind: str, rng: np.random.Generator) -> None:
    count = 4000
    p, q, c = (rng.standard_normal(count).astype(dtype) for _ in range(3))
    bits = 24 if dtype == FLOAT32 else 53
    if kind == "near":  # the addend's last bit meets the product's first
        c = (c * 2.0 ** rng.integers(-bits - 2, bits + 2, count)).astype(dtype)
    if (
        kind == "halfway"
    ):  # the product is half a unit of the addend, and a little more or less or nothing
        c = (1 + rng.integers(0, 2**20, count) * 2.0 ** (1 - bits)).astype(dtype)
        h = 2.0 ** -(bits // 2 + 2)  # (1 - h) * (1 + h) is less than 1 by too little for the format
        p = (2.0**-bits * rng.choice([1, 1 - h, h - 1, 1 + h], count)).astype(dtype)
        q = rng.choice([1, 1 + h, -1 - h], count).astype(dtype)
    if kind == "cancelling":
        c = -(p * q)
    if kind == "extreme":
        low, high = (-149, 127) if dtype == FLOAT32 else (-1074, 1023)
        with np.errstate(all="ignore"):
            p, q, c = (np.ldexp(v, rng.integers(low, high, count)).astype(dtype) for v in (p, q, c))
        big = np.abs(p) > 4 * np.finfo(dtype).tiny
        q = np.where(big & (rng.random(count) < 0.5), 1 / np.where(big, p, 1), q).astype(dtype)
    if kind == "special":
        top = np.finfo(dtype).max
        values = np.array(
            [0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, top, -top, np.finfo(dtype).tiny]
        )
        p, q, c = (v.ravel().astype(dtype) for v in np.meshgrid(values, values, values))
    got = fma(p, q, c)
    triples = zip(p.tolist(), q.tolist(), c.tolist(), strict=True)
    want = np.array([exact_fma(*triple, dtype) for triple in triples]).astype(dtype)
    assert_same_bits(got, want, kind)
    if kind == "halfway":  # the data must contain what it is for: two roundings that go wrong
        twice = (p * q + c).astype(dtype)
        assert np.any(twice != want)


def test_fma_of_float32_is_not_fooled_by_float64() -> None:
    for p, q, c in _bad_for_double_rounding():
        got = fma(*(np.array([v], np.float32) for v in (p, q, c)))
        assert_same_bits(got, np.array([exact_fma(p, q, c, FLOAT32)], np.float32), (p, q, c))


def test_rational_fma_by_hand() -> None:
    tiny = float(np.float32(2.0**-149))
    one_up = 1 + 2.0**-23
    assert exact_fma(one_up, one_up, -1 - 2.0**-22, FLOAT32) == 2.0**-46
    assert exact_fma(2.0**-75, 2.0**-75, 0.0, FLOAT32) == 0.0  # half of the smallest: tie, to even
    assert exact_fma(2.0**-75, 3 * 2.0**-76, 0.0, FLOAT32) == tiny
    assert exact_fma(2.0**-24, 1.0, 1.0, FLOAT32) == 1.0
    assert exact_fma(2.0**-24, 1.0, one_up, FLOAT32) == 1 + 2.0**-22
    assert str(exact_fma(-tiny, tiny, 0.0, FLOAT32)) == "-0.0"
    assert str(exact_fma(1.0, -1.0, 1.0, FLOAT32)) == "0.0"
    assert str(exact_fma(-0.0, 1.0, -0.0, FLOAT32)) == "-0.0"
    assert exact_fma(2.0**127, 2.0, 0.0, FLOAT32) == float("inf")


def _by_padding(x: np.ndarray, w: np.ndarray, case: Case) -> np.ndarray:
    """forward again: write x into its padded, dilated frame, then slice windows out of it."""
    axes = len(case.i)
    spread = [(i - 1) * e + 1 if i else 0 for i, e in zip(case.i, case.e, strict=True)]
    frame = np.zeros(
        (*x.shape[:2], *(n + sum(p) for n, p in zip(spread, case.p, strict=True))), x.dtype
    )
    inner = [slice(p[0], p[0] + n, e) for p, n, e in zip(case.p, spread, case.e, strict=True)]
    frame[(..., *inner)] = x
    y = np.zeros(case.shape("y"), x.dtype)
    a, b = case.a // case.g, case.b // case.g
    for o in itertools.product(*map(range, case.out)):
        window = tuple(
            slice(j * s, j * s + (k - 1) * d + 1, d)
            for j, s, k, d in zip(o, case.s, case.k, case.d, strict=True)
        )
        for g in range(case.g):
            seen = frame[(slice(None), slice(g * a, (g + 1) * a), *window)]
            weights = w[(*o, slice(g * b, (g + 1) * b))]
            rest = list(range(1, axes + 2))
            y[(slice(None), slice(g * b, (g + 1) * b), *o)] = np.tensordot(
                seen, weights, (rest, rest)
            )
    return y


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_is_the_padded_window_sum(case: Case, rng: np.random.Generator) -> None:
    x, w = (integers(rng, case.shape(s), FLOAT64, case.terms("forward")) for s in "xw")
    assert_same_bits(exact("forward", case, x, w) + 0.0, _by_padding(x, w, case) + 0.0, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_three_faces_are_one_trilinear_form(case: Case, rng: np.random.Generator) -> None:
    for dtype in (FLOAT64, COMPLEX128):
        x, w, dy = (rng.integers(-8, 9, case.shape(s)).astype(dtype) for s in "xwy")
        if dtype == COMPLEX128:
            x, w, dy = (v + 1j * rng.integers(-8, 9, v.shape) for v in (x, w, dy))
        one = np.sum(dy * exact("forward", case, x, w))
        assert one == np.sum(x * exact("grad_input", case, dy, w))
        assert one == np.sum(w * exact("grad_weight", case, x, dy))


@pytest.mark.parametrize("case", SMALL, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chain_agrees_with_the_exact_value_on_integers(
    case: Case, dtype: np.dtype, rng: np.random.Generator
) -> None:
    for face in FACES:
        first, second = (
            integers(rng, case.shape(s), dtype, case.terms(face)) for s in OPERANDS[face]
        )
        want = cast(exact(face, case, first, second), dtype)
        assert_same_bits(chain(face, case, first, second), want, face)


def test_chain_by_hand(rng: np.random.Generator) -> None:
    """The written order, spelled out element by element with the rational fma."""
    case = parse("n2 a2>b3 i3x4 k2x2 p1:0x0")
    options = case.options
    x, w, dy = (reals(rng, case.shape(s), FLOAT32) for s in "xwy")

    def dot(pairs: list[tuple[float, float]]) -> np.float32:
        total = 0.0
        for p, q in pairs:
            total = exact_fma(float(p), float(q), total, FLOAT32)
        return np.float32(total)

    y = oracle.chain("forward", x, w, **options)
    taps = [(0, 0), (0, 1), (1, 0), (1, 1)]
    inside = [  # place (1, 2) sees rows 0 and 1, columns 2 and 3
        (x[1, a, r, 2 + s], w[1, 2, 2, a, r, s]) for a in range(2) for r, s in taps
    ]
    assert y[1, 2, 1, 2] == dot(inside)
    edge = [(x[0, a, 0, s], w[0, 0, 1, a, 1, s]) for a in range(2) for s in range(2)]
    assert y[0, 1, 0, 0] == dot(edge)  # place (0, 0): its upper taps lie in the padding
    dx = oracle.chain("grad_input", dy, w, case.i, **options)
    reached = [  # input (1, 1) meets places (1..2, 0..1) through taps (1..0, 1..0)
        (dy[1, b, o, s], w[o, s, b, 0, 2 - o, 1 - s])
        for o, s in [(1, 0), (1, 1), (2, 0), (2, 1)]
        for b in range(3)
    ]
    assert dx[1, 0, 1, 1] == dot(reached)
    dw = oracle.chain("grad_weight", x, dy, case.k, **options)
    assert dw[1, 2, 2, 1, 0, 1] == dot([(x[n, 1, 0, 3], dy[n, 2, 1, 2]) for n in range(2)])
    assert not dw[0, :, :, :, 0].any()  # taps in the padding


def test_case_text_round_trips() -> None:
    assert len(CASES) == len(set(CASES)) >= 40
    for case in CASES:
        assert parse(str(case)) == case
        assert min(case.out) > 0, case
        assert case.b != 1 and case.a % case.g == 0 and case.b % case.g == 0, case


@pytest.mark.parametrize(
    "line",
    [
        "",
        "n2 a2>b3 i4",
        "n2 a2>b3 i4x4 k2x2x2",
        "n2 a2b3 i4 k2",
        "n2 n3 a2>b3 i4 k2",
        "q1 n2 a2>b3 i4 k2",
    ],
)
def test_case_text_rejects(line: str) -> None:
    with pytest.raises(ValueError):
        parse(line)
