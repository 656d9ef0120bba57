"""The same bits on random real data, whatever the threads, the split, the layout, the processor.

These tests compare the library with itself and so reach sizes that the emulated chain of
test_values.py does not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import unshared
from arrays import (
    DTYPES,
    FLOAT32,
    LAYOUTS,
    assert_same_bits,
    guarded_input,
    guarded_output,
    is_half,
    reals,
    same_bits,
)
from cases import CASES, FACES, Case, library, parse
from digest import digests, operands

NONEMPTY = [case for case in CASES if case.work() > 0]
MODEST = [case for case in NONEMPTY if case.work() <= 2_000_000]


def _array(value: object) -> np.ndarray:
    assert isinstance(value, np.ndarray)
    return value


@pytest.mark.parametrize("case", NONEMPTY, ids=str)
def test_thread_counts(face: str, case: Case) -> None:
    """1 to 8 threads, and more than any machine of a test run has."""
    first, second = operands(case, face, FLOAT32)
    want = _array(library(face, case, first, second, num_threads=1))
    for threads in (2, 3, 4, 5, 6, 7, 8, 33, None):
        got = library(face, case, first, second, num_threads=threads)
        assert_same_bits(got, want, f"{threads} threads")


@pytest.mark.parametrize("case", MODEST[::3], ids=str)
def test_thread_counts_of_every_dtype(face: str, dtype: np.dtype, case: Case) -> None:
    first, second = operands(case, face, dtype, "wide")
    want = _array(library(face, case, first, second, num_threads=1))
    for threads in (2, 3, 8):
        got = library(face, case, first, second, num_threads=threads)
        assert_same_bits(got, want, f"{threads} threads")


@pytest.mark.parametrize("case", MODEST[1::4], ids=str)
def test_repeats(face: str, case: Case) -> None:
    first, second = operands(case, face, FLOAT32)
    want = _array(library(face, case, first, second))
    for _ in range(20):
        assert_same_bits(library(face, case, first, second), want)


# --- batch ----------------------------------------------------------------------------------------


def _cuts(n: int) -> list[list[int]]:
    """Where to split a batch: halves, single samples at the ends, blocks of 5 and of 16."""
    plans = [[0, n // 2, n], [0, 1, n], [0, n - 1, n]]
    plans += [[*range(0, n, 5), n], [*range(0, n, 16), n]]
    return [sorted(set(plan)) for plan in plans]


BATCHED = [case for case in MODEST if case.n > 1]


@pytest.mark.parametrize("case", BATCHED, ids=str)
@pytest.mark.parametrize("face", ["forward", "grad_input"])
def test_batch_splits(face: str, dtype: np.dtype, case: Case) -> None:
    """A sample's results do not depend on the batch it came in, nor on its place there."""
    first, w = operands(case, face, dtype)
    want = _array(library(face, case, first, w))
    for cuts in _cuts(case.n):
        for low, high in pairwise(cuts):
            part = library(face, case.with_(n=high - low), first[low:high], w)
            assert_same_bits(part, want[low:high], f"samples {low} to {high}")
    turned = _array(library(face, case, first[::-1], w))
    assert_same_bits(turned[::-1], want, "batch backwards")


@pytest.mark.parametrize("case", BATCHED, ids=str)
@pytest.mark.parametrize("dtype", [d for d in DTYPES if not is_half(d)], ids=str)
def test_batch_splits_of_grad_weight(dtype: np.dtype, case: Case) -> None:
    """Parts in order with `accumulate` continue the chain (half types: below)."""
    x, dy = operands(case, "grad_weight", dtype)
    want = _array(library("grad_weight", case, x, dy))
    for cuts in _cuts(case.n):
        total = np.zeros(want.shape, dtype)
        for low, high in pairwise(cuts):
            part = case.with_(n=high - low)
            library("grad_weight", part, x[low:high], dy[low:high], out=total, accumulate=True)
        assert_same_bits(total, want, cuts)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if is_half(d)], ids=str)
def test_half_types_round_at_the_seam_only(dtype: np.dtype, rng: np.random.Generator) -> None:
    """A whole batch is summed in float32: splitting it must show, or it was rounded on the way."""
    case = parse("n64 a4>b5 i4x3 k2x2")
    x, dy = (reals(rng, case.shape(s), dtype) for s in "xy")
    whole = _array(library("grad_weight", case, x, dy))
    total = np.zeros(whole.shape, dtype)
    for n in range(case.n):
        one = case.with_(n=1)
        library("grad_weight", one, x[n : n + 1], dy[n : n + 1], out=total, accumulate=True)
    assert not same_bits(total, whole)


