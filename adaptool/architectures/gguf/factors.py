"""Low-rank updates that share a tensor: joined by bands of rows, stacked by slots, and undone.

A piece is the update of some rows of one slot of a stored tensor. Pieces of one slot are joined
exactly: their A's stand above each other, their B's beside each other in their own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from adaptool.canonical import DType, ExpertLowRank, LazyTensor, LowRank
from adaptool.canonical.tensors import from_recipe
from adaptool.canonical.tensors import transposed as transpose

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Piece:
    """The update of rows [start, stop) of one slot.

    Attributes:
        slot: index in a stack, or None for a tensor that is none.
        rows: where it lies in the slot, or None for all rows.
        update: of these rows alone.
    """

    slot: int | None
    rows: tuple[int, int] | None
    update: LowRank


def transposed(update: LowRank) -> LowRank:
    """The update of the transposed weight: A' and B' trade places."""
    return replace(update, a=transpose(update.b), b=transpose(update.a))


def with_all_rows(pieces: Sequence[Piece], height: int) -> LowRank:
    """One update of all `height` rows of a slot: exact, the ranks add up.

    A single piece that covers all rows comes back as it is. Pieces with the same strength keep it;
    else strengths go into B.
    """
    first = pieces[0].update
    if len(pieces) == 1 and first.b.shape[0] == height:
        return first
    if all(_equal(piece.update.a, first.a) for piece in pieces[1:]):  # one module, split
        shared = [(piece.update, _row_numbers(piece, height)) for piece in pieces]
        return scattered(shared, height)
    rank = sum(piece.update.rank for piece in pieces)
    strengths = {piece.update.scaling for piece in pieces}
    scaling = strengths.pop() if len(strengths) == 1 else 1.0
    dtype = _dtype([t for p in pieces for t in (p.update.a, p.update.b)], scaling, pieces)
    a = from_recipe((rank, *first.a.shape[1:]), dtype, partial(_above, pieces, dtype))
    b = from_recipe((height, rank), dtype, partial(_beside, pieces, height, scaling, dtype))
    return LowRank(a, b, scaling, first.embedding)


def _row_numbers(piece: Piece, height: int) -> torch.Tensor:
    import torch

    return torch.arange(*(piece.rows or (0, height)))


def stack(updates: Sequence[LowRank | None]) -> ExpertLowRank:
    """Updates of the slots of a stack: the largest rank for all, zeros where there is none.

    Raises ValueError if there is no update at all, or shapes differ.
    """
    present = [update for update in updates if update is not None]
    if not present or len({update.shape for update in present}) != 1:
        raise ValueError("slots of one stack have one shape")
    rank = max(update.rank for update in present)
    strengths = {update.scaling for update in present}
    scaling = strengths.pop() if len(strengths) == 1 else 1.0
    pieces = [Piece(None, None, update) for update in present]
    dtype = _dtype([t for u in present for t in (u.a, u.b)], scaling, pieces)
    out, width = present[0].shape
    count = len(updates)
    return ExpertLowRank(
        from_recipe((count, rank, width), dtype, partial(_stacked_a, updates, rank, dtype)),
        from_recipe((count, out, rank), dtype, partial(_stacked_b, updates, rank, scaling, dtype)),
        scaling,
    )


def scattered(pieces: Sequence[tuple[LowRank, torch.Tensor | None]], height: int) -> LowRank:
    """One update from updates of some of its rows.

    Args:
        pieces: (update, rows): int64 row numbers, None for all.
        height: rows in all.

    Pieces with one common A (a fused projection that was split) share it again.
    """
    first = pieces[0][0]
    if len(pieces) == 1 and pieces[0][1] is None:
        return first
    shared = all(_equal(update.a, first.a) for update, _ in pieces[1:])
    strengths = {update.scaling for update, _ in pieces}
    scaling = strengths.pop() if len(strengths) == 1 else 1.0
    holders = [Piece(None, None, update) for update, _ in pieces]
    dtype = _dtype([t for p in holders for t in (p.update.a, p.update.b)], scaling, holders)
    rank = first.rank if shared else sum(update.rank for update, _ in pieces)
    a = first.a
    if not shared:
        a = from_recipe((rank, *first.a.shape[1:]), dtype, partial(_above, holders, dtype))
    put = partial(_rows_put, pieces, (height, rank), scaling, shared=shared)
    return LowRank(a, from_recipe((height, rank), dtype, put), scaling, first.embedding)


Low = TypeVar("Low", bound=LowRank | ExpertLowRank)


def padded(update: LowRank, rank: int) -> LowRank:
    """The same update with zeros up to a larger rank."""
    if update.rank == rank:
        return update
    missing = rank - update.rank
    return LowRank(
        from_recipe((rank, *update.a.shape[1:]), update.a.dtype,
                    partial(_with_zeros, update.a, (0, 0, 0, missing))),
        from_recipe((update.b.shape[0], rank), update.b.dtype,
                    partial(_with_zeros, update.b, (0, missing))),
        update.scaling, update.embedding,
    )  # fmt: skip


def with_scaling(update: Low, scaling: float) -> Low:
    """The same update with another scaling: the rest goes into B, in float32."""
    if update.scaling == scaling:
        return update
    ratio = update.scaling / scaling
    return replace(update, b=_mapped_as(update.b, DType.FLOAT32, partial(_scale, ratio)),
                   scaling=scaling)  # fmt: skip


def _with_zeros(factor: LazyTensor, margins: tuple[int, ...]) -> torch.Tensor:
    import torch

    return torch.nn.functional.pad(factor.values(), margins)


def _dtype(tensors: Sequence[LazyTensor], scaling: float, pieces: Sequence[Piece]) -> DType:
    """The factors' common type; float32 if they differ, or if strengths have to be folded."""
    kinds = {tensor.dtype for tensor in tensors}
    folded = any(piece.update.scaling != scaling for piece in pieces)
    return DType.FLOAT32 if folded or len(kinds) != 1 else kinds.pop()


