"""Adapters of PEFT's other types, written as they were read: the same tensors, the same config."""

from __future__ import annotations

from adaptool.canonical import Adapter, LazyTensor, Rebased, Replacement, Site, Update
from adaptool.canonical.verbs import Companion
from adaptool.errors import IncompatibleError
from adaptool.formats.peft.keys import PREFIX
from adaptool.tuners import Tuned


def is_tuned(adapter: Adapter) -> bool:
    """Whether some update is still what the adapter's own config speaks of."""
    return any(_is_of(_stated(adapter), _own(update)) for update in adapter.updates.values())


def tuned_tensors(adapter: Adapter) -> dict[str, LazyTensor]:
    """The tensors by PEFT's names, to be written with the adapter's own config.

    Raises IncompatibleError for updates that such a file cannot hold together.
    """
    stated = _stated(adapter)
    tensors = dict(adapter.extras)
    wrapped = {s.module for s, u in adapter.updates.items() if _is_of(stated, _own(u))}
    for site, update in adapter.updates.items():
        own = _own(update)
        if isinstance(own, Companion):
            continue
        if isinstance(update, Rebased):
            tensors[f"{PREFIX}{site.module}.base_layer.{site.parameter}"] = update.value
        if _is_of(stated, own):
            tensors |= {f"{PREFIX}{site.module}.{s}": t for s, t in own.tensors.items()}
        elif isinstance(own, Replacement):
            step = ".base_layer" if site.module in wrapped else ""
            tensors[f"{PREFIX}{site.module}{step}.{site.parameter}"] = own.value
        else:
            raise unwritable(site, own, stated)
    return tensors


def unwritable(site: Site, update: Update, peft_type: str) -> IncompatibleError:
    """What to raise for an update that a file of this type has no tensors for."""
    return IncompatibleError(
        f"{site}: a PEFT adapter of type {peft_type} cannot hold a {update.kind} update",
        hint="merge it into the model instead",
        code="NOT_EXPRESSIBLE",
    )


def _stated(adapter: Adapter) -> str:
    return str(adapter.config.get("peft_type") or "").upper()


def _is_of(peft_type: str, update: Update) -> bool:
    return isinstance(update, Tuned) and update.peft_type == peft_type


def _own(update: Update) -> Update:
    return update.update if isinstance(update, Rebased) else update
