"""Models that came out of an exporter: an ONNX graph, and the checkpoint that it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adaptool.architectures.onnx.matching import matched
from adaptool.architectures.onnx.originals import Originals
from adaptool.architectures.speaking import ONNX, spoken_by
from adaptool.canonical import Adapter, Checkpoint, LazyTensor
from adaptool.errors import UsageError
from adaptool.merging.sharing import separated


@dataclass(frozen=True)
class ExportedBase:
    """An ONNX model, ready to be merged into.

    Attributes:
        checkpoint: the model, with a tensor of its own for every module that an adapter changes.
        originals: full-precision weights under its names, or None to merge into its own.
        notes: what was found out.
    """

    checkpoint: Checkpoint
    originals: Mapping[str, LazyTensor] | None
    notes: tuple[str, ...]


def exported_base(
    stored: Checkpoint,
    adapters: Sequence[Adapter],
    *,
    match: Checkpoint | None = None,
    original: Checkpoint | None = None,
) -> ExportedBase:
    """Prepare an ONNX model for a merge.

    Args:
        stored: the model as it lies in its files.
        adapters: what is to be merged.
        match: the checkpoint that it was exported from: values tell where names do not.
        original: the same for the values of touched weights; it serves as `match` too.

    Raises:
        UsageError: `match` or `original` is another ONNX or a GGUF model.
        IncompatibleError: see `matched` and `separated`.
    """
    source = match or original
    for one in (match, original):
        if one is not None and one.container in (ONNX, "gguf"):
            raise UsageError(
                f"{one.provenance.name} is {one.container}, not the checkpoint that "
                f"{stored.provenance.name} was exported from",
                hint="name the Hugging Face folder or file of safetensors",
            )
    checkpoint = stored
    notes: list[str] = []
    if source is not None:
        spoken = [spoken_by(source, adapter) for adapter in adapters]
        wanted = {str(site): None for adapter in spoken for site in adapter.updates}
        checkpoint = matched(stored, source, source.tensors if original else wanted)
        notes.append(
            f"{len(checkpoint.placements)} parameters were found by comparing values with "
            f"{source.provenance.name}"
        )
    checkpoint, more = separated(checkpoint, [spoken_by(checkpoint, a) for a in adapters])
    originals = None if original is None else Originals(checkpoint, original)
    return ExportedBase(checkpoint, originals, (*notes, *more))
