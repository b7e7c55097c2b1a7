"""Every hostile input through the real command line: one line, the right code, nothing written."""

from __future__ import annotations

import json
import os
import re
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import adaptool.errors
from adaptool.cli import main

from . import adapters, folders, headers
from .files import INSPECT, MERGE, Case, lay_out

ROOT = Path(adaptool.errors.__file__).parents[1]
MEMORY = 1 << 30
SECONDS = 20
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]")
CASES = {case.name: case for case in (*headers.cases(), *folders.cases(), *adapters.cases())}


@dataclass(frozen=True)
class Done:
    """What a run gave back."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[[Path, Case], Done]


@pytest.fixture
def run_inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process."""

    def run_inside(folder: Path, case: Case) -> Done:
        monkeypatch.chdir(folder)
        code = main(list(case.command))
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return run_inside


@pytest.fixture
def run_case(run_inside: Run) -> Run:
    """Run a case where it asks for."""
    return lambda f, case: run_inside(f, case) if case.inside else run(f, case.command)


def run(folder: Path, command: tuple[str, ...]) -> Done:
    """Run the command line in `folder`, with little memory and little time."""
    done = subprocess.run(
        [sys.executable, "-m", "adaptool", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SECONDS,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY)),
        encoding="utf-8",
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder: size and time of change, for folders only that they are there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        is_folder = stat.S_ISDIR(status.st_mode)
        found[str(path.relative_to(folder))] = (
            (0, 0) if is_folder else (status.st_size, status.st_mtime_ns)
        )
    return found


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a sound model and a sound adapter."""
    folder = tmp_path / "here"
    folder.mkdir()
    lay_out(folder)
    return folder


@pytest.mark.parametrize("command", [MERGE, INSPECT, ("inspect", "base")])
def test_undamaged(here: Path, command: tuple[str, ...]) -> None:
    """What the cases start from is sound, so it is the damage that is refused."""
    done = run(here, command)
    assert (done.returncode, done.stderr) == (0, "")


def check_refused(here: Path, around: Path, case: Case, run_case: Run) -> Done:
    """One line with the right code, perhaps a hint, and nothing written in `around`."""
    case.damage(here)
    before = listing(around)
    done = run_case(here, case)
    assert done.returncode == case.exit_code, done.stderr or done.stdout
    assert done.stdout == ""
    lines = done.stderr.split("\n")
    assert lines.pop() == ""
    assert lines[0].startswith("adaptool: ")
    assert [line for line in lines[1:] if not line.startswith("  hint: ")] == []
    assert len(lines) <= 2
    check_message(case, lines[0], done.stderr)
    assert listing(around) == before
    return done


@pytest.mark.parametrize("name", CASES)
def test_refused(here: Path, name: str, run_case: Run) -> None:
    case = CASES[name]
    done = check_refused(here, here.parent, case, run_case)
    assert len(done.stderr) < 12_000


@pytest.mark.parametrize("name", CASES)
def test_refused_as_json(here: Path, name: str, run_inside: Run) -> None:
    case = CASES[name]
    case.damage(here)
    done = run_inside(here, replace(case, command=(*case.command, "--json")))
    assert (done.returncode, done.stderr) == (case.exit_code, "")
    answer = json.loads(done.stdout, parse_constant=pytest.fail)
    assert answer["ok"] is False
    assert answer["exit_code"] == case.exit_code
    assert re.fullmatch(r"[A-Z_]+", answer["error"]["code"])
    assert answer["error"]["code"] != "BUG"
    check_message(case, answer["error"]["message"], done.stdout.replace("\n", ""))


def check_message(case: Case, message: str, whole: str) -> None:
    """It names what it has to, and holds nothing that a terminal obeys."""
    assert "Traceback" not in whole
    assert "internal error" not in whole
    assert CONTROL.search(whole.replace("\n", "")) is None
    for word in case.mentions:
        assert word in message or word in whole
