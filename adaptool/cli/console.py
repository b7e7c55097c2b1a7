"""What a person or a program gets to see: tables, one-line errors, JSON, a progress bar.

Names from files are escaped before they are shown; progress appears on a terminal only.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from math import isfinite
from typing import TYPE_CHECKING

from adaptool.errors import JSON, AdaptoolError
from adaptool.storage import shown

if TYPE_CHECKING:
    import click
    from rich.console import Console as RichConsole

BUG = 1


class Console:
    """Standard output for results, standard error for everything else.

    Args:
        as_json: print one JSON object on standard output, errors too.
        verbosity: below 0 only errors, 0 results and notes, above 0 details.
    """

    def __init__(self, *, as_json: bool = False, verbosity: int = 0) -> None:
        self.as_json = as_json
        self.verbosity = verbosity

    def result(self, facts: dict[str, JSON], show: Callable[[Console], None]) -> None:
        """Print a command's result: `facts` as JSON, or what `show` prints."""
        if self.as_json:
            print(json.dumps({"ok": True, **_sound(facts)}, indent=2))
        elif self.verbosity >= 0:
            show(self)

    def line(self, text: str) -> None:
        """One line of a result."""
        print(printable(text))

    def note(self, text: str) -> None:
        """A remark on standard error."""
        if self.verbosity >= 0 and not self.as_json:
            print(f"note: {printable(text)}", file=sys.stderr)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
        """A table that fits the terminal, or 80 columns; numbers are right-aligned."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        grid = Table(
            title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False,
            collapse_padding=True, show_header=any(head),
        )  # fmt: skip
        for position, name in enumerate(head):
            numeric = bool(rows) and all(_numeric(row[position]) for row in rows)
            grid.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            grid.add_row(*(Text(printable(cell)) for cell in row))
        self._rich().print(grid)

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], None] | None]:
        """A bar to advance with (bytes done, bytes in all); None where there is no terminal."""
        if self.as_json or self.verbosity < 0 or not sys.stderr.isatty():
            yield None
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

        bar = Progress(
            label, BarColumn(), DownloadColumn(), TimeRemainingColumn(),
            console=RichConsole(stderr=True), transient=True,
        )  # fmt: skip
        with bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, advance=done, total=total)

    def fail(self, error: AdaptoolError) -> int:
        """Show a known error; returns its exit code."""
        details: dict[str, JSON] = dict(error.details)
        return self._fail(error.message, error.hint, error.code, error.exit_code, details)

    def fail_usage(self, error: click.ClickException) -> int:
        """Show what is wrong with the command line."""
        context = getattr(error, "ctx", None)
        hint = f"see `{context.command_path} --help`" if context else None
        return self._fail(error.format_message(), hint, "USAGE", error.exit_code, {})

    def fail_bug(self, error: Exception) -> int:
        """Show an error that should not exist."""
        if os.environ.get("ADAPTOOL_TRACEBACK"):
            traceback.print_exc()
        message = f"internal error: {type(error).__name__}: {error}"
        hint = "this is a bug; ADAPTOOL_TRACEBACK=1 shows where, please report it"
        return self._fail(message, hint, "BUG", BUG, {})

    def interrupted(self, code: int) -> int:
        """Say that the user stopped it."""
        return self._fail("interrupted; nothing was written", None, "INTERRUPTED", code, {})

    def _fail(self, message: str, hint: str | None, code: str, exit_code: int,
              details: dict[str, JSON]) -> int:  # fmt: skip
        message = printable(" ".join(message.split()))
        if self.as_json:
            error: dict[str, JSON] = {
                "code": code, "message": message, "hint": hint, "details": details,
            }  # fmt: skip
            print(json.dumps({"ok": False, "error": error, "exit_code": exit_code}, indent=2))
        else:
            print(f"adaptool: {message}", file=sys.stderr)
            if hint:
                print(f"  hint: {printable(hint)}", file=sys.stderr)
        return exit_code

    @staticmethod
    def _rich() -> RichConsole:
        from rich.console import Console as RichConsole

        width = None if sys.stdout.isatty() else 80
        return RichConsole(width=width, highlight=False, soft_wrap=False)


def _sound(value: dict[str, JSON]) -> dict[str, JSON]:
    """The same data with null for every number that JSON cannot express."""

    def sound(item: JSON) -> JSON:
        if isinstance(item, dict):
            return {key: sound(inner) for key, inner in item.items()}
        if isinstance(item, list):
            return [sound(inner) for inner in item]
        return None if isinstance(item, float) and not isfinite(item) else item

    return {key: sound(item) for key, item in value.items()}


def printable(text: str) -> str:
    """Text with control characters escaped."""
    return text if text.isprintable() else shown(text)


def _numeric(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").lstrip("-").rstrip("% MGKB").isdigit() or not cell


def size(count: float) -> str:
    """Bytes for a person: 1.5 GB."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def common_start(names: list[str]) -> str:
    """The leading steps that all paths have in common, with the dot behind them."""
    if len(names) < 2:
        return ""
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    steps = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    return ".".join([*steps, ""])
