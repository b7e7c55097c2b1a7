"""What the storage tests share."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import adaptool.errors

from . import writer

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An input file."""
    path = tmp_path / "source.bin"
    path.write_bytes(writer.SOURCE)
    return path


@pytest.fixture
def start(source: Path) -> Start:
    """Start the writer program on a target."""
    root = Path(adaptool.errors.__file__).parents[1]

    def start(target: Path, kind: str, mode: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, writer.__file__, str(target), kind, str(source), mode],
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return start
