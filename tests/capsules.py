"""Hand-made DLPack producers: legal ones of every kind, and ones that lie. For tests of the
importer.

What a capsule points to stays alive until its deleter is called, whatever becomes of the Producer;
the deleter counts its calls, so that a test can see whether each capsule was released exactly once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

CPU, CUDA, METAL, ROCM, MANAGED, ONEAPI = 1, 2, 8, 10, 13, 14
READ_ONLY = 1
_CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    _fields_ = [
        ("tensor", _Tensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


class _Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


_exported: dict[int, tuple[Producer, list[object]]] = {}


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _release(address: int) -> None:
    producer, _ = _exported.pop(address)
    producer.released += 1


_new = ctypes.pythonapi.PyCapsule_New
_new.restype = ctypes.py_object
_new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def _integers(values: object) -> object:
    if values is None:
        return None
    numbers = [int(v) for v in values]  # type: ignore[attr-defined]
    return (ctypes.c_int64 * max(len(numbers), 1))(*numbers)


class Producer:
    """An object with nothing but __dlpack__ and __dlpack_device__, over a NumPy array's memory.

    Keyword arguments override what the capsule says: `data`, `device`, `code`, `bits`, `lanes`,
    `strides` (None for NULL), `shape`, `ndim`, `byte_offset`, `flags`, `version` (None for the
    form without a version), `name`. `asked` has the keyword arguments of each export.
    """

    def __init__(self, array: np.ndarray, **lies: object) -> None:
        self.array = array
        self.released = 0
        self.exported = 0
        self.asked: list[dict[str, object]] = []
        self._lies = lies

    def __dlpack_device__(self) -> tuple[int, int]:
        device = self._lies.get("device", (CPU, 0))
        assert isinstance(device, tuple)
        return device

    def __dlpack__(self, **asked: object) -> object:
        array, lies = self.array, self._lies
        self.asked.append(asked)
        version = lies.get("version", (1, 0))
        managed = _Versioned() if version else _Managed()
        tensor = managed.tensor
        tensor.data = lies.get("data", array.ctypes.data)
        tensor.device_type, tensor.device_id = self.__dlpack_device__()
        bfloat = array.dtype.name == "bfloat16"
        tensor.code = lies.get("code", 4 if bfloat else _CODES.get(array.dtype.kind, 0))
        tensor.bits = lies.get("bits", array.itemsize * 8)
        tensor.lanes = lies.get("lanes", 1)
        tensor.ndim = lies.get("ndim", array.ndim)
        shape = _integers(lies.get("shape", array.shape))
        strides = _integers(lies.get("strides", [s // array.itemsize for s in array.strides]))
        tensor.shape, tensor.strides = shape, strides
        tensor.byte_offset = lies.get("byte_offset", 0)
        if version:
            managed.major, managed.minor = version  # type: ignore[misc]
            managed.flags = lies.get("flags", 0)

        managed.deleter = ctypes.cast(_release, ctypes.c_void_p)
        usual = b"dltensor_versioned" if version else b"dltensor"
        name = lies.get("name", usual)
        assert isinstance(name, bytes)
        self.exported += 1
        address = ctypes.addressof(managed)
        _exported[address] = (self, [managed, shape, strides, name, array])
        return _new(address, name, None)


class Reused:
    """Gives the same capsule again and again: the second taker must notice that it is consumed."""

    def __init__(self, array: np.ndarray) -> None:
        self.producer = Producer(array)
        self.capsule = self.producer.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (CPU, 0)

    def __dlpack__(self, **_: object) -> object:
        return self.capsule


class Misbehaving:
    """`__dlpack__` does what the given function does."""

    def __init__(self, act: Callable[[], object], device: object = (CPU, 0)) -> None:
        self._act, self._device = act, device

    def __dlpack_device__(self) -> object:
        return self._device

    def __dlpack__(self, **_: object) -> object:
        return self._act()
