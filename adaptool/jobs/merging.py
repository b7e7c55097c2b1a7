"""`merge` for models and adapters on disk: read, merge, write, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from adaptool.canonical import Adapter
from adaptool.combination import Recipe
from adaptool.containers import SaveOptions, open_checkpoint, plan_checkpoint, save_checkpoint
from adaptool.errors import JSON
from adaptool.formats import ReadOptions, read_adapter
from adaptool.hub import fetch_adapter, fetch_checkpoint
from adaptool.jobs.asking import with_total
from adaptool.jobs.assembling import NEAREST, Wish, assemble
from adaptool.jobs.reporting import MergeReport, records_of, report_of
from adaptool.merging import Merge
from adaptool.processors import one_compute_thread, worker_count
from adaptool.records import record


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
    read = [(read_adapter(p, ReadOptions(allow_pickle)), scale) for p, scale in paths]
    wish = Wish(
        recipe, dtype, base_weights, requantize, match, imatrix, rounding, seed, device, threads,
        allow_nonfinite,
    )  # fmt: skip
    assembled = assemble(checkpoint, read, wish)
    merged = assembled.merge
    if Path(output).suffix and not assembled.keeps_header:  # one file: no room for one beside
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
        protect=[*protected, *([assembled.original] if assembled.original else [])],
        allow_loss=allow_loss,
    )


def _with_record_inside(merged: Merge, inputs: list[tuple[Adapter, float]]) -> Merge:
    """The merge with its inputs named in the container's own metadata."""
    scales: list[dict[str, JSON]] = [{"name": a.provenance.name, "scale": s} for a, s in inputs]
    content = record("merge", [{"name": merged.checkpoint.provenance.name}, *scales])
    metadata = {**merged.checkpoint.metadata, "adaptool": content.decode()}
    return replace(merged, checkpoint=replace(merged.checkpoint, metadata=metadata))
