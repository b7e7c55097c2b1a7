"""`extract` for models on disk: open both, extract, write, report."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adaptool.canonical import DType
from adaptool.canonical.dtypes import SHORT_NAMES, dtype_named
from adaptool.containers import open_checkpoint
from adaptool.errors import JSON, UsageError
from adaptool.extraction import Extraction, extract
from adaptool.formats import WriteOptions, Written, format_for
from adaptool.hub import fetch_checkpoint
from adaptool.ranks import RankRequest


@dataclass(frozen=True)
class ExtractionReport:
    """What an extraction did, or would do.

    Attributes:
        extraction: ranks and errors.
        written: where the result is, and its bytes.
        dry_run: nothing was written.
    """

    extraction: Extraction
    written: Written
    dry_run: bool

    def as_json(self) -> dict[str, JSON]:
        """Plain data."""
        return {
            "output": str(self.written.path), "bytes": self.written.nbytes,
            "files": list(self.written.files), "dry_run": self.dry_run,
            **self.extraction.as_json(),
        }  # fmt: skip


def extract_files(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    output: str | os.PathLike[str],
    request: RankRequest,
    *,
    to: str | None = None,
    modules: str | None = None,
    skip: str | None = None,
    dtype: str = DType.FLOAT32,
    exact: bool = False,
    seed: int = 0,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExtractionReport:
    """Write what a fine-tuned model on disk (or on a hub) changed in its base, as an adapter.

    Args:
        base, tuned: folder, file, or `org/name[@revision]`.
        output: where to write; its suffix names the format unless `to` does.
        request: how ranks are chosen; a size is that of all files written.
        dry_run: choose the ranks; write nothing.
        force: replace an existing output.
        modules, skip, dtype, exact, seed, threads, progress: see `extract`.

    Raises AdaptoolError; nothing is written then.
    """
    element = dtype_named(dtype)
    if element is None:
        raise UsageError(f"{dtype!r} is no type for factors", hint=", ".join(SHORT_NAMES))
    paths = [fetch_checkpoint(os.fspath(name)) for name in (base, tuned)]
    target = Path(output)
    module = format_for(target, to)
    options = WriteOptions(None, force, paths, operation="extract")
    before, after = (open_checkpoint(path) for path in paths)
    done = extract(
        before,
        after,
        request,
        modules=modules,
        skip=skip,
        dtype=element,
        exact=exact,
        seed=seed,
        threads=threads,
        weigh=lambda adapter: module.plan(adapter, target, options).nbytes,
        progress=progress,
    )
    written = (module.plan if dry_run else module.write)(done.adapter, target, options)
    return ExtractionReport(done, written, dry_run)
