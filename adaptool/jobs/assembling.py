"""A model and adapters, whatever they are stored in, as the checkpoint that will be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from adaptool.architectures.speaking import ONNX, spoken_by
from adaptool.canonical import Adapter, Checkpoint, DType, LazyTensor
from adaptool.canonical.dtypes import dtype_named
from adaptool.canonical.forms import Form
from adaptool.combination import Recipe, combine
from adaptool.containers import open_checkpoint
from adaptool.errors import UsageError
from adaptool.hub import fetch_checkpoint
from adaptool.jobs.asking import importance_of
from adaptool.jobs.exported import ExportedBase, exported_base
from adaptool.jobs.quantisation import DEQUANTIZED, QuantisedBase, quantised_base
from adaptool.merging import Merge, merge
from adaptool.merging.rounding import Rounding
from adaptool.processors import choose_device

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip

NEAREST, STOCHASTIC = "nearest", "stochastic"


@dataclass(frozen=True)
class Wish:
    """How adapters are merged into a model; see `adaptool.jobs.merging.merge_files`.

    Attributes:
        widened: touched tensors of a Hugging Face checkpoint stay float32, for a writer that
            rounds them to another type anyway.
    """

    recipe: Recipe | None = None
    dtype: str | None = None
    base_weights: str | os.PathLike[str] | None = None
    requantize: bool = False
    match: str | os.PathLike[str] | None = None
    imatrix: str | os.PathLike[str] | None = None
    rounding: str = NEAREST
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    allow_nonfinite: bool = False
    widened: bool = False


@dataclass(frozen=True)
class Assembled:
    """A merge that can be written.

    Attributes:
        merge: what `adaptool.merging.merge` made, with all notes.
        keeps_header: the output will be a copy of the base with some ranges replaced.
        original: another model that is read meanwhile, or None.
    """

    merge: Merge
    keeps_header: bool
    original: Path | None


def assemble(stored: Checkpoint, read: list[tuple[Adapter, float]], wish: Wish) -> Assembled:
    """Merge adapters into a model as it lies in its files; nothing is computed yet.

    Raises AdaptoolError for what does not fit, or options that are for other kinds of models.
    """
    quantised = quantised_base(stored, wish.base_weights, requantize=wish.requantize)
    checkpoint = stored if quantised is None else quantised.checkpoint
    original = None if quantised is None else quantised.source
    if quantised is None and wish.base_weights not in (None, DEQUANTIZED):
        original = fetch_checkpoint(os.fspath(wish.base_weights or ""))
    exported = _exported(checkpoint, [adapter for adapter, _ in read], wish.match, original)
    checkpoint = exported.checkpoint if exported else checkpoint
    forms = _Forms(checkpoint, wish, original, quantised, exported)
    laid, notes = _combined(read, wish.recipe, checkpoint, wish.threads)
    merged = forms.merge(laid)
    notes += tuple(n for adapter, _ in read for n in adapter.provenance.notes)
    notes += exported.notes if exported else ()
    merged = replace(merged, notes=(*merged.notes, *notes))
    if quantised is not None:
        merged = quantised.finish(merged)
    return Assembled(_with_tokenizer(merged, checkpoint, read), forms.keeps_header, original)


def _exported(
    checkpoint: Checkpoint,
    adapters: list[Adapter],
    match: str | os.PathLike[str] | None,
    original: Path | None,
) -> ExportedBase | None:
    """An ONNX base, prepared; None for any other."""
    if checkpoint.container != ONNX:
        if match is not None:
            raise UsageError(
                f"--match is for ONNX models, {checkpoint.provenance.name} is "
                f"{checkpoint.container}"
            )
        return None
    named = fetch_checkpoint(os.fspath(match)) if match is not None else None
    opened = [None if path is None else open_checkpoint(path) for path in (named, original)]
    return exported_base(checkpoint, adapters, match=opened[0], original=opened[1])


def _combined(
    read: list[tuple[Adapter, float]], recipe: Recipe | None, base: Checkpoint, threads: int | None
) -> tuple[list[tuple[Adapter, float]], tuple[str, ...]]:
    """What is laid onto the base: the adapters as they are, or one that combines them."""
    if recipe is None or (recipe.method, recipe.space) == ("linear", "delta"):
        return read, ()
    spoken = [(spoken_by(base, adapter), scale) for adapter, scale in read]
    combination = combine(spoken, replace(recipe, factored=False), base=base, threads=threads)
    return [(combination.adapter, 1.0)], combination.notes


@dataclass(frozen=True)
class _Forms:
    """How the tensors of a result are written, and from which weights touched ones are made."""

    base: Checkpoint
    wish: Wish
    original: Path | None
    quantised: QuantisedBase | None = None
    exported: ExportedBase | None = None

    @property
    def is_gguf(self) -> bool:
        return self.base.container == "gguf"

    @property
    def keeps_header(self) -> bool:
        """Whether the output is a copy of the base with some ranges replaced."""
        return self.is_gguf and self.wish.dtype is None

    def merge(self, read: list[tuple[Adapter, float]]) -> Merge:
        """Merge with these choices."""
        if self.wish.rounding not in (NEAREST, STOCHASTIC):
            raise UsageError(
                f"unknown rounding {self.wish.rounding!r}", hint="nearest or stochastic"
            )
        make = partial(
            merge, self.base, read, device=choose_device(self.wish.device),
            allow_nonfinite=self.wish.allow_nonfinite,
        )  # fmt: skip
        seed = self.wish.seed if self.wish.rounding == STOCHASTIC else None
        if self.exported is not None:
            if self.wish.imatrix is not None:
                raise UsageError("--imatrix is for GGUF models")
            forms = Rounding(self.base, self._plain(), seed)
            return make(form_of=forms.form_of, originals=self.exported.originals)
        if not self.is_gguf:
            self._refuse_block_options()
            originals = None if self.quantised is None else self.quantised.originals
            form_of = _widened if self.wish.widened else None
            return make(dtype=self._plain(), form_of=form_of, originals=originals)
        from adaptool.merging.retyping import Retyping

        retyping = Retyping(self.base, self.wish.dtype, importance_of(self.wish.imatrix), seed)
        merged = make(form_of=retyping.form_of, originals=self._originals())
        stated = {**merged.checkpoint.metadata, **retyping.stated}
        return replace(merged, checkpoint=replace(merged.checkpoint, metadata=stated))

    def _plain(self) -> DType | None:
        if self.wish.dtype is None:
            return None
        found = dtype_named(self.wish.dtype)
        if found is None:
            raise UsageError(
                f"{self.wish.dtype} is a type of GGUF, {self.base.provenance.name} is "
                f"{self.base.container}",
                hint="merge in f32, f16 or bf16, then: adaptool convert MERGED -o model.gguf "
                f"--outtype {self.wish.dtype}",
            )
        return found

    def _refuse_block_options(self) -> None:
        quantised = self.quantised
        for given, option, whose in (
            (None if quantised else self.original, "--base-weights", "quantised"),
            (self.wish.imatrix, "--imatrix", "quantised GGUF"),
            (self.wish.rounding != NEAREST or None, "--rounding", "quantised GGUF"),
        ):
            if given is not None:
                raise UsageError(
                    f"{option} is for {whose} models, {self.base.provenance.name} is "
                    f"{self.base.container}",
                )
        if quantised is not None and quantised.requantize and self.wish.dtype is not None:
            raise UsageError("--requantize keeps the base's own types, --dtype asks for another")

    def _originals(self) -> Mapping[str, LazyTensor] | None:
        if self.original is None:
            return None
        found = open_checkpoint(self.original)
        if found.container != "gguf":
            from adaptool.conversion import to_gguf

            found = to_gguf(found, outtype="f32", vocabulary=None)
        return found.tensors


def _widened(_name: str, tensor: LazyTensor, touched: bool) -> Form:
    """Touched tensors in float32, all others as they are."""
    return Form(DType.FLOAT32) if touched and tensor.dtype.is_floating else tensor.form


def _with_tokenizer(merged: Merge, base: Checkpoint, inputs: list[tuple[Adapter, float]]) -> Merge:
    """The merge with an adapter's own tokenizer, where the adapter changed the vocabulary."""
    before, after = (c.config.get("vocab_size") for c in (base, merged.checkpoint))
    if before == after:
        return merged
    for adapter, _ in inputs:
        folder = adapter.provenance.sources[0].parent if adapter.provenance.sources else Path()
        found = {n: folder / n for n in TOKENIZER_FILES if (folder / n).is_file()}
        if "tokenizer.json" in found or "tokenizer.model" in found:
            side = {**merged.checkpoint.side_files, **found}
            checkpoint = replace(merged.checkpoint, side_files=side)
            note = f"the tokenizer is that of {adapter.provenance.name}"
            return replace(merged, checkpoint=checkpoint, notes=(*merged.notes, note))
    note = "the tokenizer is the base's, although the vocabulary changed"
    return replace(merged, notes=(*merged.notes, note))
