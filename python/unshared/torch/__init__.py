"""Locally connected layers for PyTorch: functions, modules, derivatives of every order.

The layer is `LocallyConnected1d`, `2d`, `3d`; its transpose and the lazy forms follow torch.nn's
names. Underneath are `locally_connected` and `locally_connected_transpose`, and the operators
``torch.ops.unshared.*``, which torch.compile and torch.export keep as they are.
"""

from __future__ import annotations

from unshared.torch.functional import locally_connected, locally_connected_transpose
from unshared.torch.layers import (
    LocallyConnected1d,
    LocallyConnected2d,
    LocallyConnected3d,
    LocallyConnectedTranspose1d,
    LocallyConnectedTranspose2d,
    LocallyConnectedTranspose3d,
)
from unshared.torch.lazy import (
    LazyLocallyConnected1d,
    LazyLocallyConnected2d,
    LazyLocallyConnected3d,
    LazyLocallyConnectedTranspose1d,
    LazyLocallyConnectedTranspose2d,
    LazyLocallyConnectedTranspose3d,
)

__all__ = [
    "LazyLocallyConnected1d",
    "LazyLocallyConnected2d",
    "LazyLocallyConnected3d",
    "LazyLocallyConnectedTranspose1d",
    "LazyLocallyConnectedTranspose2d",
    "LazyLocallyConnectedTranspose3d",
    "LocallyConnected1d",
    "LocallyConnected2d",
    "LocallyConnected3d",
    "LocallyConnectedTranspose1d",
    "LocallyConnectedTranspose2d",
    "LocallyConnectedTranspose3d",
    "locally_connected",
    "locally_connected_transpose",
]