# --- memory layouts -------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MODEST[::2], ids=str)
def test_layouts(face: str, case: Case) -> None:
    """Each tensor in each layout while the others stay contiguous."""
    first, second = (np.ascontiguousarray(v) for v in operands(case, face, FLOAT32))
    want = _array(library(face, case, first, second))
    for name, layout in LAYOUTS.items():
        one, two = guarded_input(first, layout), guarded_input(second, layout)
        assert_same_bits(library(face, case, one.array, second), want, f"first {name}")
        assert_same_bits(library(face, case, first, two.array), want, f"second {name}")
        out = guarded_output(want.shape, FLOAT32, layout)
        library(face, case, first, second, out=out.array)
        assert_same_bits(out.array, want, f"out {name}")
        out.check_surroundings(name)


@pytest.mark.parametrize(
    "line",
    [
        "n5 a9>b17 i6x5 k3x2 p1",
        "n16 a16>b8 i5x6 k3x3",
        "n3 a8>b16 i4x5 k2x2 s2",
        "n9 a6>b4 g2 i5x4 k2x3 e2",
    ],
)
def test_layouts_crossed(face: str, dtype: np.dtype, line: str) -> None:
    """All layouts of both operands and the result against each other."""
    case = parse(line)
    first, second = operands(case, face, dtype)
    want = _array(library(face, case, first, second))
    names = list(LAYOUTS)
    for i, one in enumerate(names):
        left = guarded_input(first, LAYOUTS[one])
        for j, two in enumerate(names):
            right = guarded_input(second, LAYOUTS[two])
            for step in (0, 3, 7):
                three = names[(i + 3 * j + step) % len(names)]
                out = guarded_output(want.shape, dtype, LAYOUTS[three])
                library(face, case, left.array, right.array, out=out.array)
                assert_same_bits(out.array, want, f"{one}, {two} -> {three}")
                out.check_surroundings(three)


def test_zero_strides(face: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    """Expanded inputs (stride 0 along any set of axes) equal their copies."""
    for line in ("n3 a4>b5 i5x4 k2x3 p1x0", "n8 a16>b16 i4x3 k2x2", "n2 a4>b6 g2 i7 k3 s2"):
        case = parse(line)
        for turn in range(2):
            plain = operands(case, face, dtype)
            shape = plain[turn].shape
            for axes in range(1, 2 ** len(shape), 3):
                small = tuple(1 if axes >> j & 1 else d for j, d in enumerate(shape))
                wide = np.broadcast_to(reals(rng, small, dtype), shape)
                pair, copy = list(plain), list(plain)
                pair[turn], copy[turn] = wide, wide.copy()
                got = library(face, case, *pair)
                want = _array(library(face, case, *copy))
                assert_same_bits(got, want, f"{line} operand {turn} stride 0 along {axes:b}")


# --- processors and processes ---------------------------------------------------------------------


def _child(**environment: str) -> dict[str, dict[str, str]]:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("digest.py"))],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def here() -> dict[str, str]:
    return digests()


@pytest.mark.parametrize("level", unshared.build_info()["isa_built"])
def test_instruction_sets(level: str, here: dict[str, str]) -> None:
    """Every level that was built (a processor without it takes the one below, as capped)."""
    child = _child(UNSHARED_ISA=level)
    usable = unshared.build_info()["isa_usable"]
    if level in usable:
        assert child["info"]["isa"] == level
    wrong = [key for key, value in here.items() if child["digests"][key] != value]
    assert not wrong, f"{len(wrong)} of {len(here)} results differ, first: {wrong[0]}"


def test_another_process_with_one_thread(here: dict[str, str]) -> None:
    child = _child(OMP_NUM_THREADS="1")
    assert child["digests"] == here


def test_digests_tell_results_apart(here: dict[str, str]) -> None:
    assert len(here) >= 1000
    assert len(set(here.values())) > len(here) * 0.95  # the empty problems share theirs


def test_many_python_threads() -> None:
    """Eight Python threads at once, each with problems of its own, alone and nested pools."""
    jobs: list[tuple[Case, str]] = [(case, face) for case in MODEST[::3] for face in FACES]
    want = [_array(library(face, case, *operands(case, face, FLOAT32))) for case, face in jobs]

    def compute(threads: int | None) -> Callable[[int], object]:
        def job(index: int) -> object:
            case, face = jobs[index % len(jobs)]
            return library(face, case, *operands(case, face, FLOAT32), num_threads=threads)

        return job

    with ThreadPoolExecutor(8) as pool:
        for threads in (1, 2, None):
            for index, got in enumerate(pool.map(compute(threads), range(2 * len(jobs)))):
                assert_same_bits(got, want[index % len(jobs)], jobs[index % len(jobs)])
