"""Low-rank updates of one weight -> one update, by a method, in a space, cut to a rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import copysign, prod, sqrt
from typing import TYPE_CHECKING

from adaptool.canonical import LowRank, Site
from adaptool.canonical.algebra import decompose, from_spectrum, truncation_error
from adaptool.canonical.blending import Blended, blend_matrices
from adaptool.canonical.noise import seed_of
from adaptool.canonical.sketching import approximate
from adaptool.canonical.subspaces import shared_subspace
from adaptool.canonical.tensors import from_values
from adaptool.combination.recipe import Recipe
from adaptool.errors import IncompatibleError
from adaptool.methods import Elementwise, Exact, Part

if TYPE_CHECKING:
    import torch

HELD = 1 << 26
"""Values of a blend that is held in memory (256 MB) while its factors are sought; a larger one is
computed again for each of the passes over it."""


@dataclass(frozen=True)
class Outcome:
    """A combined update, and what a cut to a rank took from it.

    Attributes:
        update: the result.
        norm: |D|_F before the cut, where it was cut; else None.
        error: |D - result|_F; 0 where nothing was cut.
    """

    update: LowRank | Blended
    norm: float | None = None
    error: float = 0.0


def blend_updates(site: Site, parts: Sequence[Part], recipe: Recipe, member: int = 0) -> Outcome:
    """The combined update of one weight.

    Args:
        site: names the random numbers, and the module in errors.
        parts: low-rank updates of one shape, with their weights.
        recipe: what is asked.
        member: index of the weight in a stack of experts.

    Raises:
        IncompatibleError: factors of different ranks, where A and B are combined apart.
    """
    method, settings = recipe.chosen
    keys = [seed_of(recipe.seed, site, member, number) for number in range(len(parts))]
    if recipe.space == "factors" and isinstance(method, Elementwise):
        low = _blend_factors(site, parts, method, recipe, keys)
    elif isinstance(method, Exact):
        low = method.merge(parts, settings)
    elif isinstance(method, Elementwise) and recipe.space == "core":
        space = shared_subspace([update for update, _ in parts])
        weights = [weight for _, weight in parts]
        low = space.lifted(blend_matrices(method.rule(settings), space.cores, weights, keys))
    elif isinstance(method, Elementwise):
        updates, strengths = tuple(u for u, _ in parts), tuple(w for _, w in parts)
        blended = Blended(updates, strengths, method.rule(settings), tuple(keys))
        if not recipe.factored and recipe.rank is None:
            return Outcome(blended)
        return _factored(blended, recipe.rank or max(u.rank for u in updates), keys[0])
    else:
        raise TypeError(f"{recipe.method} offers neither merge nor rule")
    return _cut(low, recipe.rank)


def _cut(low: LowRank, rank: int | None) -> Outcome:
    """The best approximation of at most `rank`."""
    if rank is None or rank >= low.rank:
        return Outcome(low)
    spectrum = decompose(low)
    cut = from_spectrum(spectrum, rank, low.a.shape[2:], low.embedding)
    return Outcome(cut, float(spectrum.s.norm()), truncation_error(spectrum.s, rank))


def _factored(blended: Blended, rank: int, seed: int) -> Outcome:
    """Factors of a blend, which is of full rank in general."""
    import torch

    blocks = blended.blocks
    if prod(blended.matrix) <= HELD:
        whole, row = torch.empty(blended.matrix), 0
        for block in blended.blocks():
            whole[row : row + len(block)] = block
            row += len(block)

        def blocks() -> Iterator[torch.Tensor]:
            yield whole

    found = approximate(blocks, blended.matrix, rank, seed=seed)
    like = blended.parts[0]
    low = from_spectrum(found.spectrum, rank, like.shape[2:], like.embedding)
    return Outcome(low, found.norm, found.error(rank))


def _blend_factors(site: Site, parts: Sequence[Part], method: Elementwise, recipe: Recipe,
                   keys: Sequence[int]) -> LowRank:  # fmt: skip
    """PEFT's definition: A's with weights sign(w s) sqrt|w s|, B's with sqrt|w s|."""
    import torch

    ranks = {update.rank for update, _ in parts}
    if len(ranks) > 1:
        raise IncompatibleError(
            f"{site}: ranks {sorted(ranks)} do not combine factor by factor",
            hint="leave out --space factors: updates of any ranks combine",
            code="RANKS_DIFFER",
        )
    _, settings = recipe.chosen
    rule, like = method.rule(settings), parts[0][0]
    strengths = [weight * update.scaling for update, weight in parts]
    roots = [sqrt(abs(strength)) for strength in strengths]
    factors = [u.factors(torch.float32, torch.device("cpu")) for u, _ in parts]
    signed = [copysign(root, strength) for root, strength in zip(roots, strengths, strict=True)]
    a = blend_matrices(rule, [a for a, _ in factors], signed, [seed_of(key, "A") for key in keys])
    b = blend_matrices(rule, [b for _, b in factors], roots, [seed_of(key, "B") for key in keys])
    return LowRank(from_values(a.reshape(like.a.shape)), from_values(b), 1.0, like.embedding)
