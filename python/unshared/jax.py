"""The three faces for JAX: primitives that call the kernels through XLA's FFI.

They compose with jit, grad, jvp, vmap, scan, remat, shard_map, automatic sharding and export, to
any order: each is bilinear, and its derivatives are the others. The result has the bits of
`unshared.forward` and its companions. On platforms without kernels of ours, jax.lax computes.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex, cast

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching, mlir, xla
from jax.sharding import NamedSharding, PartitionSpec

import unshared
from unshared import Extents, Padding, Problem, _core, _partition

__all__ = [
    "TARGETS",
    "conv_general_dilated_local",
    "forward",
    "grad_input",
    "grad_weight",
    "register",
]

FACES = ("forward", "grad_input", "grad_weight")
TARGETS = tuple(f"unshared_{face}" for face in FACES)
"""Names of the custom calls, for ``jax.export.DisabledSafetyCheck.custom_call(name)``."""

# Which seats a face takes its operands from, then the one it fills; and who fills a seat.
_SEATS = {"forward": "xwy", "grad_input": "ywx", "grad_weight": "xyw"}
_FILLS = {seats[2]: face for face, seats in _SEATS.items()}

if _core.build_info()["xla_ffi"] is None:
    raise ImportError(
        "unshared.jax: this build of unshared has no handlers for JAX, because no jaxlib was found "
        "where it was built. Build it where there is one (pip install jaxlib, then pip install "
        "--no-build-isolation unshared from source), or install a wheel; unshared.forward and its "
        "companions take JAX arrays without it, outside of jit."
    )


def forward(
    x: Any,
    w: Any,
    *,
    stride: Extents = 1,
    padding: Padding = 0,
    dilation: Extents = 1,
    input_dilation: Extents = 1,
    groups: SupportsIndex = 1,
    precision: str | None = None,
) -> jax.Array:
    """Apply a locally connected layer: y from x and w, as `unshared.forward` does.

    Parameters
    ----------
    x : array (N, C_in, *in)
        float32, float64, float16, bfloat16, complex64 or complex128; 1 to 3 spatial axes.
    w : array (*out, C_out, C_in/groups, *kernel)
        Of the same dtype.
    stride, padding, dilation, input_dilation, groups
        As in `unshared.forward`; static, as shapes are.
    precision : None, "ieee", "tf32", "3xtf32" or "fast"
        The opt-ins of `unshared.forward`, for the derivatives, too. They take effect where the
        program runs on CUDA; elsewhere it is IEEE.

    Returns
    -------
    array (N, C_out, *out)

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        While tracing, with the words of `unshared.forward`.
    UnsupportedError
        For shapes that are not numbers (symbolic ones of jax.export).

    Examples
    --------
    >>> import jax, jax.numpy as jnp, unshared.jax
    >>> x = jnp.ones((1, 2, 3, 3))
    >>> w = jnp.ones((2, 2, 4, 2, 2, 2))  # 2x2 places, 2 channels to 4, 2x2 taps
    >>> jax.grad(lambda w: unshared.jax.forward(x, w).sum())(w).shape
    (2, 2, 4, 2, 2, 2)
    """
    options = (stride, padding, dilation, input_dilation, groups, precision)
    return _call("forward", x, w, None, *options)


def grad_input(
    dy: Any,
    w: Any,
    input_size: Extents,
    *,
    stride: Extents = 1,
    padding: Padding = 0,
    dilation: Extents = 1,
    input_dilation: Extents = 1,
    groups: SupportsIndex = 1,
    precision: str | None = None,
) -> jax.Array:
    """Differentiate `forward` with respect to x: dx from dy and w. Also the transposed layer.

    Parameters
    ----------
    dy : array (N, C_out, *out)
    w : array (*out, C_out, C_in/groups, *kernel)
    input_size : int or one int per spatial axis
        The spatial extents of x.
    stride, padding, dilation, input_dilation, groups
        As in `forward`.

    Returns
    -------
    array (N, C_in, *in)

    Raises
    ------
    ArgumentTypeError, ArgumentValueError, UnsupportedError
        As in `forward`.
    """
    options = (stride, padding, dilation, input_dilation, groups, precision)
    return _call("grad_input", dy, w, input_size, *options)


def grad_weight(
    x: Any,
    dy: Any,
    kernel_size: Extents,
    *,
    stride: Extents = 1,
    padding: Padding = 0,
    dilation: Extents = 1,
    input_dilation: Extents = 1,
    groups: SupportsIndex = 1,
    precision: str | None = None,
) -> jax.Array:
    """Differentiate `forward` with respect to w: dw from x and dy.

    Parameters
    ----------
    x : array (N, C_in, *in)
    dy : array (N, C_out, *out)
    kernel_size : int or one int per spatial axis
        The extents of the kernel.
    stride, padding, dilation, input_dilation, groups
        As in `forward`.

    Returns
    -------
    array (*out, C_out, C_in/groups, *kernel)

    Raises
    ------
    ArgumentTypeError, ArgumentValueError, UnsupportedError
        As in `forward`.
    """
    options = (stride, padding, dilation, input_dilation, groups, precision)
    return _call("grad_weight", x, dy, kernel_size, *options)


def conv_general_dilated_local(
    lhs: Any,
    rhs: Any,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    filter_shape: Sequence[int],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    precision: Any = None,
) -> jax.Array:
    """Apply a locally connected layer: a drop-in for ``jax.lax.conv_general_dilated_local``.

    Parameters
    ----------
    lhs : array
        n spatial axes (1 to 3), a batch and a feature axis, in the order of `dimension_numbers`.
    rhs : array
        Output places, C_out, and one axis of ``C_in * prod(filter_shape)``, channels slowest.
    window_strides, filter_shape, lhs_dilation, rhs_dilation : n ints
        Steps between windows, their extents, and the dilations (None is 1).
    padding : "SAME", "VALID", "SAME_LOWER" or n (low, high) pairs
        Here a string may also meet an `lhs_dilation`: the extents are then those of dilated `lhs`.
    dimension_numbers : None, three strings or a ``ConvDimensionNumbers``
        Any order, without a copy as far as XLA's layouts of `lhs`, `rhs` and the result allow it.
    precision
        Those of jax.lax are accepted for its sake: products and sums here are IEEE, as if it were
        HIGHEST. The words of `forward`, such as "tf32", opt in to the tensor cores of CUDA.

    Returns
    -------
    array
        In the order of `dimension_numbers`, within its rounding equal to that of jax.lax.

    Raises
    ------
    ArgumentValueError, a ValueError
        While tracing, if sizes do not fit; also if there is not a single window.

    Notes
    -----
    Taps in the padding are left out, not multiplied by zero: jax.lax makes NaN of an infinite or
    NaN weight there (0 * inf), this function does not. Within `lhs` nothing is left out, and an
    infinity remains one, of which jax.lax, multiplying patches with zeros, makes NaN.

    What the kernels do not do goes to jax.lax: integers, operands of two dtypes, negative padding.

    Examples
    --------
    >>> import jax.numpy as jnp, unshared.jax
    >>> lhs, rhs = jnp.ones((1, 8, 8, 3)), jnp.ones((6, 6, 27, 4))
    >>> dims = ("NHWC", "HWIO", "NHWC")
    >>> unshared.jax.conv_general_dilated_local(
    ...     lhs, rhs, (1, 1), "VALID", (3, 3), dimension_numbers=dims
    ... ).shape
    (1, 6, 6, 4)
    """
    return convolve(
        "conv_general_dilated_local",
        *(lhs, rhs, window_strides, padding, filter_shape),
        *(lhs_dilation, rhs_dilation, dimension_numbers, precision),
    )


def convolve(
    name: str,
    lhs: Any,
    rhs: Any,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    filter_shape: Sequence[int],
    lhs_dilation: Sequence[int] | None,
    rhs_dilation: Sequence[int] | None,
    dimension_numbers: Any,
    precision: Any = None,
    groups: int = 1,
) -> jax.Array:
    """`conv_general_dilated_local`, for layers: with groups, and the name to give in an error."""
    lhs, rhs = _array(lhs), _array(rhs)
    ours = isinstance(precision, str) and precision in ("ieee", "tf32", "3xtf32", "fast")
    window = tuple(int(extent) for extent in filter_shape)
    dims = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    (_, _, *lhs_places), (out_at, fused, *places) = dims.lhs_spec, dims.rhs_spec
    # Spatial axes are counted as the specs name them; the window comes in the order of rhs.
    kernel = tuple(window[sorted(places).index(axis)] for axis in places)
    n, taps, ones = len(window), math.prod(window), (1,) * len(window)
    steps, e, d = (tuple(v or ones) for v in (window_strides, lhs_dilation, rhs_dilation))
    pads: Any = padding
    if isinstance(padding, str):
        pads = padding.lower()
        if pads == "same_lower":  # an odd remainder first
            spread = [lhs.shape[axis] * f - f + 1 for axis, f in zip(lhs_places, e, strict=True)]
            dilated = [k * f - f + 1 for k, f in zip(kernel, d, strict=True)]
            pads = tuple(jax.lax.padtype_to_pads(spread, dilated, steps, "SAME_LOWER"))
    cropped = not isinstance(pads, str) and any(side < 0 for pair in pads for side in pair)
    if groups == 1 and (
        lhs.dtype != rhs.dtype or _name(lhs.dtype) not in _core.dtypes() or cropped
    ):
        return jax.lax.conv_general_dilated_local(
            lhs, rhs, steps, padding, window, e, d, dims, None if ours else precision
        )

    x_shape = tuple(lhs.shape[axis] for axis in dims.lhs_spec)
    w_places, inputs = (rhs.shape[axis] for axis in places), rhs.shape[fused]
    w_shape = (*w_places, rhs.shape[out_at], inputs // taps, *kernel)
    problem = _core.make_problem(
        0, x_shape, _name(lhs.dtype), w_shape, _name(rhs.dtype), None, steps, pads, d, e, groups
    )
    if inputs % taps != 0:
        raise unshared.ArgumentValueError(
            f"unshared.{name}: argument 'rhs': expected an axis of {inputs // taps * taps} "
            f"(C_in * window {window}), found {inputs}"
        )
    # Which logical axes, those of `forward`, each axis of the arrays stands for.
    of: dict[int, tuple[int, ...]] = {axis: (j,) for j, axis in enumerate(places)}
    of |= {out_at: (n,), fused: (n + 1, *(n + 2 + places.index(axis) for axis in sorted(places)))}
    geometry = Geometry(
        problem,
        x=tuple((dims.lhs_spec.index(axis),) for axis in range(n + 2)),
        w=tuple(of[axis] for axis in range(n + 2)),
        y=tuple((dims.out_spec.index(axis),) for axis in range(n + 2)),
        precision=_core.precision(0, precision, _name(lhs.dtype)) if ours else 0,
    )
    return cast(jax.Array, _bind("forward", lhs, rhs, geometry))


# --- the primitives -------------------------------------------------------------------------------


class Geometry(NamedTuple):
    """What is static of a call: the problem, and how the axes of its arrays make it up.

    `x`, `w` and `y` name, for each axis of the array, the logical axes it runs over, slowest
    first; empty: one each, in order. The mapped extent does not count: it is the first axis of
    whoever has it. Nothing is ever transposed: the handler gets the strides that follow.
    """

    problem: Problem
    shared: str = ""  #: the operand that has no mapped extent although the problem does
    x: tuple[tuple[int, ...], ...] = ()
    w: tuple[tuple[int, ...], ...] = ()
    y: tuple[tuple[int, ...], ...] = ()
    precision: int = 0  #: as the core counts them; only on CUDA other than 0 makes a difference

    def lead(self, seat: str) -> int:
        """1 if the array in this seat has the mapped extent, else 0."""
        return int(self.problem.mapped is not None and self.shared != seat)

    def axes(self, seat: str) -> tuple[tuple[int, ...], ...]:
        """The logical axes of each axis of the array, without the mapped one."""
        axes: tuple[tuple[int, ...], ...] = getattr(self, seat)
        return axes or tuple((axis,) for axis in range(len(self.extents(seat))))

    def extents(self, seat: str) -> tuple[int, ...]:
        """Of the logical axes, without the mapped one."""
        return self.problem.shape(seat)[int(self.problem.mapped is not None) :]

    def shape(self, seat: str) -> tuple[int, ...]:
        """Of the array in this seat."""
        extents = self.extents(seat)
        mapped = self.problem.shape(seat)[: self.lead(seat)]
        return (*mapped, *(math.prod(extents[a] for a in axes) for axes in self.axes(seat)))

    def text(self) -> str:
        """The problem with its memory orders: what the handler parses."""
        x, w, y = (self.order(seat) for seat in "xwy")
        return str(self.problem.restate(x=x, w=w, y=y, shared=self.shared))

    def order(self, seat: str) -> tuple[int, ...]:
        """The logical axes, slowest first."""
        return tuple(itertools.chain(*self.axes(seat)))


def _call(
    face: str,
    first: Any,
    second: Any,
    size: object,
    stride: object,
    padding: object,
    dilation: object,
    input_dilation: object,
    groups: object,
    precision: object,
) -> jax.Array:
    first, second = _array(first), _array(second)
    for array in (first, second):
        if not all(isinstance(extent, int) for extent in array.shape):
            raise unshared.UnsupportedError(
                f"unshared.{face}: expected shapes that are numbers, found {array.shape}"
            )
    problem = _core.make_problem(
        FACES.index(face), first.shape, _name(first.dtype), second.shape, _name(second.dtype),
        size, stride, padding, dilation, input_dilation, groups,
    )  # fmt: skip
    how = 0
    if precision is not None:
        how = _core.precision(FACES.index(face), precision, _name(first.dtype))
    return cast(jax.Array, _bind(face, first, second, Geometry(problem, precision=how)))


_name = functools.cache(str)  # of a dtype: NumPy composes it anew each time


def _array(value: Any) -> Any:
    return value if isinstance(value, jax.Array) else jnp.asarray(value)


def _bind(face: str, first: Any, second: Any, geometry: Geometry) -> Any:
    """Bind a primitive; what varies over a manual mesh axis must do so in both operands."""
    vary = [_varying(jax.typeof(array)) for array in (first, second)]
    first = _vary(first, vary[1] - vary[0])
    second = _vary(second, vary[0] - vary[1])
    return _primitives[face].bind(first, second, geometry=geometry)


def _varying(aval: Any) -> frozenset[str]:
    kind = getattr(aval, "manual_axis_type", None)  # since jax 0.8
    names: frozenset[str] = kind.varying if kind is not None else getattr(aval, "vma", frozenset())
    return names


def _vary(array: Any, axes: frozenset[str]) -> Any:
    if not axes:
        return array
    if hasattr(jax.lax, "pcast"):  # since jax 0.8
        return jax.lax.pcast(array, tuple(axes), to="varying")
    return jax.lax.pvary(array, tuple(axes))


def _abstract(face: str, first: Any, second: Any, *, geometry: Geometry) -> Any:
    """The type of the result: the Problem's shape, and what operands say of mesh axes."""
    seats = _SEATS[face]
    mesh = first.sharding.mesh
    spec = _partition.result_spec(
        face,
        [_partition.letters(geometry, seat) for seat in seats],
        [operand.sharding.spec for operand in (first, second)],
    )
    return first.update(
        shape=geometry.shape(seats[2]),
        weak_type=False,
        sharding=NamedSharding(mesh, PartitionSpec(*spec)),
    )


