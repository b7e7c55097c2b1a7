"""One file of planned extents, written at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from adaptool.canonical import LazyTensor
from adaptool.containers import SaveOptions
from adaptool.containers._content import verify_sources
from adaptool.containers._output import Output
from adaptool.errors import IncompatibleError
from adaptool.formats import WriteOptions, Written
from adaptool.storage import Extent, FilePlan


def write_extents(path: Path, size: int, extents: Sequence[Extent],
                  tensors: Mapping[str, LazyTensor], options: WriteOptions) -> Written:  # fmt: skip
    """Write `extents` to the file `path`, atomically.

    Args:
        path: of the file.
        size: its bytes.
        extents: what stands where.
        tensors: those whose files must not have changed meanwhile.
        options: inputs that the output must not touch, and whether it may replace a file.

    Raises StorageError: see `adaptool.storage.Staging`.
    """
    output = Output(
        (FilePlan(path.name, size, tuple(extents)),),
        verify=partial(verify_sources, tensors.values()),
    )
    save = SaveOptions(force=options.force, inputs=options.inputs)
    saved = output.write(path, save)
    return Written(path, saved.nbytes, saved.files, saved.stale)


def refuse_encoding(options: WriteOptions) -> None:
    """Refuse packed factors, which no ONNX runtime takes. Raises IncompatibleError."""
    if options.encoding is not None:
        raise IncompatibleError(
            f"factors are not written as {options.encoding}",
            hint="f32, f16 or bf16",
            code="NOT_EXPRESSIBLE",
        )
