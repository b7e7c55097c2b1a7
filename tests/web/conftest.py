"""The browser, for all tests of exports."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from . import chromium


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def browser(shared: Path) -> chromium.Browser:
    """Headless Chromium."""
    return chromium.found(shared)


@pytest.fixture(scope="session")
def npm(shared: Path) -> Path:
    """A node_modules folder with the runtimes that pages import."""
    return chromium.installed(shared)
