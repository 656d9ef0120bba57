"""The library as a guest in a process: fork, threads, the lock of the interpreter, floating-point
modes, reference counts and memory over many calls.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unshared
from arrays import FLOAT32, FLOAT64, assert_same_bits, reals
from cases import FACES, OPERANDS, RESULT, chain, library, parse
from unshared import _core

HERE = Path(__file__).parent

# --- fork -----------------------------------------------------------------------------------------

FORK = """
import os, sys, threading, time
import numpy as np
import unshared

rng = np.random.default_rng(0)
x = rng.standard_normal((16, 8, 14, 14), np.float32)
w = rng.standard_normal((12, 12, 8, 8, 3, 3), np.float32)
dy = rng.standard_normal((16, 8, 12, 12), np.float32)

def all_faces():
    return [unshared.forward(x, w, num_threads=4).tobytes(),
            unshared.grad_input(dy, w, (14, 14), num_threads=4).tobytes(),
            unshared.grad_weight(x, dy, (3, 3)).tobytes()]

def in_child(fork_again):
    pid = os.fork()
    if pid == 0:
        good = all_faces() == want
        if fork_again:
            good = good and in_child(False)
        os._exit(0 if good else 1)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return False
"""

BEFORE = """
pid = os.fork()  # the first call ever is the child's
if pid == 0:
    want = all_faces()
    os._exit(0 if all_faces() == want else 1)
_, status = os.waitpid(pid, 0)
want = all_faces()
assert status == 0 and in_child(False)
"""

AFTER = """
want = all_faces()
assert all(in_child(True) for _ in range(20))
assert all_faces() == want
"""

DURING = """
want = all_faces()
stop = False
def work():
    while not stop:
        assert all_faces() == want
workers = [threading.Thread(target=work) for _ in range(2)]
for worker in workers: worker.start()
try:
    assert all(in_child(False) for _ in range(20))
finally:
    stop = True
    for worker in workers: worker.join()
assert all_faces() == want
"""

POOL = """
import multiprocessing
want = all_faces()
def job(_): return all_faces() == want
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(pool.map_async(job, range(6)).get(timeout=60))
"""


@pytest.mark.parametrize("when", ["BEFORE", "AFTER", "DURING", "POOL"])
def test_fork(when: str) -> None:
    """A forked child computes the same bits, and hangs never (10 s for each child)."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK + globals()[when]],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr


# --- the interpreter's lock -----------------------------------------------------------------------


def test_the_lock_is_released() -> None:
    """While a call computes for a while in one thread, another thread of Python gets on."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 16, 18, 18), np.float32)
    w = rng.standard_normal((16, 16, 16, 16, 3, 3), np.float32)
    seconds = 0.0
    while seconds < 0.2:
        x = np.concatenate([x, x])
        start = time.perf_counter()
        unshared.forward(x, w, num_threads=1)
        seconds = time.perf_counter() - start
    stamps: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            stamps.append(time.perf_counter())
            time.sleep(0.002)

    ticking = threading.Thread(target=tick)
    ticking.start()
    start = time.perf_counter()
    unshared.forward(x, w, num_threads=1)
    end = time.perf_counter()
    stop.set()
    ticking.join()
    middle = [t for t in stamps if start + (end - start) / 4 < t < end - (end - start) / 4]
    assert len(middle) >= 3, f"no other thread ran during {end - start:.3f} s"


# --- floating-point modes -------------------------------------------------------------------------


def test_import_leaves_subnormals_alone() -> None:
    script = """
import threading
import unshared
import numpy as np
assert 5e-324 != 0 and 5e-324 * 1.0 == 5e-324 and 2.5e-323 / 5 == 5e-324
tiny = np.full(100, 1e-40, np.float32)
x, w = np.ones((4, 3, 9), np.float32), np.ones((7, 2, 3, 3), np.float32)
def check():
    assert np.all(tiny * np.float32(0.5) != 0)
    bad.pop()
bad = [1, 1]
check()
unshared.forward(x, w, num_threads=3)
worker = threading.Thread(target=check); worker.start(); worker.join()
assert not bad
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


# FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO of <fenv.h>
ROUNDING = {
    "x86_64": (0x400, 0x800, 0xC00),
    "aarch64": (0x800000, 0x400000, 0xC00000),
}


