"""LoRA on what is left of a weight when a part of it has been taken out.

PiSSA (arXiv:2404.02948, eq. 3 to 5) and OLoRA (arXiv:2406.01775, eq. 2 to 4) begin with factors of
a part of W and take that part out; KaSA (arXiv:2412.06071, eq. 5) takes out the weakest part as
noise.  A file with the factors as they were trained, and not their difference to the first ones,
means U(W) = W - part(W) + scaling * B A, of the model that training began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import LazyTensor, LowRank, Window
from adaptool.canonical.verbs import Applier, Span

if TYPE_CHECKING:
    import torch


class Taken(StrEnum):
    """The part that is taken out, for factors of rank r."""

    STRONGEST = "pissa"
    """The best approximation of rank r."""

    FIRST = "olora"
    """Scaling times the first r columns of Q and rows of R, W = Q R."""

    WEAKEST = "kasa"
    """The r smallest singular values."""


@dataclass(frozen=True)
class Residual:
    """U(W) = W - part(W) + scaling * B A.

    Attributes:
        low: scaling * B A.
        taken: which part.
        stored: the file's tensors by suffix.
    """

    kind: ClassVar[str] = "residual-low-rank"
    peft_type: ClassVar[str] = "LORA"
    additive: ClassVar[bool] = False
    span: ClassVar[Span] = Span.ALL

    low: LowRank
    taken: Taken
    stored: Mapping[str, LazyTensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in]."""
        return self.low.shape

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The factors, and what stands between them."""
        return self.stored

    @property
    def most_rank(self) -> int:
        """Of the part that is taken out and of the factors."""
        return 2 * self.low.rank

    def applier(self, dtype: torch.dtype, device: torch.device) -> Applier:
        """Decomposes the whole weight."""
        move = self.low.applier(dtype, device)

        def apply(weight: torch.Tensor, window: Window, scale: float) -> torch.Tensor:
            moved = move(weight - self._part(weight), window, 1.0)
            return moved if scale == 1.0 else weight.lerp_(moved, scale)

        return apply

    def _part(self, weight: torch.Tensor) -> torch.Tensor:
        import torch

        rank = self.low.rank
        if self.taken is Taken.FIRST:
            q, r = torch.linalg.qr(weight)
            first: torch.Tensor = self.low.scaling * (q[:, :rank] @ r[:rank])
            return first
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        some = slice(rank) if self.taken is Taken.STRONGEST else slice(len(s) - rank, None)
        part: torch.Tensor = (u[:, some] * s[some]) @ vt[some]
        return part
