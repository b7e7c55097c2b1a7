"""A model as ONNX graphs for browsers: one that it has, or traced ones, made smaller.

A Hugging Face checkpoint is written with its adapters merged, traced and shrunk below scratch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from adaptool.architectures.speaking import ONNX
from adaptool.canonical import Checkpoint, DType, LazyTensor
from adaptool.canonical.narrowing import narrowed
from adaptool.containers import Output, SaveOptions, open_checkpoint, save_checkpoint
from adaptool.errors import JSON, IncompatibleError
from adaptool.targets import AS_STORED, Model, Request
from adaptool.targets._limits import binding_notes, memory_notes
from adaptool.targets._onnx import (
    HALVES,
    for_browser,
    graph_notes,
    precision_of,
    task_of_graph,
    weight_sizes,
)
from adaptool.targets._precision import PRECISIONS, with_precision
from adaptool.tracing import Traced, trace

_STEM = "model"
_DEFAULT = "q4"  # the smallest that runs everywhere: q4f16 needs shader-f16, q8 is slow on WebGPU

DTYPES = {
    "safetensors": (_DEFAULT, *(name for name in PRECISIONS if name != _DEFAULT)),
    "onnx": (AS_STORED,),
}
"""Container -> what it can become, the default first."""
UNTRACED = "sizes, and whether the model can be traced, are known after tracing it"
"""The note of a dry run."""


@dataclass(frozen=True)
class Export:
    """A model in one precision.

    Attributes:
        precision: as transformers.js calls it.
        checkpoint: opened from an ONNX file.
        task: what it is for.
        agreement: largest error of the traced graph on a probe, as a part of the largest output;
            0 where nothing was traced.
    """

    precision: str
    checkpoint: Checkpoint
    task: str
    agreement: float = 0.0


def exports(
    model: Model,
    request: Request,
    config: Mapping[str, JSON],
    change: Callable[[Checkpoint], Checkpoint] | None = None,
) -> Iterator[Export]:
    """The model in every precision asked for; each type is traced once.

    Args:
        model: an ONNX model, which stays in its own types, or a Hugging Face checkpoint, of which
            there is nothing in a dry run: what becomes of it is known after tracing it.
        request: dtypes, task, scratch, workers, dry_run.
        config: the model's config.json.
        change: what becomes of a graph before it is made smaller: names of weights are gone then.

    Raises:
        IncompatibleError: a model that cannot be traced, weights beyond float16, or a graph that
            the runtime cannot run.
        UsageError: what tracing needs is not installed.
        VerificationError: the graph computes something else than the model.
    """
    if model.checkpoint.container == ONNX:
        ready = for_browser(model.checkpoint, config)
        task = request.task or task_of_graph(ready, config)
        yield Export(precision_of(ready), change(ready) if change else ready, task)
    elif not request.dry_run:
        yield from _traced(model, request, config, change)


def notes_of(export: Export, name: str, output: Output) -> Iterator[str]:
    """What a reader should know of a model's files, the first of which is called `name`."""
    yield from memory_notes(output.nbytes, name)
    yield from binding_notes(weight_sizes(export.checkpoint))
    yield from graph_notes(export.checkpoint)
    if export.precision in HALVES:
        yield f"{export.precision}: on WebGPU only where the device has shader-f16"


def _traced(
    model: Model,
    request: Request,
    config: Mapping[str, JSON],
    change: Callable[[Checkpoint], Checkpoint] | None,
) -> Iterator[Export]:
    graphs: dict[DType, _Graph] = {}
    for name in request.dtypes:
        kind = PRECISIONS[name].traced
        if kind not in graphs:
            graphs[kind] = _graph(model, request, kind, change)
        graph = graphs[kind]
        path = with_precision(graph.path, name, request.scratch(), stem=_STEM)
        small = open_checkpoint(path)
        made = replace(small, metadata={**graph.metadata, **small.metadata})
        yield Export(name, for_browser(made, config), graph.traced.task, graph.traced.agreement)


@dataclass(frozen=True)
class _Graph:
    """What was traced, where it lies after its change, and what that noted: quantisers drop it."""

    traced: Traced
    path: Path
    metadata: Mapping[str, str] = field(default_factory=dict)


def _graph(
    model: Model, request: Request, kind: DType, change: Callable[[Checkpoint], Checkpoint] | None
) -> _Graph:
    folder = request.scratch() / _STEM
    _write(model.checkpoint, kind, folder, request.workers)
    traced = trace(folder, request.scratch(), dtype=kind, task=request.task, trimmed=True)
    if change is None:
        return _Graph(traced, traced.model)
    changed = change(open_checkpoint(traced.model))
    into = request.scratch() / _STEM
    save_checkpoint(replace(changed, side_files={}), into, SaveOptions(workers=request.workers))
    notes = {key: value for key, value in changed.metadata.items() if isinstance(value, str)}
    return _Graph(traced, into / traced.model.name, notes)


def _write(checkpoint: Checkpoint, kind: DType, folder: Path, workers: int) -> None:
    """A plain Hugging Face folder with all weights in one type."""
    tensors = {name: _rounded(name, tensor, kind) for name, tensor in checkpoint.tensors.items()}
    config: dict[str, JSON] = {k: v for k, v in checkpoint.config.items() if k != "torch_dtype"}
    config["dtype"] = kind.value
    files = {**checkpoint.side_files, "config.json": json.dumps(config, indent=2).encode()}
    plain = replace(checkpoint, tensors=tensors, config=config, side_files=files)
    save_checkpoint(plain, folder, SaveOptions(workers=workers))


def _rounded(name: str, tensor: LazyTensor, kind: DType) -> LazyTensor:
    """A weight in another type; numbers that are no weights stay."""
    if not tensor.dtype.is_floating or tensor.dtype is kind:
        return tensor
    return narrowed(tensor, kind, partial(_beyond, name, kind))


def _beyond(name: str, kind: DType) -> IncompatibleError:
    return IncompatibleError(
        f"{name}: has a value beyond the largest of {kind}",
        hint="--dtype fp32 or q4 holds it",
        code="OVERFLOW",
    )
