"""Where each Hugging Face parameter of one model lies in GGUF, both ways."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

from adaptool.architectures.gguf.dimensions import Dimensions
from adaptool.architectures.gguf.fusing import alternatives, usual_forms
from adaptool.architectures.gguf.names import stem_of
from adaptool.architectures.gguf.table import Family, Row
from adaptool.architectures.naming import normal
from adaptool.canonical import Placement

_BLOCK = re.compile(r"(?:^|\.)(\d{1,6})\.")
_STORED_BLOCK = re.compile(r"blk\.(\d{1,6})\.")
OUTSIDE = -1
"""The number under which what stands around the blocks is kept."""


@dataclass(frozen=True, slots=True)
class Source:
    """A Hugging Face parameter, and how (a part of) it lies in a tensor."""

    parameter: str
    placement: Placement


@dataclass(frozen=True, slots=True)
class _Entry:
    """A parameter's name, where it lies, and the row that says so."""

    parameter: str
    row: Row
    placements: tuple[Placement, ...]


@dataclass(frozen=True)
class _Table:
    """One block, or what stands around the blocks.

    Attributes:
        entries: by normal name: where a parameter usually lies, then where it lies instead.
        told: the usual entries by the name that is told.
    """

    entries: Mapping[str, list[_Entry]]
    told: Mapping[str, _Entry]

    @cached_property
    def sources(self) -> Mapping[str, tuple[Source, ...]]:
        """What each tensor is made of."""
        found: dict[str, list[Source]] = defaultdict(list)
        for entry in self.told.values():
            for place in entry.placements:
                found[place.tensor].append(Source(entry.parameter, place))
        return {tensor: tuple(sources) for tensor, sources in found.items()}


