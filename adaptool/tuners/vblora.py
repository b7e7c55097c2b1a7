"""VB-LoRA: factors that are put together from vectors of one bank (arXiv:2405.15179, eq. 2 to 4).

Every piece of a factor, `length` values long, is a mixture of the `topk` vectors of the bank with
the largest logits, weighted by the softmax of these.  A = [r, pieces * length] row by row; B =
[pieces * length, r] column by column.  A file for inference holds the positions and all weights
but the last, which is what they lack to 1.  The result is a plain low-rank update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from adaptool.canonical import LazyTensor, Update
from adaptool.tuners._factored import double, factored
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts
from adaptool.tuners._positions import read_positions, take_positions

if TYPE_CHECKING:
    import torch

_POSITIONS, _WEIGHTS = "_topk_indices", "_topk_weights"
_SIDES = ("vblora_logits_A", "vblora_logits_B")

suffixes = tuple(side + form for side in _SIDES for form in ("", _POSITIONS, _WEIGHTS))
shared = ("vblora_vector_bank",)


@dataclass(frozen=True)
class _Mixtures:
    """The mixtures of one factor.

    Attributes:
        logits: [x, y, vectors], or None.
        positions, weights: [x, y, topk] and [x, y, topk - 1], without logits.
    """

    logits: LazyTensor | None
    positions: LazyTensor | None
    weights: LazyTensor | None
    what: str

    @property
    def shape(self) -> tuple[int, ...]:
        """[x, y, anything]."""
        return next(t.shape for t in (self.logits, self.positions) if t is not None)

    def mix(self, bank: torch.Tensor, topk: int) -> torch.Tensor:
        """[x, y, length]."""
        import torch

        if self.logits is not None:
            best, positions = double(self.logits).topk(topk, dim=-1)
            weights = best.softmax(dim=-1)
        elif self.positions is not None and self.weights is not None:
            positions = read_positions(self.positions, bank.shape[0], self.what)
            first = double(self.weights)
            weights = torch.cat([first, 1 - first.sum(dim=-1, keepdim=True)], dim=-1)
        mixed = bank.new_zeros(*weights.shape[:2], bank.shape[1])
        for weight, position in zip(weights.unbind(-1), positions.unbind(-1), strict=True):
            mixed += weight[..., None] * bank[position]
        return mixed


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """Logits [r, in / length, vectors] and [out / length, r, vectors], or their largest ones."""
    bank = parts.common("vblora_vector_bank", None, None)
    if bank is None:
        raise parts.corrupt("the file holds no vblora_vector_bank")
    vectors, length = bank.shape
    topk = options.whole("topk", 2, least=1)
    if topk > vectors:
        raise options.refusal("topk", f"at most the {vectors} vectors of the bank")
    a, b = (_take(parts, side, vectors, topk) for side in _SIDES)
    rank, wide, _ = a.shape
    high, columns, _ = b.shape
    if columns != rank or rank > length * min(high, wide):
        raise parts.corrupt(f"logits for ranks {rank} and {columns} of {length * high} outputs")
    make = partial(_factors, a, b, bank, topk)
    return {"weight": factored([bank], (high * length, wide * length), rank, make)}


def _take(parts: Parts, side: str, vectors: int, topk: int) -> _Mixtures:
    logits = parts.take(side, None, None, vectors)
    what = f"{parts.where}: {side}{_POSITIONS}"
    if logits is not None:
        return _Mixtures(logits, None, None, what)
    positions = take_positions(parts, side + _POSITIONS, None, None, topk)
    weights = parts.need(side + _WEIGHTS, *positions.shape[:2], topk - 1)
    return _Mixtures(None, positions, weights, what)


def _factors(
    a: _Mixtures, b: _Mixtures, bank: LazyTensor, topk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    vectors = double(bank)
    rows, columns = a.mix(vectors, topk), b.mix(vectors, topk)
    return rows.flatten(1), columns.transpose(1, 2).flatten(0, 1)