def _transposed(
    face: str, seat: str, cotangent: Any, first: Any, second: Any, *, geometry: Geometry
) -> Any:
    """Call the face that fills `seat`, with the cotangent in the seat this face filled."""
    given = dict(zip(_SEATS[face], (first, second, cotangent), strict=True))
    target = _FILLS[seat]
    one, other = (given[s] for s in _SEATS[target][:2])
    if geometry.shared != seat:
        return _bind(target, one, other, geometry)
    # Every index of the others met all of this operand: its gradient is the sum over them.
    return _bind(target, one, other, geometry._replace(shared="")).sum(0)


def _batched(face: str, arrays: Any, dims: Any, *, geometry: Geometry) -> tuple[Any, int]:
    """Samples join the batch; whatever else is mapped becomes the mapped axis of the Problem."""
    seats, problem = _SEATS[face], geometry.problem
    size = next(a.shape[d] for a, d in zip(arrays, dims, strict=True) if d is not None)
    if dims[1] is None and face != "grad_weight":
        first, second = arrays
        axis, out = (geometry.lead(s) + geometry.axes(s).index((0,)) for s in (seats[0], seats[2]))
        first = _merged(jnp.moveaxis(first, dims[0], axis), axis)
        problem = problem.restate(batch=first.shape[axis])
        result = _bind(face, first, second, geometry._replace(problem=problem))
        return _split(result, out, size, geometry.extents(seats[0])[0]), out
    before = problem.mapped
    operands, shared = [], ""
    for array, dim, seat in zip(arrays, dims, seats[:2], strict=True):
        if dim is None and not geometry.lead(seat):  # it has neither extent: all share it
            operands.append(array)
            shared = seat
            continue
        if dim is None:
            array = jnp.broadcast_to(array, (size, *array.shape))
        else:
            array = jnp.moveaxis(array, dim, 0)
        if before is not None and not geometry.lead(seat):
            array = jnp.broadcast_to(array[:, None], (size, before, *array.shape[1:]))
        operands.append(array if before is None else _merged(array, 0))
    problem = problem.restate(mapped=size * (1 if before is None else before))
    first, second = operands
    result = _bind(face, first, second, geometry._replace(problem=problem, shared=shared))
    return (result if before is None else _split(result, 0, size, before)), 0


