"""The edges of a call: overlap, sizes that do not fit, capsules of every legal form, random calls.

test_malformed.py lists what is refused one thing at a time; here legal and illegal lie close
together.
"""

from __future__ import annotations

import gc
import math
import operator

import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

import unshared
from arrays import (
    BFLOAT16,
    COMPLEX128,
    FLOAT32,
    FLOAT64,
    assert_same_bits,
    cast,
    guarded_output,
    integers,
    same_bits,
)
from capsules import CPU, Producer, Reused
from cases import FACES, OPERANDS, RESULT, Case, exact, library, parse
from conftest import SEED
from oracle import Pairs, Sizes, out_sizes

SMALL = parse("n3 a4>b4 i5 k1")  # x, y of one shape; w (5, 4, 4, 1)


def _operands(case: Case, face: str, dtype: np.dtype = FLOAT32) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [integers(rng, case.shape(s), dtype, case.terms(face)) for s in OPERANDS[face]]


# --- overlap of the result with an operand --------------------------------------------------------


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("shift", [0, 1, 7, -3, 40])
def test_out_over_an_operand(face: str, turn: int, shift: int) -> None:
    """The same memory, or any part of it: refused before anything is written."""
    first, second = _operands(SMALL, face)
    shape = SMALL.shape(RESULT[face])
    count = int(np.prod(shape))
    pool = np.zeros(4 * max(count, first.size, second.size), FLOAT32)
    start = pool.size // 2
    operand = (first, second)[turn]
    inside = pool[start : start + operand.size].reshape(operand.shape)
    inside[...] = operand
    out = pool[start + shift : start + shift + count].reshape(shape)
    pair = (inside, second) if turn == 0 else (first, inside)
    before = pool.copy()
    with pytest.raises(ValueError, match="out") as caught:
        library(face, SMALL, *pair, out=out)
    assert caught.value.argument == "out"  # type: ignore[attr-defined]
    assert_same_bits(pool, before)


def test_out_beside_its_operands(face: str) -> None:
    """Touching is not overlapping: result and operands back to back in one buffer."""
    first, second = _operands(SMALL, face)
    shape = SMALL.shape(RESULT[face])
    count = int(np.prod(shape))
    pool = np.zeros(first.size + count + second.size, FLOAT32)
    one, out, two = np.split(pool, [first.size, first.size + count])
    one, out, two = one.reshape(first.shape), out.reshape(shape), two.reshape(second.shape)
    one[...], two[...] = first, second
    library(face, SMALL, one, two, out=out)
    assert_same_bits(out, exact(face, SMALL, first, second).astype(FLOAT32))
    assert_same_bits(one, first)
    assert_same_bits(two, second)


def test_out_between_the_elements_of_an_operand(face: str) -> None:
    """Interleaved but disjoint: exact, or refused as overlapping memory - never wrong."""
    first, second = _operands(SMALL, face)
    shape = SMALL.shape(RESULT[face])
    pool = np.zeros((max(first.size, int(np.prod(shape))), 2), FLOAT32)
    one = pool[: first.size, 0].reshape(first.shape)
    assert np.shares_memory(one, pool)
    out = pool[: int(np.prod(shape)), 1].reshape(shape)
    one[...] = first
    before = pool.copy()
    try:
        library(face, SMALL, one, second, out=out)
    except ValueError:
        assert_same_bits(pool, before)
    else:
        assert_same_bits(out, exact(face, SMALL, first, second).astype(FLOAT32))
    assert_same_bits(one, first)


def test_empty_arrays_overlap_nothing() -> None:
    pool = np.ones(64, FLOAT32)
    x, w = pool[:0].reshape(0, 2, 4), pool[:12].reshape(2, 3, 2, 1)
    w = as_strided(w, (3, 3, 2, 2), (4, 4, 4, 4))
    got = unshared.forward(x, w, out=pool[5:5].reshape(0, 3, 3))
    assert got.shape == (0, 3, 3)
    assert np.all(pool == 1)


# --- sizes that fit no memory ---------------------------------------------------------------------


def _expanded(shape: Sizes, dtype: np.dtype = FLOAT32) -> np.ndarray:
    """One element in memory, any number of them in the shape."""
    return as_strided(np.ones(1, dtype), shape, (0,) * len(shape))


