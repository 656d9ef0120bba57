"""Calls that must be refused: the right exception, the right argument named, nothing written.

All run in one process, one after the other, and after each a valid call must still be exact. Rows
are named by what is wrong; they run for every face that has the argument in question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import unshared
from arrays import (
    FLOAT32,
    FLOAT64,
    assert_same_bits,
    guarded_input,
    guarded_output,
)
from capsules import CUDA, MANAGED, METAL, ONEAPI, READ_ONLY, ROCM, Misbehaving, Producer
from cases import FACES, OPERANDS, RESULT, exact, parse

CASE = parse("n3 a4>b6 g2 i7x8 k3x2 s2x1 p1x0 d1x2")
NAMES = {"forward": ("x", "w"), "grad_input": ("dy", "w"), "grad_weight": ("x", "dy")}
SIZE_NAME = {"grad_input": "input_size", "grad_weight": "kernel_size"}
MEMORY = (ValueError, BufferError)  # what producers themselves may refuse to export
NO_DEVICE = (NotImplementedError, ValueError, TypeError)

Change = Callable[[np.ndarray], object]


@dataclass(frozen=True)
class Row:
    """Something wrong with a call.

    `arrays` changes operands (or `out`) by name, `options` replaces keyword arguments and sizes.
    `blame` says which arguments the error may name; empty: the error need not be one of ours.
    """

    name: str
    error: type[Exception] | tuple[type[Exception], ...]
    blame: str
    arrays: dict[str, Change]
    options: dict[str, object]

    def concerns(self, face: str) -> bool:
        known = {*NAMES[face], "out", SIZE_NAME.get(face, "")}
        own_sizes = set(SIZE_NAME.values()) & set(self.options)
        return set(self.arrays) <= known and own_sizes <= known


ROWS: list[Row] = []


def row(
    name: str,
    error: type[Exception] | tuple[type[Exception], ...],
    blame: str,
    arrays: dict[str, Change] | None = None,
    **options: object,
) -> None:
    ROWS.append(Row(name, error, blame, arrays or {}, options))


def _each(name: str, error: type[Exception], change: Change, *, out: bool = True) -> None:
    """The same wrong thing in place of each array."""
    for argument in ("x", "w", "dy", *(("out",) if out else ())):
        row(f"{argument}: {name}", error, argument, {argument: change})


def _each_of_two(name: str, error: type[Exception], change: Change) -> None:
    """A disagreement: the error may blame either side."""
    for argument in ("x", "w", "dy", "out"):
        blame = "out" if argument == "out" else "x w dy"
        row(f"{argument}: {name}", error, blame, {argument: change})


# --- TypeError: not an array, or not such an array ------------------------------------------------

_each("an object", TypeError, lambda _: object())
_each("a number", TypeError, lambda _: 3.5)
_each("text", TypeError, lambda _: "x")
_each("a list", TypeError, lambda v: v.tolist())
_each("None", TypeError, lambda _: None, out=False)
_each("NumPy scalar type", TypeError, lambda _: np.float32)

_WRONG = [
    "bool",
    "int8",
    "int32",
    "uint16",
    "int64",
    "longdouble",
    "clongdouble",
    ">f4",
    "S4",
    "O",
    "M8[s]",
]
for _name in _WRONG:
    _all: Change = lambda v, n=_name: np.zeros(v.shape, n)  # noqa: E731
    for _pair in (("x", "w"), ("dy", "w"), ("x", "dy")):
        row(f"{_pair}: dtype {_name}", TypeError, " ".join(_pair), dict.fromkeys(_pair, _all))
_each("8-bit float", TypeError, lambda v: v.astype(ml_dtypes.float8_e4m3fn))
_each_of_two("another dtype than the rest", TypeError, lambda v: v.astype(FLOAT64))
_each_of_two("complex among reals", TypeError, lambda v: v.astype(np.complex64))
_each_of_two("half among singles", TypeError, lambda v: v.astype(np.float16))


def _raise(error: Exception) -> object:
    raise error


_each("__dlpack__ raises", TypeError, lambda _: Misbehaving(lambda: _raise(RuntimeError("no"))))
_each("__dlpack__ gives no capsule", TypeError, lambda _: Misbehaving(lambda: 7))
_each("__dlpack__ gives None", TypeError, lambda _: Misbehaving(lambda: None))
_each("device is no pair", TypeError, lambda v: Misbehaving(Producer(v).__dlpack__, "cpu"))
_each("capsule of another name", TypeError, lambda v: Producer(v, name=b"something else"))
_each("capsule consumed before", TypeError, lambda v: Producer(v, name=b"used_dltensor"))
_each("two lanes", TypeError, lambda v: Producer(v, lanes=2))
_each("no lane", TypeError, lambda v: Producer(v, lanes=0))
_each("unknown type code", TypeError, lambda v: Producer(v, code=77))
_each("24-bit float", TypeError, lambda v: Producer(v, bits=24))
_each("integer capsule", TypeError, lambda v: Producer(v, code=0))

# --- TypeError: options ---------------------------------------------------------------------------

_NUMBERS = ("stride", "dilation", "input_dilation", "padding")
for _name in (*_NUMBERS, "groups", "num_threads", "input_size", "kernel_size"):
    for _value in (
        1.5,
        1.0,
        True,
        False,
        float("nan"),
        np.float32(2),
        np.bool_(True),
        object(),
        1j,
    ):
        row(f"{_name}={_value!r:.20}", TypeError, _name, **{_name: _value})
for _name in (*_NUMBERS, "input_size", "kernel_size"):
    for _value in ((1.0, 1), [1, True], (1, None), (1, "1"), {1, 2}):
        row(f"{_name}={_value!r}", TypeError, _name, **{_name: _value})
for _name in ("stride", "dilation", "input_dilation", "groups", "num_threads", "input_size"):
    row(f"{_name}='2'", TypeError, _name, **{_name: "2"})
for _name in (
    "stride",
    "dilation",
    "input_dilation",
    "padding",
    "groups",
    "input_size",
    "kernel_size",
):
    row(f"{_name}=None", TypeError, _name, **{_name: None})
for _value in ("full", "", "causal", "1"):
    row(f"padding={_value!r}", TypeError, "padding", padding=_value)
row("padding pair of floats", TypeError, "padding", padding=((0, 1.5), (0, 0)))
row("accumulate='yes'", TypeError, "", accumulate="yes")
row("precision=1", (TypeError, ValueError), "", precision=1)
row("a misspelt option", TypeError, "", strides=2)
row("an option of another library", TypeError, "", data_format="NCHW")

# --- ValueError: shapes ---------------------------------------------------------------------------

for _name in ("x", "w", "dy"):
    row(f"{_name}: no axes", ValueError, "x w dy", {_name: lambda v: v[(0,) * v.ndim + (...,)]})
    row(f"{_name}: one axis", ValueError, "x w dy", {_name: lambda v: v.ravel()})
    row(f"{_name}: one axis less", ValueError, "x w dy", {_name: lambda v: v[0]})
    row(f"{_name}: one axis more", ValueError, "x w dy", {_name: lambda v: v[None]})
    row(
        f"{_name}: twelve axes",
        ValueError,
        "x w dy",
        {_name: lambda v: v.reshape(*[1] * 8, -1, 1, 1, 1)},
    )
row(
    "x: two axes, w to match",
    ValueError,
    "x w",
    {"x": lambda v: v[..., 0, 0], "w": lambda v: v[0, 0, ..., 0, 0]},
)
row("w: fewer rows of places", ValueError, "w", {"w": lambda v: v[1:]})
row("w: fewer columns of places", ValueError, "w", {"w": lambda v: v[:, 1:]})
row("w: rows and columns swapped", ValueError, "w", {"w": lambda v: v.swapaxes(0, 1)})
row("w: fewer output channels", ValueError, "w groups", {"w": lambda v: v[:, :, 1:]})
row(
    "w: fewer input channels",
    ValueError,
    "w x groups",
    {"x": lambda v: v, "w": lambda v: v[:, :, :, 1:]},
)
row(
    "w: all input channels in spite of groups",
    ValueError,
    "w x",
    {"x": lambda v: v, "w": lambda v: v.repeat(2, 3)},
)
row("w: fewer kernel columns", ValueError, "w dy input_size", {"w": lambda v: v[..., 1:]})
row("w: kernel turned", ValueError, "w dy input_size", {"w": lambda v: v.swapaxes(-1, -2)})
row("w: an empty kernel", ValueError, "w", {"w": lambda v: v[..., :0]})
row("x: fewer channels", ValueError, "w x groups", {"x": lambda v: v[:, 1:], "w": lambda v: v})
row(
    "x: fewer channels than groups divide",
    ValueError,
    "groups x",
    {"x": lambda v: v[:, 1:], "dy": lambda v: v},
)
row("x: rows too few", ValueError, "w x dy", {"x": lambda v: v[:, :, :4]})
row("x: rows and columns swapped", ValueError, "w x dy", {"x": lambda v: v.swapaxes(2, 3)})
row("x: no rows", ValueError, "w x dy kernel_size", {"x": lambda v: v[:, :, :0]})
row("dy: another batch", ValueError, "dy x", {"x": lambda v: v, "dy": lambda v: v[1:]})
row("dy: no batch", ValueError, "dy x", {"x": lambda v: v, "dy": lambda v: v[:0]})
row("dy: fewer channels than w", ValueError, "dy w", {"dy": lambda v: v[:, 2:], "w": lambda v: v})
row(
    "dy: channels that groups do not divide",
    ValueError,
    "groups dy",
    {"x": lambda v: v, "dy": lambda v: v[:, 1:]},
)
row("dy: fewer rows", ValueError, "dy w input_size", {"dy": lambda v: v[:, :, 1:]})
row("dy: fewer columns", ValueError, "dy w input_size", {"dy": lambda v: v[..., 1:]})
row(
    "dy: rows and columns swapped",
    ValueError,
    "dy w input_size",
    {"dy": lambda v: v.swapaxes(2, 3)},
)
row("dy: no rows", ValueError, "dy w input_size", {"dy": lambda v: v[:, :, :0]})
row("input_size: too small for dy", ValueError, "input_size dy w", input_size=(4, 8))
row("input_size: too large for dy", ValueError, "input_size dy w", input_size=(9, 8))
row("input_size: turned", ValueError, "input_size dy w", input_size=(8, 7))
row("input_size: nothing", ValueError, "input_size dy w", input_size=0)
row("kernel_size: too small for dy", ValueError, "kernel_size dy", kernel_size=(1, 2))
row("kernel_size: too large for dy", ValueError, "kernel_size dy", kernel_size=(3, 3))
row("kernel_size: larger than the padded input", ValueError, "kernel_size dy", kernel_size=(10, 2))
row(
    "x: smaller than the kernel",
    ValueError,
    "w x",
    {"x": lambda v: v[:, :, :, :2], "w": lambda v: v},
)
row("out: fewer elements", ValueError, "out", {"out": lambda v: v[1:]})
row("out: more elements", ValueError, "out", {"out": lambda v: np.concatenate([v, v])})
row("out: an axis more", ValueError, "out", {"out": lambda v: v[None]})
row("out: flat", ValueError, "out", {"out": lambda v: v.reshape(-1)})
row("out: axes exchanged", ValueError, "out", {"out": lambda v: v.swapaxes(0, 1)})
row("out: broadcastable only", ValueError, "out", {"out": lambda v: v[:1]})
for _name in (*_NUMBERS, "input_size", "kernel_size"):
    for _value in ((), (1,), (1, 1, 1), []):
        row(f"{_name}={_value!r}", ValueError, _name, **{_name: _value})
for _value in (((0, 0),), ((0, 0),) * 3, ((0,), (0,)), ((0, 0, 0), (0, 0, 0)), ((), ())):
    row(f"padding={_value!r}", ValueError, "padding", padding=_value)

# --- ValueError: geometry -------------------------------------------------------------------------

for _name in ("stride", "dilation", "input_dilation", "groups", "kernel_size", "num_threads"):
    row(f"{_name}=0", ValueError, _name, **{_name: 0})
for _name in (*_NUMBERS, "groups", "kernel_size", "input_size", "num_threads"):
    for _value in (-1, -4, -(2**31), -(2**63), -(10**30)):
        row(f"{_name}={_value}", ValueError, _name, **{_name: _value})
    for _value in (2**31, 2**32 + 1, 2**63 - 1, 2**63, 2**64 + 1, 10**30):
        row(f"{_name}={_value}", ValueError, _name, **{_name: _value})
for _name in ("stride", "dilation", "input_dilation", "kernel_size"):
    row(f"{_name}=(1, 0)", ValueError, _name, **{_name: (1, 0)})
for _name in (*_NUMBERS, "kernel_size", "input_size"):
    row(f"{_name}=(1, -1)", ValueError, _name, **{_name: (1, -1)})
    row(f"{_name}=(2**62, 2**62)", ValueError, _name, **{_name: (2**62, 2**62)})
row("padding pair below zero", ValueError, "padding", padding=((1, 1), (0, -1)))
row("padding pair too large", ValueError, "padding", padding=((1, 1), (2**63, 0)))
row("stride that leaves fewer places", ValueError, "w dy stride input_size", stride=(3, 1))
row("padding that adds places", ValueError, "w dy padding input_size", padding=(2, 1))
row(
    "the largest padding there is",
    ValueError,
    "w dy padding input_size kernel_size",
    padding=2**31 - 1,
)
row(
    "the largest dilation there is",
    ValueError,
    "w dy dilation input_size kernel_size",
    dilation=2**31 - 1,
)
row(
    "the largest input dilation",
    ValueError,
    "w dy x input_dilation input_size padding",
    input_dilation=2**31 - 1,
)
row("groups that do not divide C_in", ValueError, "groups x w", {"x": lambda v: v}, groups=3)
row("groups that do not divide C_out", ValueError, "groups dy w x", groups=4)
row("more threads than any machine", ValueError, "num_threads", num_threads=2**31 - 1)
row(
    "accumulate without out",
    (ValueError, TypeError),
    "accumulate out",
    {"out": lambda _: None},
    accumulate=True,
)
for _name in ("tf32", "3xtf32", "fast"):
    row(f"{_name} on a CPU", (NotImplementedError, ValueError), "precision", precision=_name)
row("an unknown precision", (ValueError, TypeError), "precision", precision="double")

# --- ValueError: memory ---------------------------------------------------------------------------


def _misaligned(v: np.ndarray) -> np.ndarray:
    raw = np.zeros(v.nbytes + 8, np.uint8)
    start = -raw.ctypes.data % 4 + 1
    array = raw[start : start + v.nbytes].view(v.dtype).reshape(v.shape)
    array[...] = v
    return array


def _odd_strides(v: np.ndarray) -> np.ndarray:
    """Rows of a packed record: 9 bytes from one float to the next."""
    record = np.zeros(v.shape, np.dtype([("flag", "u1"), ("value", v.dtype), ("rest", "u4")]))
    return record["value"]


def _beyond(v: np.ndarray) -> np.ndarray:
    steps = (2**62, *v.strides[1:])
    return as_strided(v, v.shape, steps)


def _read_only(v: np.ndarray) -> np.ndarray:
    view = v[...]
    view.flags.writeable = False
    return view


for _name in ("x", "w", "dy", "out"):
    row(f"{_name}: misaligned", MEMORY, _name, {_name: _misaligned})
    row(f"{_name}: strides of 9 bytes", MEMORY, "", {_name: _odd_strides})
    row(f"{_name}: strides beyond the address space", ValueError, _name, {_name: _beyond})
    row(f"{_name}: NULL", ValueError, _name, {_name: lambda v: Producer(v, data=None)})
    row(
        f"{_name}: misaligned capsule",
        ValueError,
        _name,
        {_name: lambda v: Producer(v, byte_offset=2)},
    )
    row(
        f"{_name}: DLPack 9.0",
        (*MEMORY, TypeError),
        "",
        {_name: lambda v: Producer(v, version=(9, 0))},
    )
    row(
        f"{_name}: a negative extent",
        ValueError,
        _name,
        {_name: lambda v: Producer(v, shape=(-1, *v.shape[1:]))},
    )
    row(
        f"{_name}: 99 axes",
        ValueError,
        "x w dy out",
        {_name: lambda v: Producer(v, ndim=99, shape=(1,) * 99, strides=(1,) * 99)},
    )
    row(f"{_name}: -1 axes", ValueError, "x w dy out", {_name: lambda v: Producer(v, ndim=-1)})
    row(
        f"{_name}: extents whose product overflows",
        ValueError,
        "x w dy out",
        {_name: lambda v: Producer(v, shape=(2**62,) * v.ndim, strides=(0,) * v.ndim)},
    )
    for _device in ((METAL, 0), (ROCM, 0), (ONEAPI, 0), (99, 0), (-1, 0)):
        row(
            f"{_name}: device {_device}",
            NO_DEVICE,
            _name,
            {_name: lambda v, d=_device: Producer(v, device=d)},
        )
row("out: read-only", MEMORY, "", {"out": _read_only})
row("out: read-only capsule", MEMORY, "", {"out": lambda v: Producer(v, flags=READ_ONLY)})
row(
    "out: all elements one",
    ValueError,
    "out",
    {"out": lambda v: as_strided(v, v.shape, (0,) * v.ndim)},
)
row(
    "out: one axis expanded",
    ValueError,
    "out",
    {"out": lambda v: as_strided(v, v.shape, (*v.strides[:-1], 0))},
)
row(
    "out: windows that overlap",
    ValueError,
    "out",
    {"out": lambda v: as_strided(v, v.shape, (*v.strides[:-2], v.itemsize, v.itemsize))},
)
# In builds with CUDA and without: where there is a GPU, only what is refused before a kernel runs,
# for these arrays are not really there.
_gpu: Change = lambda v: Producer(v, device=(CUDA, 0))  # noqa: E731
_far: Change = lambda v: Producer(v, device=(CUDA, 10**6))  # noqa: E731
_both = (NotImplementedError, ValueError)
for _pair in (("x", "w"), ("dy", "w"), ("x", "dy")):
    if not unshared.build_info()["cuda_available"]:
        row(f"{_pair}: on a GPU", NotImplementedError, "x dy", dict.fromkeys(_pair, _gpu))
        row(f"{_pair}: on no GPU", NotImplementedError, "x dy", dict.fromkeys(_pair, _far))
    row(
        f"{_pair}: on two GPUs",
        _both,
        "x w dy",
        {_pair[0]: _gpu, _pair[1]: _far},
    )
for _name in ("x", "w", "dy", "out"):
    row(f"{_name} alone on a GPU", _both, "x w dy out", {_name: _gpu})
    row(
        f"{_name} alone in managed memory",
        _both,
        "x w dy out",
        {_name: lambda v: Producer(v, device=(MANAGED, 0))},
    )
    row(
        f"{_name}: a capsule from a GPU, said to be of the CPU",
        ValueError,
        _name,
        {_name: lambda v: Misbehaving(Producer(v, device=(CUDA, 0)).__dlpack__)},
    )


# --- the run --------------------------------------------------------------------------------------

CASES_OF_ROWS = [(face, r) for r in ROWS for face in FACES if r.concerns(face)]
_rng = np.random.default_rng(0)
PLAIN = {seat: _rng.integers(1, 9, CASE.shape(seat)).astype(FLOAT32) for seat in "xwy"}
WANT = {
    face: exact(face, CASE, *(PLAIN[s] for s in OPERANDS[face])).astype(FLOAT32) for face in FACES
}


def _valid_call_is_exact(face: str) -> None:
    first, second = (PLAIN[s] for s in OPERANDS[face])
    got = getattr(unshared, face)(first, second, *CASE.sizes(face), **CASE.options)
    assert_same_bits(got, WANT[face], "a valid call afterwards")


def _owner(array: object) -> object:
    while getattr(array, "base", None) is not None:
        array = array.base  # type: ignore[attr-defined]
    return array


def test_names_of_rows_are_distinct() -> None:
    assert len({(r.name, r.options.keys().__repr__()) for r in ROWS}) == len(ROWS) > 300


@pytest.mark.parametrize(("face", "bad"), CASES_OF_ROWS, ids=lambda v: getattr(v, "name", v))
def test_refused(face: str, bad: Row) -> None:
    guards = {
        name: guarded_input(PLAIN[seat])
        for name, seat in zip(NAMES[face], OPERANDS[face], strict=True)
    }
    guards["out"] = guarded_output(CASE.shape(RESULT[face]), FLOAT32)
    arguments: dict[str, object] = {name: guard.array for name, guard in guards.items()}
    arguments |= CASE.options
    if face in SIZE_NAME:
        arguments[SIZE_NAME[face]] = CASE.sizes(face)[0]
    for name, change in bad.arrays.items():
        arguments[name] = change(guards[name].array)
    out = arguments["out"]
    apart = isinstance(out, np.ndarray) and _owner(out) is not _owner(guards["out"].array)
    before = out.tobytes() if apart else b""
    for guard in guards.values():
        guard.remember()
    arguments |= bad.options

    with pytest.raises(bad.error) as caught:
        getattr(unshared, face)(**arguments)

    for name, guard in guards.items():
        guard.check_unchanged(f"{bad.name}: {name}")
    assert not apart or out.tobytes() == before, "out was written"
    if bad.blame:
        error = caught.value
        assert isinstance(error, unshared.Error), f"{type(error)}: {error}"
        assert error.argument in bad.blame.split(), f"blames {error.argument!r}: {error}"
        assert str(error.expected)
        assert str(error.found)
        for part in (error.argument, str(error.expected), str(error.found), face):
            assert part in str(error), f"{part!r} is not in the text: {error}"
    _valid_call_is_exact(face)
