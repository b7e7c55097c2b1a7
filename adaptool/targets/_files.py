"""An ONNX model as files that a browser fetches: one, or a graph with data files beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from adaptool.canonical import Checkpoint
from adaptool.containers import Output, SaveOptions, lay_out_checkpoint
from adaptool.containers.onnx import model_of
from adaptool.errors import IncompatibleError
from adaptool.storage import shown
from adaptool.targets._limits import FILE, GIB, refuse_large_files

PART = 1_900_000_000
"""Bytes of a data file, where nobody says otherwise."""
WHOLE = GIB // 2
"""Bytes up to which a model is one file. A runtime holds a file twice while it parses it; data
files are read where they lie."""


def is_one_file(checkpoint: Checkpoint, part_size: int | None) -> bool:
    """Whether a model becomes one file, where its name does not matter."""
    return part_size is None and checkpoint.nbytes <= WHOLE


def own_name(checkpoint: Checkpoint) -> str:
    """The name of the file that a model was opened from."""
    return model_of(checkpoint).source.path.name


def laid_out(checkpoint: Checkpoint, name: str, part_size: int | None) -> Output:
    """The files of a model that is to be called `name` (model_q4.onnx).

    One file if it is small, else the graph and data files as transformers.js names them:
    model_q4.onnx_data, model_q4.onnx_data_1 ...

    Args:
        checkpoint: opened from an ONNX file.
        name: of the model's file.
        part_size: bytes of a data file at most; None for one file, or `PART`.

    Raises IncompatibleError for a weight that is larger than browsers take, and for a model that
    needs data files and has another name, which its graph states as theirs.
    """
    plain = replace(checkpoint, side_files={})
    own, total = own_name(checkpoint), checkpoint.nbytes
    renamed = own != name and total < PART and part_size is None
    if renamed or is_one_file(checkpoint, part_size):
        return lay_out_checkpoint(plain, Path(name), SaveOptions())
    if own != name:
        raise IncompatibleError(
            f"{shown(own)}: {total} bytes need data files beside the model, which must be "
            f"called {name}",
            hint=f"rename {own} to {name}",
            code="FILE_NAME",
        )
    options = SaveOptions(max_shard_size=part_size or PART)
    output = lay_out_checkpoint(plain, Path(name).with_suffix(""), options)
    sizes = {plan.name: plan.size for plan in output.plans}
    refuse_large_files(sizes, f"a weight is larger than {FILE} bytes; export a smaller dtype")
    return output


def data_files(output: Output, name: str) -> list[str]:
    """The names of a model's data files, in their order."""
    return [plan.name for plan in output.plans if plan.name.startswith(f"{name}_data")]