@pytest.mark.parametrize("mode", range(3), ids=["downward", "upward", "toward zero"])
def test_the_caller_may_round_otherwise(mode: int) -> None:
    """Kernels round to nearest whatever the caller's mode, and leave that mode as it was."""
    wanted = ROUNDING[platform.machine()][mode]
    libm = ctypes.CDLL("libm.so.6")
    case = parse("n5 a6>b7 i6x5 k3x2 p1")
    for face in FACES:
        for dtype in (FLOAT32, FLOAT64):
            rng = np.random.default_rng(mode)
            first, second = (reals(rng, case.shape(s), dtype) for s in OPERANDS[face])
            want = chain(face, case, first, second)
            for threads in (1, 3):
                out = np.empty_like(want)
                assert libm.fesetround(wanted) == 0
                try:
                    library(face, case, first, second, out=out, num_threads=threads)
                finally:
                    after = libm.fegetround()
                    libm.fesetround(0)
                assert after == wanted, "the rounding mode was not restored"
                assert_same_bits(out, want, f"{face} {threads} threads")


def test_the_caller_may_flush_subnormals() -> None:
    torch: Any = pytest.importorskip("torch")  # it can set the processor's flags
    case = parse("n3 a2>b3 i4x3 k2x2")
    for face in FACES:
        rng = np.random.default_rng(1)
        first, second = (reals(rng, case.shape(s), FLOAT32, "tiny") for s in OPERANDS[face])
        want = chain(face, case, first, second)
        assert np.any((want != 0) & (np.abs(want) < np.finfo(FLOAT32).tiny))
        for threads in (1, 3):
            out = np.empty_like(want)
            assert torch.set_flush_denormal(True), "this processor cannot flush: run elsewhere"
            try:
                library(face, case, first, second, out=out, num_threads=threads)
                tiny = np.full(8, 2.0**-126, FLOAT32) * FLOAT32.type(0.5)
            finally:
                torch.set_flush_denormal(False)
            assert not tiny.any(), "the flag was not restored"
            assert_same_bits(out, want, f"{face} {threads} threads")


# --- many calls -----------------------------------------------------------------------------------


def test_reference_counts() -> None:
    case = parse("n2 a3>b4 i5x4 k2x3")
    rng = np.random.default_rng(0)
    for face in FACES:
        first, second = (reals(rng, case.shape(s), FLOAT32) for s in OPERANDS[face])
        out = np.empty(case.shape(RESULT[face]), FLOAT32)
        held = [first, second, out, case.s, case.p, *case.sizes(face)]
        before = [sys.getrefcount(v) for v in held]
        for _ in range(100):
            library(face, case, first, second)
            library(face, case, first, second, out=out)
            with pytest.raises(ValueError, match="stride"):
                getattr(unshared, face)(first, second, *case.sizes(face), stride=0, out=out)
            with pytest.raises(ValueError, match="out"):
                library(face, case, first, second, out=out[1:])
        gc.collect()
        assert [sys.getrefcount(v) for v in held] == before, face


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def test_memory_does_not_grow() -> None:
    case = parse("n2 a3>b4 i5x4 k2x3")
    rng = np.random.default_rng(0)
    x, w, dy = (reals(rng, case.shape(s), FLOAT32) for s in "xwy")

    def calls(count: int) -> None:
        for _ in range(count):
            unshared.forward(x, w)
            unshared.grad_input(dy, w, case.i)
            unshared.grad_weight(x, dy, case.k)
            try:
                unshared.forward(x, dy)
            except ValueError:
                continue
            raise AssertionError("not refused")

    calls(3000)
    gc.collect()
    before = _resident()
    calls(20_000)
    gc.collect()
    assert _resident() - before < 2**19, "80,000 calls grew by more than 6 bytes each"


# --- CUDA's driver --------------------------------------------------------------------------------

DRIVER = """
import os, sys
import numpy as np
import unshared

x, w = np.ones((2, 1, 4, 4), np.float32), np.ones((2, 2, 3, 1, 3, 3), np.float32)
unshared.forward(x, w)
unshared.explain("forward", x, w, place="cuda")
before = os.path.exists(sys.argv[1])
unshared.build_info()
print(before, os.path.exists(sys.argv[1]))
"""


def test_cuda_driver_sleeps_until_it_is_asked_for(tmp_path: Path) -> None:
    """A stand-in for the driver's library leaves a mark when it is loaded."""
    if not _core.build_info()["cuda_built"]:
        pytest.skip("this build has no CUDA kernels")
    mark = tmp_path / "loaded"
    source = (
        "#include <stdio.h>\n"
        "__attribute__((constructor)) static void leave_mark(void) {"
        f' FILE* mark = fopen("{mark}", "w"); if (mark) fclose(mark); }}\n'
    )
    compiler = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(tmp_path / "libcuda.so.1")]
    subprocess.run(compiler, input=source, text=True, check=True)
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER, str(mark)],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert ran.stdout.split() == ["False", "True"], ran.stderr
