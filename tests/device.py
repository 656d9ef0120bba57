"""Memory of a GPU without any framework, through the driver's own interface; and arrays in it.

`Mirror` puts a guarded array (arrays.py), margins and all, where a call will find it through
DLPack, and brings it back. With a `Host` instead of a `Gpu` the same runs on machines without one.
"""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np

import unshared
from arrays import (
    Guarded,
    Layout,
    assert_same_bits,
    guarded_input,
    guarded_output,
    reals,
)
from capsules import CPU, CUDA, Producer
from cases import OPERANDS, RESULT, Case, library


class Memory(Protocol):
    """Where arrays lie: `device` in DLPack's numbers, `place` as `unshared.explain` calls it."""

    place: str
    device: tuple[int, int]

    def put(self, data: np.ndarray) -> int: ...
    def get(self, address: int, data: np.ndarray) -> None: ...
    def free(self, address: int) -> None: ...


class Gpu:
    """The first GPU. Copies wait for the legacy default stream, on which Producers are computed."""

    place, device = "cuda", (CUDA, 0)

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._call("cuInit", 0)
        handle, self._context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(handle), 0)
        self._handle = handle.value
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._handle)
        self._call("cuCtxSetCurrent", self._context)

    def _call(self, name: str, *args: Any) -> None:
        error = getattr(self._driver, name)(*args)
        if error:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorName(error, ctypes.byref(text))
            raise RuntimeError(f"{name}: {(text.value or b'?').decode()}")

    def put(self, data: np.ndarray) -> int:
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(data.nbytes))
        self._call(
            "cuMemcpyHtoD_v2", address, ctypes.c_void_p(data.ctypes.data),
            ctypes.c_size_t(data.nbytes),
        )  # fmt: skip
        return address.value

    def get(self, address: int, data: np.ndarray) -> None:
        self._call(
            "cuMemcpyDtoH_v2", ctypes.c_void_p(data.ctypes.data), ctypes.c_uint64(address),
            ctypes.c_size_t(data.nbytes),
        )  # fmt: skip

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def synchronize(self) -> None:
        self._call("cuCtxSynchronize")

    def describe(self) -> dict[str, Any]:
        """Name, compute capability, memory and the driver's version."""
        name = ctypes.create_string_buffer(100)
        self._call("cuDeviceGetName", name, 100, self._handle)
        version, total = ctypes.c_int(), ctypes.c_size_t()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        self._call("cuDeviceTotalMem_v2", ctypes.byref(total), self._handle)
        numbers = []
        for attribute in (75, 76, 16):  # CU_DEVICE_ATTRIBUTE_*: capability (two), processors
            number = ctypes.c_int()
            self._call("cuDeviceGetAttribute", ctypes.byref(number), attribute, self._handle)
            numbers.append(number.value)
        return {
            "name": name.value.decode(),
            "capability": f"{numbers[0]}.{numbers[1]}",
            "processors": numbers[2],
            "memory_gib": round(total.value / 2**30, 1),
            "driver_cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
        }


class Host:
    """A stand-in for a GPU: copies in the memory of the CPU."""

    place, device = "cpu", (CPU, 0)

    def __init__(self) -> None:
        self._kept: dict[int, np.ndarray] = {}

    def put(self, data: np.ndarray) -> int:
        copy = np.empty(data.nbytes + 64, np.uint8)
        copy = copy[-copy.ctypes.data % 64 :][: data.nbytes]
        copy[:] = data
        self._kept[copy.ctypes.data] = copy
        return int(copy.ctypes.data)

    def get(self, address: int, data: np.ndarray) -> None:
        data[:] = self._kept[address]

    def free(self, address: int) -> None:
        del self._kept[address]


class Mirror:
    """A copy of a guarded array; `array` is what to call with, its memory is freed on exit."""

    def __init__(self, memory: Memory, guarded: Guarded) -> None:
        self._memory, self._guarded = memory, guarded
        self._start, data = guarded.span()
        self._address = memory.put(data)
        first = guarded.array.ctypes.data - self._start
        self.array = Producer(guarded.array, data=self._address + first, device=memory.device)

    def fetch(self) -> None:
        """Bring everything back, margins too."""
        self._memory.get(self._address, self._guarded.span()[1])

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.free(self._address)


def compare(
    memory: Memory,
    face: str,
    case: Case,
    dtype: np.dtype,
    rng: np.random.Generator,
    layouts: tuple[Layout, Layout, Layout] | None = None,
    *,
    accumulate: bool = False,
    kind: str = "normal",
) -> unshared.Explanation:
    """Demand the CPU's bits, and margins as they were; tell which kernel this was.

    Without `layouts` arrays lie as the case says. `kind` is one of `arrays.reals`, or "nonfinite".
    """
    seats = (*OPERANDS[face], RESULT[face])
    orders = layouts or tuple(Layout(case.order(seat)) for seat in seats)
    operands = []
    for seat, layout in zip(seats[:2], orders, strict=False):
        values = reals(rng, case.shape(seat), dtype, "normal" if kind == "nonfinite" else kind)
        if kind == "nonfinite" and values.size:
            at = rng.integers(0, values.size, 1 + values.size // 40)
            values.reshape(-1)[at] = rng.choice([np.inf, -np.inf, np.nan, 0, -0.0], len(at))
        operands.append(guarded_input(values, layout))
    shape = case.shape(seats[2])
    start = reals(rng, shape, dtype) if accumulate else None
    want, got = (guarded_output(shape, dtype, orders[2], start) for _ in range(2))
    with np.errstate(all="ignore"):
        library(face, case, *(v.array for v in operands), out=want.array, accumulate=accumulate)
    with ExitStack() as stack:
        first, second, out = (
            stack.enter_context(Mirror(memory, guarded)) for guarded in (*operands, got)
        )
        arguments = (face, first.array, second.array, *case.sizes(face))
        library(face, case, *arguments[1:3], out=out.array, accumulate=accumulate)
        said = unshared.explain(*arguments, **case.options, place=memory.place)
        out.fetch()
    label = f"{face} {dtype} {case} accumulate={accumulate} {kind}: {said.kernel}"
    got.check_surroundings(label)
    assert_same_bits(got.array, want.array, label)
    return said


def random_case(rng: np.random.Generator) -> Case:
    """Any legal problem of one to three axes; one in four is large enough to fill a tile or two."""
    axes = int(rng.integers(1, 4))
    large = rng.random() < 0.25
    g = int(rng.choice([1, 1, 1, 2, 3]))
    n, a, b = (int(rng.integers(1, 70 if large else 6)) for _ in range(3))
    top = {1: 20, 2: 7, 3: 4}[axes]

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(v) for v in rng.integers(low, high, axes, endpoint=True))

    p = tuple(zip(each(0, 3), each(0, 3), strict=True))
    case = Case(n, g * a, g * b, each(1, top), each(1, 4), each(1, 3), p, each(1, 3), each(1, 3), g)
    short = [max(1 - o, 0) * s for o, s in zip(case.out, case.s, strict=True)]
    return case.with_(p=tuple((low, high + m) for (low, high), m in zip(p, short, strict=True)))
