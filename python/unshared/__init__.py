"""Locally connected layers: convolutions whose weights are not shared.

Every output place ``o`` has weights of its own::

    y[n, b, o] = sum over input channels a and taps k of  x[n, a, source(o, k)] * w[o, b, a, k]

with ``source(o, k) = (o * stride + k * dilation - padding) / input_dilation`` along each spatial
axis, where that is a whole number within the input. `forward` computes y, `grad_input` and
`grad_weight` its derivatives, for arrays of NumPy, PyTorch, JAX, CuPy and any library that speaks
DLPack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex, TypedDict, TypeVar, cast

from unshared import _core
from unshared._core import Problem
from unshared.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    DeviceError,
    Error,
    UnsupportedError,
)

__all__ = [
    "ArgumentTypeError",
    "ArgumentValueError",
    "BuildInfo",
    "DeviceError",
    "Error",
    "Explanation",
    "Problem",
    "UnsupportedError",
    "build_info",
    "cmake_dir",
    "explain",
    "forward",
    "grad_input",
    "grad_weight",
]

Array = TypeVar("Array")
Extents = SupportsIndex | Sequence[SupportsIndex]
Padding = Extents | Sequence[tuple[SupportsIndex, SupportsIndex]] | str

_call = _core.call


def forward(
    x: Array,
    w: object,
    *,
    stride: Extents = 1,
    padding: Padding = 0,
    dilation: Extents = 1,
    input_dilation: Extents = 1,
    groups: SupportsIndex = 1,
    out: object = None,
    accumulate: bool = False,
    num_threads: SupportsIndex | None = None,
    precision: str | None = None,
) -> Array:
    """Apply a locally connected layer: y from x and w.

    ``y[n, b, o] = sum over a, k of x[n, a, source(o, k)] * w[o, b, a, k]``, where each spatial axis
    has ``out = floor((padded - dilated) / stride) + 1`` places:
    ``padded = (in - 1) * input_dilation + 1 + low + high``, ``dilated = (k - 1) * dilation + 1``.

    Parameters
    ----------
    x : array (N, C_in, *in)
        One, two or three spatial axes. Any strides, without a copy: channels-last, sliced,
        negative, zero. float32, float64, float16, bfloat16, complex64 or complex128, from any
        library that offers DLPack; NumPy's bfloat16 is that of ml_dtypes.
    w : array (*out, C_out, C_in/groups, *kernel)
        Of the same dtype and on the same device; it may come from another library.
    stride, dilation, input_dilation : int or one int per spatial axis
        Steps between places, between taps, and between input elements (the fractional stride of a
        transposed layer).
    padding : int, one int or one (low, high) pair per spatial axis, "valid" or "same"
        "valid" is 0; "same" makes ``out = ceil(in / stride)``, an odd remainder at the high end.
    groups : int
        Divides the channels into independent groups, of x and of y alike.
    out : array (N, C_out, *out), optional
        Written to and returned. It must be writable, of the same dtype and device, overlap neither
        operand nor itself; it may have any strides otherwise.
    accumulate : bool
        Add to what `out` holds: every sum starts from there.
    num_threads : int, optional
        CPU threads, 1 to 4096; by default those this process may use (OMP_NUM_THREADS is heeded).
    precision : str, optional
        None or "ieee": the same bits everywhere. On CUDA, opt-ins to the tensor cores: of float32
        "tf32" (11 significant bits of each factor are left) or "3xtf32" (three such products for
        each, almost float32), of the half types "fast" (exact products, another order of sums).
        Problems without a kernel for it are computed as "ieee"; `explain` tells.

    Returns
    -------
    array (N, C_out, *out)
        `out`, or a new array of the library and on the device of x, in the memory order of x. A JAX
        array is row-major; a library that cannot make arrays (no ``__array_namespace__``), or whose
        arrays are immutable, receives a NumPy array (on a GPU: needs `out`; JAX: `unshared.jax`).

    Raises
    ------
    ArgumentTypeError, a TypeError
        Not an array, an unsupported dtype, two dtypes, a float for a size, a PyTorch tensor that
        records gradients (use ``detach()``, ``torch.no_grad()`` or `unshared.torch`).
    ArgumentValueError, a ValueError
        Shapes or options that do not fit, memory that overlaps, devices that differ.
    UnsupportedError, a NotImplementedError
        What this build or this machine cannot do.
    DeviceError, a RuntimeError
        A GPU that refuses the work, be it for an error of an earlier operation of any library.
    MemoryError
        No memory for the result.

    An error leaves `out` as it was.

    Notes
    -----
    Every element is one chain of fused multiply-adds (in float32 for the half types, rounded once
    at the end) in an order that only the mathematics decides: input channels, within each the
    taps, row-major. The bits do not depend on threads, batch split, memory order or instruction
    set. Taps in the padding are no part of the sum; inside the input no term is skipped, so
    0 * nan is nan. Other Python threads run meanwhile; should one of them change an operand, the
    result is undefined.

    Arrays on a GPU: the work is queued on the current stream of the library of x (of one that has
    none known here: on the legacy default stream), and the call returns at once. It allocates
    nothing but the result, waits for nothing, and may be captured into a CUDA graph.

    Examples
    --------
    >>> import numpy as np, unshared
    >>> x = np.ones((1, 2, 3, 3), np.float32)
    >>> w = np.ones((2, 2, 4, 2, 2, 2), np.float32)  # 2x2 places, 2 channels to 4, 2x2 taps
    >>> unshared.forward(x, w).shape
    (1, 4, 2, 2)
    """
    result: Array = _call(
        0, x, w, None, stride, padding, dilation, input_dilation, groups,
        out, accumulate, num_threads, precision, 0,
    )  # fmt: skip
    return result


def grad_input(
    dy: Array,
    w: object,
    input_size: Extents,
    *,
    stride: Extents = 1,
    padding: Padding = 0,
    dilation: Extents = 1,
    input_dilation: Extents = 1,
    groups: SupportsIndex = 1,
    out: object = None,
    accumulate: bool = False,
    num_threads: SupportsIndex | None = None,
    precision: str | None = None,
) -> Array:
    """Differentiate `forward` with respect to x: dx from dy and w. Also the transposed layer.

    ``dx[n, a, i] = sum over (o, k) with source(o, k) = i, and b, of dy[n, b, o] * w[o, b, a, k]``

    Parameters
    ----------
    dy : array (N, C_out, *out)
    w : array (*out, C_out, C_in/groups, *kernel)
    input_size : int or one int per spatial axis
        The spatial extents of x: with a stride, several of them lead to the same `out`.
    stride, padding, dilation, input_dilation, groups, out, accumulate, num_threads, precision
        As in `forward`, and of the values used there; `out` is (N, C_in, *in).

    Returns
    -------
    array (N, C_in, *in)
        `out`, or a new array of the library of dy, in the memory order of dy. Input elements that
        no place reaches are 0.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError, UnsupportedError, DeviceError, MemoryError
        As in `forward`.

    Notes
    -----
    The order of each sum: places in row-major order, within each the output channels. Complex
    numbers are multiplied as they are; the gradient of a real loss takes ``w.conj()``.

    Examples
    --------
    >>> import numpy as np, unshared
    >>> dy = np.ones((1, 4, 2, 2), np.float32)
    >>> w = np.ones((2, 2, 4, 2, 2, 2), np.float32)
    >>> unshared.grad_input(dy, w, (3, 3))[0, 0]
    array([[ 4.,  8.,  4.],
           [ 8., 16.,  8.],
           [ 4.,  8.,  4.]], dtype=float32)
    """
    result: Array = _call(
        1, dy, w, input_size, stride, padding, dilation, input_dilation, groups,
        out, accumulate, num_threads, precision, 0,
    )  # fmt: skip
    return result


def grad_weight(
    x: Array,
    dy: object,
    kernel_size: Extents,
    *,
    stride: Extents = 1,
    padding: Padding = 0,
    dilation: Extents = 1,
    input_dilation: Extents = 1,
    groups: SupportsIndex = 1,
    out: object = None,
    accumulate: bool = False,
    num_threads: SupportsIndex | None = None,
    precision: str | None = None,
) -> Array:
    """Differentiate `forward` with respect to w: dw from x and dy.

    ``dw[o, b, a, k] = sum over n of x[n, a, source(o, k)] * dy[n, b, o]``

    Parameters
    ----------
    x : array (N, C_in, *in)
    dy : array (N, C_out, *out)
    kernel_size : int or one int per spatial axis
        The extents of the kernel: with a stride, several of them lead to the same `out`.
    stride, padding, dilation, input_dilation, groups, out, accumulate, num_threads, precision
        As in `forward`, and of the values used there; `out` is (*out, C_out, C_in/groups, *kernel).

    Returns
    -------
    array (*out, C_out, C_in/groups, *kernel)
        `out`, or a new array of the library of x whose memory lies in the order that the kernels
        prefer, output channels fastest. Taps that fall into padding get 0.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError, UnsupportedError, DeviceError, MemoryError
        As in `forward`.

    Notes
    -----
    The order of each sum: the batch. With `accumulate` a batch may be given in pieces, in order,
    and the result has the bits of one call (except of half types: they are rounded after each
    piece). Complex numbers are multiplied as they are; the gradient of a real loss takes
    ``x.conj()``.

    Examples
    --------
    >>> import numpy as np, unshared
    >>> x = np.ones((8, 2, 3, 3), np.float32)
    >>> dy = np.ones((8, 4, 2, 2), np.float32)
    >>> dw = unshared.grad_weight(x, dy, 2)
    >>> dw.shape, float(dw.max())
    ((2, 2, 4, 2, 2, 2), 8.0)
    """
    result: Array = _call(
        2, x, dy, kernel_size, stride, padding, dilation, input_dilation, groups,
        out, accumulate, num_threads, precision, 0,
    )  # fmt: skip
    return result


class Explanation(NamedTuple):
    """What a call would do: its problem, its size, the kernel that runs and why others do not."""

    problem: str  #: text form; ``Problem(explanation.problem)`` makes the value
    face: str
    dtype: str
    flops: float  #: operations on real numbers
    bytes: float  #: of x, w and y together
    terms: int  #: products in the longest sum of one element
    kernel: str
    level: str  #: the instruction set it was compiled for, or "cuda"
    declined: tuple[tuple[str, str], ...]  #: kernels ahead of it in the list: name, reason
    predicted: float | None = None  #: seconds, by the model that chose: of IEEE kernels on an H200

    def __str__(self) -> str:
        work = f"{self.flops:.4g} flops on {self.bytes:.4g} bytes, sums of {self.terms} terms"
        lines = [
            f"{self.face} {self.dtype} {self.problem}",
            f"  work      {work}",
            f"  kernel    {self.kernel} ({self.level})",
        ]
        if self.predicted is not None:
            lines.append(f"  predicted {1e6 * self.predicted:.4g} microseconds on an H200")
        lines += [f"  declined  {name}: {reason}" for name, reason in self.declined]
        return "\n".join(lines)


def explain(face: str, *args: Any, place: str | None = None, **options: Any) -> Explanation:
    """Tell what a call would do, without doing it. Of a GPU, too, on any machine and in any build.

    Parameters
    ----------
    face : str
        "forward", "grad_input" or "grad_weight".
    *args, **options
        What the function of that name takes. Arrays are looked at, not read; `out` is not written.
    place : str, optional
        "cpu" or "cuda": where arrays of these shapes, strides and dtype would be. By default, where
        they are.

    Returns
    -------
    Explanation

    Raises
    ------
    ValueError
        For another name of a face or place; otherwise what the call itself would raise.

    Examples
    --------
    >>> import numpy as np, unshared
    >>> x, w = np.ones((1, 2, 3, 3)), np.ones((2, 2, 4, 2, 2, 2))
    >>> unshared.explain("forward", x, w).flops
    256.0
    >>> unshared.explain("forward", x, w, place="cuda").level
    'cuda'
    """
    import inspect  # slow to import, and needed by nobody else

    faces = (forward, grad_input, grad_weight)
    names = [function.__name__ for function in faces]
    if face not in names:
        raise ValueError(f"unshared.explain: face must be one of {names}, found {face!r}")
    index = names.index(face)
    bound = inspect.signature(faces[index]).bind(*args, **options)
    bound.apply_defaults()
    first, second, *rest = bound.arguments.values()
    if index == 0:
        rest.insert(0, None)  # forward needs no size
    rest.append(place)
    problem, *told = _core.explain(index, first, second, *rest)
    return Explanation._make((problem, face, *told))


class BuildInfo(TypedDict):
    """What `build_info` returns."""

    version: str
    isa_built: list[str]
    isa_usable: list[str]
    isa: str
    openmp: bool
    cuda_built: bool
    cuda_available: bool
    threads: int
    xla_ffi: str | None


def build_info() -> BuildInfo:
    """Tell what this build contains and what this machine can use of it.

    Returns
    -------
    dict
        version; isa_built and isa_usable (instruction set levels, ascending) and isa, the one in
        use (the environment variable UNSHARED_ISA caps it); openmp; cuda_built, cuda_available;
        threads, the default number; xla_ffi, the version of XLA's FFI that the handlers for JAX
        were built against, or None if there are none.

    Notes
    -----
    To tell of cuda_available it wakes CUDA's driver, which importing unshared and calls on the CPU
    never do: a process that only did those may still fork and use CUDA in its children.
    """
    return cast(BuildInfo, _core.build_info() | {"cuda_available": _core.cuda_available()})


def cmake_dir() -> str:
    """Name the directory of the CMake package, for ``-Dunshared_DIR=`` of C++ projects."""
    from pathlib import Path

    return str(Path(_core.__file__).parent / "lib" / "cmake" / "unshared")


__version__: str = _core.build_info()["version"]  # build_info() would wake CUDA's driver
