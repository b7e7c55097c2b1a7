"""An Ollama Modelfile beside a GGUF output."""

from __future__ import annotations

from pathlib import Path

from adaptool.canonical import Checkpoint
from adaptool.errors import StorageError, UsageError
from adaptool.formats import WriteOptions
from adaptool.formats._written import write_extents
from adaptool.storage import Bytes, Extent

NAME = "Modelfile"


def modelfile_path(output: Path, *, force: bool) -> Path:
    """Where the Modelfile of a GGUF file goes; asked before the file is written.

    Raises:
        UsageError: the output is no single GGUF file (Ollama reads no split ones).
        StorageError: there is one already.
    """
    if output.suffix != ".gguf":
        raise UsageError("a Modelfile is written beside one .gguf file", hint="-o model.gguf")
    path = output.parent / NAME
    if path.exists() and not force:
        raise StorageError(f"{path} exists", hint="--force replaces it", code="EXISTS")
    return path


def write_modelfile(
    path: Path, model: Checkpoint, output: Path, *, adapter: Path | None = None
) -> None:
    """Write the Modelfile of `output`, or of a model with an adapter, atomically."""
    from adaptool.conversion import modelfile

    name = output.name if output.parent == path.parent else str(output.absolute())
    text = modelfile(model, name, adapter=adapter.name if adapter else None).encode()
    write_extents(path, len(text), [Extent(0, Bytes(text))], {}, WriteOptions(force=True))
