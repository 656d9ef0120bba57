"""The three faces as operators of PyTorch, with derivatives of every order in both modes.

``torch.ops.unshared.forward``, ``grad_input`` and ``grad_weight`` are bilinear, and the derivatives
of each are the other two (`DERIVATIVE`): backward and jvp below call operators again, so all orders
follow. `product` is the way in. It takes one of three paths, because no single one serves all of
PyTorch: the operator itself for the compiler, `_Transformed` for torch.func, `_Eager` otherwise,
which for ordinary tensors that nobody watches leaves out PyTorch's dispatcher (`undisturbed`).

Geometry travels as the text form of a Problem: an operator's arguments are two tensors, two strings
and a number, which is what a call through PyTorch's dispatcher can afford.
"""

from __future__ import annotations

import atexit
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unshared import Problem, _core
from unshared.errors import ArgumentValueError
from unshared.torch import sharding
from unshared.torch.private import (
    below_autograd,
    dual_level,
    nested_jvp,
    transforms_active,
    undisturbed,
    without_overload,
)

__all__ = ["FACES", "FORWARD", "GRAD_INPUT", "GRAD_WEIGHT", "casting", "order_of", "product"]

FORWARD, GRAD_INPUT, GRAD_WEIGHT = range(3)
FACES = {"forward": ("x", "w"), "grad_input": ("dy", "w"), "grad_weight": ("x", "dy")}

# The derivative of a face with respect to its first and second operand: another face, and which of
# its operands the cotangent is; the remaining operand is the other one.
DERIVATIVE = (
    ((GRAD_INPUT, 0), (GRAD_WEIGHT, 1)),
    ((FORWARD, 0), (GRAD_WEIGHT, 0)),
    ((GRAD_INPUT, 1), (FORWARD, 1)),
)

# Bits of `how`: all operands have a mapped leading extent; take the conjugate of an operand; for
# the core, that gradients are dealt with here; from the compiler, that operands may carry tangents
# (its code enters a level of forward mode without telling `dual_level`). Two bits are a precision,
# which derivatives share.
MAPPED, CONJUGATE, HANDLED, TANGENTS = 1, (2, 4), 8, 16
PRECISIONS = {None: 0, "ieee": 0, "tf32": 32, "3xtf32": 64, "fast": 96}
SHARED = MAPPED | 96


def product(
    face: int, first: Tensor, second: Tensor, geometry: str, order: str = "", how: int = 0
) -> Tensor:
    """Compute a face so that whatever PyTorch does to tensors works on the result.

    Parameters
    ----------
    face : FORWARD, GRAD_INPUT or GRAD_WEIGHT
    first, second : Tensor
        Its operands, in the logical orders of `unshared.forward` and the others.
    geometry : str
        Text form of a Problem of the same spatial extents, options and groups; its batch, channels
        and memory orders do not matter.
    order : str
        Memory order of the result, its dimensions as digits, slowest first; "" is row-major.
    how : int
        Sum of 1 (mapped), 2 (conjugate first), 4 (conjugate second), and one of PRECISIONS.
    """
    if torch.compiler.is_compiling():
        if dual_level():
            how |= TANGENTS
        return _call(face, first, second, geometry, order, how)
    ordinary = type(first) in _ORDINARY and type(second) in _ORDINARY
    if ordinary and undisturbed(first, second):  # a shortcut of three microseconds
        if _recording(first, second):
            return _Eager.apply(face, first, second, True, geometry, order, how)
        return _compute(face, first, second, geometry, order, how)
    # What has its default need not cross PyTorch's dispatcher, where every argument costs.
    rest = (geometry, order, how) if order or how else (geometry,)
    if transforms_active():
        if nested_jvp():
            raise NotImplementedError(
                "unshared.torch: torch.func.jvp within torch.func.jvp (or jacfwd) loses tangents "
                "of functions defined in Python, inside PyTorch; use jvp of grad, or vjp of vjp"
            )
        if casting(first):  # outside of the Function, so that backward may run without autocast
            return _autocast(first.device.type, face, first, second, geometry, order, how)
        return _Transformed.apply(face, first, second, geometry, order, how)
    if casting(first):
        return _call(face, first, second, *rest)
    return _differentiable(face, first, second, *rest)


