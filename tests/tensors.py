"""PyTorch tensors of NumPy arrays and back, bit for bit, bfloat16 too."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from arrays import BFLOAT16, bits


def tensor(array: np.ndarray) -> Any:
    """A contiguous tensor with memory of its own."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(bits(array).view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


def numpy(value: Any) -> np.ndarray:
    """The values of a tensor."""
    assert isinstance(value, torch.Tensor), type(value)
    value = value.detach().resolve_conj().resolve_neg()
    if value.dtype == torch.bfloat16:
        return value.contiguous().view(torch.int16).numpy().view(BFLOAT16)
    return value.numpy()
