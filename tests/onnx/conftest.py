"""What the tests of ONNX models share.

This folder is no package: one called onnx would hide the library. Its modules are imported by their
bare names (`from exports import run`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))

from exports import Shelf


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Exported models, one copy for all processes of a run."""
    root = tmp_path_factory.getbasetemp()
    return Shelf((root.parent if root.name.startswith("popen-") else root) / "onnx-exports")