def _merged(array: Any, axis: int) -> Any:
    shape = array.shape
    return array.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])


def _split(array: Any, axis: int, outer: int, inner: int) -> Any:
    shape = array.shape
    return array.reshape(*shape[:axis], outer, inner, *shape[axis + 1 :])


# --- lowering -------------------------------------------------------------------------------------


@functools.cache
def register() -> None:
    """Make the handlers known to XLA; it happens by itself when one of the faces is first compiled.

    Call it in a program that only runs what was compiled or exported elsewhere.

    Raises
    ------
    UnsupportedError
        If this build is for a newer XLA than the jaxlib in this process has.
    """
    built = _core.build_info()["xla_ffi"]
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    text = header.read_text() if header.exists() else ""  # if not: the oldest, to be safe
    found = dict(re.findall(r"define XLA_FFI_API_(MAJOR|MINOR) (\d+)", text))
    there = (int(found.get("MAJOR", 0)), int(found.get("MINOR", 1)))
    if built is None or tuple(map(int, built.split("."))) > there:  # registering would break JAX
        raise unshared.UnsupportedError(
            f"unshared.jax: expected a jaxlib with XLA FFI {built} or newer, which this build of "
            f"unshared was made with, found {there[0]}.{there[1]} (jaxlib {jax.lib.__version__}); "
            "update jaxlib, or rebuild unshared where this jaxlib is installed"
        )
    for (platform, face), handler in _core.xla_handlers().items():
        jax.ffi.register_ffi_target(f"unshared_{face}", handler, platform=platform)


