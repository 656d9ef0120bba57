"""The layer for PyTorch's own transformations: a definition made of einsum, data, calls counted.

The definition is written in operators of PyTorch alone, so that every transformation of it is
PyTorch's; on small integers both must agree exactly. Problems are lines as in cases.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import oracle
from cases import FACES, OPERANDS, Case, parse
from unshared.torch import locally_connected, locally_connected_transpose
from unshared.torch.operators import product

# one, two and three axes; every option; sizes that differ, so that no swapped index goes unseen
LINES = (
    "n2 a2>b3 i6 k3 s2 p2:1 d2",
    "n2 a2>b4 g2 i4x3 k3x2 s2x1 p1x0",
    "n3 a2>b1 i4x3 k2x2 d2x1",
    "n1 a1>b2 i3x2x3 k2x1x2 s2x1x1 p1:0x0x1",
)
LINE = LINES[1]
FORMULA = {
    "forward": "ngai,iok,ogbak->ngbo",
    "grad_input": "ngbo,iok,ogbak->ngai",
    "grad_weight": "ngai,iok,ngbo->ogbak",
}


def definition(face: str, line: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A face by einsum, over a table of ones that says which input place feeds which tap."""
    case = parse(line)
    table = torch.from_numpy(
        oracle.sources(case.i, case.out, case.k, case.s, case.p, case.d, case.e)
    )
    places = int(torch.tensor(case.i).prod())
    ones = (table == torch.arange(places)[:, None, None]).double()
    g, a, b, o = case.g, case.a // case.g, case.b // case.g, table.shape[0]
    flat = {
        "x": lambda v: v.reshape(v.shape[0], g, a, places),
        "y": lambda v: v.reshape(v.shape[0], g, b, o),
        "w": lambda v: v.reshape(o, g, b, a, table.shape[1]),
    }
    one, other = OPERANDS[face]

    def compute(first: Tensor, second: Tensor) -> Tensor:
        batch = first.shape[0]
        shape = {
            "forward": (batch, *case.shape("y")[1:]),
            "grad_input": (batch, *case.shape("x")[1:]),
        }
        y = torch.einsum(FORMULA[face], flat[one](first), ones.to(first.dtype), flat[other](second))
        return y.reshape(shape.get(face, case.shape("w")))

    return compute


def ours(face: str, line: str, order: str = "", how: int = 0) -> Callable[[Tensor, Tensor], Tensor]:
    """The same face as the package has it."""
    number = FACES.index(face)
    return lambda first, second: product(number, first, second, line, order, how)


def public(line: str) -> Callable[..., Tensor]:
    """`locally_connected` of a problem."""
    case = parse(line)
    return lambda x, w, bias=None: locally_connected(x, w, bias, case.s, case.p, case.d, case.g)


def transposed(line: str) -> Callable[..., Tensor]:
    """`locally_connected_transpose` whose output is the input of a problem."""
    case = parse(line)
    more = tuple(
        i - ((o - 1) * s - low - high + (k - 1) * d + 1)
        for i, o, s, (low, high), k, d in zip(
            case.i, case.out, case.s, case.p, case.k, case.d, strict=True
        )
    )
    return lambda x, w, bias=None: locally_connected_transpose(
        x, w, bias, case.s, case.p, more, case.g, case.d
    )


def integers(shape: Any, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Small integers, never zero."""
    generator = torch.Generator().manual_seed(seed)

    def plane() -> Tensor:
        sign = torch.randint(0, 2, tuple(shape), generator=generator) * 2 - 1
        return torch.randint(1, 4, tuple(shape), generator=generator) * sign

    if dtype.is_complex:
        return torch.complex(plane().double(), plane().double()).to(dtype)
    return plane().to(dtype)


def normals(shape: Any, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Real data: equality of it is equality of bits."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=dtype)


def operands(
    face: str, line: str, dtype: torch.dtype = torch.float64, make: Any = integers, seed: int = 0
) -> tuple[Tensor, Tensor]:
    case: Case = parse(line)
    one, other = (make(case.shape(s), seed + j, dtype) for j, s in enumerate(OPERANDS[face]))
    return one, other


class Calls(TorchDispatchMode):
    """Counts what reaches PyTorch's kernels: `faces` of this package, `others` of PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.faces: list[str] = []
        self.others: list[str] = []
        self.shapes: list[tuple[tuple[int, ...], ...]] = []
        self.strides: list[tuple[tuple[int, ...], ...]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        space, name = func.name().split("::")
        if space == "unshared":
            self.faces.append(name.split(".")[0])
            self.shapes.append((tuple(args[0].shape), tuple(args[1].shape)))
            self.strides.append((args[0].stride(), args[1].stride()))
        else:
            self.others.append(name.split(".")[0])
        return func(*args, **(kwargs or {}))
