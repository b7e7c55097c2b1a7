"""What tells which inputs of a graph take which modules' factors.

It stands as JSON in the model's metadata under `adaptool.slots`, and beside the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

from adaptool.canonical import DType
from adaptool.errors import JSON, CorruptInputError

PROPERTY = "adaptool.slots"
VERSION = 1
OPTIONAL, INPUTS, EXTERNAL = MODES = ("optional", "inputs", "external")
SCALE = "lora_scale"
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
"""What stands behind a module's path in the names of a slot's inputs; Olive's names end so too."""

Range = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """A module in a slot.

    Attributes:
        module: path in the Hugging Face model.
        rows: which of the slot's outputs are the module's, [start, stop).
    """

    module: str
    rows: Range


@dataclass(frozen=True)
class Slot:
    """One pair of inputs: y + scale * (x A) B.

    Attributes:
        name: the module's path, or what the modules in it have in common.
        a, b: names of A [width, rank] and B [rank, height].
        width, height: of x and y.
        dtype: of both factors.
        rank: columns of A; None where each adapter brings its own.
        parts: the modules whose weights the operation holds.
    """

    name: str
    a: str
    b: str
    width: int
    height: int
    dtype: DType
    rank: int | None
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Manifest:
    """The slots of a graph.

    Attributes:
        mode: "optional", "inputs" or "external"; see `adaptool.slots`.
        slots: in the order of the graph.
        scale: name of the strength's input; "" if the graph has none.
        file: name of the file that holds the factors, in mode "external".
        places: name -> byte at which it starts in that file.
        of_graph: whether a graph has these inputs, so that their types and ranks are given.
    """

    mode: str
    slots: tuple[Slot, ...]
    scale: str = SCALE
    file: str = ""
    places: tuple[tuple[str, int], ...] = ()
    of_graph: bool = True

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Every module that has a slot."""
        return tuple(dict.fromkeys(part.module for slot in self.slots for part in slot.parts))

    def as_json(self) -> dict[str, JSON]:
        """Plain data."""
        return {
            "version": VERSION,
            "mode": self.mode,
            "scale": self.scale,
            **({"file": self.file} if self.file else {}),
            **({"places": dict(self.places)} if self.places else {}),
            "slots": [_slot_json(slot) for slot in self.slots],
        }


def _slot_json(slot: Slot) -> dict[str, JSON]:
    return {
        "name": slot.name, "a": slot.a, "b": slot.b, "in": slot.width, "out": slot.height,
        "dtype": slot.dtype.value, "rank": slot.rank,
        "parts": [{"module": part.module, "rows": [*part.rows]} for part in slot.parts],
    }  # fmt: skip


def manifest_text(manifest: Manifest) -> str:
    """The JSON text that a model's metadata hold."""
    return json.dumps(manifest.as_json(), separators=(",", ":"))


def parse_manifest(text: str, where: str) -> Manifest:
    """The manifest in a model's metadata.

    Raises CorruptInputError for what is none, naming the file `where`.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    return manifest_from(content, where)


def manifest_from(content: object, where: str) -> Manifest:
    """The manifest that plain data states. Raises CorruptInputError for what states none."""
    facts = Facts(content, f"{where}: {PROPERTY}")
    if facts.number("version") != VERSION or facts.text("mode") not in MODES:
        raise facts.broken(f"version {VERSION} and one of the modes {', '.join(MODES)}")
    slots = tuple(_slot(one) for one in facts.each("slots"))
    names = [name for slot in slots for name in (slot.a, slot.b)]
    if len(set(names)) != len(names):
        raise facts.broken("slots with inputs of their own")
    file = facts.text("file") if "file" in facts.content else ""
    stated = Facts(facts.content.get("places", {}), f"{where}: {PROPERTY}: places")
    places = tuple((name, stated.number(name)) for name in stated.content)
    return Manifest(facts.text("mode"), slots, facts.text("scale"), file, places)


def _slot(facts: Facts) -> Slot:
    try:
        dtype = DType(facts.text("dtype"))
    except ValueError:
        raise facts.broken("a known dtype") from None
    height = facts.number("out")
    parts = tuple(
        Part(one.text("module"), one.range("rows", height)) for one in facts.each("parts")
    )
    rank = None if facts.content.get("rank") is None else facts.number("rank")
    return Slot(facts.text("name"), facts.text("a"), facts.text("b"), facts.number("in"), height,
                dtype, rank, parts)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """Plain data that a file states, each fact of the kind that is asked for, or refused."""

    stated: object
    where: str

    @cached_property
    def content(self) -> Mapping[str, JSON]:
        """All of it."""
        if not isinstance(self.stated, dict):
            raise CorruptInputError(f"{self.where} is not a JSON object")
        return self.stated

    def text(self, key: str) -> str:
        """A string."""
        value = self.content.get(key)
        if not isinstance(value, str):
            raise self.broken(f"a text as {key!r}")
        return value

    def number(self, key: str) -> int:
        """A whole number from 0."""
        value = self.content.get(key)
        if type(value) is not int or not 0 <= value < 2**31:
            raise self.broken(f"a number as {key!r}")
        return value

    def real(self, key: str) -> float:
        """A finite number."""
        value = self.content.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise self.broken(f"a finite number as {key!r}")
        return float(value)

    def range(self, key: str, end: int = 2**31) -> Range:
        """[start, stop) within `end`."""
        value = self.content.get(key)
        match value:
            case [int(start), int(stop)] if 0 <= start < stop <= end:
                return start, stop
        raise self.broken(f"a range as {key!r}")

    def each(self, key: str) -> Iterable[Facts]:
        """A list of objects."""
        value = self.content.get(key)
        if not isinstance(value, list):
            raise self.broken(f"a list as {key!r}")
        return (Facts(one, f"{self.where}: {key} {i}") for i, one in enumerate(value))

    def broken(self, expected: str) -> CorruptInputError:
        """The error that says what was expected."""
        return CorruptInputError(f"{self.where}: expected {expected}", code="BROKEN_MANIFEST")
