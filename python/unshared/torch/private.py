"""What PyTorch has no public name for: the only private names this package uses, each tested."""

from __future__ import annotations

import torch
from torch._C import _are_functorch_transforms_active as transforms_active
from torch._C import _AutoDispatchBelowAutograd as below_autograd
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

__all__ = ["below_autograd", "dual_level", "nested_jvp", "transforms_active"]


def dual_level() -> bool:
    """Whether tensors may carry tangents just now."""
    return bool(forward_ad._current_level >= 0)


def nested_jvp() -> bool:
    """Whether torch.func.jvp is active within itself."""
    stack = get_interpreter_stack() or ()
    return sum(interpreter.key() == TransformType.Jvp for interpreter in stack) > 1


def plain(tensor: torch.Tensor) -> bool:
    """Whether this is a tensor and nothing more: no subclass, no transform around it."""
    return type(tensor) is torch.Tensor and not transforms_active()
