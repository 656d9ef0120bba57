"""What PyTorch has no public name for: the only private names this package uses, each tested."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._C import _are_functorch_transforms_active as transforms_active
from torch._C import _AutoDispatchBelowAutograd as below_autograd
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

__all__ = [
    "below_autograd",
    "dual_level",
    "nested_jvp",
    "plain",
    "transforms_active",
    "without_overload",
]


def dual_level() -> bool:
    """Whether tensors may carry tangents just now."""
    return bool(forward_ad._current_level >= 0)


def nested_jvp() -> bool:
    """Whether torch.func.jvp is active within itself."""
    stack = get_interpreter_stack() or ()
    return sum(interpreter.key() == TransformType.Jvp for interpreter in stack) > 1


def without_overload(operator: torch._ops.OpOverload) -> Callable[..., torch.Tensor]:
    """The function that an operator object calls, for those who call it often."""
    function: Callable[..., torch.Tensor] = operator._op
    return function


def plain(tensor: torch.Tensor) -> bool:
    """Whether this is a tensor and nothing more: no subclass, no transform around it."""
    return type(tensor) is torch.Tensor and not transforms_active()
