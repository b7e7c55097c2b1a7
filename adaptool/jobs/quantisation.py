"""Which weights a merge into a quantised model starts from, and how its result is stored."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path

from adaptool.canonical import Checkpoint, LazyTensor
from adaptool.canonical.tensors import gather
from adaptool.containers import open_checkpoint
from adaptool.encodings.checkpoints import Opened, is_quantised, open_quantised
from adaptool.errors import IncompatibleError, UsageError
from adaptool.hub import fetch_checkpoint
from adaptool.merging import Merge
from adaptool.merging.reencoding import requantised

DEQUANTIZED = "dequantized"

_COMPARED = 1 << 18
"""Values of a weight that are compared with the original's."""
_STRANGERS = 1.0
"""Weights so far apart, in parts of the original's norm, are not of the same model."""


@dataclass(frozen=True)
class QuantisedBase:
    """A quantised model that adapters are merged into.

    Attributes:
        opened: the model.
        original: the full-precision model that it was made from, to be used in its stead.
        source: where that lies.
        requantize: write the result in the model's own scheme.
    """

    opened: Opened
    original: Checkpoint | None
    source: Path | None
    requantize: bool

    @property
    def checkpoint(self) -> Checkpoint:
        """What the adapters are merged into."""
        if self.requantize:
            return self.opened.exact
        return self.opened.checkpoint if self.original is None else self.original

    @property
    def originals(self) -> Mapping[str, LazyTensor] | None:
        """What touched weights start from, where the result is quantised again."""
        if self.original is None or not self.requantize:
            return None
        return self.original.tensors

    def finish(self, merged: Merge) -> Merge:
        """The merge as it is stored, with notes of what was done.

        Raises IncompatibleError if the original is another model, or the scheme is only read.
        """
        note = self._describe(merged)
        if self.requantize:
            merged = requantised(merged, self.opened, self.originals)
        return replace(merged, notes=(*merged.notes, *note))

    def _describe(self, merged: Merge) -> list[str]:
        base, weights = self.opened.stored.provenance.name, self.opened.weights
        kinds = ", ".join(sorted({w.kind for w in weights.values()})) or "nothing"
        types = ", ".join(sorted({w.dtype.value for w in weights.values()}))
        touched = [name for name in merged.touched if name in weights]
        notes: list[str] = []
        if self.original is not None:
            found = self._distance(touched)
            apart = "" if found is None else (
                f"; where the adapter touches them, the two are {found:.2%} apart "
                f"(|W - Wq| / |W|, on up to {_COMPARED:,} values of each of {len(touched)} weights)"
            )  # fmt: skip
            notes.append(
                f"merged into the weights of {self.original.provenance.name}, not into those of "
                f"{base}, which are quantised ({self.opened.method}: {kinds}){apart}"
            )
        elif not self.requantize:
            notes.append(
                f"{base} is quantised ({self.opened.method}: {kinds}): its {len(weights)} weights "
                f"were decoded to {types}, as an adapter trained on it saw them; the result is "
                "not quantised"
            )
        if self.requantize:
            notes.append(
                f"{len(touched)} touched weights are quantised again ({kinds}); the other "
                f"{len(weights) - len(touched)} keep their stored bytes"
            )
        return notes

    def _distance(self, touched: list[str]) -> float | None:
        """How far the two models are apart, |W - Wq| / |W| over the touched quantised weights."""
        difference = whole = 0.0
        for name in touched:
            quantised, original = self.opened.weights[name].value, self._original_of(name)
            count = min(_COMPARED, original.count)
            one, two = (gather(t, 0, count).double() for t in (original, quantised))
            difference += float((one - two).square().sum())
            whole += float(one.square().sum())
        if not whole:
            return None
        found = sqrt(difference / whole)
        if found >= _STRANGERS:
            raise IncompatibleError(
                f"the weights of {self.opened.stored.provenance.name} are {found:.0%} apart from "
                "those given as the original",
                hint="--base-weights names the full-precision model that BASE was quantised from",
                code="OTHER_MODEL",
            )
        return found

    def _original_of(self, name: str) -> LazyTensor:
        found = None if self.original is None else self.original.tensors.get(name)
        wanted = self.opened.weights[name].value
        if found is None or found.shape != wanted.shape:
            what = "no such tensor" if found is None else f"{list(found.shape)}"
            raise IncompatibleError(
                f"{name}: the original weights have {what}, the base has {list(wanted.shape)}",
                hint="is this the model that the base was quantised from?",
                code="SHAPE_MISMATCH",
            )
        return found


def quantised_base(
    stored: Checkpoint, base_weights: str | os.PathLike[str] | None, *, requantize: bool
) -> QuantisedBase | None:
    """How adapters are merged into a model that is quantised; None if it is not.

    Args:
        stored: the model as it lies in its files.
        base_weights: "dequantized" (or None) for the weights that an adapter trained on the model
            saw, or where the full-precision model lies that it was made from.
        requantize: write the result in the model's own scheme.

    Raises:
        UsageError: the model is not quantised, or the original is of no use.
        IncompatibleError, CorruptInputError: see `open_quantised`.
    """
    if not is_quantised(stored):
        if requantize or (base_weights == DEQUANTIZED and stored.container != "gguf"):
            option = "--requantize" if requantize else f"--base-weights {DEQUANTIZED}"
            raise UsageError(
                f"{option} is for quantised Hugging Face models, {stored.provenance.name} is none",
                hint="a GGUF model is written in its own types anyway"
                if stored.container == "gguf" else None,
            )  # fmt: skip
        return None
    opened = open_quantised(stored)
    if base_weights is None or base_weights == DEQUANTIZED:
        return QuantisedBase(opened, None, None, requantize)
    source = fetch_checkpoint(os.fspath(base_weights))
    original = open_checkpoint(source)
    if original.container != stored.container or is_quantised(original):
        raise UsageError(
            f"{original.provenance.name} is no full-precision Hugging Face model",
            hint="--base-weights names the model that BASE was quantised from",
        )
    return QuantisedBase(opened, original, source, requantize)
