"""Updates that do not know the shape of their weight, told by a base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from adaptool.architectures.placing import Plan
from adaptool.canonical import Adapter, Placement, Rebased, Site, Update
from adaptool.canonical.verbs import Coupled, Fittable
from adaptool.errors import IncompatibleError

Shape = tuple[int, ...]


def fit(plan: Plan, adapter: Adapter) -> Adapter:
    """The adapter with every update for the very weight that the base has at its site.

    A site that the base lacks stays as it is: whoever places it says so.  Shared tensors go once
    every update holds its own part of them.

    Raises IncompatibleError for an update that cannot be one of the base's weight.
    """
    open_ = {s: u for s, u in adapter.updates.items() if isinstance(_own(u), Fittable)}
    shapes: dict[Site, Shape] = {}
    for site, update in open_.items():
        shape = _shape(plan, site, update)
        if shape is not None:
            shapes[site] = shape
    updates = {s: _fitted(open_[s], shape, shapes) for s, shape in shapes.items()}
    if not updates:
        return adapter
    updates = {site: _coupled(plan, site, update, updates) for site, update in updates.items()}
    kept = adapter.extras if any(isinstance(_own(u), Fittable) for u in updates.values()) else {}
    return replace(adapter, updates={**adapter.updates, **updates}, extras=kept)


def _own(update: Update) -> Update:
    return update.update if isinstance(update, Rebased) else update


def _shape(plan: Plan, site: Site, update: Update) -> Shape | None:
    if isinstance(update, Fittable):
        return plan.shape_of(site, update)
    own = _own(update)
    if isinstance(own, Fittable) and not own.fits(update.shape):
        raise IncompatibleError(
            f"{site}: the adapter carries a weight of {list(update.shape)}, which its own update "
            "does not fit",
            code="SHAPE_MISMATCH",
        )
    return update.shape


def _fitted(update: Update, shape: Shape, shapes: Mapping[Site, Shape]) -> Update:
    own = _own(update)
    made = own.fitted(shape, shapes) if isinstance(own, Fittable) else own
    return replace(update, update=made) if isinstance(update, Rebased) else made


def _coupled(plan: Plan, site: Site, update: Update, updates: Mapping[Site, Update]) -> Update:
    """The update with the base's weight, if it wants to see it."""
    if not isinstance(update, Coupled) or not update.sees_weight:
        return update
    weight = Site(site.module)
    places = plan.place(weight, updates[weight]) if weight in updates else ()
    if len(places) != 1 or places[0] != Placement(places[0].tensor):
        raise IncompatibleError(
            f"{site}: a {update.kind} update needs its module's weight as Hugging Face stores it",
            hint="merge into the Hugging Face checkpoint, and convert that",
            code="UNSUPPORTED_LAYOUT",
        )
    return update.coupled(plan.checkpoint.tensors[places[0].tensor])
