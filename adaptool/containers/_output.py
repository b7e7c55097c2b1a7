"""The files of an output: planned by a container, written as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adaptool.storage import Copy, Extent, FilePlan, SourceFile, Staging, write_files


@dataclass(frozen=True)
class SaveOptions:
    """How a checkpoint is written.

    Attributes:
        force: replace an existing output.
        workers: threads that copy and compute.
        max_shard_size: bytes of tensors per file, or None to keep the layout of the input.
        inputs: paths that the output must not touch.
        progress: called with (bytes done since last call), from several threads.
        approve: called when all is written and nothing is visible yet; raises to refuse.
            It returns files to write along (card, record), which may state what was measured.
    """

    force: bool = False
    workers: int = 1
    max_shard_size: int | None = None
    inputs: Sequence[Path] = ()
    progress: Callable[[int], None] | None = None
    approve: Callable[[], dict[str, bytes]] = field(default=dict)


@dataclass(frozen=True)
class Saved:
    """What was written: the path, its bytes, its files, and whether a dead run was cleaned up."""

    path: Path
    nbytes: int
    files: tuple[str, ...]
    stale: bool = False


def _nothing() -> None:
    """All is as it should be."""


def _no_files(_folder: Path) -> Mapping[str, bytes]:
    return {}


@dataclass(frozen=True)
class Output:
    """What will be written.

    Attributes:
        plans: streamed files.
        small: name -> content of files that are in memory.
        is_folder: they stand in a folder; else there is one file, and `small` is empty.
        verify: called before anything becomes visible; raises to refuse.
        finish: called with the folder in which the streamed files lie complete, not yet visible;
            returns files that state what became of them, such as their digests.
    """

    plans: tuple[FilePlan, ...]
    small: Mapping[str, bytes] = field(default_factory=dict)
    is_folder: bool = False
    verify: Callable[[], None] = _nothing
    finish: Callable[[Path], Mapping[str, bytes]] = _no_files

    @property
    def nbytes(self) -> int:
        """Bytes of all files that are known before they are written."""
        return sum(plan.size for plan in self.plans) + sum(map(len, self.small.values()))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all files that are known before they are written."""
        return (*(plan.name for plan in self.plans), *self.small)

    def within(self, folder: str) -> Output:
        """The same files in a folder of this name in the output's own."""
        return Output(
            tuple(replace(plan, name=f"{folder}/{plan.name}") for plan in self.plans),
            {f"{folder}/{name}": content for name, content in self.small.items()},
            is_folder=True,
            verify=self.verify,
            finish=lambda root: {f"{folder}/{name}": content
                                 for name, content in self.finish(root / folder).items()},
        )  # fmt: skip

    def __add__(self, other: Output) -> Output:
        """The files of both in one folder. Raises ValueError if they share a name."""
        shared = set(self.names) & set(other.names)
        if shared:
            raise ValueError(f"two files for {sorted(shared)}")

        def verify() -> None:
            self.verify()
            other.verify()

        return Output(
            (*self.plans, *other.plans),
            {**self.small, **other.small},
            is_folder=True,
            verify=verify,
            finish=lambda root: {**self.finish(root), **other.finish(root)},
        )

    def planned(self, path: Path) -> Saved:
        """What writing it to `path` would give."""
        return Saved(path, self.nbytes, self.names)

    def write(self, path: Path, options: SaveOptions) -> Saved:
        """Write it to `path`, all or nothing.

        Args:
            path: a folder, or a file.
            options: see SaveOptions; what `approve` returns is written into a folder.

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
            nbytes, names = self.nbytes, self.names
            if self.is_folder:
                finished = self.finish(staging.folder)
                for name, content in {**self.small, **finished, **records}.items():
                    staging.write_file(name, content)
                nbytes += sum(map(len, finished.values()))
                names += tuple(finished)
            self.verify()
            staging.commit()
            return Saved(path, nbytes, names, staging.stale)


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
