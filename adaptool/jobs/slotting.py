"""`slots`, and adapters for graphs that have them: read, translate, write, report."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeGuard, runtime_checkable

from adaptool.canonical import Adapter, Checkpoint
from adaptool.containers import SaveOptions, open_checkpoint, plan_checkpoint, save_checkpoint
from adaptool.errors import JSON, StorageError, UsageError
from adaptool.formats import Format, WriteOptions, Written
from adaptool.formats._written import write_extents
from adaptool.hub import fetch_checkpoint
from adaptool.processors import one_compute_thread, worker_count
from adaptool.slots import (
    EXTERNAL,
    SLOTS,
    Filling,
    Manifest,
    SlotRequest,
    fill,
    slots_for,
    slots_of,
    with_slots,
)
from adaptool.slots.manifest import manifest_text
from adaptool.slots.sites import hidden_in
from adaptool.storage import Bytes, Extent, shown

MANIFEST = "slots.json"


@dataclass(frozen=True)
class SlotReport:
    """What was made of a model.

    Attributes:
        output: the path.
        nbytes: of all files.
        files: their names.
        manifest: the slots.
        dry_run: nothing was written.
        stale: what a killed run had left was removed.
        notes: decisions a reader should know of.
    """

    output: Path
    nbytes: int
    files: tuple[str, ...]
    manifest: Manifest
    dry_run: bool
    stale: bool = False
    notes: tuple[str, ...] = ()

    @property
    def modules(self) -> int:
        """How many modules have a slot."""
        return len(self.manifest.modules)

    def as_json(self) -> dict[str, JSON]:
        """Plain data."""
        return {
            "output": str(self.output), "bytes": self.nbytes, "files": list(self.files),
            "modules": self.modules, "dry_run": self.dry_run, "manifest": self.manifest.as_json(),
            "notes": list(self.notes),
        }  # fmt: skip


def make_slots(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    request: SlotRequest,
    *,
    match: str | os.PathLike[str] | None = None,
    max_shard_size: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SlotReport:
    """Put inputs for an adapter's factors into a finished ONNX model.

    Args:
        model: an .onnx file, a folder with one, or `org/name[@revision]`.
        output: a file ending in .onnx, or a folder; several files need a folder.
        request: how factors come in, which modules take some, and of which rank.
        match: the checkpoint that the model was exported from, where its names do not tell.
        max_shard_size: bytes per data file.

    The manifest is written beside the model, as slots.json in a folder and STEM.slots.json else.

    Raises AdaptoolError; nothing is written then.
    """
    source, target = fetch_checkpoint(os.fspath(model)), Path(output)
    checkpoint = open_checkpoint(source)
    inputs = [source]
    if match is not None:
        original = fetch_checkpoint(os.fspath(match))
        inputs.append(original)
        checkpoint = matched_to(checkpoint, open_checkpoint(original))
    if request.mode == EXTERNAL and not request.file:
        stem = source.stem if source.is_file() else "model"
        request = replace(request, file=f"{stem}.onnx_slots")
    made, manifest = with_slots(checkpoint, request)
    text = (manifest_text(manifest) + "\n").encode()
    is_folder = target.suffix != ".onnx"
    if is_folder:
        made = replace(made, side_files={**made.side_files, MANIFEST: text})
    beside = None if is_folder else target.with_suffix(f".{MANIFEST}")
    if beside is not None and beside.exists() and not force:
        raise StorageError(
            f"{shown(beside)} exists", hint="use --force to replace it", code="EXISTS"
        )
    total = made.nbytes
    options = SaveOptions(
        force=force,
        workers=worker_count(threads),
        max_shard_size=max_shard_size,
        inputs=inputs,
        progress=(lambda done: progress(done, total)) if progress else None,
    )
    if dry_run:
        saved = plan_checkpoint(made, target, options)
    else:
        with one_compute_thread():
            saved = save_checkpoint(made, target, options)
        if beside is not None:
            write_extents(beside, len(text), [Extent(0, Bytes(text))], {}, WriteOptions(force=True))
    files = saved.files if beside is None else (*saved.files, beside.name)
    nbytes = saved.nbytes + (0 if beside is None else len(text))
    notes = tuple(
        f"no slot for {name}: the operation does not give out its products with the weights"
        for name in hidden_in(checkpoint)
    )
    return SlotReport(target, nbytes, files, manifest, dry_run, saved.stale, notes)


def matched_to(checkpoint: Checkpoint, original: Checkpoint) -> Checkpoint:
    """The model with the places of all matrices of the checkpoint that it was exported from."""
    from adaptool.architectures.naming import INPUT_EMBEDDINGS, normal
    from adaptool.architectures.onnx.matching import matched

    names = [
        name
        for name, tensor in original.tensors.items()
        if len(tensor.shape) == 2
        and name.endswith(".weight")
        and normal(name) not in INPUT_EMBEDDINGS
    ]
    return matched(checkpoint, original, names)


@runtime_checkable
class GraphFormat(Format, Protocol):
    """A format whose files hold factors under the names of one graph's inputs."""

    def read_for(self, path: Path, manifest: Manifest | None) -> Adapter:
        """The adapter in a file that was made for a graph with these slots."""
        ...

    def plan_filling(self, filling: Filling, path: Path, options: WriteOptions) -> Written:
        """What `write_filling` would write."""
        ...

    def write_filling(self, filling: Filling, path: Path, options: WriteOptions) -> Written:
        """Write the factors of a graph's slots."""
        ...


def takes_graph(module: Format) -> TypeGuard[GraphFormat]:
    """Whether a format's files are for one graph."""
    return isinstance(module, GraphFormat)


def read_for_graph(path: Path, module: Format, graph: str | os.PathLike[str]) -> Adapter:
    """The adapter in a file of factors, whose names are those of a graph's inputs.

    Raises:
        UsageError: the file is for no graph.
        IncompatibleError: factors that are no inputs of that graph's slots.
    """
    if not takes_graph(module):
        raise UsageError(
            f"{shown(path)}: --for names the ONNX model that an .onnx_adapter file is for",
            hint="name an output that ends in .onnx_adapter, or --to onnx_adapter",
        )
    return module.read_for(path, slots_of(open_checkpoint(fetch_checkpoint(os.fspath(graph)))))


def write_for_graph(
    adapter: Adapter,
    target: Path,
    module: GraphFormat,
    options: WriteOptions,
    *,
    graph: str | os.PathLike[str] | None,
    names: str,
    dry_run: bool,
) -> Written:
    """Write an adapter as the factors of a graph's slots.

    Args:
        adapter: under Hugging Face's names.
        target: the file.
        module: its format.
        options: how it is written; a dtype must be the graph's.
        graph: the model whose slots they are for; None for `names`, see `slots_for`.

    Raises AdaptoolError; nothing is written then.
    """
    if graph is None:
        manifest = slots_for(adapter, names)
    elif names != SLOTS:
        raise UsageError("--for takes the graph's own names; --names is for when there is none")
    else:
        model = fetch_checkpoint(os.fspath(graph))
        options = replace(options, inputs=[*options.inputs, model])
        manifest = slots_of(open_checkpoint(model))
    filling = fill(adapter, manifest, options.dtype)
    return (module.plan_filling if dry_run else module.write_filling)(filling, target, options)
