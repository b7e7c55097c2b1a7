"""Updates that are no sum of differences: trained copies of a parameter, rows of an embedding.

They stand for themselves, at no strength. If all adapters have one it is averaged; if one adapter
has it, it is kept; anything else is for the user to decide. None is ever dropped in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from adaptool.canonical import (
    Addition,
    DType,
    LazyTensor,
    Rebased,
    Replacement,
    Site,
    TokenRows,
    Update,
)
from adaptool.errors import IncompatibleError

if TYPE_CHECKING:
    import torch

Head = Replacement | TokenRows | Rebased


@dataclass(frozen=True)
class Owners:
    """The adapters of a combination.

    Attributes:
        names: of all of them.
        weights: of all of them.
        kept: position of the one whose trained copies are kept, or None.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    kept: int | None = None


def combine_heads(site: Site, held: Mapping[int, Update], owners: Owners) -> tuple[Update, str]:
    """One update for a site where some adapter holds a trained copy, and how it came about.

    Args:
        site: which parameter.
        held: position of an adapter -> its update of the site.
        owners: all adapters.

    Raises IncompatibleError where adapters disagree and nobody said whose copy it is.
    """
    if owners.kept is not None and owners.kept in held:
        others = ", ".join(owners.names[p] for p in sorted(held) if p != owners.kept)
        left = f", that of {others} left out" if others else ""
        return held[owners.kept], f"that of {owners.names[owners.kept]} is kept, in full{left}"
    if len(held) == 1:
        position, update = next(iter(held.items()))
        return update, f"only {owners.names[position]} has one: kept as it is, in full"
    updates = [held[position] for position in sorted(held)]
    if len(held) == len(owners.names) and _alike(updates):
        total = sum(owners.weights)
        if total <= 0:
            raise _undecided(
                site, held, owners, "and weights that sum to nothing above zero have no mean"
            )
        shares = [weight / total for weight in owners.weights]
        text = ", ".join(f"{share:.3g}" for share in shares)
        return _mean(updates, shares), f"averaged with weights {text} (normalised to sum 1)"
    raise _undecided(site, held, owners, "and they are not all of one kind and shape"
                     if len(held) == len(owners.names) else "and the others do not")  # fmt: skip


def sum_additions(held: Sequence[tuple[Addition, float]]) -> Addition:
    """The weighted sum of dense differences, exactly; where one is missing it is zero."""
    values = [update.value for update, _ in held]
    strengths = [weight * update.scaling for update, weight in held]
    return Addition(_weighted(values, strengths))


def _undecided(site: Site, held: Mapping[int, Update], owners: Owners,
               why: str) -> IncompatibleError:  # fmt: skip
    names = ", ".join(f"{owners.names[p]} ({held[p].kind})" for p in sorted(held))
    return IncompatibleError(
        f"{site}: {names} each bring their own, {why}",
        hint="say whose is kept: --keep-heads ADAPTER",
        code="HEADS_DIFFER",
        details={"site": str(site), "adapters": [owners.names[p] for p in sorted(held)]},
    )


def _alike(updates: Sequence[Update]) -> bool:
    """Whether a mean of the updates means anything."""
    first = updates[0]
    if isinstance(first, TokenRows):
        return all(isinstance(u, TokenRows) and u.indices == first.indices
                   and u.values.shape == first.values.shape for u in updates)  # fmt: skip
    return isinstance(first, Replacement) and all(
        isinstance(u, Replacement) and u.shape == first.shape for u in updates
    )


def _mean(updates: Sequence[Update], shares: Sequence[float]) -> Update:
    values = [next(iter(update.tensors.values())) for update in updates]
    mean = _weighted(values, shares)
    first = updates[0]
    return replace(first, values=mean) if isinstance(first, TokenRows) else Replacement(mean)


def _weighted(tensors: Sequence[LazyTensor], weights: Sequence[float]) -> LazyTensor:
    """The weighted sum of tensors of one shape, in float32, streamed."""
    if len({tensor.shape for tensor in tensors}) != 1:
        raise ValueError("tensors of one shape add up")
    return LazyTensor(tensors[0].shape, DType.FLOAT32, partial(_stream, tensors, weights))


def _stream(tensors: Sequence[LazyTensor], weights: Sequence[float], start: int, stop: int,
            block: int) -> Iterator[torch.Tensor]:  # fmt: skip
    for pieces in zip(*(t.pieces(start, stop, block) for t in tensors), strict=True):
        total = pieces[0].double() * weights[0]
        for piece, weight in zip(pieces[1:], weights[1:], strict=True):
            total.add_(piece.double(), alpha=weight)
        yield total.float()
