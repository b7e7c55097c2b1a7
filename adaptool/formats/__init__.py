"""Formats: a path <-> Adapter. A module or package in this folder is a format.

It offers what `Format` states. Adding a format is adding one file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from adaptool import plugins
from adaptool.canonical import Adapter, DType
from adaptool.errors import IncompatibleError, UsageError

ACTIVATED = "an activated LoRA is switched on by tokens of the prompt"
"""Why an adapter with invocation tokens cannot be merged."""


@dataclass(frozen=True)
class ReadOptions:
    """How an adapter is read.

    Attributes:
        allow_pickle: accept .bin files (loaded without running code).
        row_order: "hf" or "ggml", for a file that does not say whose order its rows are in.
        configuration: a folder with nothing but a configuration is an adapter without tensors.
    """

    allow_pickle: bool = False
    row_order: str | None = None
    configuration: bool = False


@dataclass(frozen=True)
class WriteOptions:
    """How an adapter is written.

    Attributes:
        dtype: element type of the factors; None keeps each.
        encoding: block encoding of the factors by name ("q8_0"), where the format has such.
        force: replace an existing output.
        inputs: paths that the output must not touch.
        operation: what made the adapter, for the record that travels with it.
    """

    dtype: DType | None = None
    force: bool = False
    inputs: Sequence[Path] = ()
    encoding: str | None = None
    operation: str = "convert"


@dataclass(frozen=True)
class Written:
    """What was written: the path, its bytes, its files, whether a dead run was cleaned up."""

    path: Path
    nbytes: int
    files: tuple[str, ...]
    stale: bool = False
    notes: tuple[str, ...] = ()


class Format(Protocol):
    """What a module in this folder offers."""

    suffixes: tuple[str, ...]
    naming: str

    def recognises(self, path: Path) -> bool:
        """Whether this path looks like such an adapter; cheap."""
        ...

    def read(self, path: Path, options: ReadOptions) -> Adapter:
        """The adapter with lazy tensors; every tensor of the file is in exactly one update."""
        ...

    def plan(self, adapter: Adapter, path: Path, options: WriteOptions) -> Written:
        """What `write` would write."""
        ...

    def write(self, adapter: Adapter, path: Path, options: WriteOptions) -> Written:
        """Write the adapter, atomically."""
        ...


def modules() -> dict[str, Format]:
    """Every format by name."""
    return cast("dict[str, Format]", plugins.load_all(sys.modules[__name__]))


def find(path: Path) -> tuple[str, Format] | None:
    """The format that recognises this path."""
    return next(((n, f) for n, f in modules().items() if f.recognises(path)), None)


def read_adapter(path: Path, options: ReadOptions | None = None) -> Adapter:
    """Read an adapter of any known format.

    Raises:
        IncompatibleError: no format recognises the path, or the adapter's method is unknown.
        CorruptInputError: the adapter is broken.
    """
    found = find(path)
    if found is None:
        raise IncompatibleError(
            f"{path}: no adapter is recognised here",
            hint="expected a folder with adapter_config.json and adapter_model.safetensors",
            code="UNKNOWN_FORMAT",
        )
    return found[1].read(path, options or ReadOptions())


def format_for(path: Path, name: str | None) -> Format:
    """The format to write: by name, else by suffix, else PEFT for a folder.

    Raises UsageError for an unknown name or suffix.
    """
    known = modules()
    if name is not None:
        if name not in known:
            raise UsageError(f"unknown format {name!r}; known: {', '.join(known)}")
        return known[name]
    for module in known.values():
        if path.suffix and path.suffix in module.suffixes:
            return module
    if not path.suffix or path.is_dir() or path.suffix[1:].isdigit():
        return known["peft"]
    raise UsageError(
        f"{path}: no adapter format has the suffix {path.suffix!r}",
        hint=f"name one with --to: {', '.join(known)}",
    )
