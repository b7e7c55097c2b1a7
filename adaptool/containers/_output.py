"""The files of an output: planned by a container, written as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adaptool.containers import Saved, SaveOptions
from adaptool.storage import Copy, Extent, FilePlan, SourceFile, Staging, write_files


@dataclass(frozen=True)
class Output:
    """What will be written.

    Attributes:
        plans: streamed files.
        small: name -> content of files that are in memory.
        is_folder: they stand in a folder; else there is one file, and `small` is empty.
    """

    plans: tuple[FilePlan, ...]
    small: Mapping[str, bytes] = field(default_factory=dict)
    is_folder: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(plan.size for plan in self.plans) + sum(map(len, self.small.values()))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all files."""
        return (*(plan.name for plan in self.plans), *self.small)

    def planned(self, path: Path) -> Saved:
        """What writing it to `path` would give."""
        return Saved(path, self.nbytes, self.names)

    def write(self, path: Path, options: SaveOptions, verify: Callable[[], None]) -> Saved:
        """Write it to `path`, all or nothing.

        Args:
            path: a folder, or a file.
            options: see SaveOptions; what `approve` returns is written into a folder.
            verify: called before anything becomes visible; raises to refuse.

        Raises:
            StorageError: see `adaptool.storage.Staging`.
            Whatever a tensor's values raise while they are computed.
        """
        with Staging(
            path,
            kind="directory" if self.is_folder else "file",
            required=self.nbytes,
            inputs=options.inputs,
            force=options.force,
        ) as staging:
            write_files(staging, self.plans, workers=options.workers, progress=options.progress)
            records = options.approve()
            if self.is_folder:
                for name, content in {**self.small, **records}.items():
                    staging.write_file(name, content)
            verify()
            staging.commit()
            return Saved(path, self.nbytes, self.names, staging.stale)


def side_files(files: Mapping[str, Path | bytes]) -> tuple[list[FilePlan], dict[str, bytes]]:
    """What travels along with a model: plans of copies, and contents that are in memory."""
    plans: list[FilePlan] = []
    small: dict[str, bytes] = {}
    for name, content in files.items():
        if isinstance(content, bytes):
            small[name] = content
            continue
        source = SourceFile.open(content)
        extents = (Extent(0, Copy(source, 0, source.size)),) if source.size else ()
        plans.append(FilePlan(name, source.size, extents))
    return plans, small
