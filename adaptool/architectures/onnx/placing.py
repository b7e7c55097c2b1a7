"""Where an adapter's sites lie in an ONNX graph."""

from __future__ import annotations

import difflib
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property

from adaptool.architectures.naming import normal
from adaptool.architectures.onnx.naming import spellings
from adaptool.architectures.onnx.packing import (
    Readers,
    bands_of,
    members_of,
    parts_of,
    readers_of,
    sizes_of,
)
from adaptool.architectures.onnx.uses import Use, height_of, uses_of
from adaptool.architectures.placing import Plan
from adaptool.canonical import (
    Placement,
    Rebased,
    Replacement,
    Site,
    TokenRows,
    Update,
)
from adaptool.canonical.graph import Graph
from adaptool.canonical.parts import looks_up
from adaptool.canonical.verbs import Fittable
from adaptool.errors import IncompatibleError

_BASE_NEEDED = (
    "the graph does not keep this module's name: give the checkpoint that it was exported from, "
    "--match BASE, and values tell"
)


@dataclass(frozen=True, slots=True)
class _Holding:
    """A use, and which of the parameters side by side in its tensor is meant."""

    use: Use
    index: int = 0
    count: int = 1


_Index = dict[str, dict[int, list[_Holding]]]


@dataclass(frozen=True)
class OnnxPlan(Plan):
    """A graph's weights, ready to be asked where a site lies."""

    @property
    def may_add(self) -> bool:
        """A graph computes nothing with a weight that it does not know."""
        return False

    @cached_property
    def graph(self) -> Graph:
        """The computation, which every ONNX checkpoint has."""
        return self.checkpoint.graph or Graph(())

    @cached_property
    def uses(self) -> list[Use]:
        """Every weight as an operation reads it."""
        return uses_of(self.graph, self.checkpoint.tensors)

    @cached_property
    def _readers(self) -> Readers:
        return readers_of(self.graph)

    @cached_property
    def _named(self) -> _Index:
        """By normal name, and by how many wrappers were taken off for it."""
        found: _Index = defaultdict(lambda: defaultdict(list))
        for use in self.uses:
            _add(found, use.name, _Holding(use))
        return found

    @cached_property
    def _kept(self) -> _Index:
        """The same by the names that tensors kept, where one module reads them."""
        found: _Index = defaultdict(lambda: defaultdict(list))
        owners: dict[str, set[str]] = defaultdict(set)
        for use in self.uses:
            owners[use.tensor].add(use.name)
        for use in self.uses:
            alike = use.kept.split(".")[-2:] == use.name.split(".")[-2:]
            if alike and use.kept != use.name and len(owners[use.tensor]) == 1:
                _add(found, use.kept, _Holding(use))
        return found

    @cached_property
    def _packed(self) -> _Index:
        """The same of parameters that lie side by side with others."""
        found: _Index = defaultdict(lambda: defaultdict(list))
        for use in self.uses:
            for names in members_of(use):
                for index, name in enumerate(names):
                    _add(found, name, _Holding(use, index, len(names)))
        return found

    def find(self, name: str) -> str | None:
        """The stored tensor that holds the parameter, packed with others or not; None without."""
        held = self._single(name) or self._holding(self._packed, name)
        return held.use.tensor if held else None

    def _single(self, name: str) -> _Holding | None:
        return self._holding(self._named, name) or self._holding(self._kept, name)

    def readers_of(self, site: Site, tensor: str) -> list[Use]:
        """The operations that read a tensor as (a part of) this site's parameter."""
        held = [
            one
            for index in (self._named, self._kept, self._packed)
            for _, holdings in sorted(index.get(normal(str(site)), {}).items())
            for one in holdings
            if one.use.tensor == tensor
        ]
        return list(dict.fromkeys(one.use for one in held))

    def _holding(self, index: _Index, name: str) -> _Holding | None:
        """What holds a parameter.

        Raises IncompatibleError if several tensors could be meant.
        """
        for _, holdings in sorted(index.get(normal(name), {}).items()):
            tensors = sorted({held.use.tensor for held in holdings})
            if len(tensors) > 1:
                raise IncompatibleError(
                    f"{name} could mean {' or '.join(tensors[:5])} in the graph",
                    hint=_BASE_NEEDED,
                    code="AMBIGUOUS_NAME",
                )
            return holdings[0]
        return None

    def place(self, site: Site, update: Update) -> tuple[Placement, ...]:
        """See Plan; a weight may lie in a band of a packed tensor, or in several tensors."""
        if isinstance(update, Replacement):
            self._require_exact(site)
        places = tuple(self._following(site, place, update) for place in self.located(site))
        for place in places:
            self._check(site, update, place)
        return places

    def located(self, site: Site) -> tuple[Placement, ...]:
        """Where a parameter lies, as torch has it ([out, in]); empty if that is not known.

        Raises IncompatibleError if names or sizes leave it open.
        """
        known = self.checkpoint.placements.get(normal(str(site)))
        if known is not None:
            return (known,)
        held = self._single(str(site))
        if held is not None:
            return (self._whole(held.use),)
        held = self._holding(self._packed, str(site))
        return self._split(site) if held is None else (self._band(site, held),)

    def shape_of(self, site: Site, update: Fittable) -> tuple[int, ...] | None:
        """See Plan."""
        places = self.located(site)
        if not places:
            return None
        shapes = [self.shape_in(place) for place in places]
        shape = (sum(one[0] for one in shapes), *shapes[0][1:])
        if not update.fits(shape):
            raise self._misfit(site, update.shape, places[0].tensor, shape)
        return shape

    def closest(self, site: Site) -> list[str]:
        """A few parameters that the graph has names for and that look most like the site."""
        close = difflib.get_close_matches(normal(str(site)), list(self._named), n=3, cutoff=0.6)
        found = [self._named[name][min(self._named[name])][0].use for name in close]
        return [f"{use.name} ({use.tensor})" for use in found]

    # -- packed and split weights -----------------------------------------------------------------

    def _whole(self, use: Use) -> Placement:
        return Placement(use.tensor, transposed=use.swapped, unit=use.unit)

    def _band(self, site: Site, held: _Holding) -> Placement:
        use, tensors = held.use, self.checkpoint.tensors
        total = height_of(use, tensors[use.tensor])
        sizes = sizes_of(self.graph, self._readers, tensors, use.node, total, held.count)
        if sizes is None:
            raise IncompatibleError(
                f"{site}: {use.tensor} holds {held.count} modules' weights, and the graph does not "
                "tell how many outputs are whose",
                hint=_BASE_NEEDED,
                code="UNSUPPORTED_LAYOUT",
            )
        band, whole = bands_of(sizes)[held.index], self._whole(use)
        return replace(whole, cols=band) if use.swapped else replace(whole, rows=band)

    def _split(self, site: Site) -> tuple[Placement, ...]:
        """A module that is packed in the checkpoint, and whose parts the exporter took apart."""
        names = [f"{part}.{site.parameter}" for part in parts_of(site.module)]
        parts = [held.use for name in names if (held := self._single(name))]
        if not parts or len(parts) < len(names):
            return ()
        sizes = tuple(height_of(use, self.checkpoint.tensors[use.tensor]) for use in parts)
        return tuple(
            replace(self._whole(use), part=band)
            for use, band in zip(parts, bands_of(sizes), strict=True)
        )

    # -- how an update lies in it -----------------------------------------------------------------

    def _following(self, site: Site, place: Placement, update: Update) -> Placement:
        """The place in the orientation of this update."""
        if isinstance(update, Rebased) and _is_partial(place):
            raise IncompatibleError(
                f"{site}: the adapter carries a weight of {list(update.shape)}, which the graph "
                f"keeps otherwise, in {place.tensor}",
                hint="merge into the checkpoint that the model was exported from, and export that",
                code="UNSUPPORTED_LAYOUT",
            )
        turned = looks_up(update.update if isinstance(update, Rebased) else update)
        if isinstance(update, Replacement) and len(update.shape) == 2:
            turned = self._is_conv1d(site)
        return replace(place, transposed=not place.transposed) if turned else place

    def _require_exact(self, site: Site) -> None:
        """Refuse to replace a norm that the exporter may have stored with something added."""
        held = self._single(str(site))
        if held is None or held.use.exact or normal(str(site)) in self.checkpoint.placements:
            return
        raise IncompatibleError(
            f"{site}: nothing tells whether {held.use.tensor} holds this norm as it is",
            hint=_BASE_NEEDED,
            code="UNSUPPORTED_LAYOUT",
        )

    def _check(self, site: Site, update: Update, place: Placement) -> None:
        stored = self.checkpoint.tensors[place.tensor].shape
        shape = update.shape
        if isinstance(update, Rebased) and looks_up(update.update):
            place = replace(place, transposed=not place.transposed)
        lies = self.shape_in(place)
        if place.part is not None:
            shape = (place.part[1] - place.part[0], *shape[1:])
        if isinstance(update, TokenRows):
            fits = shape[1:] == lies[1:] and shape[0] <= lies[0]
        else:
            fits = shape == lies
        if not fits:
            raise self._misfit(site, update.shape, place.tensor, stored)

    def shape_in(self, place: Placement) -> tuple[int, ...]:
        """Shape of torch's weight (or of the part of it) that a placement holds."""
        stored = self.checkpoint.tensors[place.tensor].shape
        if place.rows is not None:
            stored = (place.rows[1] - place.rows[0], *stored[1:])
        if place.cols is not None:
            stored = (*stored[:-1], place.cols[1] - place.cols[0])
        return stored[::-1] if place.transposed else stored


def _add(index: _Index, name: str, held: _Holding) -> None:
    for depth, spelling in spellings(name):
        index[spelling][depth].append(held)


def _is_partial(place: Placement) -> bool:
    return place.rows is not None or place.cols is not None or place.part is not None
