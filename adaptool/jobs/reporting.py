"""What a merge says of itself: numbers for people, plain data for programs, a card, a record."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adaptool.canonical import Adapter
from adaptool.cards import front_matter, table
from adaptool.containers import Saved
from adaptool.errors import JSON
from adaptool.merging import Merge, Survival
from adaptool.records import RECORD, described, record

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
        by_type: the same for all computed tensors that are written in one type.
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
    by_type: Mapping[str, Survival] = field(default_factory=dict)
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
            facts["by_type"] = {n: _survival_json(s) for n, s in self.by_type.items()}
            facts["by_tensor"] = {n: _survival_json(s) for n, s in self.by_tensor.items()}
        return facts


def _survival_json(survival: Survival) -> dict[str, JSON]:
    ratio = survival.ratio
    return {"meant": survival.meant, "stored": survival.stored, "ratio": ratio}


def report_of(merged: Merge, saved: Saved, *, dry_run: bool, workers: int = 0) -> MergeReport:
    """What a merge did or, with `dry_run`, would do with so many workers."""
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
        by_type=_by_type(merged, measured),
        by_tensor=measured,
        notes=notes,
        dry_run=dry_run,
        free=free.f_bavail * free.f_frsize,
        peak=PEAK_OF_LIBRARIES + workers * PEAK_PER_WORKER,
    )


def _by_type(merged: Merge, measured: Mapping[str, Survival]) -> dict[str, Survival]:
    names: dict[str, list[str]] = {}
    for name in measured:
        names.setdefault(merged.checkpoint.tensors[name].kind, []).append(name)
    return {kind: merged.tally.total(found) for kind, found in sorted(names.items())}


def records_of(merged: Merge, inputs: list[tuple[Adapter, float]]) -> dict[str, bytes]:
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
    notes = (
        "\n" + table(("what was decided",), ((n,) for n in merged.notes)) if merged.notes else ""
    )
    text = (
        f"{head}\n# {base.name}, merged\n\nMerged by adaptool into {base.name}.\n\n"
        f"{table(('adapter', 'method', 'scale'), rows)}{ratio}{notes}"
    )
    return {
        "README.md": text.encode(),
        RECORD: record("merge", described_inputs, facts),
    }