def _lowered(face: str, context: Any, first: Any, second: Any, *, geometry: Geometry) -> Any:
    if _partition.wanted(context):
        parts = _partition.partitioned(face, geometry)
        return mlir.lower_fun(parts, multiple_results=False)(context, first, second)
    register()
    rule = jax.ffi.ffi_lowering(f"unshared_{face}")
    precision = np.int32(geometry.precision)
    return rule(context, first, second, problem=geometry.text(), precision=precision)


def _lowered_cuda(face: str, context: Any, first: Any, second: Any, *, geometry: Geometry) -> Any:
    if _core.build_info()["cuda_built"]:
        return _lowered(face, context, first, second, geometry=geometry)
    return _lowered_elsewhere(face, context, first, second, geometry=geometry)


def _lowered_elsewhere(face: str, context: Any, *operands: Any, geometry: Geometry) -> Any:
    rule = mlir.lower_fun(
        functools.partial(_reference, face, geometry=geometry), multiple_results=False
    )
    return rule(context, *operands)


def _reference(face: str, first: Any, second: Any, *, geometry: Geometry) -> Any:
    """The same face by jax.lax alone, for platforms that have no handler."""
    seats = _SEATS[face]
    one = functools.partial(_reference_one, face, geometry)
    if geometry.problem.mapped is None:
        return one(first, second)
    axes = [0 if geometry.lead(seat) else None for seat in seats[:2]]
    return jax.vmap(one, in_axes=axes)(first, second)