def casting(tensor: Tensor) -> bool:
    """Whether autocast is on for the device of a tensor."""
    return bool(torch.is_autocast_enabled("cpu" if tensor.is_cpu else "cuda"))


def order_of(tensor: Tensor) -> str:
    """Name the memory order of a tensor as `product` takes it."""
    if tensor.is_contiguous():
        return ""
    strides = tensor.stride()
    dims: list[int] = []
    for dim in range(tensor.dim()):  # by insertion: the compiler cannot sort strides that vary
        at = dim
        while at and strides[dims[at - 1]] < strides[dim]:
            at -= 1
        dims.insert(at, dim)
    return "".join(map(str, dims))


# --- derivatives -------------------------------------------------------------------------------
def _differentiable(face: int, first: Tensor, second: Tensor, *rest: Any) -> Tensor:
    if type(first) not in _ORDINARY:
        _prepare_sharding()
    if _recording(first, second) or (len(rest) == 3 and rest[2] & TANGENTS):
        if transforms_active():
            raise NotImplementedError(
                "unshared.torch: torch.func cannot differentiate torch.ops.unshared, which is all "
                "that torch.compile(fullgraph=True) and torch.export see; call the functions of "
                "unshared.torch outside of these"
            )
        return _Eager.apply(face, first, second, False, *rest)
    with below_autograd():
        return _EAGER[face](first, second, *rest)


def _recording(first: Tensor, second: Tensor) -> bool:
    return dual_level() or (
        torch.is_grad_enabled() and (first.requires_grad or second.requires_grad)
    )


def _flags(how: int, of: int, complex_: bool, derivative: tuple[int, int]) -> int:
    """The bits `how` of a derivative: PyTorch conjugates the operand that remains.

    With flags f of the operand in question and g of the other, y = f(x) g(w): the gradient is
    f(conj(g(w)) c), that is, c conjugated by f and w by "g, once more, and f".
    """
    if not complex_:
        return how & SHARED
    seat = derivative[1]
    f, g = how & CONJUGATE[of] != 0, how & CONJUGATE[1 - of] != 0
    return (how & SHARED) + f * CONJUGATE[seat] + (g == f) * CONJUGATE[1 - seat]


class _Bilinear(torch.autograd.Function):
    """The rule, for both kinds of Function below, which save `call` and the operands."""

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple[Any, ...]:
        face, geometry, how, _, orders = ctx.call
        gradients: list[Tensor | None] = [None, None]
        saved = ctx.saved_tensors  # once: checkpointing allows no second look
        for of in (0, 1):
            if cotangent is not None and ctx.needs_input_grad[1 + of]:
                derivative = DERIVATIVE[face][of]
                operands = [cotangent, saved[1 - of]]
                if derivative[1] == 1:
                    operands.reverse()
                bits = _flags(how, of, cotangent.is_complex(), derivative)
                gradients[of] = product(
                    derivative[0], operands[0], operands[1], geometry, orders[of], bits
                )
        return None, *gradients, *[None] * (len(ctx.needs_input_grad) - 3)

    @staticmethod
    def jvp(ctx: Any, _: None, first_t: Tensor | None, second_t: Tensor | None, *rest: None) -> Any:
        face, geometry, how, order, _ = ctx.call
        first, second = ctx.saved_tensors
        tangents = [
            product(face, one, other, geometry, order, how)
            for one, other in ((first_t, second), (first, second_t))
            if one is not None and other is not None
        ]
        return tangents[0] if len(tangents) == 1 else tangents[0] + tangents[1]


class _Eager(_Bilinear):
    """For tensors that record gradients or carry tangents; keeps only what a derivative needs."""

    @staticmethod
    def forward(
        ctx: Any,
        face: int,
        first: Tensor,
        second: Tensor,
        straight: bool,
        geometry: str,
        order: str = "",
        how: int = 0,
    ) -> Tensor:
        wanted = ctx.needs_input_grad
        ctx.save_for_backward(first if wanted[2] else None, second if wanted[1] else None)
        if dual_level() or how & TANGENTS:
            ctx.save_for_forward(first, second)
            how &= ~TANGENTS
        ctx.set_materialize_grads(False)
        ctx.call = face, geometry, how, order, (order_of(first), order_of(second))
        if straight:
            return _compute(face, first, second, geometry, order, how)
        rest = (geometry, order, how) if order or how else (geometry,)
        with below_autograd():
            return _EAGER[face](first, second, *rest)


