"""The files of the model: parts of a size that browsers load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adaptool.canonical import Checkpoint
from adaptool.containers import Output, SaveOptions, lay_out_checkpoint
from adaptool.errors import IncompatibleError, UsageError
from adaptool.targets._limits import FILE, checked_part_size

NAME = "model"
"""llama.cpp wants one name for all parts, and wllama calls them so wherever they come from."""
PART = 512_000_000
"""Bytes per file that the runtime's authors advise; parts are fetched at the same time."""


def lay_out_parts(model: Checkpoint, part_size: int | None, *, alone: bool) -> Output:
    """The model in one file, or in parts of at most `part_size` bytes with their headers.

    Args:
        model: a GGUF model.
        part_size: bytes; None for what the runtime advises.
        alone: it has to be one file, for adapters to stand beside it.

    Raises:
        UsageError: a size that a browser does not load, or that the first header does not fit.
        IncompatibleError: a tensor that a browser does not load, or a model that has to be one
            file and is too large for that.
    """
    size = checked_part_size(part_size, FILE - 1 if alone else PART)
    _refuse_large(model)
    whole = lay_out_checkpoint(model, Path(NAME), SaveOptions())
    if whole.nbytes <= size:
        return whole
    if alone:
        raise IncompatibleError(
            f"{model.provenance.name}: {whole.nbytes} bytes make several parts of at most {size}, "
            "and wllama loads adapters beside a model in one file only",
            hint=f"--part-size up to {FILE - 1}, a smaller --dtype, or merge the adapters",
            code="SPLIT_BASE",
        )
    room = size - (whole.nbytes - model.nbytes)  # the first part has the header of all
    if room <= 0:
        raise UsageError(
            f"--part-size: {size} bytes, the model's header alone has {whole.nbytes - model.nbytes}"
        )
    return lay_out_checkpoint(model, Path(NAME), SaveOptions(max_shard_size=room))


def _refuse_large(model: Checkpoint) -> None:
    for name, tensor in model.tensors.items():
        if tensor.nbytes >= FILE:
            raise IncompatibleError(
                f"{model.provenance.name}: {name} has {tensor.nbytes} bytes as {tensor.kind}, and "
                f"browsers load less than {FILE} in one piece",
                hint="choose a smaller --dtype",
                code="TOO_LARGE",
            )


def part_notes(parts: Output, part_size: int | None) -> Iterator[str]:
    """Files that are larger than they should be, and why."""
    size = PART if part_size is None else part_size
    for plan in parts.plans:
        if plan.size > size:
            why = "it is one tensor" if len(parts.plans) > 1 else "adapters stand beside it"
            yield f"{plan.name}: {plan.size} bytes, not at most {size}, as {why}"
