"""What PyTorch has no public name for: the only private names this package uses, each tested."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch._C import _are_functorch_transforms_active as transforms_active
from torch._C import _AutoDispatchBelowAutograd as below_autograd
from torch._C import _dispatch_keys as keys_of
from torch._C import _dispatch_tls_local_exclude_set as excluded_keys
from torch._C import _dispatch_tls_local_include_set as included_keys
from torch._C import _len_torch_function_stack as function_modes
from torch._C._autograd import _profiler_enabled as profiling
from torch._C._functorch import TransformType, get_interpreter_stack
from torch._ops import OpOverload
from torch.autograd import forward_ad

__all__ = [
    "below_autograd",
    "constant_when_compiled",
    "dual_level",
    "hash_arguments_from",
    "nested_jvp",
    "plain",
    "transforms_active",
    "undisturbed",
    "without_overload",
]

Function = TypeVar("Function", bound=Callable[..., object])


def constant_when_compiled(function: Function) -> Function:
    """As `torch.compiler.assume_constant_result`, which would import the compiler: seconds."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def _ordinary_state() -> tuple[Any, ...]:
    return keys_of(torch.empty(0, device="cpu")), included_keys(), excluded_keys()


with ThreadPoolExecutor(1) as fresh:  # a thread in which nobody has changed anything yet
    _PLAIN, _INCLUDED, _EXCLUDED = fresh.submit(_ordinary_state).result()


def undisturbed(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether PyTorch's dispatcher would pass these on to Autograd and the CPU and nobody else.

    Then one may go there straight. It is not so for tensors of other kinds (lazily conjugated,
    without data, on another device), and not under torch.func, autocast, inference mode, a
    tracer, a mode that watches operators, or the profiler: each of them shows in these sets.
    """
    return (
        keys_of(first) == _PLAIN
        and keys_of(second) == _PLAIN
        and included_keys() == _INCLUDED
        and excluded_keys() == _EXCLUDED
        and not profiling()
        and function_modes() == 0
    )


def dual_level() -> bool:
    """Whether tensors may carry tangents just now."""
    return bool(forward_ad._current_level >= 0)


def nested_jvp() -> bool:
    """Whether torch.func.jvp is active within itself."""
    stack = get_interpreter_stack() or ()
    return bool(sum(interpreter.key() == TransformType.Jvp for interpreter in stack) > 1)


def without_overload(operator: torch._ops.OpOverload) -> Callable[..., torch.Tensor]:
    """The function that an operator object calls, for those who call it often."""
    function: Callable[..., torch.Tensor] = operator._op
    return function


def plain(tensor: torch.Tensor) -> bool:
    """Whether this is a tensor and nothing more: no subclass, no transform around it."""
    return type(tensor) is torch.Tensor and not transforms_active()


def hash_arguments_from(operator: OpOverload, first: int) -> None:
    """Have DTensor tell calls apart by all arguments from this one on.

    What it keeps of a call that it has seen, the result's shape among it, it finds again by the
    tensors and by the arguments from the first number on, which leaves out texts before that.
    """
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._op_schema import RuntimeSchemaInfo

    known = DTensor._op_dispatcher.sharding_propagator.op_to_schema_info
    known[operator] = RuntimeSchemaInfo(first, needs_pytree=True)
