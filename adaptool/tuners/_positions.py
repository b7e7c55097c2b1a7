"""Positions that a file holds as whole numbers: checked before anything is indexed with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptool.canonical import DType, LazyTensor
from adaptool.errors import CorruptInputError
from adaptool.tuners._parts import Parts

if TYPE_CHECKING:
    import torch

_WHOLE = (
    DType.UINT8, DType.INT8, DType.INT16, DType.UINT16, DType.INT32, DType.UINT32, DType.INT64,
    DType.FLOAT32,  # PEFT on Windows
)  # fmt: skip


def take_positions(parts: Parts, suffix: str, *shape: int | None) -> LazyTensor:
    """Take a tensor of positions of that shape (None: any size).

    Raises CorruptInputError if it is absent, or is not of that kind.
    """
    found = parts.tensors.pop(suffix, None)
    if found is None:
        raise parts.corrupt(f"lacks its {suffix}")
    fits = len(shape) == len(found.shape) and all(
        want in (None, size) for want, size in zip(shape, found.shape, strict=True)
    )
    if not fits or found.dtype not in _WHOLE:
        raise parts.corrupt(f"{suffix} is {found.dtype} {list(found.shape)}, no fitting positions")
    return found


def read_positions(tensor: LazyTensor, count: int, what: str) -> torch.Tensor:
    """The positions as int64, in the tensor's shape.

    Raises CorruptInputError for one that is not in 0 .. count - 1.
    """
    import torch

    stored = tensor.values()
    found = stored.to(torch.int64)
    if not bool((found == stored).all()):
        raise CorruptInputError(f"{what} holds a position that is no whole number")
    return within(found, count, what)


def within(positions: torch.Tensor, count: int, what: str) -> torch.Tensor:
    """`positions`, if all are in 0 .. count - 1. Raises CorruptInputError otherwise."""
    if not bool(((positions >= 0) & (positions < count)).all()):
        raise CorruptInputError(f"{what} holds a position that is not within {count}")
    return positions
