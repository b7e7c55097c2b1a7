"""One site of an adapter: factors that are there, factors to be sought, or something to keep."""

from __future__ import annotations

from collections.abc import Sequence

from adaptool.architectures.placing import Plan
from adaptool.canonical import (
    Addition,
    Applicable,
    Dora,
    ExpertLowRank,
    LowRank,
    Placement,
    Rebased,
    Replacement,
    Site,
    TokenRows,
    Update,
)
from adaptool.canonical.parts import looks_up
from adaptool.canonical.tensors import from_values
from adaptool.canonical.updates import LowRankable, RankBounded
from adaptool.canonical.verbs import Companion
from adaptool.errors import IncompatibleError
from adaptool.lowering.candidates import Known, Sought
from adaptool.lowering.differences import Difference

_PLAIN = (LowRank, ExpertLowRank)
_WHOLE = (Replacement, TokenRows, Addition)


def is_plain(update: Update) -> bool:
    """Whether an update is one of those that are left when an adapter was lowered."""
    return isinstance(own_update(update), (*_PLAIN, *_WHOLE))


def needs_base(update: Update) -> bool:
    """Whether only a base tells what the factors of this update are."""
    own = own_update(update)
    if is_plain(own) or isinstance(update, Rebased):
        return False
    return not (isinstance(own, LowRankable) and own.tells_shape)


def own_update(update: Update) -> Update:
    """The update itself, without the copy of the base that it may stand on."""
    return update.update if isinstance(update, Rebased) else update


def consider(
    site: Site, update: Update, plan: Plan | None, method: str
) -> Known | Sought | Update | None:
    """A candidate for factors, an update to be kept, or None for one without a place.

    Args:
        site, update: which one.
        plan: where the base has its weights; None without a base.
        method: of the adapter, for messages.

    Raises IncompatibleError if a base is needed, or does not fit.
    """
    own = own_update(update)
    if isinstance(own, _WHOLE):
        return update
    if isinstance(own, _PLAIN):
        return Known(site, own)
    if isinstance(own, LowRankable):
        low = own.low_rank()
        if low is not None:
            return Known(site, low)
    if not isinstance(own, Applicable) and plan is not None:
        raise _unplaced(site, plan)
    if isinstance(update, Rebased) and isinstance(own, Applicable):
        difference = Difference(own, update.value, transposed=looks_up(own))
        return _sought(site, own, difference)
    if plan is None or not isinstance(own, Applicable):
        raise IncompatibleError(
            f"{site}: the factors of {named(own, method)} follow from the base model",
            hint="name it: --base MODEL",
            code="NEEDS_BASE",
        )
    places = plan.place(site, own)
    if not places:
        if isinstance(own, Companion):
            return None
        raise _unplaced(site, plan)
    difference = _difference(own, places, plan)
    return _copied(difference) if len(own.shape) < 2 else _sought(site, own, difference)


def _difference(update: Applicable, places: Sequence[Placement], plan: Plan) -> Difference:
    place = places[0]
    if update.additive:
        return Difference(update, plan.checkpoint.tensors[place.tensor]
                          if len(update.shape) < 2 else None)  # fmt: skip
    weight = plan.checkpoint.tensors[place.tensor]
    plain = Placement(place.tensor, transposed=place.transposed)
    if len(places) > 1 or place != plain or not weight.dtype.is_floating:
        raise IncompatibleError(
            f"{place.tensor}: a {update.kind} update cannot be taken from a weight that is stored "
            "in this way",
            hint="name the model as safetensors in full precision",
            code="BASE_LAYOUT",
        )
    return Difference(update, weight, place.transposed)


def _sought(site: Site, update: Applicable, difference: Difference) -> Sought:
    exact = update.most_rank if isinstance(update, RankBounded) else None
    if exact is not None and exact >= min(difference.matrix):
        exact = None  # as for any update
    # PEFT has the word in the names of what it trains for a module that looks rows up
    of_rows = any("_embedding_" in name for name in update.tensors)
    return Sought(site, difference, exact, looks_up(update) or of_rows, of_rows)


def _copied(difference: Difference) -> Replacement:
    """The trained copy that a changed bias is."""
    if difference.weight is None:
        raise TypeError("a bias is changed where it is stored")
    value = difference.weight.values().double()
    moved = value + difference.values().reshape(value.shape)
    return Replacement(from_values(moved.to(difference.weight.dtype.torch)))


def named(update: Update, method: str) -> str:
    """What to call an update of an adapter of that method in a message."""
    if isinstance(update, Dora):
        return "DoRA"
    return f"{getattr(update, 'peft_type', method)} ({update.kind})"


def _unplaced(site: Site, plan: Plan) -> IncompatibleError:
    return IncompatibleError(
        f"{site}: {plan.checkpoint.provenance.name} has no such parameter",
        hint="is this the base that the adapter was trained on?",
        code="UNPLACED",
    )
