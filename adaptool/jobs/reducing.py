"""`reduce` for adapters on disk: read, choose ranks, write, report."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from adaptool.canonical import Adapter, DType
from adaptool.canonical.dtypes import element_type
from adaptool.containers import open_checkpoint
from adaptool.errors import JSON, IncompatibleError
from adaptool.formats import ReadOptions, WriteOptions, Written, format_for, read_adapter
from adaptool.hub import fetch_adapter, fetch_checkpoint
from adaptool.importance import importance_of
from adaptool.ranks import RankRequest
from adaptool.reduction import Reduction, plan_reduction, reduce


@dataclass(frozen=True)
class ReductionReport:
    """What a reduction did, or would do.

    Attributes:
        reduction: ranks and errors.
        written: where the result is, and its bytes.
        before: bytes of all that the original would be written with, as it is.
        dry_run: nothing was written.
        notes: decisions a reader should know of.
    """

    reduction: Reduction
    written: Written
    before: int
    dry_run: bool
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, JSON]:
        """Plain data."""
        return {
            "output": str(self.written.path), "bytes": self.written.nbytes,
            "bytes_before": self.before, "files": list(self.written.files),
            "dry_run": self.dry_run, **self.reduction.as_json(), "notes": list(self.notes),
        }  # fmt: skip


def reduce_file(
    adapter: str | os.PathLike[str],
    output: str | os.PathLike[str],
    request: RankRequest,
    *,
    to: str | None = None,
    dtype: DType | str | None = None,
    against: str | os.PathLike[str] | None = None,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    allow_pickle: bool = False,
) -> ReductionReport:
    """Reduce the ranks of an adapter on disk (or on a hub), in one call.

    Args:
        adapter: folder, file, or `org/name[@revision]`.
        output: where to write; its suffix names the format unless `to` does.
        request: how far to go; a size is that of all files written, headers and card included.
        dtype: type of the values (f32, f16, bf16, f64); None keeps each tensor's own.
        against: the base; each module's error then counts relative to its weight's norm.
        dry_run: plan only.

    Raises AdaptoolError; nothing is written then.
    """
    source = fetch_adapter(os.fspath(adapter))
    read = read_adapter(source, ReadOptions(allow_pickle))
    target = Path(output)
    module = format_for(target, to)
    if read.naming != module.naming:
        raise IncompatibleError(
            f"{read.provenance.name}: its names are {read.naming}'s, {target.name} takes "
            f"{module.naming}'s",
            hint="reduce it in its own format, and `adaptool convert` it after",
            code="NAMING",
        )
    element = None if dtype is None else element_type(dtype)
    importance, protect = None, [source]
    if against is not None:
        base_path = fetch_checkpoint(os.fspath(against))
        protect.append(base_path)
        importance = importance_of(read, open_checkpoint(base_path), threads)
    options = WriteOptions(dtype=element, force=force, inputs=protect, operation="reduce")
    before = module.plan(read, target, replace(options, dtype=None)).nbytes
    noted = _noted(read, request)
    done = (plan_reduction if dry_run else reduce)(
        noted,
        request,
        dtype=element,
        importance=importance,
        weigh=lambda candidate: module.plan(candidate, target, options).nbytes,
        threads=threads,
    )
    written = (module.plan if dry_run else module.write)(done.adapter, target, options)
    return ReductionReport(done, written, before, dry_run, (*read.provenance.notes, *done.notes))


def _noted(adapter: Adapter, request: RankRequest) -> Adapter:
    """The adapter with the request in its provenance, which the output's record states."""
    provenance = adapter.provenance
    note = f"ranks were reduced by adaptool: {request}"
    return replace(adapter, provenance=replace(provenance, notes=(*provenance.notes, note)))