def _reference_one(face: str, geometry: Geometry, first: Any, second: Any) -> Any:
    options = geometry.problem.options
    groups, spatial = options["groups"], len(options["stride"])
    letters = "DHW"[-spatial:]
    dims = ("NC" + letters, letters + "IO", "NC" + letters)

    def logical(array: Any, seat: str) -> Any:
        order = geometry.order(seat)
        array = array.reshape([geometry.extents(seat)[axis] for axis in order])
        return array.transpose([order.index(axis) for axis in range(len(order))])

    def local(x: Any, w: Any) -> Any:  # of one group
        w = jnp.moveaxis(w, spatial, -1)
        steps, dilations = options["stride"], (options["input_dilation"], options["dilation"])
        flat = w.reshape(*w.shape[:spatial], -1, w.shape[-1])
        kernel = geometry.extents("w")[spatial + 2 :]
        highest = jax.lax.Precision.HIGHEST
        return jax.lax.conv_general_dilated_local(
            x, flat, steps, options["padding"], kernel, *dilations, dims, highest
        )

    def forward_of(x: Any, w: Any) -> Any:
        x, w = logical(x, "x"), logical(w, "w")
        if groups == 1:
            y = local(x, w)
        else:
            x = _split(x, 1, groups, x.shape[1] // groups)
            w = _split(w, spatial, groups, w.shape[spatial] // groups)
            y = _merged(jax.vmap(local, in_axes=(1, spatial), out_axes=1)(x, w), 1)
        y = y.transpose(geometry.order("y"))
        return y.reshape(geometry.shape("y")[geometry.lead("y") :])

    if face == "forward":
        return forward_of(first, second)
    seat = _SEATS[face][2]
    zero = jnp.zeros(geometry.shape(seat)[geometry.lead(seat) :], first.dtype)
    zero = _vary(zero, _varying(jax.typeof(first)))
    if face == "grad_input":
        return jax.vjp(lambda x: forward_of(x, second), zero)[1](first)[0]
    return jax.vjp(lambda w: forward_of(first, w), zero)[1](second)[0]


def _primitive(face: str) -> Any:
    seats = _SEATS[face]
    primitive = jax.extend.core.Primitive(f"unshared_{face}")
    primitive.def_impl(functools.partial(xla.apply_primitive, primitive))
    primitive.def_abstract_eval(functools.partial(_abstract, face))
    rules: list[Callable[..., Any]] = [
        functools.partial(_transposed, face, seat) for seat in seats[:2]
    ]
    ad.defbilinear(primitive, *rules)
    batching.primitive_batchers[primitive] = functools.partial(_batched, face)
    mlir.register_lowering(primitive, functools.partial(_lowered_elsewhere, face))
    mlir.register_lowering(primitive, functools.partial(_lowered, face), platform="cpu")
    mlir.register_lowering(primitive, functools.partial(_lowered_cuda, face), platform="cuda")
    _partition.may_ask_for_devices(primitive)
    return primitive


_primitives = {face: _primitive(face) for face in FACES}
