"""Containers: bytes <-> Checkpoint. A module in this folder is a container.

It offers what `Container` states: `recognises` looks at names and first bytes only, `open`
reads headers only, `save` streams. Adding a container is adding one file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Protocol, cast

from adaptool import plugins
from adaptool.canonical import Checkpoint
from adaptool.containers._output import Output, Saved, SaveOptions
from adaptool.errors import IncompatibleError

__all__ = [
    "Container",
    "Output",
    "SaveOptions",
    "Saved",
    "find",
    "lay_out_checkpoint",
    "modules",
    "open_checkpoint",
    "plan_checkpoint",
    "save_checkpoint",
]


class Container(Protocol):
    """What a module in this folder offers."""

    suffixes: tuple[str, ...]

    def recognises(self, path: Path) -> bool:
        """Whether this path looks like such a checkpoint; cheap, reads no tensor."""
        ...

    def open(self, path: Path) -> Checkpoint:
        """The checkpoint with lazy tensors; only headers are read."""
        ...

    def lay_out(self, checkpoint: Checkpoint, path: Path, options: SaveOptions) -> Output:
        """The files that the checkpoint becomes at `path`; nothing is written or computed."""
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


def lay_out_checkpoint(checkpoint: Checkpoint, path: Path, options: SaveOptions) -> Output:
    """The files that `save_checkpoint` would write, to be written as a part of another output."""
    return modules()[checkpoint.container].lay_out(checkpoint, path, options)
