"""Low-rank updates whose factors are computed from other tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from adaptool.canonical import DType, LazyTensor, LowRank
from adaptool.canonical.tensors import from_recipe

if TYPE_CHECKING:
    import torch

Factors = Callable[[], tuple["torch.Tensor", "torch.Tensor"]]
"""A [rank, in] and B [out, rank], computed in float64."""


def factored(
    tensors: Iterable[LazyTensor],
    size: tuple[int, int],
    rank: int,
    factors: Factors,
    scaling: float = 1.0,
) -> LowRank:
    """W + scaling * B A, computed when it is needed and rounded once.

    Args:
        tensors: what the factors are computed from; they become float32 unless one is float64.
        size: out and in.
        rank: of the factors.
        factors: makes them.
        scaling: the effective strength.
    """
    dtype = DType.FLOAT64 if any(t.dtype is DType.FLOAT64 for t in tensors) else DType.FLOAT32
    out, into = size
    return LowRank(
        from_recipe((rank, into), dtype, lambda: factors()[0].to(dtype.torch)),
        from_recipe((out, rank), dtype, lambda: factors()[1].to(dtype.torch)),
        scaling,
    )


def double(tensor: LazyTensor) -> torch.Tensor:
    """All values, as float64."""
    return tensor.values().double()
