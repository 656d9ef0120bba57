"""How the operators split over a mesh of devices: the sharding rules of DTensor.

T(x, w, y) sums over batch n and channels a and b, and each of these letters is an extent of two of
the three seats. Split along one, the two seats that have it are split and the third is whole; if
that third is the result, every device holds one addend of it. Nothing is gathered. Places are not
split (they need their neighbours' input), nor are channels in groups (a device's share of them is
another geometry): there DTensor gathers first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch._ops import OpOverload

from unshared.torch.private import hash_arguments_from

__all__ = ["register"]

RESULT_AND_OPERANDS = (("y", "x", "w"), ("x", "y", "w"), ("w", "x", "y"))  # by face

Rules = list[tuple[list[Any], list[Any]]]


def register(
    operators: Sequence[OpOverload], spatial_and_groups: Callable[[str], tuple[int, int]]
) -> bool:
    """Tell DTensor the rules of the three operators, if DTensor is loaded; say whether it was.

    To load it takes a second or two, so that is left to those who use it.
    """
    if "torch.distributed.tensor" not in sys.modules:
        return False
    from torch.distributed.tensor.experimental import register_sharding

    for face, operator in enumerate(operators):

        def rules(
            first: Any, second: Any, geometry: str, order: str = "", how: int = 0, face: int = face
        ) -> Rules:
            return _rules(face, *spatial_and_groups(geometry), how & 1)

        register_sharding(operator)(rules)
        hash_arguments_from(operator, 2)  # geometry decides the shape of a result
    return True


def _rules(face: int, spatial: int, groups: int, lead: int) -> Rules:
    """Placements of the result, and of the five arguments, along one extent of the mesh."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    channels = {
        "x": {"a": lead + 1},
        "y": {"b": lead + 1},
        "w": {"b": lead + spatial, "a": lead + spatial + 1},
    }
    found: Rules = [([Replicate()], [Replicate(), Replicate(), None, None, None])]
    for letter in "nab" if groups == 1 else "n":
        placements: list[Any] = []
        for seat in RESULT_AND_OPERANDS[face]:
            extents = channels[seat] | ({} if seat == "w" else {"n": lead})
            whole = Replicate() if placements else Partial()
            placements.append(Shard(extents[letter]) if letter in extents else whole)
        found.append((placements[:1], [*placements[1:], None, None, None]))
    if lead:
        found.append(([Shard(0)], [Shard(0), Shard(0), None, None, None]))
    return found
