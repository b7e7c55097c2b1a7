"""Headless Chromium, and the npm packages that pages import."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Visit:
    """What a visit gave.

    Attributes:
        result: what the script returned.
        errors: of the console, and uncaught ones.
        requests: every URL that was asked for.
    """

    result: Any
    errors: Sequence[str]
    requests: Sequence[str]


@dataclass(frozen=True)
class Browser:
    """Chromium, started anew with an empty profile for each visit."""

    chromium: str
    npm: Path

    def visit(
        self,
        root: Path | None = None,
        script: str | None = None,
        argument: Any = None,
        *,
        url: str | None = None,
        drive: Path | None = None,
        imports: Mapping[str, str] | None = None,
        webgpu: bool = False,
        size: tuple[int, int] = (1000, 800),
        timeout: int = 240,
    ) -> Visit:
        """Run a module in a blank page, or drive a page from node; see visit.mjs.

        The blank page is served from `root`, with npm packages below /npm/.
        """
        plan = {
            "root": str(root), "npm": str(self.npm), "script": script, "argument": argument,
            "url": url, "drive": drive and str(drive), "imports": dict(imports or {}),
            "webgpu": webgpu, "size": size, "timeout": timeout, "chromium": self.chromium,
        }  # fmt: skip
        done = subprocess.run(
            ["node", str(HERE / "visit.mjs")], input=json.dumps(plan), check=False,
            capture_output=True, text=True, timeout=timeout + 30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads(done.stdout)
        assert "failure" not in found, f"{found['failure']}\n{found['errors']}"
        return Visit(found["result"], found["errors"], found["requests"])


def installed(shared: Path) -> Path:
    """node_modules with what package.json names, installed once for all processes of a run."""
    known = os.environ.get("ADAPTOOL_NODE_MODULES")
    if known:
        return Path(known)
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    folder = shared / "npm"
    if not folder.exists():
        fresh = Path(tempfile.mkdtemp(dir=shared))
        shutil.copy(HERE / "package.json", fresh)
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=fresh, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot install the runtimes: {done.stderr.strip()[-300:]}")
        with contextlib.suppress(OSError):  # another process was faster
            fresh.rename(folder)
    return folder / "node_modules"


def found(shared: Path) -> Browser:
    """Chromium with the packages; skips the test where there is none."""
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        pytest.skip("Chromium is not installed")
    return Browser(chromium, installed(shared))
