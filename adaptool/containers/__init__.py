"""Containers: bytes <-> Checkpoint. A module in this folder is a container.

It offers what `Container` states: `recognises` looks at names and first bytes only, `open`
reads headers only, `save` streams. Adding a container is adding one file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from adaptool import plugins
from adaptool.canonical import Checkpoint
from adaptool.errors import IncompatibleError


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


class Container(Protocol):
    """What a module in this folder offers."""

    suffixes: tuple[str, ...]

    def recognises(self, path: Path) -> bool:
        """Whether this path looks like such a checkpoint; cheap, reads no tensor."""
        ...

    def open(self, path: Path) -> Checkpoint:
        """The checkpoint with lazy tensors; only headers are read."""
        ...

    def plan(self, checkpoint: Checkpoint, path: Path, options: SaveOptions) -> Saved:
        """What `save` would write."""
        ...

    def save(self, checkpoint: Checkpoint, path: Path, options: SaveOptions) -> Saved:
        """Stream the checkpoint to `path`, atomically."""
        ...


def modules() -> dict[str, Container]:
    """Every container by name."""
    return cast("dict[str, Container]", plugins.load_all(sys.modules[__name__]))


def find(path: Path) -> tuple[str, Container] | None:
    """The container that recognises this path."""
    return next(((n, c) for n, c in modules().items() if c.recognises(path)), None)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a model, whatever it is stored in.

    Raises:
        IncompatibleError: no container recognises it.
        CorruptInputError: the container found it broken.
    """
    found = find(path)
    if found is None:
        raise IncompatibleError(
            f"{path}: no checkpoint is recognised here",
            hint=f"expected a folder or file of one of: {', '.join(modules())}",
            code="UNKNOWN_FORMAT",
        )
    return found[1].open(path)


def save_checkpoint(checkpoint: Checkpoint, path: Path, options: SaveOptions) -> Saved:
    """Write a model in the container it was opened with."""
    return modules()[checkpoint.container].save(checkpoint, path, options)


def plan_checkpoint(checkpoint: Checkpoint, path: Path, options: SaveOptions) -> Saved:
    """What `save_checkpoint` would write."""
    return modules()[checkpoint.container].plan(checkpoint, path, options)
