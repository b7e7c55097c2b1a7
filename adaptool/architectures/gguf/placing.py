"""Where an adapter's sites lie in a GGUF model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from adaptool.architectures.gguf import Layout, layout_of_model
from adaptool.architectures.placing import Plan
from adaptool.canonical import (
    ExpertLowRank,
    Placement,
    Rebased,
    Replacement,
    Site,
    TokenRows,
    Update,
)
from adaptool.canonical.arrangement import Order
from adaptool.canonical.parts import looks_up
from adaptool.canonical.verbs import Fittable
from adaptool.errors import IncompatibleError

_SCALE = ".scale"
"""A scalar beside a weight that llama.cpp multiplies it by (NVFP4, BitNet)."""


@dataclass(frozen=True)
class GgufPlan(Plan):
    """A GGUF model's names, asked with Hugging Face names or with its own."""

    @cached_property
    def layout(self) -> Layout:
        """Where Hugging Face's parameters lie in this model."""
        return layout_of_model(self.checkpoint.config)

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.checkpoint.tensors.items()}

    @property
    def may_untie(self) -> bool:
        """llama.cpp takes the embedding for the head of some architectures, whatever is there."""
        return bool(self.layout.place(self.layout.head))

    def find(self, name: str) -> str | None:
        """The tensor of that very name."""
        return name if name in self.checkpoint.tensors else None

    def place(self, site: Site, update: Update) -> tuple[Placement, ...]:
        """See Plan; the site bears either a tensor's name or a Hugging Face parameter's."""
        name = str(site)
        if isinstance(update, Rebased):
            return self._place_copy(site, update)
        if name in self.checkpoint.tensors:
            places = self._own(name, update)
        else:
            places = self.layout.place(name, self._shapes)
            places = tuple(self._following(site, place, update) for place in places)
            if any(place.tensor not in self.checkpoint.tensors for place in places):
                return ()
        for place in places:
            self._check(site, update, place)
        return tuple(replace(place, unit=self._unit(place.tensor)) for place in places)

    def shape_of(self, site: Site, update: Fittable) -> tuple[int, ...] | None:
        """See Plan; a weight may lie in several places, each with some of its rows."""
        places = self.layout.place(str(site), self._shapes)
        if not places or any(place.tensor not in self._shapes for place in places):
            return None
        stored = self._shapes[places[0].tensor]
        if len(stored) < 2:
            shape: tuple[int, ...] = (sum(_height(stored, place) for place in places),)
        else:
            shape = sum(_height(self._shapes[p.tensor], p) for p in places), stored[-1]
            shape = shape[::-1] if places[0].transposed else shape
        if not update.fits(shape):
            raise self._misfit(site, update.shape, places[0].tensor, stored)
        return shape

    def oriented(self, site: Site, update: Update) -> Update:
        """Files that the versions of PEFT disagree on are told apart by the layout's shapes."""
        if not isinstance(update, ExpertLowRank) or str(site) in self.checkpoint.tensors:
            return update
        places = self.layout.place(str(site), self._shapes)
        if not places or self._fits(update, places[0]):
            return update
        turned = update.transposed()
        return turned if self._fits(turned, places[0]) else update

    @staticmethod
    def _own(name: str, update: Update) -> tuple[Placement, ...]:
        if isinstance(update, ExpertLowRank):
            return tuple(Placement(name, slot=e, expert=e) for e in range(update.experts))
        return (Placement(name, transposed=looks_up(update)),)

    def _place_copy(self, site: Site, update: Rebased) -> tuple[Placement, ...]:
        """An adapter that carries its base's weight fits where that is no other size."""
        places = self.layout.place(str(site), self._shapes)
        for place in places:
            if place.row_order or place.part or self._shapes[place.tensor] != update.shape:
                raise IncompatibleError(
                    f"{site}: the adapter carries a weight of {list(update.shape)}, {place.tensor} "
                    f"has {list(self._shapes[place.tensor])}",
                    hint="merge into the Hugging Face checkpoint, and convert that",
                    code="UNSUPPORTED_LAYOUT",
                )
        turned = looks_up(update.update)
        return tuple(replace(place, transposed=turned) for place in places)

    def _following(self, site: Site, place: Placement, update: Update) -> Placement:
        """The place in the orientation of this update."""
        if looks_up(update):
            return replace(place, transposed=not place.transposed)
        if isinstance(update, Replacement) and self.layout.stored_transposed(str(site)):
            return replace(place, transposed=not place.transposed)
        return place

    def _check(self, site: Site, update: Update, place: Placement) -> None:
        if not self._fits(update, place):
            stored = self.checkpoint.tensors[place.tensor].shape
            raise self._misfit(site, update.shape, place.tensor, stored)

    def _fits(self, update: Update, place: Placement) -> bool:
        """Whether the rows and columns that a place takes of an update fill its band."""
        stored = self._shapes[place.tensor]
        shape = update.shape
        if isinstance(update, TokenRows):
            return shape[1:] == stored[1:] and shape[0] <= stored[0]
        if isinstance(update, ExpertLowRank):
            if place.expert is None or place.expert >= update.experts:
                return False
            shape = shape[1:]
        if place.slot is not None and (len(stored) < 3 or place.slot >= stored[0]):
            return False
        try:
            rows = _taken(shape[0] if shape else 1, place.taken)
            cols = _taken(prod(shape[1:]), place.col_order)
        except ValueError:
            return False
        height, width = _height(stored, place), stored[-1] if len(stored) > 1 else 1
        return (height, width) == ((cols, rows) if place.transposed else (rows, cols))

    def _unit(self, tensor: str) -> float:
        name = tensor.removesuffix(".weight") + _SCALE
        scale = self.checkpoint.tensors.get(name)
        if scale is None or not tensor.endswith(".weight") or self.layout.sources(name):
            return 1.0  # of some architectures it is a trained parameter
        if scale.count != 1:
            raise IncompatibleError(
                f"{tensor}: {scale.count} scales beside one weight are not understood",
                code="UNSUPPORTED_LAYOUT",
            )
        return float(scale.values().reshape(-1)[0])


def _taken(count: int, order: Order | None) -> int:
    return count if order is None else order.indices(count).numel()


def _height(stored: tuple[int, ...], place: Placement) -> int:
    if place.rows is not None:
        return place.rows[1] - place.rows[0]
    if len(stored) < 2:
        return prod(stored)
    return stored[-2] if place.slot is not None else prod(stored[:-1])
