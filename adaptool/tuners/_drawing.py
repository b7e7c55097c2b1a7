"""What PEFT draws when it loads a file that does not hold it: torch's generator on the CPU."""

from __future__ import annotations

from math import prod, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def kaiming(generator: torch.Generator, *shape: int, slope: float = 0.0,
            dtype: torch.dtype | None = None) -> torch.Tensor:  # fmt: skip
    """Uniform values in +-sqrt(6 / (1 + slope^2) / n), n values of one row.

    The bound is rounded as torch rounds it; `dtype` is float32 unless stated.
    """
    import torch

    spread = sqrt(2.0 / (1 + slope**2)) / sqrt(prod(shape[1:]))
    bound = sqrt(3.0) * spread
    return torch.empty(shape, dtype=dtype).uniform_(-bound, bound, generator=generator)


def positions(count: int, rows: int, cols: int, seed: int) -> torch.Tensor:
    """The first `count` positions of a shuffled matrix, int64 [2, count]: rows and columns."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    flat = torch.randperm(rows * cols, generator=generator)[:count]
    return torch.stack([flat // cols, flat % cols])
