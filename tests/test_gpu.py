"""On a GPU: the bits of the CPU, streams, graphs, devices, errors, and every adapter end to end.

All are skipped without one (UNSHARED_REQUIRE_GPU=1: fail). The bulk of the comparisons, and
compute-sanitizer, are in check_gpu.py, which runs this file as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import unshared
from arrays import COMPLEX64, DTYPES, FLOAT32, LAYOUTS, assert_same_bits, reals
from capsules import CUDA, Producer
from cases import CASES, FACES, OPERANDS, RESULT, Case, library, parse
from device import Gpu, compare, random_case

pytestmark = pytest.mark.gpu

CASE = parse("n6 a5>b7 i9x8 k3x2 s2x1 p1")
SMALL = [case for case in CASES if case.work() <= 2_000_000]


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    return Gpu()


@pytest.fixture(scope="module")
def torch() -> Any:
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    return module


def _operands(face: str, case: Case = CASE, dtype: np.dtype = FLOAT32) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [reals(rng, case.shape(seat), dtype) for seat in OPERANDS[face]]


# --- bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_same_bits_as_the_cpu(gpu: Gpu, face: str, case: Case, rng: np.random.Generator) -> None:
    for dtype in DTYPES:
        compare(gpu, face, case, dtype, rng)
        compare(gpu, face, case, dtype, rng, accumulate=True, kind="wide")


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_strides(gpu: Gpu, face: str, name: str, rng: np.random.Generator) -> None:
    for dtype in DTYPES:
        for turn in range(3):
            layouts = [LAYOUTS["contiguous"]] * 3
            layouts[turn] = LAYOUTS[name]
            compare(gpu, face, CASE, dtype, rng, tuple(layouts))


@pytest.mark.parametrize("kind", ["tiny", "nonfinite"])
def test_subnormals_infinities_and_nans(
    gpu: Gpu, face: str, kind: str, rng: np.random.Generator
) -> None:
    """NaN is NaN, of whatever bits; all else equal, and taps in padding are no part of a sum."""
    for dtype in DTYPES:
        compare(gpu, face, CASE, dtype, rng, kind=kind)


def test_random_problems(gpu: Gpu, rng: np.random.Generator) -> None:
    for _ in range(100):
        compare(gpu, rng.choice(FACES), random_case(rng), DTYPES[rng.integers(6)], rng)


# --- streams --------------------------------------------------------------------------------------


def _delay(torch: Any) -> None:
    """Keep the current stream busy for a few milliseconds."""
    torch.cuda._sleep(10_000_000)


def test_work_is_queued_on_the_current_stream(torch: Any, face: str) -> None:
    """Delayed producers, consumers, and the allocator at once giving memory away again."""
    plain = _operands(face)
    want = library(face, CASE, *plain)
    held = [torch.from_numpy(v).cuda() for v in plain]
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream(), torch.cuda.Stream()):
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(30):
                first, second = (torch.full_like(v, float("nan")) for v in held)
                _delay(torch)
                first.copy_(held[0])
                second.copy_(held[1])
                result = library(face, CASE, first, second)
                del first, second  # their memory may now be had
                rubbish = [torch.full_like(v, float("nan")) for v in held]
                copy = result.clone()
                del result, rubbish
                torch.full_like(copy, float("nan"))
            got = copy.cpu().numpy()
        assert_same_bits(got, want, stream)


def test_calls_do_not_wait(torch: Any, face: str) -> None:
    first, second = (torch.from_numpy(v).cuda() for v in _operands(face))
    library(face, CASE, first, second)  # whatever happens once
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(1_000_000_000)
        began = time.perf_counter()
        library(face, CASE, first, second)
        waited = time.perf_counter() - began
        assert not stream.query(), "the stream was waited for"
    stream.synchronize()
    assert waited < 0.1


def test_dlpack_of_torch_from_another_library(torch: Any, face: str) -> None:
    """Producers without a known stream are on the legacy one; so is PyTorch, by default."""
    first, second = (torch.from_numpy(v).cuda() for v in _operands(face))

    class Bare:
        def __init__(self, tensor: Any) -> None:
            self.tensor = tensor

        def __dlpack_device__(self) -> Any:
            return self.tensor.__dlpack_device__()

        def __dlpack__(self, **asked: Any) -> Any:
            return self.tensor.__dlpack__(**asked)

    want = library(face, CASE, *_operands(face))
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            got = library(face, CASE, first, Bare(second))
            assert_same_bits(got.cpu().numpy(), want, stream)
    with pytest.raises(NotImplementedError, match="out="):
        library(face, CASE, Bare(first), Bare(second))


# --- graphs ---------------------------------------------------------------------------------------


def test_graphs(torch: Any, face: str) -> None:
    """Captured, replayed a hundred times with other values, captured anew."""
    rng = np.random.default_rng(8)
    first, second = (torch.from_numpy(v).cuda() for v in _operands(face))
    out = torch.empty(CASE.shape(RESULT[face]), device="cuda")
    library(face, CASE, first, second, out=out)
    torch.cuda.synchronize()
    for _ in range(2):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            before = torch.cuda.memory_stats()["allocation.all.allocated"]
            library(face, CASE, first, second, out=out)
            library(face, CASE, first, second, out=out, accumulate=True)
            assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
        for _ in range(50):
            plain = [reals(rng, CASE.shape(seat), FLOAT32) for seat in OPERANDS[face]]
            for tensor, values in zip((first, second), plain, strict=True):
                tensor.copy_(torch.from_numpy(values))
            graph.replay()
            want = library(face, CASE, *plain)
            library(face, CASE, *plain, out=want, accumulate=True)
            assert_same_bits(out.cpu().numpy(), want, "a replay")


def test_nothing_but_the_result_is_allocated(torch: Any, face: str) -> None:
    first, second = (torch.from_numpy(v).cuda() for v in _operands(face))
    out = library(face, CASE, first, second)
    torch.cuda.synchronize()
    free = torch.cuda.mem_get_info()[0]
    counted = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(100):
        library(face, CASE, first, second, out=out)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == counted
    library(face, CASE, first, second)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == counted + 1
    torch.cuda.synchronize()
    assert torch.cuda.mem_get_info()[0] == free


# --- repeatability, precision ---------------------------------------------------------------------


def test_ten_runs_have_the_same_bits(torch: Any, face: str, dtype: np.dtype) -> None:
    case = parse("n33 a16>b24 i14x13 k3x3 p1")
    tensor = pytest.importorskip("tensors").tensor
    first, second = (tensor(v).cuda() for v in _operands(face, case, dtype))
    modes = [None, "tf32", "3xtf32"] if dtype == FLOAT32 else [None]
    modes += ["fast"] if dtype.name in ("float16", "bfloat16") else []
    for precision in modes:
        runs = [library(face, case, first, second, precision=precision) for _ in range(10)]
        assert all(torch.equal(run, runs[0]) for run in runs), precision


# The unit roundoff of a factor, of which both have one; a step of a sum is off by 2**-23 at most,
# for tensor cores cut off instead of rounding; the result is rounded once more to its dtype.
MODES = {
    ("float32", "tf32"): (2.0**-10, 0.0),
    ("float32", "3xtf32"): (2.0**-20, 0.0),
    ("float16", "fast"): (0.0, 2.0**-11),
    ("bfloat16", "fast"): (0.0, 2.0**-8),
}


@pytest.mark.parametrize(("name", "precision"), MODES)
def test_tensor_cores_keep_within_bounds(
    torch: Any, face: str, name: str, precision: str, rng: np.random.Generator
) -> None:
    """Within the bound at every element, and the same bits of every split of a batch."""
    tensors = pytest.importorskip("tensors")
    dtype = next(d for d in DTYPES if d.name == name)
    factor, stored = MODES[name, precision]
    for line in ("n40 a32>b48 i9x8 k3x3 p1", "n17 a24>b40 i7x6 k2x3", "n5 a3>b7 i5x4 k2 s2"):
        case = parse(line)
        plain = [reals(rng, case.shape(seat), dtype) for seat in OPERANDS[face]]
        on_gpu = [tensors.tensor(v).cuda() for v in plain]
        result = library(face, case, *on_gpu, precision=precision)
        got = tensors.numpy(result.cpu()).astype(np.float64)
        wide = [v.astype(np.float64) for v in plain]
        exact = library(face, case, *wide)
        size = library(face, case, *(np.abs(v) for v in wide))
        terms = max(case.terms(face), 1)
        bound = (2 * factor + factor**2 + 3 * terms * 2.0**-23) * size
        bound += stored * (np.abs(exact) + bound) + 2.0**-25
        worst = float(np.max(np.abs(got - exact) / bound))
        assert worst <= 1, f"{line}: {worst} of the bound"
        if face != "grad_weight":
            parts = [
                library(face, case.with_(n=len(v)), v, on_gpu[1], precision=precision)
                for v in on_gpu[0].split([1, case.n - 1])
            ]
            assert torch.equal(torch.cat(parts), result), line


# --- devices and errors ---------------------------------------------------------------------------


def test_the_current_device_stays_current(torch: Any, gpu: Gpu, face: str) -> None:
    first, second = (torch.from_numpy(v).cuda() for v in _operands(face))
    library(face, CASE, first, second)
    for device in range(torch.cuda.device_count()):
        with torch.cuda.device(device):
            library(face, CASE, first, second)
            assert torch.cuda.current_device() == device
            with pytest.raises(ValueError):
                library(face, CASE, first, second[:1])
            far = [Producer(v, device=(CUDA, 10**6)) for v in (*_operands(face), _out(face))]
            with pytest.raises(unshared.DeviceError):
                library(face, CASE, *far[:2], out=far[2])
            assert torch.cuda.current_device() == device
    got = library(face, CASE, first, second)  # and no error was left behind
    assert_same_bits(got.cpu().numpy(), library(face, CASE, *_operands(face)))


def test_arrays_of_a_device_that_is_not_current(torch: Any, face: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is no second GPU")
    plain = _operands(face)
    first, second = (torch.from_numpy(v).to("cuda:1") for v in plain)
    got = library(face, CASE, first, second)
    assert got.device.index == 1 and torch.cuda.current_device() == 0
    assert_same_bits(got.cpu().numpy(), library(face, CASE, *plain))
    with pytest.raises(ValueError):
        library(face, CASE, first.to("cuda:0"), second)


def _out(face: str) -> np.ndarray:
    return np.zeros(CASE.shape(RESULT[face]), FLOAT32)


def _alone(code: str) -> str:
    """What a program prints, whose process may be lost to CUDA."""
    head = (
        "import os, sys, numpy as np, unshared\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"  # noqa: PTH120
        "from capsules import CUDA, Producer\nfrom device import Gpu\n"
        "gpu = Gpu()\n"
        "x, w = np.ones((2, 3, 5), 'f'), np.ones((4, 6, 3, 2), 'f')\n"
        "def on_gpu(v):\n"
        "    return Producer(v, data=gpu.put(v.reshape(-1).view('u1')), device=(CUDA, 0))\n"
        "first, second, out = map(on_gpu, (x, w, np.zeros((2, 6, 4), 'f')))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", head + code],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_earlier_errors_are_said_to_be_earlier() -> None:
    said = _alone(
        "wild = Producer(x, data=2**46, device=(CUDA, 0))\n"
        "unshared.forward(wild, second, out=out)\n"
        "try:\n    gpu.synchronize()\nexcept RuntimeError:\n    pass\n"
        "try:\n    unshared.forward(first, second, out=out)\n"
        "except unshared.DeviceError as error:\n    print(error.expected)\n"
    )
    assert "earlier operation failed" in said


def test_a_forked_child_is_refused() -> None:
    said = _alone(
        "unshared.forward(first, second, out=out)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try:\n        unshared.forward(first, second, out=out)\n"
        "    except NotImplementedError as error:\n        print(error, flush=True)\n"
        "    assert float(unshared.forward(x, w).sum()) == 288\n"
        "    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "unshared.forward(first, second, out=out)\n"
    )
    assert "forked child" in said


# --- adapters -------------------------------------------------------------------------------------


def test_torch_layer(torch: Any) -> None:
    """Output and gradients of a layer, channels-last and not, eager and under autocast."""
    ut = pytest.importorskip("unshared.torch")
    torch.manual_seed(0)
    here = ut.LocallyConnected2d(6, 8, (9, 7), 3, padding=1, bias=False)
    there = ut.LocallyConnected2d(6, 8, (9, 7), 3, padding=1, bias=False)
    there.load_state_dict(here.state_dict())
    there.cuda()
    for memory in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(5, 6, 9, 7).to(memory_format=memory)
        results = []
        for layer, device in ((here, "cpu"), (there, "cuda")):
            layer.zero_grad()
            leaf = x.detach().to(device).requires_grad_()
            y = layer(leaf)
            (gradient,) = torch.autograd.grad((y**2).sum(), leaf, retain_graph=True)
            (y * 2).backward(y.detach())
            results.append([v.detach().cpu() for v in (y, gradient, leaf.grad, layer.weight.grad)])
            assert y.is_contiguous(memory_format=memory)
        for one, other in zip(*results, strict=True):
            assert torch.equal(one, other)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = there(x.cuda())
    assert y.dtype == torch.bfloat16
    want = ut.locally_connected(x.bfloat16(), here.weight.bfloat16(), padding=1)
    assert torch.equal(y.cpu(), want)


def test_torch_conjugates(torch: Any, face: str) -> None:
    plain = _operands(face, dtype=COMPLEX64)
    first, second = (torch.from_numpy(v).cuda() for v in plain)
    got = library(face, CASE, first.conj(), second)
    assert_same_bits(got.cpu().numpy(), library(face, CASE, plain[0].conj(), plain[1]))


def test_jax() -> None:
    """In a process of its own, for this one's JAX may have been told to stay on the CPU."""
    pytest.importorskip("jax")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    said = _alone(
        "import jax, unshared.jax as adapter\n"
        "try:\n    device = jax.devices('gpu')[0]\n"
        "except RuntimeError:\n    print('no gpu'); sys.exit()\n"
        "rng = np.random.default_rng(0)\n"
        "x, w = (rng.standard_normal(s, 'f') for s in ((4, 3, 9), (4, 6, 3, 3)))\n"
        "def loss(x, w):\n    return (adapter.forward(x, w, stride=2) ** 2).sum()\n"
        "jx, jw = (jax.device_put(v, device) for v in (x, w))\n"
        "y = jax.jit(lambda x, w: adapter.forward(x, w, stride=2))(jx, jw)\n"
        "want = unshared.forward(x, w, stride=2)\n"
        "assert y.devices() == {device} and np.array_equal(y, want)\n"
        "dx, dw = jax.jit(jax.grad(loss, (0, 1)))(jx, jw)\n"
        "assert np.array_equal(dx, unshared.grad_input(2 * want, w, 9, stride=2))\n"
        "assert np.array_equal(dw, unshared.grad_weight(x, 2 * want, 3, stride=2))\n"
        "for _ in range(20):\n    assert np.array_equal(jax.jit(jax.grad(loss))(jx, jw), dx)\n"
        "print('equal')\n"
    )
    if said == "no gpu":
        pytest.skip("this JAX has no CUDA")
    assert said == "equal"


