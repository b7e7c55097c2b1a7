"""One site of several adapters: what kinds of updates meet there, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot
from typing import TYPE_CHECKING, TypeVar

from adaptool.canonical import (
    Addition,
    ExpertLowRank,
    LazyTensor,
    LowRank,
    Rebased,
    Replacement,
    Site,
    TokenRows,
    Update,
)
from adaptool.canonical.tensors import from_values, same_bytes
from adaptool.combination.blends import Outcome, blend_updates
from adaptool.combination.heads import Owners, combine_heads, sum_additions
from adaptool.combination.recipe import Recipe
from adaptool.errors import CorruptInputError, IncompatibleError

if TYPE_CHECKING:
    import torch

Kind = TypeVar("Kind", bound=Update)

_HEADS = (Replacement, TokenRows, Rebased)


@dataclass(frozen=True)
class Row:
    """What became of one site.

    Attributes:
        site: which one.
        ranks: of the updates that went in, None for an adapter that has none there.
        rank: of the result; None for a blend of full rank and for what has no rank.
        norm: |D|_F before a cut to a rank; None where nothing was cut.
        error: |D - result|_F.
    """

    site: Site
    ranks: tuple[int | None, ...]
    rank: int | None
    norm: float | None = None
    error: float = 0.0


def combine_site(
    site: Site, held: Mapping[int, Update], owners: Owners, recipe: Recipe
) -> tuple[Update, Row, str]:
    """The combined update of one site, its row in the report, and a note or nothing."""
    ranks = tuple(_rank(held.get(position)) for position in range(len(owners.names)))
    updates = list(held.values())
    if len({update.shape for update in updates if not isinstance(update, _HEADS)}) > 1:
        shapes = ", ".join(f"{owners.names[p]} {list(u.shape)}" for p, u in held.items())
        raise IncompatibleError(
            f"{site}: the adapters are for weights of different shapes: {shapes}",
            hint="were they trained on the same base?",
            code="SHAPE_MISMATCH",
        )
    weighed = [(update, owners.weights[position]) for position, update in held.items()]
    note = ""
    norm, error = None, 0.0
    result: Update
    if lows := _all_of(LowRank, weighed):
        outcome = _blend(site, lows, recipe)
        result, norm, error = outcome.update, outcome.norm, outcome.error
    elif stacks := _all_of(ExpertLowRank, weighed):
        result, norm, error = _combine_experts(site, stacks, recipe)
    elif additions := _all_of(Addition, weighed):
        result = sum_additions(additions)
    elif (copies := _all_of(Rebased, weighed)) and (inner := _on_one_copy(copies)):
        outcome = _blend(site, inner, replace(recipe, factored=True))
        if not isinstance(outcome.update, LowRank):
            raise TypeError(outcome.update.kind)
        result, norm, error = (
            Rebased(copies[0][0].value, outcome.update),
            outcome.norm,
            outcome.error,
        )
    else:
        result, note = combine_heads(site, held, owners)
    return result, Row(site, ranks, _rank(result), norm, error), note


def _blend(site: Site, parts: Sequence[tuple[LowRank, float]], recipe: Recipe,
           member: int = 0) -> Outcome:  # fmt: skip
    """`blend_updates`, of finite values alone."""
    if len({update.embedding for update, _ in parts}) > 1:
        raise IncompatibleError(
            f"{site}: an embedding in one adapter, a linear layer in another",
            hint="were they trained on the same base?",
            code="SHAPE_MISMATCH",
        )
    for update, _ in parts:
        for role, tensor in update.tensors.items():
            if not all(bool(piece.isfinite().all()) for piece in tensor.stream()):
                raise CorruptInputError(
                    f"{site}: factor {role} has values that are not finite",
                    hint="find them with `adaptool inspect --stats`",
                    code="NOT_FINITE",
                )
    return blend_updates(site, parts, recipe, member)


def _combine_experts(
    site: Site, stacks: Sequence[tuple[ExpertLowRank, float]], recipe: Recipe
) -> tuple[ExpertLowRank, float | None, float]:
    """Expert by expert; the stack has the largest rank among them."""
    count = stacks[0][0].experts
    outcomes = [
        _blend(site, [(stack.expert(e), weight) for stack, weight in stacks], recipe, e)
        for e in range(count)
    ]
    lows = [outcome.update for outcome in outcomes if isinstance(outcome.update, LowRank)]
    if len(lows) < count:
        raise IncompatibleError(
            f"{site}: blends of stacked experts have to become factors first",
            hint="give a --rank, or combine into an adapter and merge that",
            code="EXPERTS_NEED_RANK",
        )
    rank = max(low.rank for low in lows)
    a = [_padded(low.a.values(), (rank, low.a.shape[1])) for low in lows]
    b = [_padded(low.b.values(), (low.b.shape[0], rank)) for low in lows]
    norms = [outcome.norm for outcome in outcomes if outcome.norm is not None]
    error = hypot(*(outcome.error for outcome in outcomes))
    stack = ExpertLowRank(_stacked(a), _stacked(b), 1.0)
    return stack, hypot(*norms) if norms else None, error


def _padded(values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    padded = values.new_zeros(shape)
    padded[: values.shape[0], : values.shape[1]] = values
    return padded


def _stacked(values: list[torch.Tensor]) -> LazyTensor:
    import torch

    return from_values(torch.stack(values))


def _all_of(kind: type[Kind], weighed: Sequence[tuple[Update, float]]) -> list[tuple[Kind, float]]:
    """The pairs, if every update is of this kind; else none."""
    found = [(update, weight) for update, weight in weighed if isinstance(update, kind)]
    return found if len(found) == len(weighed) else []


def _on_one_copy(copies: Sequence[tuple[Rebased, float]]) -> list[tuple[LowRank, float]]:
    """The updates themselves, if all stand on the same copy of the weight; else none."""
    first = copies[0][0].value
    if not all(same_bytes(first, copy.value) for copy, _ in copies[1:]):
        return []
    return [(c.update, weight) for c, weight in copies if isinstance(c.update, LowRank)]


def _rank(update: Update | None) -> int | None:
    inner = update.update if isinstance(update, Rebased) else update
    return inner.rank if isinstance(inner, LowRank | ExpertLowRank) else None
