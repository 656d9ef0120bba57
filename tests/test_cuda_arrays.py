"""CUDA arrays where there is no GPU: what is refused, what is explained, what a library is asked.

`explain` asks an array's library all that a call would and needs no device, so that producers that
only claim to lie on a GPU show the protocol. What a device does is tested in test_gpu.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cupy_standin
import unshared
from arrays import (
    COMPLEX64,
    DTYPES,
    FLOAT32,
    FLOAT64,
    LAYOUTS,
    MARGIN,
    guarded_input,
    is_half,
)
from capsules import CUDA, MANAGED, Producer
from cases import CASES, OPERANDS, Case, parse
from device import Host, compare, random_case

CASE = parse("n3 a4>b6 g2 i7x8 k3x2 s2x1 p1x0")
without_gpu = pytest.mark.skipif(
    unshared.build_info()["cuda_available"], reason="these arrays are not really on the GPU"
)


def _operands(face: str, dtype: np.dtype = FLOAT32, case: Case = CASE) -> list[np.ndarray]:
    return [np.ones(case.shape(seat), dtype) for seat in OPERANDS[face]]


def _explain(face: str, first: object, second: object, case: Case = CASE, **more: object) -> object:
    return unshared.explain(face, first, second, *case.sizes(face), **case.options, **more)


def _on_gpu(array: np.ndarray, device: tuple[int, int] = (CUDA, 0)) -> Producer:
    return Producer(array, device=device)


# --- explain --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_explained_on_any_machine(face: str, case: Case) -> None:
    """A kernel for every case, its problem that of the CPU, every reason a sentence."""
    for dtype in (FLOAT32, COMPLEX64) if case.work() > 100_000 else DTYPES:
        arrays = _operands(face, dtype, case)
        here, there = (_explain(face, *arrays, case, place=place) for place in ("cpu", "cuda"))
        assert isinstance(there, unshared.Explanation) and isinstance(here, unshared.Explanation)
        assert there.level == "cuda" and there.kernel
        assert here.level in unshared.build_info()["isa_built"]
        assert here[:6] == there[:6], "problem, dtype, work"
        assert all(name and reason for name, reason in there.declined)
        assert "(cuda)" in str(there)
        assert here.predicted is None and "predicted" not in str(here)
        if there.predicted is None:
            assert there.flops == 0, "there is no result"
        else:
            assert there.predicted > 1e-6 and "microseconds on an H200" in str(there)
    assert _explain(face, *arrays, case) == here, "by default where the arrays are"


def test_arrays_on_a_gpu_are_explained_there(face: str) -> None:
    """Without a device, too; and by strides, which the exporter tells."""
    plain = _operands(face)
    there = _explain(face, *plain, place="cuda")
    for device in ((CUDA, 0), (CUDA, 3), (MANAGED, 0)):
        assert _explain(face, *(_on_gpu(v, device) for v in plain)) == there
    assert _explain(face, *map(_on_gpu, plain), place="cpu") == _explain(face, *plain)
    turned = [guarded_input(v, LAYOUTS["transposed"]).array for v in plain]
    assert _explain(face, *map(_on_gpu, turned)) == _explain(face, *turned, place="cuda")


def test_explain_refuses_what_a_call_would(face: str) -> None:
    first, second = _operands(face)
    with pytest.raises(unshared.ArgumentValueError) as caught:
        _explain(face, _on_gpu(first), second)
    assert "CUDA device 0" in caught.value.expected
    with pytest.raises(unshared.ArgumentValueError, match="CUDA device 1"):
        _explain(face, _on_gpu(first), _on_gpu(second, (CUDA, 1)))
    with pytest.raises(unshared.ArgumentTypeError):
        _explain(face, _on_gpu(first), _on_gpu(second.astype(FLOAT64)))
    for place, error in (("gpu", ValueError), ("CUDA", ValueError), (0, TypeError)):
        with pytest.raises(error) as wrong:
            _explain(face, first, second, place=place)
        assert isinstance(wrong.value, unshared.Error) and wrong.value.argument == "place"


# --- precision ------------------------------------------------------------------------------------


def test_precisions_by_dtype(face: str, dtype: np.dtype) -> None:
    arrays = _operands(face, dtype)
    known = {"tf32", "3xtf32"} if dtype == FLOAT32 else {"fast"} if is_half(dtype) else set()
    plain = _explain(face, *arrays, place="cuda")
    assert _explain(face, *arrays, place="cuda", precision="ieee") == plain
    for precision in ("tf32", "3xtf32", "fast"):
        for given, place in ((arrays, "cuda"), (list(map(_on_gpu, arrays)), None)):
            if precision in known:
                said = _explain(face, *given, place=place, precision=precision)
                assert isinstance(said, unshared.Explanation) and said.level == "cuda"
                continue
            with pytest.raises(unshared.ArgumentValueError) as caught:
                _explain(face, *given, place=place, precision=precision)
            assert caught.value.argument == "precision"
            assert dtype.name in caught.value.expected and precision in caught.value.found


@pytest.mark.parametrize("precision", ["tf32", "3xtf32", "fast"])
def test_precision_is_not_of_the_cpu(face: str, precision: str) -> None:
    arrays = _operands(face)
    for call in (
        lambda: _explain(face, *arrays, precision=precision),
        lambda: _explain(face, *map(_on_gpu, arrays), place="cpu", precision=precision),
        lambda: getattr(unshared, face)(
            *arrays, *CASE.sizes(face), **CASE.options, precision=precision
        ),
    ):
        with pytest.raises(NotImplementedError) as caught:
            call()
        assert isinstance(caught.value, unshared.Error) and caught.value.argument == "precision"


# --- the protocol ---------------------------------------------------------------------------------


def test_unknown_libraries_are_told_the_legacy_stream(face: str) -> None:
    """They must make it wait for their own work; what lies on the CPU is told of no stream."""
    first, second = map(_on_gpu, _operands(face))
    _explain(face, first, second)
    assert [asked["stream"] for v in (first, second) for asked in v.asked] == [1, 1]
    assert (first.released, second.released) == (first.exported, second.exported) == (1, 1)
    first, second = map(Producer, _operands(face))
    _explain(face, first, second, place="cuda")
    assert not [asked for v in (first, second) for asked in v.asked if "stream" in asked]


class _Old(Producer):
    def __dlpack__(self, stream: object = None) -> object:
        return super().__dlpack__(stream=stream)


def test_exporters_from_before_versions_are_told_too(face: str) -> None:
    first, second = (_Old(v, device=(CUDA, 0), version=None) for v in _operands(face))
    _explain(face, first, second)
    assert [v.asked for v in (first, second)] == [[{"stream": 1}]] * 2


@without_gpu
def test_refused_before_anything_is_asked(face: str) -> None:
    """No export, no stream, no allocation: first the core says that there is no GPU."""
    arrays = [*map(_on_gpu, _operands(face))]
    with pytest.raises(NotImplementedError) as caught:
        getattr(unshared, face)(*arrays, *CASE.sizes(face), **CASE.options)
    assert isinstance(caught.value, unshared.Error)
    built = unshared.build_info()["cuda_built"]
    assert ("CUDA" if built else "this build of unshared has no CUDA") in caught.value.expected
    assert [v.asked for v in arrays] == [[], []]


def test_cupy_protocol() -> None:
    """In a process of its own: the stand-in takes the name of CuPy."""
    done = subprocess.run(
        [sys.executable, Path(cupy_standin.__file__)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [check.__name__ for check in cupy_standin.CHECKS]


# --- the means of test_gpu.py and check_gpu.py ----------------------------------------------------


class _Faulty(Host):
    """Brings back a wrong bit, so many bytes from the middle."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    def get(self, address: int, data: np.ndarray) -> None:
        super().get(address, data)
        data[self._at] ^= 1


def test_comparison_sees_every_bit(face: str, dtype: np.dtype, rng: np.random.Generator) -> None:
    said = compare(Host(), face, CASE, dtype, rng, accumulate=True)
    assert said.level in unshared.build_info()["isa_built"]
    inside, before = MARGIN * dtype.itemsize, MARGIN * dtype.itemsize - 1
    for at, words in ((inside, "differ"), (before, "outside"), (-1, "outside"), (0, "outside")):
        with pytest.raises(AssertionError, match=words):
            compare(_Faulty(at), face, CASE, dtype, rng)


def test_random_cases_are_legal() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        case = random_case(rng)
        assert min(case.out) >= 1 and parse(str(case)) == case


# --- errors ---------------------------------------------------------------------------------------


def test_device_errors_are_runtime_errors() -> None:
    error = unshared.DeviceError.of("forward", "stream", "the kernel to be launched", "a failure")
    assert isinstance(error, RuntimeError) and isinstance(error, unshared.Error)
    assert (error.argument, error.found) == ("stream", "a failure")
    assert "unshared.forward" in str(error)
    assert not issubclass(unshared.DeviceError, unshared.UnsupportedError)