@pytest.mark.parametrize(
    ("x", "dy", "error"),
    [
        ((1, 2**20, 2**20), (1, 2**20, 2**20), (MemoryError, ValueError)),  # 2**60 weights
        ((1, 2**21, 2**20), (1, 2**20, 2**20), ValueError),  # 2**63 bytes
        ((1, 2**21, 2**21), (1, 2**20, 2**21), ValueError),  # 2**62 weights
        ((1, 2**21, 2**21), (1, 2**21, 2**21), ValueError),  # 2**63 weights
        ((1, 2**30, 2**30), (1, 2**30, 2**30), ValueError),  # 2**90 weights
    ],
)
def test_results_too_large(x: Sizes, dy: Sizes, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        unshared.grad_weight(_expanded(x), _expanded(dy), 1)
    assert isinstance(caught.value, (ValueError, MemoryError))


def test_a_result_no_machine_can_hold() -> None:
    """2**50 elements: legal sizes, a MemoryError, and the library goes on."""
    for _ in range(3):
        with pytest.raises(MemoryError):
            unshared.grad_weight(_expanded((1, 2**15, 2**20)), _expanded((1, 2**15, 2**20)), 1)
    with pytest.raises(MemoryError):
        unshared.forward(_expanded((2**30, 2, 2**10)), _expanded((2**10, 2**10, 2, 1)))
    with pytest.raises(MemoryError):
        unshared.grad_input(_expanded((2**30, 2, 2**10)), _expanded((2**10, 2, 2**10, 1)), 2**10)
    test_out_beside_its_operands("forward")


def test_complex_sizes_count_bytes() -> None:
    with pytest.raises((ValueError, MemoryError)):
        unshared.grad_weight(
            _expanded((1, 2**20, 2**19), COMPLEX128), _expanded((1, 2**20, 2**19), COMPLEX128), 1
        )


def test_extents_beyond_the_limit() -> None:
    """No extent above 2**31 - 1, wherever it comes from (and before `out` is looked at)."""
    out = guarded_output((1, 2, 3), FLOAT32)
    for shape, weight in [
        ((2**31, 2, 3), (3, 2, 2, 1)),
        ((1, 2**31, 3), (3, 2, 2**31, 1)),
        ((1, 2, 2**31), (2**31, 2, 2, 1)),
        ((1, 2, 3), (3, 2**31, 2, 1)),
    ]:
        with pytest.raises(ValueError, match=r"unshared\.forward") as caught:
            unshared.forward(_expanded(shape), _expanded(weight), out=out.array)
        assert caught.value.argument in ("x", "w")
        out.check_unchanged()


# --- capsules -------------------------------------------------------------------------------------

FORMS: dict[str, dict[str, object]] = {
    "versioned": {},
    "version 1.1": {"version": (1, 1)},
    "unversioned": {"version": None},
    "no strides": {"strides": None, "version": None},
    "no strides, versioned": {"strides": None, "version": (1, 0)},
    "read-only": {"flags": 1},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64, BFLOAT16, COMPLEX128], ids=str)
def test_capsules(face: str, form: str, dtype: np.dtype) -> None:
    """Objects with nothing but __dlpack__ are read in place, and every capsule is released."""
    case = parse("n2 a3>b2 i4x5 k2x3 p1x0")
    plain = _operands(case, face, dtype)
    want = cast(exact(face, case, *plain), dtype)
    producers = [Producer(v, **FORMS[form]) for v in plain]
    got = library(face, case, *producers)
    if not isinstance(got, np.ndarray):
        got = np.from_dlpack(got)
    assert_same_bits(got, want, form)
    if form != "read-only":
        out = guarded_output(want.shape, dtype)
        writable = Producer(out.array, **FORMS[form])
        assert library(face, case, *producers, out=writable) is writable
        assert_same_bits(out.array, want, form)
        out.check_surroundings(form)
        producers.append(writable)
    gc.collect()
    for producer in producers:
        assert producer.exported > 0
        assert producer.released == producer.exported, "a capsule was never released"


