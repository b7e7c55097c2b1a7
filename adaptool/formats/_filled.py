"""Files of factors for a graph's slots: what they tell of the adapter, and the adapter in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from adaptool.canonical import Adapter, LazyTensor, Provenance
from adaptool.canonical.provenance import origin
from adaptool.errors import JSON
from adaptool.records import described, record
from adaptool.slots import Filling, Manifest, recover, slots_named
from adaptool.slots.filling import Block
from adaptool.slots.manifest import Facts, manifest_from

Notes = Mapping[str, JSON]


def notes_of(filling: Filling, operation: str) -> dict[str, JSON]:
    """What factors alone do not tell, and what made them, as plain data."""
    inputs = [] if filling.provenance is None else [described(filling.provenance)]
    return {
        **json.loads(record(operation, inputs)),
        "base": filling.base,
        "config": dict(filling.config),
        "modules": {
            module: [
                {"slot": block.slot, "ranks": [*block.ranks], "rows": [*block.rows],
                 "taken": None if block.taken is None else [*block.taken],
                 "scaling": block.scaling}
                for block in blocks
            ]
            for module, blocks in filling.blocks.items()
        },
        "slots": filling.manifest.as_json(),
    }  # fmt: skip


def filling_from(tensors: Mapping[str, LazyTensor], notes: Notes | None, where: str) -> Filling:
    """The factors of a file with its notes, or with what their names tell where it has none.

    Raises CorruptInputError for notes that are none.
    """
    if notes is None:
        return Filling(tensors, slots_named(tensors))
    facts = Facts(notes, f"{where}: its notes")
    modules = Facts(notes.get("modules"), f"{where}: its notes: modules")
    blocks = {
        module: tuple(_block(one) for one in modules.each(module)) for module in modules.content
    }
    config = Facts(notes.get("config"), f"{where}: its notes: config").content
    base = notes.get("base")
    if base is not None:
        base = facts.text("base")
    return Filling(tensors, manifest_from(notes.get("slots"), where), blocks, base, config)


def _block(facts: Facts) -> Block:
    taken = None if facts.content.get("taken") is None else facts.range("taken")
    return Block(facts.text("slot"), facts.range("ranks"), facts.range("rows"), taken,
                 facts.real("scaling"))  # fmt: skip


def adapter_of(filling: Filling, path: Path, name: str, size: int,
               manifest: Manifest | None = None) -> Adapter:  # fmt: skip
    """The adapter that factors were made of.

    Args:
        filling: as it was read.
        path: of the file.
        name: of its format.
        size: bytes of the file.
        manifest: the slots of the graph that they fill; None for those that the file knows.
    """
    notes = () if filling.blocks else ("strengths are in B, since the file does not state alpha",)
    return Adapter(
        updates=dict(sorted(recover(filling, manifest).items())),
        method="lora",
        base=filling.base,
        provenance=Provenance(origin(path), name, {path.name: {"bytes": size}}, (path,),
                              notes=notes),
        config=filling.config,
    )  # fmt: skip