class _Transformed(_Bilinear):
    """For the transforms of torch.func, which need contexts set up apart from the forward pass."""

    @staticmethod
    def forward(
        face: int, first: Tensor, second: Tensor, geometry: str, order: str, how: int
    ) -> Tensor:
        return _call(face, first, second, geometry, order, how)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        face, first, second, geometry, order, how = inputs
        ctx.save_for_backward(first, second)
        ctx.save_for_forward(first, second)
        ctx.call = face, geometry, how, order, (order_of(first), order_of(second))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], face: int, first: Tensor, second: Tensor, *rest: Any
    ) -> tuple[Tensor, int]:
        return _batched(product, face, in_dims[1:3], first, second, *rest)


# --- vmap --------------------------------------------------------------------------------------
def _batched(
    call: Callable[..., Tensor],
    face: int,
    dims: tuple[int | None, int | None],
    first: Tensor,
    second: Tensor,
    geometry: str,
    order: str = "",
    how: int = 0,
) -> tuple[Tensor, int]:
    """One extent more, without a loop: into the batch where that is enough, else as an axis.

    Only operands with a batch (x, y) are ever broadcast, never weights.
    """
    lead = how & MAPPED
    if dims[1] is None and face != GRAD_WEIGHT and dims[0] is not None:
        moved = first.movedim(dims[0], lead)
        result = call(face, moved.flatten(lead, lead + 1), second, geometry, order, how)
        return result.unflatten(lead, moved.shape[lead : lead + 2]), lead
    operands = [first, second]
    extent = next(t.shape[d] for t, d in zip(operands, dims, strict=True) if d is not None)
    sizes: tuple[int, ...] = ()
    for i, dim in enumerate(dims):
        operand = operands[i]
        operand = operand.expand(extent, *operand.shape) if dim is None else operand.movedim(dim, 0)
        sizes = operand.shape[:2]
        operands[i] = operand.flatten(0, 1) if lead else operand
    if order and not lead:
        order = "0" + "".join(str(int(digit) + 1) for digit in order)
    result = call(face, operands[0], operands[1], geometry, order, how | MAPPED)
    if lead:
        result = result.unflatten(0, sizes)
    return result, 0


# --- DTensor -----------------------------------------------------------------------------------
_ORDINARY = frozenset((Tensor, torch.nn.Parameter))
_sharding_known = False


def _prepare_sharding() -> None:
    """See to it that DTensor knows the rules before it meets an operator for the first time."""
    global _sharding_known
    if not _sharding_known:
        _sharding_known = sharding.register(_OPERATORS, _spatial_and_groups)


def _spatial_and_groups(geometry: str) -> tuple[int, int]:
    read = _read(geometry)
    return read.spatial, read.groups


# --- the operators themselves --------------------------------------------------------------------
class Geometry(NamedTuple):
    """What a result's shape follows from, besides the operands' own."""

    problem: Problem
    spatial: int
    input_size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    groups: int


@functools.lru_cache(maxsize=4096)
def _read(geometry: str) -> Geometry:
    problem = Problem(geometry)
    x, w = problem.shape("x"), problem.shape("w")
    spatial = len(x) - 2
    return Geometry(problem, spatial, x[2:], w[spatial + 2 :], problem.options["groups"])


atexit.register(_read.cache_clear)  # PyTorch keeps operators, and so this, beyond the core's end


def _shape(face: int, first: Tensor, second: Tensor, geometry: Geometry, how: int) -> list[Any]:
    """The shape of a result, by operands that fit."""
    lead, spatial = how & MAPPED, geometry.spatial
    mapped, batch = list(first.shape[:lead]), list(first.shape[lead : lead + 1])
    other = second.shape[lead:]
    if face == FORWARD:
        return [*mapped, *batch, other[spatial], *other[:spatial]]
    if face == GRAD_INPUT:
        return [*mapped, *batch, other[spatial + 1] * geometry.groups, *geometry.input_size]
    channels = first.shape[lead + 1] // geometry.groups
    return [*mapped, *other[2:], other[1], channels, *geometry.kernel_size]


