"""`combine` for adapters on disk: read, combine, write, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from adaptool.canonical import Adapter, DType
from adaptool.canonical.dtypes import element_type
from adaptool.combination import Combination, Recipe, combine
from adaptool.containers import open_checkpoint
from adaptool.errors import JSON, IncompatibleError, UsageError
from adaptool.formats import ReadOptions, WriteOptions, Written, format_for, read_adapter
from adaptool.hub import fetch_adapter, fetch_checkpoint


@dataclass(frozen=True)
class CombinationReport:
    """What a combination did, or would do.

    Attributes:
        combination: the result, its ranks and its error.
        inputs: the adapters and their weights.
        written: where the result is, and its bytes.
        dry_run: nothing was written.
        notes: decisions a reader should know of.
    """

    combination: Combination
    inputs: tuple[tuple[Adapter, float], ...]
    written: Written
    dry_run: bool
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, JSON]:
        """Plain data."""
        return {
            "output": str(self.written.path), "bytes": self.written.nbytes,
            "files": list(self.written.files), "dry_run": self.dry_run,
            "inputs": [
                {"name": adapter.provenance.name, "weight": weight,
                 "modules": len(adapter.updates)}
                for adapter, weight in self.inputs
            ],
            **self.combination.as_json(), "notes": list(self.notes),
        }  # fmt: skip


def combine_files(
    adapters: Mapping[str, float] | Iterable[tuple[str, float]],
    output: str | os.PathLike[str],
    recipe: Recipe | None = None,
    *,
    base: str | os.PathLike[str] | None = None,
    keep_heads: str | None = None,
    to: str | None = None,
    dtype: DType | str | None = None,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    allow_pickle: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> CombinationReport:
    """Combine adapters on disk (or on a hub) into one on disk, in one call.

    Args:
        adapters: path or hub name -> weight.
        output: where to write; its suffix names the format unless `to` does.
        recipe: method, space, rank and so on; None is the exact weighted sum.
        base: the model they were trained on; needed for updates that look at the weight.
        keep_heads: which of `adapters` brings the trained copies where they disagree.
        dtype: type of the factors; None is float32, in which they are computed.
        dry_run: compute, and write nothing.
        progress: called with (bytes combined since the last call, bytes in all).

    Raises AdaptoolError; nothing is written then.
    """
    pairs = list(adapters.items() if isinstance(adapters, Mapping) else adapters)
    recipe = replace(recipe or Recipe(), keep_heads=_position(pairs, keep_heads))
    _ = recipe.chosen  # refuses a wrong recipe before anything is read
    paths = [(fetch_adapter(name), weight) for name, weight in pairs]
    base_path = None if base is None else fetch_checkpoint(os.fspath(base))
    target = Path(output)
    module = format_for(target, to)
    read = [(read_adapter(path, ReadOptions(allow_pickle)), weight) for path, weight in paths]
    for adapter, _ in read:
        if adapter.naming != module.naming:
            raise IncompatibleError(
                f"{adapter.provenance.name}: its names are {adapter.naming}'s, {target.name} takes "
                f"{module.naming}'s",
                hint="combine adapters in their own format, and `adaptool convert` the result",
                code="NAMING",
            )
    done = combine(
        read,
        recipe,
        base=None if base_path is None else open_checkpoint(base_path),
        threads=threads,
        progress=progress,
    )
    protect = [path for path, _ in paths] + ([base_path] if base_path is not None else [])
    options = WriteOptions(
        dtype=None if dtype is None else element_type(dtype),
        force=force,
        inputs=protect,
        operation="combine",
    )
    written = (module.plan if dry_run else module.write)(done.adapter, target, options)
    notes = (*(note for adapter, _ in read for note in adapter.provenance.notes), *done.notes)
    return CombinationReport(done, tuple(read), written, dry_run, notes)


def _position(pairs: list[tuple[str, float]], name: str | None) -> int | None:
    """Which of the adapters is meant: the one given by this name, or whose path ends in it."""
    if name is None:
        return None
    found = [n for n, (path, _) in enumerate(pairs) if name in (path, Path(path).name)]
    if len(found) != 1:
        raise UsageError(
            f"--keep-heads {name}: {'none' if not found else 'more than one'} of the adapters "
            f"is named so: {', '.join(path for path, _ in pairs)}"
        )
    return found[0]