@pytest.fixture
def cupy() -> Iterator[Any]:
    module = pytest.importorskip("cupy")
    yield module
    module.cuda.Device(0).synchronize()


def test_cupy(cupy: Any, face: str) -> None:
    """Its arrays, memory orders and streams; `out`; its pool, from which results come."""
    plain = _operands(face)
    want = library(face, CASE, *plain)
    streams: list[Callable[[], Any]] = [
        lambda: cupy.cuda.Stream.null,
        lambda: cupy.cuda.Stream(non_blocking=True),
        lambda: cupy.cuda.Stream(),
    ]
    for make in streams:
        with make() as stream:
            first, second = map(cupy.asarray, plain)
            got = library(face, CASE, first, second)
            assert isinstance(got, cupy.ndarray) and got.device == first.device
            assert_same_bits(cupy.asnumpy(got), want, stream)
            turned = cupy.asfortranarray(first)
            assert_same_bits(cupy.asnumpy(library(face, CASE, turned, second)), want, "Fortran")
            out = cupy.full(want.shape, cupy.nan, first.dtype)
            assert library(face, CASE, first, second, out=out) is out
            assert_same_bits(cupy.asnumpy(out), want, "out=")
    free = cupy.get_default_memory_pool().total_bytes()
    for _ in range(50):
        library(face, CASE, first, second)
    assert cupy.get_default_memory_pool().total_bytes() == free
