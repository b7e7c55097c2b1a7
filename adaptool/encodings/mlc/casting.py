"""Weights that stay plain, in the type that MLC stores them in."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from adaptool.canonical import DType, LazyTensor
from adaptool.canonical.narrowing import narrowed
from adaptool.encodings.mlc.schemes import Scheme
from adaptool.errors import IncompatibleError

if TYPE_CHECKING:
    import torch


def plain(scheme: Scheme, tensor: LazyTensor, *, name: str = "") -> LazyTensor:
    """The tensor in the type that the scheme stores plain weights in; rounded while it is streamed.

    float16: to the nearest. bfloat16 (of schemes that compute in float32): to the nearest, halves
    to the even, and finite values beyond the largest are clipped to it, as MLC does for the masks
    that some models store; infinities and NaNs keep their upper bits. What is stored in that type
    already stays as it is, and can be copied.

    Args:
        scheme: says the type.
        tensor: floating-point values of any type.
        name: of the tensor, for messages.

    Streaming raises IncompatibleError (OUT_OF_RANGE) for a finite value that float16 cannot hold.
    """
    if scheme.stored is not DType.BFLOAT16:
        return narrowed(tensor, scheme.stored, partial(out_of_range, name, scheme.stored))
    if tensor.encoding is None and tensor.dtype is DType.BFLOAT16:
        return tensor
    pieces = partial(_rounded, tensor, name)
    return LazyTensor(tensor.shape, DType.BFLOAT16, pieces, block=tensor.block)


def out_of_range(name: str, dtype: DType) -> IncompatibleError:
    """What to raise of a tensor with a value that `dtype` cannot hold."""
    import torch

    return IncompatibleError(
        f"{name}: has a value beyond {torch.finfo(dtype.torch).max:g}, the largest of {dtype}",
        hint="choose a scheme that computes in float32: q4f32_1 or q0f32",
        code="OUT_OF_RANGE",
    )


def _rounded(tensor: LazyTensor, name: str, start: int, stop: int,
             block: int) -> Iterator[torch.Tensor]:  # fmt: skip
    """bfloat16 of a tensor's values, by way of float32."""
    import torch

    most = torch.finfo(torch.bfloat16).max
    for piece in tensor.pieces(start, stop, block):
        single = piece.float()
        low, high = single.aminmax()
        if -most <= low and high <= most:  # a NaN is neither
            yield single.to(torch.bfloat16)
            continue
        if bool((piece.isfinite() & ~single.isfinite()).any()):
            raise out_of_range(name, DType.FLOAT32)
        yield _clipped(single)


def _clipped(values: torch.Tensor) -> torch.Tensor:
    """Float32 -> bfloat16 where some are large, infinite or no numbers: by their bits."""
    import torch

    limit = torch.finfo(torch.bfloat16).max
    bits = values.view(torch.int32)
    upward = torch.where(values.abs() < limit, ((bits >> 16) & 1) + 0x7FFF, 0)
    return ((bits + upward) >> 16).to(torch.int16).view(torch.bfloat16)
