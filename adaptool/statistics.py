"""Numbers about an update that need its values: norms, spectrum, effective rank.

The dense update is never formed: with B = Q_b R_b and A' = Q_a R_a its singular values are those of
the small matrix R_b R_a'.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, sqrt
from typing import TYPE_CHECKING

from adaptool.canonical import Dora, ExpertLowRank, LazyTensor, LowRank, Rebased, Update
from adaptool.canonical.algebra import singular_values
from adaptool.errors import JSON

if TYPE_CHECKING:
    import torch

SHOWN_VALUES = 16


def measure(update: Update) -> dict[str, JSON]:
    """Facts about one update.

    Returns:
        nonfinite: values that are infinite or not a number.
        norm: |dW|_F, for updates with a low-rank part (of DoRA: the direction's).
        singular_values: the largest ones, descending.
        effective_rank: exp of the entropy of the squared singular values' shares
            (Roy and Vetterli 2007, on energies).
    """
    facts: dict[str, JSON] = {
        "nonfinite": sum(_nonfinite(tensor) for tensor in update.tensors.values())
    }
    inner = update.update if isinstance(update, Rebased) else update
    inner = inner.direction if isinstance(inner, Dora) else inner
    if facts["nonfinite"]:
        return facts
    if isinstance(inner, ExpertLowRank):
        norms = [float(singular_values(inner.expert(e)).norm()) for e in range(inner.experts)]
        facts["norm"] = sqrt(sum(norm * norm for norm in norms))
    elif isinstance(inner, LowRank):
        values = singular_values(inner)
        facts["norm"] = float(values.norm())
        facts["singular_values"] = [float(v) for v in values[:SHOWN_VALUES]]
        facts["effective_rank"] = _effective_rank(values)
    return facts


def norm_of(tensors: Iterable[LazyTensor]) -> float:
    """Frobenius norm of stored tensors together, streamed."""
    total = 0.0
    for tensor in tensors:
        for piece in tensor.stream():
            total += float(piece.float().norm()) ** 2
    return sqrt(total)


def _nonfinite(tensor: LazyTensor) -> int:
    return sum(int((~piece.float().isfinite()).sum()) for piece in tensor.stream())


def _effective_rank(values: torch.Tensor) -> float:
    energy = values.square()
    total = float(energy.sum())
    if total == 0:
        return 0.0
    shares = energy[energy > 0] / total
    return exp(float(-(shares * shares.log()).sum()))