def test_capsules_with_an_offset(face: str) -> None:
    """`byte_offset` counts from `data`; strides are elements, also negative and zero ones."""
    case = parse("n2 a3>b2 i4x5 k2x3")
    plain = _operands(case, face)
    want = exact(face, case, *plain).astype(FLOAT32)
    shifted = []
    for array in plain:
        raw = np.full(array.size + 11, np.nan, FLOAT32)
        raw[11:] = array.ravel()
        shifted.append(
            Producer(raw, shape=array.shape, ndim=array.ndim, strides=None, byte_offset=44)
        )
    backwards = [Producer(v[::-1].copy()[::-1]) for v in plain]
    for pair in (shifted, backwards):
        got = library(face, case, *pair)
        assert_same_bits(got if isinstance(got, np.ndarray) else np.from_dlpack(got), want)


def test_capsules_of_nothing() -> None:
    """A NULL pointer is legal where there is no element."""
    x = Producer(np.empty((0, 2, 4), FLOAT32), data=None)
    dy = Producer(np.empty((0, 3, 3), FLOAT32), data=None)
    got = unshared.grad_weight(x, dy, 2)
    got = got if isinstance(got, np.ndarray) else np.from_dlpack(got)
    assert_same_bits(got, np.zeros((3, 3, 2, 2), FLOAT32))


def test_a_capsule_is_consumed_once(face: str) -> None:
    first, second = _operands(SMALL, face)
    reused = Reused(first)
    library(face, SMALL, reused, second)
    with pytest.raises(TypeError):
        library(face, SMALL, reused, second)
    out = guarded_output(SMALL.shape(RESULT[face]), FLOAT32)
    for turn in (0, 1):
        pair: list[object] = [first, second]
        pair[turn] = Reused(pair[turn])  # type: ignore[arg-type]
        library(face, SMALL, *pair)
        with pytest.raises(TypeError):
            library(face, SMALL, *pair, out=out.array)
        out.check_unchanged()


def test_refused_capsules_are_released(face: str) -> None:
    """Errors after the import must give back what was imported."""
    first, second = _operands(SMALL, face)
    producers = [Producer(first), Producer(second)]
    for _ in range(5):
        with pytest.raises(ValueError, match="stride"):
            getattr(unshared, face)(*producers, *SMALL.sizes(face), stride=0)
    gc.collect()
    assert [p.released for p in producers] == [p.exported for p in producers]
    assert producers[0].__dlpack_device__() == (CPU, 0)


# --- random calls ---------------------------------------------------------------------------------

NASTY = [0, 1, 2, 3, -1, 2**31 - 1, 2**31, 2**63, True, 1.0, None, "same", (), (1,), (1, 2), (2, 1)]
NASTY += [
    (1, 1, 1),
    ((1, 1), (0, 1)),
    ((1, 0),),
    (1, True),
    (0, 1),
    (2**31, 1),
    np.int16(2),
    "valid",
]
DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "input_dilation": 1, "groups": 1}


class _BadCallError(Exception):
    """The call is not legal; carries the kind of error that must come."""


def _whole(value: object, low: int) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise _BadCallError("type")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise _BadCallError("type") from None
    if not low <= number < 2**31:
        raise _BadCallError("value")
    return number


def _sizes(value: object, low: int) -> Sizes:
    if not isinstance(value, (tuple, list)):
        return (_whole(value, low),) * 2
    if any(not hasattr(v, "__index__") or isinstance(v, bool) for v in value):
        raise _BadCallError("type or value")  # of a wrong length as well, perhaps
    if len(value) != 2:
        raise _BadCallError("value")
    return tuple(_whole(v, low) for v in value)


