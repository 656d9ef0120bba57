"""A stand-in for CuPy, of NumPy's memory, and what unshared must ask of the real one.

Run as a program: it takes the name `cupy`, and a name once taken is kept by the library for good.
Arrays whose memory is declared a GPU's serve `explain`, which asks everything that a call would
except for a device; those whose memory is declared the CPU's are computed with.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any, Self

import numpy as np

import unshared
from capsules import CPU, CUDA, MANAGED, Producer

events: list[object] = []  # what was asked, in order
streams = {0: 0, 1: 0}  # the current one of each device
current = [0]  # devices, the innermost last


class Device:
    def __init__(self, id: int) -> None:  # noqa: A002
        self.id = id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return self.id

    def __enter__(self) -> Self:
        current.append(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        current.pop()


class ndarray:  # noqa: N801
    """As much of CuPy's as is used: a DLPack export that is strict about `stream`."""

    def __init__(self, memory: np.ndarray, device: int = 0, kind: int = CUDA) -> None:
        self.memory, self.device, self.kind = memory, Device(device), kind

    @property
    def dtype(self) -> np.dtype:
        return self.memory.dtype

    def transpose(self, axes: tuple[int, ...]) -> ndarray:
        return ndarray(self.memory.transpose(axes), self.device.id, self.kind)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.kind, self.device.id)

    def __dlpack__(self, **asked: object) -> object:
        if "max_version" in asked and OLD:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        events.append(("export", asked.get("stream")))
        assert ("stream" in asked) == (self.kind != CPU), asked
        return Producer(self.memory, device=self.__dlpack_device__()).__dlpack__()


OLD = False


class _Stream:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


def get_current_stream(device_id: int = -1) -> _Stream:
    events.append(("stream of", device_id))
    return _Stream(streams[device_id])


def empty(shape: tuple[int, ...], dtype: np.dtype) -> ndarray:
    events.append(("empty", shape, current[-1]))
    if current[-1] == 1 and full[0]:
        raise MemoryError("out of memory")
    return ndarray(np.empty(shape, dtype), current[-1], CPU)


full = [False]
cupy: Any = types.ModuleType("cupy")
cupy.ndarray, cupy.empty = ndarray, empty
cupy.cuda = types.SimpleNamespace(get_current_stream=get_current_stream)

X, W = np.ones((2, 3, 5, 4), np.float32), np.ones((4, 3, 6, 3, 2, 2), np.float32)


def refusal(call: Callable[[], object]) -> unshared.Error:
    try:
        call()
    except unshared.Error as error:
        return error
    raise AssertionError("not refused")


def explains_without_a_device() -> None:
    for kind in (CUDA, MANAGED):
        events.clear()
        said = unshared.explain("forward", ndarray(X, 1, kind), ndarray(W, 1, kind))
        assert said.level == "cuda"
        assert events.count(("export", -1)) == 2, events
        assert ("stream of", 1) in events and ("stream of", 0) not in events
        assert not [event for event in events if event[0] == "empty"]  # type: ignore[index]


def old_versions_are_asked_without_max_version() -> None:
    global OLD
    OLD = True
    events.clear()
    unshared.explain("forward", ndarray(X), ndarray(W))
    OLD = False
    assert events.count(("export", -1)) == 2, events


def others_are_told_its_stream() -> None:
    for own, told in ((0, 1), (1, 1), (2, 2), (0x7F00, 0x7F00)):
        streams[0] = own
        other = Producer(W, device=(CUDA, 0))
        unshared.explain("forward", ndarray(X), other)
        assert [asked["stream"] for asked in other.asked] == [told]
        out = Producer(np.empty((2, 6, 4, 3), np.float32), device=(CUDA, 0))
        unshared.explain("forward", ndarray(X), ndarray(W), out=out)
        assert [asked["stream"] for asked in out.asked] == [told]
    streams[0] = 0


def a_library_that_cannot_be_told_must_share_the_stream() -> None:
    """The first operand names the stream: here one whose library has none known."""
    first = Producer(X, device=(CUDA, 0))
    for same in (0, 1):
        streams[0] = same
        assert unshared.explain("forward", first, ndarray(W)).level == "cuda"
    streams[0] = 0x7F00
    events.clear()
    error = refusal(lambda: unshared.explain("forward", first, ndarray(W)))
    streams[0] = 0
    assert isinstance(error, ValueError) and error.argument == "w" and "stream" in error.expected
    assert ("export", -1) not in events
    assert {asked["stream"] for asked in first.asked} == {1}


def two_devices_are_refused() -> None:
    error = refusal(lambda: unshared.explain("forward", ndarray(X, 0), ndarray(W, 1)))
    assert isinstance(error, ValueError) and error.argument == "w"
    assert "CUDA device 0" in error.expected and "CUDA device 1" in error.found


def a_call_without_a_device_asks_nothing() -> None:
    if unshared.build_info()["cuda_available"]:
        return
    events.clear()
    error = refusal(lambda: unshared.forward(ndarray(X), ndarray(W)))
    assert isinstance(error, NotImplementedError) and error.argument == "x"
    assert events == []


def results_are_its_own_arrays_on_the_device_of_x() -> None:
    class Sub(ndarray):
        pass

    want = unshared.forward(X, W)
    for make in (ndarray, Sub):
        for order in ((0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0)):
            events.clear()
            x = make(np.ascontiguousarray(X.transpose(order)).transpose(np.argsort(order)), 1, CPU)
            y = unshared.forward(x, make(W, 1, CPU))
            assert type(y) is ndarray and y.device == Device(1) and current == [0]
            assert y.memory.transpose(order).flags.c_contiguous, "in the memory order of x"
            assert np.array_equal(y.memory, want) and y.memory.dtype == want.dtype
            made = [event for event in events if event[0] == "empty"]  # type: ignore[index]
            assert made == [("empty", tuple(want.shape[axis] for axis in order), 1)]


def out_is_written() -> None:
    out = ndarray(np.zeros((2, 6, 4, 3), np.float32), 0, CPU)
    events.clear()
    assert unshared.forward(ndarray(X, 0, CPU), ndarray(W, 0, CPU), out=out) is out
    assert np.array_equal(out.memory, unshared.forward(X, W))
    assert not [event for event in events if event[0] == "empty"]  # type: ignore[index]


def no_memory_leaves_the_device_as_it_was() -> None:
    full[0] = True
    try:
        unshared.forward(ndarray(X, 1, CPU), ndarray(W, 1, CPU))
    except MemoryError:
        pass
    else:
        raise AssertionError("not refused")
    finally:
        full[0] = False
    assert current == [0]


CHECKS = [
    explains_without_a_device,
    old_versions_are_asked_without_max_version,
    others_are_told_its_stream,
    a_library_that_cannot_be_told_must_share_the_stream,
    two_devices_are_refused,
    a_call_without_a_device_asks_nothing,
    results_are_its_own_arrays_on_the_device_of_x,
    out_is_written,
    no_memory_leaves_the_device_as_it_was,
]

if __name__ == "__main__":
    sys.modules["cupy"] = cupy
    for check in CHECKS:
        check()
        print(check.__name__)
