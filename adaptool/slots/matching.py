"""Which slots take an adapter's module: names compared in the spellings that exporters use."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from adaptool.architectures.naming import normal
from adaptool.architectures.onnx.naming import spellings
from adaptool.architectures.onnx.packing import bands_of, parts_of
from adaptool.canonical import Site
from adaptool.errors import IncompatibleError
from adaptool.slots.manifest import Manifest, Range, Slot


@dataclass(frozen=True)
class Match:
    """Where the update of a module goes, or of some of its outputs.

    Attributes:
        slot: takes it.
        rows: which of the slot's outputs are the module's.
        module: what the adapter calls it.
        taken: which of the module's outputs these are; None for all.
    """

    slot: Slot
    rows: Range
    module: str
    taken: Range | None = None


def match(manifest: Manifest, site: Site, shape: tuple[int, ...]) -> list[Match]:
    """Every slot that holds some of a module's outputs; together they hold all of them.

    Args:
        manifest: the slots of a graph.
        site: the module, as the adapter calls it.
        shape: [out, in] of its weight.

    Raises IncompatibleError if there is none, if two could be meant, or if shapes differ.
    """
    found = _find(manifest, site.module)
    whole = [found] if found else [_find(manifest, part) for part in parts_of(site.module)]
    slots = [one for one in whole if one is not None]
    if not slots or len(slots) < len(whole):
        raise _no_slot(manifest, site)
    heights = [rows[1] - rows[0] for _, rows in slots]
    widths = {slot.width for slot, _ in slots}
    if (sum(heights), *widths) != shape:
        raise IncompatibleError(
            f"{site}: the adapter expects {list(shape)}, the graph has {[sum(heights), *widths]} "
            f"in {slots[0][0].name}",
            hint="is this the model that the adapter was trained on?",
            code="SHAPE_MISMATCH",
        )
    if len(slots) == 1:
        return [Match(*slots[0], site.module)]
    bands = bands_of(tuple(heights))  # one module of the checkpoint, taken apart by the exporter
    return [Match(*one, site.module, band) for one, band in zip(slots, bands, strict=True)]


def _find(manifest: Manifest, module: str) -> tuple[Slot, Range] | None:
    """The one slot with a module, and which of its outputs are the module's."""
    found = _index(manifest).get(normal(f"{module}.weight"), [])
    if len(found) > 1:
        raise IncompatibleError(
            f"{module} could mean {' or '.join(slot.name for slot, _ in found[:5])} in the graph",
            code="AMBIGUOUS_NAME",
        )
    return found[0] if found else None


_Index = dict[str, list[tuple[Slot, Range]]]


@lru_cache(maxsize=4)
def _index(manifest: Manifest) -> Mapping[str, list[tuple[Slot, Range]]]:
    """Normal form of a weight's name -> the slots that it may mean.

    A path may come with wrappers of the export around it; the forms with fewer of them taken off
    go first. A packed slot answers to its own name as well: some models have such a module.
    """
    levels: dict[int, _Index] = {}
    for slot in manifest.slots:
        names = {slot.name: (0, slot.height)} | {part.module: part.rows for part in slot.parts}
        for name, rows in names.items():
            for depth, form in set(spellings(f"{name}.weight")):
                levels.setdefault(depth, {}).setdefault(form, []).append((slot, rows))
    found: _Index = {}
    for depth in sorted(levels):
        found = levels[depth] | found
    return found


def _no_slot(manifest: Manifest, site: Site) -> IncompatibleError:
    close = difflib.get_close_matches(site.module, manifest.modules, n=3, cutoff=0.6)
    hint = f"closest: {', '.join(close)}" if close else "is this the model that it was trained on?"
    return IncompatibleError(
        f"{site}: none of the graph's {len(manifest.slots)} slots is for this module",
        hint=f"{hint}; `adaptool slots` takes --modules NAME for more of them, and --match BASE "
        "where the graph keeps no names",
        code="UNPLACED",
    )
