"""The front matter of model cards, as model hubs read it."""

from __future__ import annotations

from collections.abc import Iterable


def front_matter(fields: dict[str, str | list[str] | None]) -> str:
    """YAML between two `---` lines; every string is quoted, so that none can be anything else."""
    lines = ["---"]
    for key, value in fields.items():
        if isinstance(value, list):
            lines.append(f"{key}:")
            lines += [f"- {_quoted(item)}" for item in value]
        elif value:
            lines.append(f"{key}: {_quoted(value)}")
    return "\n".join([*lines, "---", ""])


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; pipes and line ends in cells are escaped."""
    head = list(head)
    lines = [_row(head), _row("---" for _ in head)]
    return "\n".join([*lines, *(_row(row) for row in rows), ""])


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _quoted(text: str) -> str:
    return '"' + _plain(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:500]
