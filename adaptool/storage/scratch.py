"""Scratch folders: on the disk of an output, gone at the end, and cleaned up after a killed run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from adaptool.storage import syscalls
from adaptool.storage.failures import blaming
from adaptool.storage.staging import Staging


@contextmanager
def scratch_beside(target: Path) -> Iterator[Callable[[], Path]]:
    """A function that gives a new, empty folder on the disk of `target` each time it is called.

    Nothing is made before the first call. All folders lie in one that is never committed: it is
    locked while this process lives, and the next run removes what a killed one has left.

    Raises StorageError as `Staging` does.
    """
    made = 0
    with ExitStack() as stack:
        root: Path | None = None

        def scratch() -> Path:
            nonlocal root, made
            if root is None:
                beside = target.with_name(f".{target.name}.scratch")
                staging = Staging(beside, kind="directory", required=0, inputs=(), force=False)
                root = stack.enter_context(staging).folder
            made += 1
            folder = root / str(made)
            with blaming(folder):
                syscalls.mkdir(folder)
            return folder

        yield scratch
