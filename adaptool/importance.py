"""How much each module's error matters: relative to the weight that it changes."""

from __future__ import annotations

from math import prod

from adaptool.architectures.placing import Plan
from adaptool.architectures.replication import replicate_layers
from adaptool.architectures.speaking import plan_of
from adaptool.canonical import Adapter, Checkpoint, Placement, Rebased, Site, Update
from adaptool.canonical.parts import low_rank
from adaptool.errors import IncompatibleError
from adaptool.workers import run_each


def importance_of(
    adapter: Adapter, base: Checkpoint, threads: int | None = None
) -> dict[Site, float]:
    """1 / |W|_F^2 of the weight under each low-rank update; the base is streamed.

    Raises IncompatibleError for an update that has no place in the base, and for a weight that is
    quantised or zero.
    """
    plan = plan_of(replicate_layers(base, adapter), adapter.config)
    sites = [(site, update) for site, update in adapter.updates.items() if low_rank(update)]
    squares = run_each(lambda item: _square(plan, *item), sites, threads)
    for (site, _), square in zip(sites, squares, strict=True):
        if not square > 0:
            raise IncompatibleError(
                f"{site}: the base's weight is zero, so nothing is relative to it",
                hint="leave out --against",
                code="ZERO_WEIGHT",
            )
    return {site: 1.0 / square for (site, _), square in zip(sites, squares, strict=True)}


def _square(plan: Plan, site: Site, update: Update) -> float:
    """|W|_F^2 of the weight under an update."""
    if isinstance(update, Rebased):  # trained on its own copy of the weight
        return sum(float(piece.double().square().sum()) for piece in update.value.stream())
    places = plan.place(site, plan.oriented(site, update))
    if not places:
        raise IncompatibleError(
            f"{site}: {plan.checkpoint.provenance.name} has no such parameter; closest: "
            f"{', '.join(plan.closest(site)) or 'none'}",
            hint="is this the base that the adapter was trained on?",
            code="UNPLACED",
        )
    return sum(_band_square(plan.checkpoint, place) for place in places)


def _band_square(base: Checkpoint, place: Placement) -> float:
    tensor = base.tensors[place.tensor]
    if not tensor.dtype.is_floating or tensor.dtype.bits < 16:
        raise IncompatibleError(
            f"{place.tensor} is stored as {tensor.kind}, a quantised weight",
            hint="name the full-precision model that it was made from",
            code="QUANTISED_BASE",
        )
    shape = tensor.shape if place.slot is None else tensor.shape[1:]
    height, size = shape[0], prod(shape)
    first, last = place.rows or (0, height)
    start = (place.slot or 0) * size
    step = size // height
    pieces = tensor.stream(start + first * step, start + last * step)
    return sum(float(((p.double() - place.shift) * place.unit).square().sum()) for p in pieces)