@dataclass(frozen=True)
class Layout:
    """Names and layouts of one model.

    A placement is relative to the weight [out, in] that an adapter changes. Who copies a whole
    checkpoint asks three things more: whether Hugging Face itself stores the transpose, which is
    then turned before it is placed (`stored_transposed`); whether GGUF stores -exp of a parameter
    (`decays`); and under which shape it stores the same numbers (`stored_shape`).

    Attributes:
        families: spellings of this architecture; the first is the one that is told.
        dimensions: the model's sizes.
    """

    families: tuple[Family, ...]
    dimensions: Dimensions
    _tables: dict[int, _Table] = field(default_factory=dict, compare=False)

    @property
    def architecture(self) -> str:
        """GGUF's name, the value of general.architecture."""
        return self.families[0].architecture

    @property
    def embedding(self) -> str:
        """Hugging Face name of the input embedding, which lies in token_embd.weight."""
        return self.families[0].embedding

    @property
    def head(self) -> str:
        """Hugging Face name of the output head, which lies in output.weight unless tied."""
        return self.families[0].head

    @cached_property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.dimensions.blocks

    def place(
        self, parameter: str, tensors: Collection[str] | None = None
    ) -> tuple[Placement, ...]:
        """Where a parameter lies; empty if the architecture has no such parameter.

        Args:
            parameter: its full Hugging Face name, in the spelling of any library version.
            tensors: names that the GGUF model at hand has. A parameter then lies where this model
                keeps it, say in a band of a fused tensor; the result is empty if it has no place.

        Raises IncompatibleError if the model does not state a size that the place depends on.
        """
        entries = self._find(parameter)
        if tensors is None:
            return entries[0].placements if entries else ()
        for entry in entries:
            landed = tuple(self._land(place, tensors) for place in entry.placements)
            if all(place is not None for place in landed):
                return tuple(place for place in landed if place is not None)
        return ()

    def parameters(self) -> Mapping[str, tuple[Placement, ...]]:
        """Every parameter that such a model may have, as today's files name it.

        Which of the optional ones (biases, dense blocks among sparse ones) there are is for the
        checkpoint to say. Experts have one module each where files keep them so
        (`block_sparse_moe.experts.0.w1.weight`, `mlp.experts.0.gate_proj.weight`).
        """
        return {
            name: entry.placements
            for block in (OUTSIDE, *range(self.blocks))
            for name, entry in self._table(block).told.items()
        }

    def sources(self, tensor: str) -> tuple[Source, ...]:
        """Which parameters, in today's spelling, a tensor is made of; the inverse of `place`."""
        block = _block_of(tensor)
        if block >= self.blocks:
            return ()
        return self._table(block).sources.get(tensor) or self._unusual(block, tensor)

    def stored_transposed(self, parameter: str) -> bool:
        """Whether Hugging Face stores the weight as [in, out]: Conv1D, some stacked experts."""
        return any(entry.row.turned for entry in self._find(parameter)[:1])

    def decays(self, parameter: str) -> bool:
        """Whether GGUF stores -exp(parameter), in the order that the placement says."""
        return any(entry.row.decays for entry in self._find(parameter)[:1])

    def stored_shape(self, tensor: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """GGUF's shape of a tensor (numpy order), given that of what was placed in it.

        They differ for a convolution, [channels, 1, width] there and [channels, width] here, and
        for some vectors of Mamba-2.
        """
        sources = self.sources(tensor)
        entry = self._find(sources[0].parameter)[0] if sources else None
        if entry is None or not entry.row.shape or tensor.endswith(".bias"):
            return shape
        known = tuple(size or shape[0] for size in entry.row.shape)
        return tuple(size if size > 0 else prod(shape) // -prod(known) for size in known)

    # -- tables -----------------------------------------------------------------------------------

    def _find(self, parameter: str) -> list[_Entry]:
        name = normal(parameter).removeprefix("text_model.")
        number = _BLOCK.search(name)
        block = int(number[1]) if number else OUTSIDE
        return self._table(block).entries.get(name, []) if block < self.blocks else []

    def _table(self, block: int) -> _Table:
        if block not in self._tables:
            entries: dict[str, list[_Entry]] = defaultdict(list)
            told: dict[str, _Entry] = {}
            for number, family in enumerate(self.families):
                for entry in self._entries(family, block):
                    known = entries[normal(entry.parameter)]
                    if number == 0 or not known:
                        known.append(entry)
                    if number == 0 and not (entry.row.alias or entry.row.instead):
                        told[entry.parameter] = entry
            self._tables[block] = _Table(dict(entries), told)
        return self._tables[block]

    def _entries(self, family: Family, block: int) -> Iterator[_Entry]:
        d = self._at(block)
        outside = block == OUTSIDE
        prefix = "" if outside else family.prefix.format(block)
        grouped: dict[tuple[str, bool], tuple[Row, list[Placement]]] = {}
        for row in (family.outer if outside else family.block)(d):
            stem = stem_of(family.architecture, "" if outside else family.prefix, row)
            for suffix in row.suffixes or ("",):
                name = ".".join(filter(None, (prefix + row.name, suffix)))
                tensor = ".".join(filter(None, (stem.format(block), suffix)))
                place = _for_bias(row.layout) if suffix == "bias" else row.layout
                group = grouped.setdefault((name, row.instead), (row, []))
                group[1].append(replace(place, tensor=tensor))
        for (name, _), (row, places) in grouped.items():
            yield _Entry(name, row, tuple(places))

    def _at(self, block: int) -> Dimensions:
        return replace(self.dimensions, block=max(block, 0))

    # -- models that keep tensors in another form -------------------------------------------------

    def _land(self, place: Placement, tensors: Collection[str]) -> Placement | None:
        """The place itself, or the one that stands for it in the model at hand."""
        if place.tensor in tensors:
            return place
        others = self._others(place, _block_of(place.tensor))
        return next((other for other in others if other.tensor in tensors), None)

    def _unusual(self, block: int, tensor: str) -> tuple[Source, ...]:
        """Sources of a tensor that the family usually has in another form."""
        table = self._table(block)
        for entries in table.entries.values():
            for entry in entries[1:]:
                if all(place.tensor == tensor for place in entry.placements):
                    return tuple(Source(entry.parameter, place) for place in entry.placements)
        return tuple(
            Source(source.parameter, place)
            for usual in usual_forms(tensor)
            for source in table.sources.get(usual, ())
            for place in self._others(source.placement, block)
            if place.tensor == tensor
        )

    def _others(self, place: Placement, block: int) -> Iterator[Placement]:
        return alternatives(place, self._at(block), gated=self.families[0].gated)


def _block_of(tensor: str) -> int:
    found = _STORED_BLOCK.match(tensor)
    return int(found[1]) if found else OUTSIDE


def _for_bias(layout: Placement) -> Placement:
    return replace(layout, transposed=False, col_order=None, shift=0.0)
