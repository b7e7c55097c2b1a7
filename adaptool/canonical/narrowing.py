"""Tensors in a narrower type, where a value that does not fit is refused and not made infinite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from adaptool.canonical.dtypes import DType
from adaptool.canonical.tensors import LazyTensor

if TYPE_CHECKING:
    import torch


def narrowed(tensor: LazyTensor, dtype: DType, refusal: Callable[[], Exception]) -> LazyTensor:
    """The tensor in another floating-point type, rounded to the nearest while it is streamed.

    Args:
        tensor: floating-point values; comes back as it is if it has the type already.
        dtype: float16, say.
        refusal: makes what is raised while streaming, for a finite value that `dtype` cannot hold.
            Infinities and NaNs stay what they are.
    """
    if tensor.encoding is None and tensor.dtype is dtype:
        return tensor
    return LazyTensor(tensor.shape, dtype, partial(_narrowed, tensor, dtype, refusal),
                      block=tensor.block)  # fmt: skip


def _narrowed(tensor: LazyTensor, dtype: DType, refusal: Callable[[], Exception], start: int,
              stop: int, block: int) -> Iterator[torch.Tensor]:  # fmt: skip
    for piece in tensor.pieces(start, stop, block):
        rounded = rounded_to(piece, dtype)
        if rounded is None:
            raise refusal()
        yield rounded


def rounded_to(values: torch.Tensor, dtype: DType) -> torch.Tensor | None:
    """Values in another floating-point type; None if one of them, finite, would be infinite.

    The extremes tell at a tenth of the cost of looking for infinities, and float32 is the quickest
    way between two types of 16 bits (and torch's own, from float64).
    """
    import torch

    wide = values.float()
    rounded = wide.to(dtype.torch)
    if not values.numel():
        return rounded
    low, high = wide.aminmax()
    most = torch.finfo(dtype.torch).max
    if -most <= low and high <= most:  # a NaN is neither
        return rounded
    return None if bool((values.isfinite() & ~rounded.isfinite()).any()) else rounded
