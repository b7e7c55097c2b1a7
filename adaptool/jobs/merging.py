"""`merge` for models and adapters on disk: read, merge, write, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from adaptool.architectures.speaking import ONNX, spoken_by
from adaptool.canonical import Adapter, Checkpoint, DType, LazyTensor
from adaptool.canonical.dtypes import dtype_named
from adaptool.combination import Recipe, combine
from adaptool.containers import SaveOptions, open_checkpoint, plan_checkpoint, save_checkpoint
from adaptool.errors import JSON, UsageError
from adaptool.formats import ReadOptions, read_adapter
from adaptool.hub import fetch_adapter, fetch_checkpoint
from adaptool.jobs.asking import importance_of, with_total
from adaptool.jobs.exported import ExportedBase, exported_base
from adaptool.jobs.quantisation import DEQUANTIZED, QuantisedBase, quantised_base
from adaptool.jobs.reporting import MergeReport, records_of, report_of
from adaptool.merging import Merge, merge
from adaptool.merging.rounding import Rounding
from adaptool.processors import choose_device, one_compute_thread, worker_count
from adaptool.records import record

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip

NEAREST, STOCHASTIC = "nearest", "stochastic"


def save(
    merged: Merge,
    output: str | os.PathLike[str],
    *,
    inputs: Iterable[tuple[Adapter, float]] = (),
    force: bool = False,
    max_shard_size: int | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
    protect: Iterable[Path] = (),
    allow_loss: bool = False,
) -> MergeReport:
    """Write a merge and say what it did.

    Args:
        merged: what `merge` returned.
        output: a folder, or a file if it ends in the container's suffix.
        inputs: adapters and scales, for the record that travels with the output.
        force: replace an existing output.
        max_shard_size: bytes per file; None keeps the base's layout.
        threads: workers; None takes as many as there are processors, at most 8.
        progress: called from workers with the bytes written since the last call.
        protect: paths that the output must not touch.
        allow_loss: accept that rounding swallows more than half of the update.

    Raises:
        IncompatibleError: nothing changed, most of the update was lost in rounding, or a
            result does not fit the output's type.
        StorageError: the disk refused. In every case the old output, or none, is there.
    """
    path = Path(output)
    pairs = list(inputs)

    def approve() -> dict[str, bytes]:
        merged.verify(allow_loss=allow_loss)
        return records_of(merged, pairs)

    options = SaveOptions(
        force=force,
        workers=worker_count(threads),
        max_shard_size=max_shard_size,
        inputs=list(protect),
        progress=progress,
        approve=approve,
    )
    with one_compute_thread():
        saved = save_checkpoint(merged.checkpoint, path, options)
    return report_of(merged, saved, dry_run=False)


def merge_files(
    base: str | os.PathLike[str],
    adapters: Mapping[str, float] | Iterable[tuple[str, float]],
    output: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    dtype: str | None = None,
    base_weights: str | os.PathLike[str] | None = None,
    requantize: bool = False,
    match: str | os.PathLike[str] | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    rounding: str = NEAREST,
    seed: int = 0,
    device: str = "cpu",
    force: bool = False,
    dry_run: bool = False,
    max_shard_size: int | None = None,
    threads: int | None = None,
    allow_pickle: bool = False,
    allow_nonfinite: bool = False,
    allow_loss: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Merge adapters on disk (or on a hub) into a model on disk, in one call.

    Args:
        base: folder, file, or `org/name[@revision]`.
        adapters: path or hub name -> scale.
        output: a folder, or a file ending in the container's suffix.
        recipe: how several adapters become one update; None sums them. Scales are its weights.
        dtype: type of the result; None keeps the base's. Of a GGUF base an outtype ("q4_k_m");
            what is quantised already and not touched stays as it is.
        base_weights: the full-precision model that a quantised base was made from: touched
            tensors are taken from it, and quantised once; a Hugging Face result is not quantised
            unless `requantize`. "dequantized" (or None): what the base's own weights decode to,
            which an adapter trained on it saw.
        requantize: write a quantised Hugging Face model in its own scheme again.
        match: the checkpoint that an ONNX base was exported from: values tell where a module's
            weight lies, whatever the exporter called it.
        imatrix: importance of each column, as llama-imatrix writes it.
        rounding: "nearest", or "stochastic" for touched blocks (right on average, but noisy).
        seed: of the stochastic rounding.
        device: "auto", "cpu", "cuda" or "cuda:n".
        dry_run: plan only.
        progress: called with (bytes since last call, bytes in all).
        force, max_shard_size, threads, allow_loss: see `save`.
        allow_pickle, allow_nonfinite: see the formats and `merge`.

    Raises AdaptoolError; nothing is written then.
    """
    pairs = list(adapters.items() if isinstance(adapters, Mapping) else adapters)
    base_path = fetch_checkpoint(os.fspath(base))
    paths = [(fetch_adapter(name), scale) for name, scale in pairs]
    checkpoint = open_checkpoint(base_path)
    quantised = quantised_base(checkpoint, base_weights, requantize=requantize)
    original = None if quantised is None else quantised.source
    if quantised is not None:
        checkpoint = quantised.checkpoint
    elif base_weights is not None and base_weights != DEQUANTIZED:
        original = fetch_checkpoint(os.fspath(base_weights))
    read = [(read_adapter(p, ReadOptions(allow_pickle)), scale) for p, scale in paths]
    exported = _exported(checkpoint, [adapter for adapter, _ in read], match, original)
    checkpoint = exported.checkpoint if exported else checkpoint
    forms = _Forms(checkpoint, dtype, imatrix, rounding, seed, original, quantised, exported)
    laid, notes = _combined(read, recipe, checkpoint, threads)
    merged = forms.merge(laid, choose_device(device), allow_nonfinite=allow_nonfinite)
    notes += tuple(n for adapter, _ in read for n in adapter.provenance.notes)
    notes += exported.notes if exported else ()
    merged = replace(merged, notes=(*merged.notes, *notes))
    if quantised is not None:
        merged = quantised.finish(merged)
    merged = _with_tokenizer(merged, checkpoint, read)
    if Path(output).suffix and not forms.keeps_header:  # one file has no room for a record beside
        merged = _with_record_inside(merged, read)
    if dry_run:
        options = SaveOptions(max_shard_size=max_shard_size)
        planned = plan_checkpoint(merged.checkpoint, Path(output), options)
        return report_of(merged, planned, dry_run=True, workers=worker_count(threads))
    protected = [base_path, *(p for p, _ in paths)]
    return save(
        merged,
        output,
        inputs=read,
        force=force,
        max_shard_size=max_shard_size,
        threads=threads,
        progress=with_total(progress, merged.checkpoint.nbytes),
        protect=[*protected, *([forms.original] if forms.original else [])],
        allow_loss=allow_loss,
    )


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
    dtype: str | None
    imatrix: str | os.PathLike[str] | None
    rounding: str
    seed: int
    original: Path | None
    quantised: QuantisedBase | None = None
    exported: ExportedBase | None = None

    @property
    def is_gguf(self) -> bool:
        return self.base.container == "gguf"

    @property
    def keeps_header(self) -> bool:
        """Whether the output is a copy of the base with some ranges replaced."""
        return self.is_gguf and self.dtype is None

    def merge(
        self, read: list[tuple[Adapter, float]], device: str, *, allow_nonfinite: bool
    ) -> Merge:
        """Merge with these choices."""
        if self.rounding not in (NEAREST, STOCHASTIC):
            raise UsageError(f"unknown rounding {self.rounding!r}", hint="nearest or stochastic")
        make = partial(merge, self.base, read, device=device, allow_nonfinite=allow_nonfinite)
        seed = self.seed if self.rounding == STOCHASTIC else None
        if self.exported is not None:
            if self.imatrix is not None:
                raise UsageError("--imatrix is for GGUF models")
            forms = Rounding(self.base, self._plain(), seed)
            return make(form_of=forms.form_of, originals=self.exported.originals)
        if not self.is_gguf:
            self._refuse_block_options()
            originals = None if self.quantised is None else self.quantised.originals
            return make(dtype=self._plain(), originals=originals)
        from adaptool.merging.retyping import Retyping

        retyping = Retyping(self.base, self.dtype, importance_of(self.imatrix), seed)
        merged = make(form_of=retyping.form_of, originals=self._originals())
        return merged if self.dtype is None else _with_file_type(merged, self.dtype)

    def _plain(self) -> DType | None:
        if self.dtype is None:
            return None
        found = dtype_named(self.dtype)
        if found is None:
            raise UsageError(
                f"{self.dtype} is a type of GGUF, {self.base.provenance.name} is "
                f"{self.base.container}",
                hint="merge in f32, f16 or bf16, then: adaptool convert MERGED -o model.gguf "
                f"--outtype {self.dtype}",
            )
        return found

    def _refuse_block_options(self) -> None:
        quantised = self.quantised
        for given, option, whose in (
            (None if quantised else self.original, "--base-weights", "quantised"),
            (self.imatrix, "--imatrix", "quantised GGUF"),
            (self.rounding != NEAREST or None, "--rounding", "quantised GGUF"),
        ):
            if given is not None:
                raise UsageError(
                    f"{option} is for {whose} models, {self.base.provenance.name} is "
                    f"{self.base.container}",
                )
        if quantised is not None and quantised.requantize and self.dtype is not None:
            raise UsageError("--requantize keeps the base's own types, --dtype asks for another")

    def _originals(self) -> Mapping[str, LazyTensor] | None:
        if self.original is None:
            return None
        found = open_checkpoint(self.original)
        if found.container != "gguf":
            from adaptool.conversion import to_gguf

            found = to_gguf(found, outtype="f32", vocabulary=None)
        return found.tensors


def _with_file_type(merged: Merge, outtype: str) -> Merge:
    """The merge with the key-values of a GGUF model that state its types."""
    from adaptool.containers.gguf import Value
    from adaptool.encodings.ggml.mixtures import file_type

    stated = {
        "general.file_type": Value.u32(file_type(outtype)),
        "general.quantization_version": Value.u32(2),
    }
    metadata = {**merged.checkpoint.metadata, **stated}
    return replace(merged, checkpoint=replace(merged.checkpoint, metadata=metadata))


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


def _with_record_inside(merged: Merge, inputs: list[tuple[Adapter, float]]) -> Merge:
    """The merge with its inputs named in the container's own metadata."""
    scales: list[dict[str, JSON]] = [{"name": a.provenance.name, "scale": s} for a, s in inputs]
    content = record("merge", [{"name": merged.checkpoint.provenance.name}, *scales])
    metadata = {**merged.checkpoint.metadata, "adaptool": content.decode()}
    return replace(merged, checkpoint=replace(merged.checkpoint, metadata=metadata))