def _compute(
    face: int, first: Tensor, second: Tensor, geometry: str, order: str = "", how: int = 0
) -> Tensor:
    """Call the core: on the CPU with PyTorch's number of threads, on CUDA on its current stream."""
    options, threads = _read(geometry).problem, torch.get_num_threads()
    how = how & ~TANGENTS | HANDLED
    result: Tensor = _core.apply(face, first, second, options, order, threads, how)
    return result


def _check(face: int, first: Tensor, second: Tensor, geometry: Geometry, lead: int) -> None:
    """Refuse what the core would refuse, as far as sizes are numbers; a batch may be a symbol."""
    if first.device != second.device:
        name, (one, other) = list(FACES.items())[face]
        raise ArgumentValueError.of(
            name, other, f"{first.device}, as '{one}' is there", str(second.device)
        )
    shapes = [list(operand.shape[lead:]) for operand in (first, second)]
    for shape in shapes[: 2 if face == GRAD_WEIGHT else 1]:
        shape[:1] = [extent if type(extent) is int else 1 for extent in shape[:1]]
    if all(type(extent) is int for shape in shapes for extent in shape):
        names = [str(operand.dtype).removeprefix("torch.") for operand in (first, second)]
        sizes = (None, geometry.input_size, geometry.kernel_size)[face]
        options = geometry.problem.options.values()
        _core.make_problem(face, shapes[0], names[0], shapes[1], names[1], sizes, *options)


def _fake(
    face: int, first: Tensor, second: Tensor, geometry: str, order: str = "", how: int = 0
) -> Tensor:
    """A result without values, for meta and fake tensors."""
    _check(face, first, second, _read(geometry), how & MAPPED)
    shape = _shape(face, first, second, _read(geometry), how)
    physical = [int(digit) for digit in order] or list(range(len(shape)))
    return torch.empty_permuted(shape, physical, dtype=first.dtype, device=first.device)


def _autocast(device: str, face: int, first: Tensor, second: Tensor, *rest: Any) -> Tensor:
    """Casts both operands as autocast does: all floating-point numbers but double."""
    dtype = torch.get_autocast_dtype(device)
    eligible = (torch.float32, torch.float16, torch.bfloat16)
    with torch.autocast(device, enabled=False):
        return product(
            face,
            first.to(dtype) if first.dtype in eligible else first,
            second.to(dtype) if second.dtype in eligible else second,
            *rest,
        )


def _register() -> tuple[torch.library.Library, tuple[Any, ...]]:
    library = torch.library.Library("unshared", "FRAGMENT")
    operators = []
    for face, (name, (first, second)) in enumerate(FACES.items()):
        library.define(
            f"{name}(Tensor {first}, Tensor {second}, str geometry, str order='', int how=0) "
            "-> Tensor",
            tags=(torch.Tag.pt2_compliant_tag,),
        )
        kernels: dict[str, Callable[..., Tensor]] = {
            "CPU": _compute,
            "CUDA": _compute,
            "Autograd": _differentiable,
            "AutocastCPU": functools.partial(_autocast, "cpu"),
            "AutocastCUDA": functools.partial(_autocast, "cuda"),
        }
        for key, kernel in kernels.items():
            library.impl(name, functools.partial(kernel, face), key)
        library.impl(name, torch.library.fallthrough_kernel, "Conjugate")  # the core reads the bit
        torch.library.register_fake(
            f"unshared::{name}", functools.partial(_fake, face), lib=library
        )
        torch.library.register_vmap(
            f"unshared::{name}",
            lambda info, dims, *args, face=face: _batched(_call, face, dims[:2], *args),
            lib=library,
        )
        operators.append(getattr(torch.ops.unshared, name).default)
    return library, tuple(operators)


_LIBRARY, _OPERATORS = _register()
_EAGER = tuple(map(without_overload, _OPERATORS))


def _call(face: int, *args: Any) -> Tensor:
    result: Tensor = _OPERATORS[face](*args)
    return result
