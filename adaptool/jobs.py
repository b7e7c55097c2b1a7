"""The jobs that commands and scripts ask for, one call each: read, transform, write, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from adaptool.canonical import Adapter, Checkpoint, DType
from adaptool.cards import front_matter, table
from adaptool.containers import (
    Saved,
    SaveOptions,
    open_checkpoint,
    plan_checkpoint,
    save_checkpoint,
)
from adaptool.errors import JSON
from adaptool.formats import ReadOptions, WriteOptions, Written, format_for, read_adapter
from adaptool.hub import fetch_adapter, fetch_checkpoint
from adaptool.merging import Merge, Survival, merge
from adaptool.processors import choose_device, one_compute_thread, worker_count
from adaptool.records import RECORD, described, record

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip

PEAK_PER_WORKER = 8 << 20
"""Bytes of buffers per worker, about; for the estimate of --dry-run."""
PEAK_OF_LIBRARIES = 260 << 20


@dataclass(frozen=True)
class MergeReport:
    """What a merge did, or would do.

    Attributes:
        output: where the result is.
        nbytes: bytes written.
        files: names of the files written.
        tensors: number of tensors in the result.
        touched: number of tensors that were computed, replaced or added.
        changed: number of touched tensors whose stored values differ from the base's.
        survival: the whole update, as meant and as stored.
        by_tensor: the same for each computed tensor.
        notes: decisions a reader should know of.
        dry_run: nothing was written.
    """

    output: Path
    nbytes: int
    files: tuple[str, ...]
    tensors: int
    touched: int
    changed: int | None
    survival: Survival | None
    by_tensor: Mapping[str, Survival] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    dry_run: bool = False
    free: int = 0
    peak: int = 0

    def as_json(self) -> dict[str, JSON]:
        """Plain data."""
        facts: dict[str, JSON] = {
            "output": str(self.output), "bytes": self.nbytes, "files": list(self.files),
            "tensors": self.tensors, "touched": self.touched, "changed": self.changed,
            "notes": list(self.notes), "dry_run": self.dry_run,
        }  # fmt: skip
        if self.dry_run:
            facts |= {"free_bytes": self.free, "peak_memory_bytes": self.peak}
        if self.survival is not None:
            facts["survival"] = _survival_json(self.survival)
            facts["by_tensor"] = {n: _survival_json(s) for n, s in self.by_tensor.items()}
        return facts


def _survival_json(survival: Survival) -> dict[str, JSON]:
    ratio = survival.ratio
    return {"meant": survival.meant, "stored": survival.stored, "ratio": ratio}


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

    Raises:
        IncompatibleError: nothing changed, or a result does not fit the output's type.
        StorageError: the disk refused. In every case the old output, or none, is there.
    """
    path = Path(output)
    pairs = list(inputs)

    def approve() -> dict[str, bytes]:
        merged.verify()
        return _records(merged, pairs)

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
    return _report(merged, saved, dry_run=False)