def _pairs(value: object, case_options: dict[str, Sizes], size: Sizes, kernel: Sizes) -> Pairs:
    if value == "valid":
        return ((0, 0), (0, 0))
    if value == "same":
        pads = []
        for axis in range(2):
            s, d, e = (case_options[k][axis] for k in ("stride", "dilation", "input_dilation"))
            if s != 1 or e != 1:
                raise _BadCallError("unspecified")
            total = (kernel[axis] - 1) * d
            pads.append((total // 2, total - total // 2))
        return tuple(pads)
    if isinstance(value, str):
        raise _BadCallError("type")
    if isinstance(value, (tuple, list)) and value and isinstance(value[0], tuple):
        if len(value) != 2:
            raise _BadCallError("value")
        return tuple((_whole(low, 0), _whole(high, 0)) for low, high in value)
    return tuple((v, v) for v in _sizes(value, 0))


def _read(options: dict[str, object], face: str, size: object, case: Case) -> Case:
    """The problem the call states, by our own reading of the contract."""
    read = {k: _sizes(options[k], 1) for k in ("stride", "dilation", "input_dilation")}
    groups = _whole(options["groups"], 1)
    i = _sizes(size, 0) if face == "grad_input" else case.i
    k = _sizes(size, 1) if face == "grad_weight" else case.k
    padding = _pairs(options["padding"], read, i, k)
    a = case.a // case.g * groups if face == "grad_input" else case.a
    if a % groups or case.b % groups:
        raise _BadCallError("value")
    if face == "forward" and case.a // groups != case.a // case.g:
        raise _BadCallError("value")
    out = out_sizes(i, k, read["stride"], padding, read["dilation"], read["input_dilation"])
    if out != case.out:
        raise _BadCallError("value")
    return Case(
        n=case.n, a=a, b=case.b, i=i, k=k, s=read["stride"], p=padding, d=read["dilation"],
        e=read["input_dilation"], g=groups,
    )  # fmt: skip


def _check_call(face: str, line: str, changes: dict[str, object]) -> str:
    case = parse(line)
    first, second = _operands(case, face)
    options: dict[str, object] = DEFAULTS | {
        k: v for k, v in case.options.items() if k in DEFAULTS
    }  # fmt: skip
    size: object = case.sizes(face)[0] if case.sizes(face) else None
    if face != "forward" and "size" in changes:
        size = changes["size"]
    options |= {k: v for k, v in changes.items() if k != "size"}
    sizes = () if face == "forward" else (size,)
    kind, stated = "fine", None
    try:
        stated = _read(options, face, size, case)
    except _BadCallError as error:
        kind = str(error)
    if stated and math.prod(stated.shape(RESULT[face])) > 2**20:
        kind, stated = "value", None  # legal, but `out` is not of that size
    shape = stated.shape(RESULT[face]) if stated else case.shape(RESULT[face])
    out = guarded_output(shape, FLOAT32)
    refusal: Exception | None = None
    try:
        getattr(unshared, face)(first, second, *sizes, **options, out=out.array)
    except (TypeError, ValueError) as error:
        refusal = error
    if refusal:
        out.check_unchanged(changes)
        assert isinstance(refusal, unshared.Error)
        assert kind != "fine", f"{face} {line} {changes}: refused: {refusal}"
        if len(changes) == 1:  # of several wrong things the library may name any
            want_error = {"type": TypeError, "value": ValueError}.get(kind, Exception)
            assert isinstance(refusal, want_error), f"{changes}: {refusal!r}"
        return "refused"
    assert kind in ("fine", "unspecified"), f"{face} {line} {changes}: accepted"
    if stated:
        want = exact(face, stated, first, second).astype(FLOAT32)
        assert same_bits(out.array, want), f"{face} {line} {changes}: wrong"
    out.check_surroundings(changes)
    return "computed"


CALLS = (
    st.sampled_from(FACES),
    st.sampled_from(
        ["n2 a2>b4 i3x4 k2x3", "n2 a4>b2 g2 i5x4 k3x2 s2x1 p1x0", "n2 a2>b2 i3 k2"][:2]
    ),
    st.dictionaries(
        st.sampled_from([*DEFAULTS, "size"]), st.sampled_from(NASTY), min_size=0, max_size=3
    ),
)


@settings(max_examples=4000)
@given(*CALLS)
def test_random_calls(face: str, line: str, changes: dict[str, object]) -> None:
    _check_call(face, line, changes)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_random_calls_many(part: int) -> None:
    @seed(SEED + 1 + part)
    @settings(max_examples=10_000, derandomize=False)
    @given(*CALLS)
    def run(face: str, line: str, changes: dict[str, object]) -> None:
        _check_call(face, line, changes)

    run()


def test_single_changes_all() -> None:
    """Each nasty value in each option, alone: both outcomes must occur."""
    outcomes = []
    for face in FACES:
        for line in ("n2 a2>b4 i3x4 k2x3", "n2 a4>b2 g2 i5x4 k3x2 s2x1 p1x0"):
            for name in [*DEFAULTS, "size"]:
                outcomes += [_check_call(face, line, {name: value}) for value in NASTY]
    assert outcomes.count("computed") > 60
    assert outcomes.count("refused") > 500
