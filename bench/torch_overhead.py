"""What one call costs in PyTorch beyond its kernel: ours beside operators that do nothing.

    python bench/torch_overhead.py

All on 8x8 images or smaller, one thread. `floor` is the least that an operator written in Python
can cost if it is to have a derivative in both modes: it allocates its result and does nothing else.
Rounds of all candidates alternate; shown are the fastest and the median round, in microseconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import unshared
from unshared.torch import LocallyConnected2d, locally_connected
from unshared.torch.private import below_autograd

CALLS, ROUNDS = 400, 60


def nothing(x: Tensor, w: Tensor) -> Tensor:
    """Stands for a kernel."""
    return torch.empty_like(x)


def operator_with_derivative() -> Callable[[Tensor, Tensor], Tensor]:
    """An operator in Python with a kernel on the Autograd key, and nothing to compute."""
    library = torch.library.Library("unshared_floor", "DEF")
    library.define("nothing(Tensor x, Tensor w) -> Tensor")
    library.impl("nothing", nothing, "CPU")
    call = torch.ops.unshared_floor.nothing.default

    class Derivative(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            with below_autograd():
                return call(x, w)

        @staticmethod
        def backward(ctx: Any, c: Tensor) -> tuple[Tensor, None]:
            return c, None

    def autograd(x: Tensor, w: Tensor) -> Tensor:
        if torch.is_grad_enabled() and (x.requires_grad or w.requires_grad):
            return Derivative.apply(x, w)
        with below_autograd():
            return call(x, w)

    library.impl("nothing", autograd, "Autograd")
    KEPT.append(library)
    return call


KEPT: list[Any] = []


def main() -> None:
    torch.set_num_threads(1)
    x, w = torch.ones(1, 1, 4, 4), torch.ones(2, 2, 1, 1, 3, 3)
    a = torch.ones(8, 8)
    layer = LocallyConnected2d(1, 1, 4, 3, bias=False)
    custom = torch.library.custom_op("unshared_floor::custom", nothing, mutates_args=())
    custom.register_autograd(lambda ctx, c: (c, None))
    floor = operator_with_derivative()
    apply = unshared._core.apply
    problem = unshared.Problem("n1 a1>b1 i4x4 k3x3")
    candidates: dict[str, Callable[[Tensor], Any]] = {
        "torch.mm, 8x8": lambda x: torch.mm(a, a),
        "the core alone": lambda x: apply(0, x, w, problem, "", 1, 8),
        "floor": lambda x: floor(x, w),
        "custom_op": lambda x: custom(x, w),
        "locally_connected": lambda x: locally_connected(x, w),
        "LocallyConnected2d": lambda x: layer(x),
    }
    grad = x.clone().requires_grad_()
    layer.requires_grad_(False)
    rows = [(name, f, v, []) for name, f in candidates.items() for v in (x, grad)]
    for _ in range(ROUNDS):
        for _, f, value, times in rows:
            start = time.perf_counter()
            for _ in range(CALLS):
                f(value)
            times.append((time.perf_counter() - start) / CALLS * 1e6)
    print(f"{'':22}{'no grad':>16}{'with grad':>18}   (fastest, median; microseconds)")
    for plain, recorded in zip(rows[::2], rows[1::2], strict=True):
        line = f"{plain[0]:22}"
        for _, _, _, times in (plain, recorded):
            line += f"{min(times):10.2f}{statistics.median(times):8.2f}"
        print(line)


if __name__ == "__main__":
    main()
