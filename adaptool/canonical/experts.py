"""Low-rank updates of stacked experts: one parameter that holds a weight per expert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical.tensors import LazyTensor, transposed
from adaptool.canonical.updates import LowRank

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ExpertLowRank:
    """W[e] + scaling * B[e] A[e] for every expert e.

    Attributes:
        a: [experts, rank, in].
        b: [experts, out, rank].
        scaling: the effective strength.
    """

    kind: ClassVar[str] = "experts"

    a: LazyTensor
    b: LazyTensor
    scaling: float

    @property
    def experts(self) -> int:
        """Number of experts."""
        return self.a.shape[0]

    @property
    def rank(self) -> int:
        """Rank of each expert's update."""
        return self.a.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """[experts, out, in]."""
        return (self.experts, self.b.shape[1], self.a.shape[2])

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """Both stacks of factors."""
        return {"a": self.a, "b": self.b}

    def scaled(self, scale: float) -> ExpertLowRank:
        """The same update `scale` times as strong."""
        return replace(self, scaling=self.scaling * scale)

    def expert(self, index: int) -> LowRank:
        """The update of one expert, as a view."""
        return LowRank(_item(self.a, index), _item(self.b, index), self.scaling)

    def transposed(self) -> ExpertLowRank:
        """The update of the transposed weights: A' and B' trade places."""
        return ExpertLowRank(transposed(self.b), transposed(self.a), self.scaling)


def _item(tensor: LazyTensor, index: int) -> LazyTensor:
    size = tensor.row
    return replace(
        tensor,
        shape=tensor.shape[1:],
        stored=None,
        pieces=partial(_shifted, tensor, index * size),
    )


def _shifted(tensor: LazyTensor, offset: int, start: int, stop: int,
             block: int) -> Iterator[torch.Tensor]:  # fmt: skip
    yield from tensor.pieces(start + offset, stop + offset, block)
