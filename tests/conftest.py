"""Fixtures and hypothesis profiles. Data: arrays.py; problems: cases.py and cases.txt; truth:
oracle.py.

Every run is the same run unless UNSHARED_TEST_SEED (a number, or `random`) says otherwise; the seed
in use is printed at the top. Tests marked `slow` run only when asked for: `-m slow`. Those marked
`gpu` are skipped where there is none; with UNSHARED_REQUIRE_GPU=1 such a skip is a failure.
"""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Iterator

import hypothesis
import hypothesis.core
import numpy as np
import pytest

import unshared
from arrays import DTYPES
from cases import FACES

# Before the first call of the library: threads for small work, too.
os.environ.setdefault("UNSHARED_WORK_PER_THREAD", "0")

# Before JAX is imported, if it is: a mesh of four devices to shard over, and compilation in haste.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
)

_REQUESTED = os.environ.get("UNSHARED_TEST_SEED", "")
SEED = secrets.randbits(32) if _REQUESTED == "random" else int(_REQUESTED or 0)

_COMMON = {
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": list(hypothesis.HealthCheck),
}
hypothesis.settings.register_profile("same", derandomize=True, database=None, **_COMMON)
hypothesis.settings.register_profile("seeded", database=None, **_COMMON)


def pytest_configure() -> None:
    hypothesis.settings.load_profile("seeded" if _REQUESTED else "same")
    if _REQUESTED:
        hypothesis.core.global_force_seed = SEED


def pytest_report_header() -> str:
    return f"UNSHARED_TEST_SEED={SEED}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is None:
        return
    info = unshared.build_info()
    if not info["cuda_available"]:
        lacks = "this machine has no CUDA device" if info["cuda_built"] else "a build without CUDA"
        pytest.skip(lacks)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.skipped and item.get_closest_marker("gpu"):
        excused = ("could not import", "no second GPU")
        required = os.environ.get("UNSHARED_REQUIRE_GPU") == "1"
        if required and not any(words in str(report.longrepr) for words in excused):
            report.outcome = "failed"
    return report


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the seed and the test's own name, not on other tests."""
    return np.random.default_rng([SEED, zlib.crc32(request.node.nodeid.split("/")[-1].encode())])


@pytest.fixture
def x64() -> Iterator[None]:
    """JAX with 64-bit types, which it otherwise narrows."""
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        yield


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> np.dtype:
    return request.param


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> str:
    return request.param