def _above(pieces: Sequence[Piece], dtype: DType) -> torch.Tensor:
    import torch

    return torch.cat([piece.update.a.values().to(dtype.torch) for piece in pieces])


def _beside(pieces: Sequence[Piece], height: int, scaling: float, dtype: DType) -> torch.Tensor:
    import torch

    rank = sum(piece.update.rank for piece in pieces)
    whole = torch.zeros(height, rank, dtype=dtype.torch)
    column = 0
    for piece in pieces:
        first, last = piece.rows or (0, height)
        update = piece.update
        whole[first:last, column : column + update.rank] = _strong(update, scaling)
        column += update.rank
    return whole


def _rows_put(pieces: Sequence[tuple[LowRank, torch.Tensor | None]], shape: tuple[int, int],
              scaling: float, *, shared: bool) -> torch.Tensor:  # fmt: skip
    """B's put into their rows: beside each other or, with a `shared` A, in the same columns."""
    import torch

    values = [_strong(update, scaling) for update, _ in pieces]
    whole = torch.zeros(shape, dtype=values[0].dtype)
    column = 0
    for (update, rows), value in zip(pieces, values, strict=True):
        at = slice(None) if rows is None else rows
        whole[at, column : column + update.rank] = value.to(whole.dtype)
        column += 0 if shared else update.rank
    return whole


def _stacked_a(updates: Sequence[LowRank | None], rank: int, dtype: DType) -> torch.Tensor:
    import torch

    width = next(u for u in updates if u is not None).a.shape[1]
    whole = torch.zeros(len(updates), rank, width, dtype=dtype.torch)
    for slot, update in enumerate(updates):
        if update is not None:
            whole[slot, : update.rank] = update.a.values()
    return whole


def _stacked_b(updates: Sequence[LowRank | None], rank: int, scaling: float,
               dtype: DType) -> torch.Tensor:  # fmt: skip
    import torch

    height = next(u for u in updates if u is not None).b.shape[0]
    whole = torch.zeros(len(updates), height, rank, dtype=dtype.torch)
    for slot, update in enumerate(updates):
        if update is not None:
            whole[slot, :, : update.rank] = _strong(update, scaling)
    return whole


def _strong(update: LowRank, scaling: float) -> torch.Tensor:
    """B as it has to be for the strength to be `scaling`."""
    b = update.b.values().reshape(-1, update.rank)
    return b if update.scaling == scaling else _scale(update.scaling / scaling, b)


def _scale(ratio: float, values: torch.Tensor) -> torch.Tensor:
    return values.double().mul(ratio).float()


def _mapped_as(tensor: LazyTensor, dtype: DType,
               change: Callable[[torch.Tensor], torch.Tensor]) -> LazyTensor:  # fmt: skip
    return from_recipe(tensor.shape, dtype, lambda: change(tensor.values()))


def _equal(one: LazyTensor, other: LazyTensor) -> bool:
    import torch

    return one is other or (
        (one.shape, one.dtype) == (other.shape, other.dtype)
        and torch.equal(one.values(), other.values())
    )
