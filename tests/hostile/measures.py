"""What opening a broken file may cost."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest

from adaptool.containers import open_checkpoint
from adaptool.errors import AdaptoolError

SECONDS = 1.0
MEMORY = 1 << 20
"""Bytes beyond the file's own size."""


def check_cheap(path: Path, code: int, size: int) -> None:
    """The file of `size` bytes is refused with this code, soon, and without much memory."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(AdaptoolError) as caught:
            open_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.exit_code == code
    assert peak < MEMORY + size
    assert time.process_time() - start < SECONDS
