"""Targets: Checkpoint -> a folder that a browser runtime loads. A plug-in in this folder is one.

It offers what `Target` states. Adding a target is adding one folder (or file): what it says of
itself is what `--help`, the matrix in the documentation and the contract tests read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from adaptool import plugins
from adaptool.canonical import Adapter, Checkpoint
from adaptool.containers import Output
from adaptool.errors import JSON

if TYPE_CHECKING:
    import torch

AS_STORED = "as stored"
"""A dtype that means: what the model's tensors are, whatever that is."""


@dataclass(frozen=True)
class Model:
    """What a target is given.

    Attributes:
        checkpoint: the model, with adapters merged where some were to be. Of a Hugging Face
            checkpoint the touched tensors are float32, so that a target rounds them once; GGUF and
            ONNX models keep their own types.
        path: the folder or file that it was opened from.
        adapters: name -> adapter that stays apart, so that a page can choose among them.
        scale: the strength of adapters that stay apart, to begin with.
    """

    checkpoint: Checkpoint
    path: Path
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    scale: float = 1.0


@dataclass(frozen=True)
class Request:
    """What is asked of a target. Options that it does not name in `options` were refused before.

    Attributes:
        scratch: gives a new folder, on the disk of the output, that is removed at the end.
        dtypes: of those that the target names for the model's container; never empty.
        dry_run: do no long work; what is known only after it may be missing in the result.
        part_size: bytes per file at most, None for the target's own choice.
        task: what the model is for, where its config does not say.
        optimize: search for better scales, where that takes longer.
        pre: llama.cpp's name of the pre-tokenizer.
        imatrix: importance of columns, by tensor; see `adaptool.conversion.to_gguf`.
        conversation: name of the conversation template.
        library: a compiled model library that lies on the disk.
        template: how a page shows a question to the model, with `{prompt}` in it.
        match: the checkpoint that an ONNX model was exported from.
        workers: threads.
    """

    scratch: Callable[[], Path]
    dtypes: tuple[str, ...]
    dry_run: bool = False
    part_size: int | None = None
    task: str | None = None
    optimize: bool = False
    pre: str | None = None
    imatrix: Mapping[str, torch.Tensor] | None = None
    conversation: str | None = None
    library: Path | None = None
    template: str | None = None
    match: Checkpoint | None = None
    workers: int = 1


@dataclass(frozen=True)
class Prepared:
    """What an export will be.

    Attributes:
        output: its files, a folder; names may have folders in them.
        notes: decisions a reader should know of, and what will not load where.
        loading: JavaScript that loads the export, for people to copy; some lines.
        settings: what the page must know, beyond what every page knows (see `pages`).
        facts: what programs may want to know (`--json`).
    """

    output: Output
    notes: tuple[str, ...] = ()
    loading: str = ""
    settings: Mapping[str, JSON] = field(default_factory=dict)
    facts: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True)
class Package:
    """An npm package that a page of a target imports.

    Attributes:
        name: as npm knows it.
        version: the one that was tested; pages pin it.
        entry: the module that the page imports, a path in the package.
        more: further files that it loads by itself, from beside the entry.
    """

    name: str
    version: str
    entry: str
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One thing that `verify` looked at: what, whether it is right, and the difference if not."""

    what: str
    right: bool
    detail: str = ""


class Target(Protocol):
    """What a plug-in in this folder offers."""

    summary: str
    """One line: whose runtime, and what it gets."""

    dtypes: Mapping[str, tuple[str, ...]]
    """Container of the model ("safetensors", "gguf", "onnx") -> dtypes that it can become, the
    default first; a container that is missing cannot be exported."""

    options: frozenset[str]
    """Names of the fields of `Request` that it heeds, beyond scratch, dtypes, dry_run, workers."""

    swappable: str
    """How adapters that stay apart are applied, in a few words; "" if they cannot be."""

    packages: tuple[Package, ...]
    """What its page imports; `driver.js` in its folder is the page's link to them."""

    def prepare(self, model: Model, request: Request) -> Prepared:
        """What the export will be; long work that cannot be streamed is done here.

        Raises IncompatibleError for a model that the runtime cannot run, with the reason.
        """
        ...

    def verify(self, folder: Path, library: Path | None) -> Sequence[Finding]:
        """Read an export back and compare what its files say with what they are.

        Raises CorruptInputError for files that cannot be read at all.
        """
        ...


def names() -> tuple[str, ...]:
    """Every target's name."""
    return plugins.names(sys.modules[__name__])


def modules() -> dict[str, Target]:
    """Every target by name."""
    return cast("dict[str, Target]", plugins.load_all(sys.modules[__name__]))


def target_named(name: str) -> Target:
    """The target of this name. Raises KeyError if there is none."""
    return cast("Target", plugins.load(sys.modules[__name__], name))
