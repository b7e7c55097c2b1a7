"""What can be done with which of PEFT's types, told by the classes that read them.

`table` is what README shows; a type that is added appears in it by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

from adaptool import tuners
from adaptool.canonical import Dora, LowRank, Replacement, TokenRows
from adaptool.tuners._projected import Projected
from adaptool.tuners._residual import Residual
from adaptool.tuners._unmergeable import UNMERGEABLE


class Way(IntEnum):
    """How an update becomes a plain LoRA, from the easiest on."""

    PLAIN = 0
    """It is one."""
    EXACT = 1
    """It is low-rank in other words."""
    TOLD = 2
    """So it is, as soon as a base has told shapes, or weights whose directions it uses."""
    CLOSE = 3
    """It is of full rank, and mostly looks at the base's weight."""
    COPY = 4
    """It is a trained copy of what has no factors: a norm, rows of an embedding."""
    BIAS = 5
    """It changes biases alone; with those of a base it is a trained copy."""


@dataclass(frozen=True)
class Support:
    """What works for one type.

    Attributes:
        method: PEFT's name, perhaps with a variant.
        ways: of its updates; none for a type that cannot be merged.
        reason: why it cannot.
    """

    method: str
    ways: tuple[Way, ...]
    reason: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """Merged, written as PEFT again, written as GGUF, combined, and as a plain LoRA."""
        if not self.ways:
            return f"no: {self.reason}", "yes", "no", "no", "no"
        return "yes", "yes", *(self._said(words) for words in (_GGUF, _COMBINED, _LORA))

    def _said(self, words: dict[Way, str]) -> str:
        return "; or ".join(dict.fromkeys(words[way] for way in self.ways))


_GGUF = {
    Way.PLAIN: "yes", Way.EXACT: "with `--to lora`", Way.TOLD: "with `--to lora`",
    Way.CLOSE: "with `--to lora`", Way.COPY: "no", Way.BIAS: "no",
}  # fmt: skip
_COMBINED = {
    Way.PLAIN: "yes", Way.EXACT: "yes", Way.TOLD: "with `--base`",
    Way.CLOSE: "with `--base` and `--rank`", Way.COPY: "kept, or averaged",
    Way.BIAS: "with `--base`: kept, or averaged",
}  # fmt: skip
_LORA = {
    Way.PLAIN: "exact", Way.EXACT: "exact", Way.TOLD: "exact, with `--base`",
    Way.CLOSE: "approximate, with `--base` and `--rank`", Way.COPY: "no: nothing for factors",
    Way.BIAS: "no: nothing for factors",
}  # fmt: skip
_HEAD = ("type", "merge", "to PEFT", "to GGUF", "combine", "as a LoRA: `--to lora`")


def rows() -> tuple[Support, ...]:
    """One for each type that PEFT knows, and for LoRA's variants that differ."""
    lora = [
        Support("LORA", (Way.PLAIN,)),
        Support("LORA with DoRA", (_way(Dora),)),
        Support("LORA begun by PiSSA / OLoRA / KaSA", (_way(Residual),)),
    ]
    read = [Support(name, _ways(name)) for name in tuners.names()]
    never = [Support(name, (), reason) for name, reason in UNMERGEABLE.items()]
    return (*lora, *read, *never)


def table() -> str:
    """Markdown; types of which the same is to be said share a line."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows():
        groups.setdefault(row.cells, []).append(row.method)
    lines = [_HEAD, ("---",) * len(_HEAD), *((", ".join(m), *c) for c, m in groups.items())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _ways(name: str) -> tuple[Way, ...]:
    """Of all classes of updates that a type's plug-in has, and of plain factors that it makes."""
    module = tuners.tuner_of(name)
    if module is None:
        raise KeyError(name)
    found = {_way(kind) for kind in _classes(vars(module).values(), module.read.__module__)}
    if _makes_factors(module.read):
        found.add(Way.PLAIN)
    if all("bias" in suffix for suffix in module.suffixes):
        found = {Way.BIAS}
    return tuple(sorted(found))


def _classes(values: Iterable[object], module: str) -> list[type]:
    """Classes of updates of weights that a module defines; what follows a weight is none."""
    return [
        value
        for value in values
        if isinstance(value, type)
        and value.__module__ == module
        and hasattr(value, "kind")
        and not hasattr(value, "companion")
        and not hasattr(value, "sees_weight")
    ]


def _makes_factors(read: Callable[..., object]) -> bool:
    return not {"factored", "LowRank"}.isdisjoint(read.__code__.co_names)


def _way(kind: type) -> Way:
    if issubclass(kind, LowRank):
        return Way.PLAIN
    if issubclass(kind, Replacement | TokenRows):
        return Way.COPY
    if hasattr(kind, "low_rank"):
        return Way.EXACT if getattr(kind, "tells_shape", False) else Way.TOLD
    return Way.TOLD if issubclass(kind, Projected) or hasattr(kind, "most_rank") else Way.CLOSE
