"""A merge into a quantised checkpoint, written in that checkpoint's own scheme again.

What the adapter touches is encoded anew; everything else keeps its stored bytes. Rounding to few
bits swallows a small update, so what will be read is compared with what was meant, weight by
weight, while it is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import hypot
from typing import TYPE_CHECKING

from adaptool.canonical import Checkpoint, LazyTensor
from adaptool.canonical.tensors import gather
from adaptool.encodings.checkpoints import Opened
from adaptool.errors import JSON, IncompatibleError
from adaptool.merging.outcome import Merge
from adaptool.merging.survival import Survival, Tally

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Requantised(Merge):
    """A merge whose touched weights are quantised again.

    Attributes:
        kinds: what they are stored as.
    """

    kinds: tuple[str, ...] = ()

    def _forms(self) -> list[str]:
        return list(self.kinds)

    def _ways_out(self) -> str:
        return (
            "write the result in full precision: leave --requantize out; or quantise W + dW once: "
            "--base-weights ORIGINAL; or keep the adapter separate; or --allow-loss"
        )


def requantised(
    merged: Merge, base: Opened, originals: Mapping[str, LazyTensor] | None = None
) -> Requantised:
    """The merge, in the scheme of its base.

    Args:
        merged: of adapters into `base.exact`; touched weights are float32.
        base: the quantised checkpoint.
        originals: the full-precision weights that the merge started from, if not from its own.

    Raises IncompatibleError if a touched weight's scheme is only read here.
    """
    touched = [name for name in merged.touched if name in base.weights]
    _refuse_unwritable(base, touched)
    tally = _Overlaid(merged.tally, frozenset(touched))
    made: dict[str, LazyTensor] = {}
    for name in touched:
        weight, values = base.weights[name], merged.checkpoint.tensors[name]
        if weight.encode is None or values.shape != weight.value.shape:
            raise IncompatibleError(
                f"{name}: {list(values.shape)} do not take the place of {list(weight.value.shape)}",
                code="SHAPE_MISMATCH",
            )
        before = (originals or {}).get(name, weight.value)
        made |= weight.encode(values, partial(_compare, tally, weight.parts[0], before))
    names = {name: base.weights[name].parts[0] for name in touched}
    return Requantised(
        _stored_again(merged.checkpoint, base, made),
        tuple(names.get(name, name) for name in merged.touched),
        tally,
        merged.moves,
        merged.notes,
        tuple(sorted({base.weights[name].kind for name in touched})),
    )


def _refuse_unwritable(base: Opened, touched: Iterable[str]) -> None:
    for name in touched:
        if base.weights[name].encode is None:
            raise IncompatibleError(
                f"{name}: {base.weights[name].kind} ({base.method}) is read here, not written",
                hint="leave --requantize out, and quantise the result with the library of that "
                "scheme",
                code="NOT_ENCODABLE",
            )


def _stored_again(merged: Checkpoint, base: Opened, made: Mapping[str, LazyTensor]) -> Checkpoint:
    """The stored checkpoint, with what was made anew and with the merge's plain tensors."""
    parts = {part for weight in base.weights.values() for part in weight.parts}
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in base.stored.tensors.items():
        kept = tensor if name in parts else merged.tensors.get(name, tensor)
        tensors[name] = made.get(name, kept)
    tensors |= {n: t for n, t in merged.tensors.items() if n not in base.checkpoint.tensors}
    config: dict[str, JSON] = dict(merged.config)
    config |= {k: v for k, v in base.stored.config.items() if k not in base.checkpoint.config}
    side = {**base.stored.side_files, **merged.side_files}
    if "config.json" in side:
        side["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
        if config == dict(base.stored.config):
            side["config.json"] = base.stored.side_files["config.json"]
    return replace(
        merged, tensors=tensors, config=config, side_files=side, shards=base.stored.shards
    )


def _compare(
    tally: Tally, name: str, before: LazyTensor, first: int, wanted: torch.Tensor,
    stored: torch.Tensor,
) -> None:  # fmt: skip
    """Measure what will be read of the change that was meant."""
    start = gather(before, first, first + wanted.numel()).double()
    meant, change = wanted.double() - start, stored.double() - start
    tally.record(
        name, first, meant=float(meant.square().sum()), stored=float(change.square().sum()),
        along=float(meant.dot(change)),
    )  # fmt: skip


class _Overlaid(Tally):
    """What was measured here, and of all other tensors what a merge measures itself."""

    def __init__(self, below: Tally, hidden: frozenset[str]) -> None:
        super().__init__()
        self._below, self._hidden = below, hidden

    def tensors(self) -> dict[str, Survival]:
        """What was measured, by tensor."""
        found = super().tensors()
        below = self._below.tensors()
        found |= {n: s for n, s in below.items() if n not in found and n not in self._hidden}
        return dict(sorted(found.items()))

    def total(self, names: Iterable[str] | None = None) -> Survival:
        """What was measured over these tensors; None for all."""
        wanted = None if names is None else list(names)
        here = super().total(wanted)
        others = self._below.tensors() if wanted is None else wanted
        rest = self._below.total(
            n for n in others if n not in self._found and n not in self._hidden
        )
        return Survival(
            hypot(here.meant, rest.meant), hypot(here.stored, rest.stored),
            here.along + rest.along,
        )  # fmt: skip
