"""Work buffers that a thread uses again for every chunk.

Fresh ones would be returned to the system and faulted in anew for each chunk, which costs more
than the arithmetic.
"""

from __future__ import annotations

from math import prod
from threading import local

import torch

LARGEST = 1 << 22
"""Elements of the largest buffer that is kept."""

_kept = local()


def borrow(role: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """An uninitialised float32 tensor, valid until this thread borrows the same role again.

    On a GPU it is a new one: torch's allocator keeps those.
    """
    count = prod(shape)
    if device.type != "cpu" or count > LARGEST:
        return torch.empty(shape, dtype=torch.float32, device=device)
    buffers: dict[str, torch.Tensor] = _kept.__dict__
    if role not in buffers or buffers[role].numel() < count:
        buffers[role] = torch.empty(count, dtype=torch.float32)
    return buffers[role][:count].view(shape)


def borrow_like(role: str, values: torch.Tensor) -> torch.Tensor:
    """The same in the shape and on the device of `values`."""
    return borrow(role, tuple(values.shape), values.device)
