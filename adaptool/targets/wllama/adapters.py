"""Adapters that stay apart: a GGUF file each, which llama.cpp adds to its base's products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from adaptool.architectures.speaking import ARCHITECTURE, GGUF, spoken_by
from adaptool.canonical import Adapter, Checkpoint, DType, ExpertLowRank, LowRank
from adaptool.containers import Output
from adaptool.containers._output import side_files
from adaptool.errors import IncompatibleError
from adaptool.formats import ACTIVATED, ReadOptions, WriteOptions, gguf
from adaptool.targets import Model

FOLDER = "adapters"


def lay_out_adapters(model: Model, base: Checkpoint, scratch: Callable[[], Path]) -> Output:
    """One `adapters/NAME.gguf` for each adapter.

    Args:
        model: with the adapters.
        base: the model as GGUF.
        scratch: where the files are written first, to be read back.

    Raises IncompatibleError for what a GGUF adapter cannot say, or does not fit the base.
    """
    folder = scratch()
    files: dict[str, Path | bytes] = {}
    for number, (name, adapter) in enumerate(model.adapters.items()):
        path = folder / f"{number}.gguf"
        spoken = _spoken(adapter, model.checkpoint, base)
        gguf.write(spoken, path, WriteOptions(dtype=_dtype(base), operation="export"))
        for wrong in misfits(gguf.read(path, ReadOptions()), base):
            raise IncompatibleError(f"{name}: {wrong}", code="SHAPE_MISMATCH")
        files[f"{FOLDER}/{name}.gguf"] = path
    return Output(tuple(side_files(files)[0]), is_folder=True)


def _spoken(adapter: Adapter, model: Checkpoint, base: Checkpoint) -> Adapter:
    """The adapter under GGUF's names, in GGUF's row order."""
    from adaptool.architectures.gguf import layout_of
    from adaptool.conversion.adapters import describe_model, translate

    if adapter.extras or adapter.unmergeable not in (None, ACTIVATED):
        raise IncompatibleError(
            f"{adapter.provenance.name}: llama.cpp loads low-rank updates of weights only"
            + (f"; {adapter.unmergeable}" if adapter.unmergeable else ""),
            code="NOT_EXPRESSIBLE",
        )
    spoken = spoken_by(model, adapter)
    if spoken.naming == GGUF:
        return spoken
    known = describe_model(base)
    if model.container != GGUF:  # its config tells kinds apart that GGUF calls by one name
        known = replace(known, layout=layout_of(model.config))
    return translate(spoken, GGUF, known)


def _dtype(base: Checkpoint) -> DType:
    """Factors are as exact as the base's matrices: float32, or float16 from 16 bits down."""
    exact = (DType.FLOAT32.value, DType.BFLOAT16.value)
    matrices = [tensor.kind for tensor in base.tensors.values() if len(tensor.shape) > 1]
    return DType.FLOAT32 if any(kind in exact for kind in matrices) else DType.FLOAT16


def misfits(adapter: Adapter, base: Checkpoint) -> Iterator[str]:
    """Why llama.cpp would refuse an adapter for this base, abort, or do something else.

    Args:
        adapter: as `formats.gguf` reads it.
        base: a GGUF model.
    """
    stated, expected = (one.config.get(ARCHITECTURE) for one in (adapter, base))
    if stated != expected:
        yield f"is for {stated} models, the model is {expected}"
    for site, update in adapter.updates.items():
        tensor = base.tensors.get(str(site))
        if tensor is None:
            yield f"{site}: the model has no such tensor"
            continue
        if str(site) == gguf.EMBEDDING and "output.weight" not in base.tensors:
            yield f"{site}: embedding and head are one weight, on which llama.cpp aborts"
        if isinstance(update, ExpertLowRank | LowRank) and _shape(update) != tensor.shape:
            yield f"{site}: an update of {[*_shape(update)]}, the model has {[*tensor.shape]}"


def _shape(update: LowRank | ExpertLowRank) -> tuple[int, ...]:
    """The weight's shape as GGUF has it."""
    if isinstance(update, LowRank) and update.embedding:
        return tuple(reversed(update.shape))
    return update.shape
