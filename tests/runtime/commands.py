"""What a user would type, in this process."""

from __future__ import annotations

from pathlib import Path

import adaptool
from adaptool.cli import main
from adaptool.containers import SaveOptions, save_checkpoint
from adaptool.conversion import to_gguf


def run(*arguments: object) -> int:
    """A command's exit code."""
    try:
        return main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def model_file(folder: Path, path: Path, outtype: str = "f32") -> Path:
    """A Hugging Face model as GGUF, without the vocabulary that random models do not have."""
    checkpoint = to_gguf(adaptool.open_checkpoint(folder), outtype=outtype, vocabulary=None)
    save_checkpoint(checkpoint, path, SaveOptions())
    return path


def adapter_file(adapter: Path, base: Path, path: Path, *options: object) -> Path:
    """An adapter as GGUF."""
    assert run("convert", adapter, "--base", base, "-o", path, *options) == 0
    return path


def merged_file(base: Path, adapter: Path, path: Path, *options: object) -> Path:
    """An adapter merged into a GGUF model."""
    assert run("merge", base, adapter, "-o", path, *options) == 0
    return path