def merge_files(
    base: str | os.PathLike[str],
    adapters: Mapping[str, float] | Iterable[tuple[str, float]],
    output: str | os.PathLike[str],
    *,
    dtype: DType | str | None = None,
    device: str = "cpu",
    force: bool = False,
    dry_run: bool = False,
    max_shard_size: int | None = None,
    threads: int | None = None,
    allow_pickle: bool = False,
    allow_nonfinite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Merge adapters on disk (or on a hub) into a model on disk, in one call.

    Args:
        base: folder, file, or `org/name[@revision]`.
        adapters: path or hub name -> scale.
        output: a folder, or a file ending in .safetensors.
        dtype: type of the result; None keeps the base's.
        device: "auto", "cpu", "cuda" or "cuda:n".
        dry_run: plan only.
        progress: called with (bytes since last call, bytes in all).
        force, max_shard_size, threads: see `save`.
        allow_pickle, allow_nonfinite: see the formats and `merge`.

    Raises AdaptoolError; nothing is written then.
    """
    pairs = list(adapters.items() if isinstance(adapters, Mapping) else adapters)
    base_path = fetch_checkpoint(os.fspath(base))
    paths = [(fetch_adapter(name), scale) for name, scale in pairs]
    checkpoint = open_checkpoint(base_path)
    read = [(read_adapter(p, ReadOptions(allow_pickle)), scale) for p, scale in paths]
    merged = merge(
        checkpoint,
        read,
        dtype=DType(dtype) if dtype is not None else None,
        device=choose_device(device),
        allow_nonfinite=allow_nonfinite,
    )
    notes = tuple(n for adapter, _ in read for n in adapter.provenance.notes)
    merged = replace(merged, notes=(*merged.notes, *notes))
    merged = _with_tokenizer(merged, checkpoint, read)
    if Path(output).suffix:  # one file has no room for a record beside it
        merged = _with_record_inside(merged, read)
    if dry_run:
        options = SaveOptions(max_shard_size=max_shard_size)
        planned = plan_checkpoint(merged.checkpoint, Path(output), options)
        return _report(merged, planned, dry_run=True, workers=worker_count(threads))
    total = merged.checkpoint.nbytes
    return save(
        merged,
        output,
        inputs=read,
        force=force,
        max_shard_size=max_shard_size,
        threads=threads,
        progress=(lambda done: progress(done, total)) if progress else None,
        protect=[base_path, *(p for p, _ in paths)],
    )


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


def _report(merged: Merge, saved: Saved, *, dry_run: bool, workers: int = 0) -> MergeReport:
    measured = {} if dry_run else merged.tally.tensors()
    unmeasured = [n for n in merged.touched if n not in measured]
    changed = sum(1 for s in measured.values() if s.stored) + len(unmeasured)
    notes = merged.notes
    if saved.stale:
        notes = (*notes, "what a killed run had left beside the output was removed")
    parent = saved.path.parent if saved.path.parent.exists() else Path.cwd()
    free = os.statvfs(parent)
    return MergeReport(
        output=saved.path,
        nbytes=saved.nbytes,
        files=saved.files,
        tensors=len(merged.checkpoint.tensors),
        touched=len(merged.touched),
        changed=None if dry_run else changed,
        survival=None if dry_run or not measured else merged.tally.total(),
        by_tensor=measured,
        notes=notes,
        dry_run=dry_run,
        free=free.f_bavail * free.f_frsize,
        peak=PEAK_OF_LIBRARIES + workers * PEAK_PER_WORKER,
    )


def _records(merged: Merge, inputs: list[tuple[Adapter, float]]) -> dict[str, bytes]:
    """The card and the record that a merged model carries."""
    base = merged.checkpoint.provenance
    total = merged.tally.total()
    licenses = [p.license for p in (base, *(a.provenance for a, _ in inputs)) if p.license]
    facts: dict[str, JSON] = {"survival": _survival_json(total), "notes": [*merged.notes]}
    described_inputs = [
        {**described(base), "role": "base"},
        *({**described(a.provenance), "role": "adapter", "scale": s} for a, s in inputs),
    ]
    head = front_matter({
        "base_model": list(dict.fromkeys([base.name, *(a.base for a, _ in inputs if a.base)]))[:1],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "license": licenses[0] if len(set(licenses)) == 1 else "other" if licenses else None,
        "tags": ["adaptool", "merge", "lora"],
    })  # fmt: skip
    rows = [(a.provenance.name, a.method, f"{scale:g}") for a, scale in inputs]
    ratio = "" if total.ratio is None else f"\n{total.ratio:.4f} of the update was stored.\n"
    text = (
        f"{head}\n# {base.name}, merged\n\nMerged by adaptool into {base.name}.\n\n"
        f"{table(('adapter', 'method', 'scale'), rows)}{ratio}"
    )
    return {
        "README.md": text.encode(),
        RECORD: record("merge", described_inputs, facts),
    }


def convert(
    adapter: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    to: str | None = None,
    scale: float = 1.0,
    dtype: DType | str | None = None,
    force: bool = False,
    dry_run: bool = False,
    allow_pickle: bool = False,
) -> Written:
    """Write an adapter in another format, or in the same one with other types or strength.

    Args:
        adapter: folder, file, or `org/name[@revision]`.
        output: where to write; its suffix names the format unless `to` does.
        scale: a strength to bake in; factors stay exact, alpha changes.
        dtype: type of the factors; None keeps each one's own.

    Raises AdaptoolError; nothing is written then.
    """
    source = fetch_adapter(os.fspath(adapter))
    read = read_adapter(source, ReadOptions(allow_pickle))
    if scale != 1.0:
        read = read.scaled(scale)
    target = Path(output)
    options = WriteOptions(DType(dtype) if dtype is not None else None, force, [source])
    module = format_for(target, to)
    return (module.plan if dry_run else module.write)(read, target, options)
