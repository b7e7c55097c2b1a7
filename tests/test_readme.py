"""What README counts and lists is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

from peft import PeftType  # noqa: TID251

from adaptool import methods, plugins
from adaptool.architectures.gguf import model_types
from adaptool.cli import group
from adaptool.conversion.families import FAMILIES
from adaptool.support import rows as supported
from adaptool.support import table
from adaptool.targets._matrix import matrix

README = (Path(__file__).parent.parent / "README.md").read_text()


def rows(heading: str) -> list[str]:
    """First cells of the first table under a heading."""
    text = README.split(f"## {heading}\n", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert table is not None
    return [line.split("|")[1].strip().strip("`") for line in table[0].splitlines()[2:]]


def test_methods() -> None:
    assert sorted(rows("Combining")) == sorted(plugins.names(methods))


def test_counts() -> None:
    assert f"for {len(model_types())} model types" in README
    assert f"for {len(FAMILIES)} architectures" in README


def test_every_command_is_shown() -> None:
    block = README.split("## What it does", 1)[1].split("```", 2)[1]
    assert set(re.findall(r"^adaptool (\w+)", block, re.MULTILINE)) == set(group.commands)


def test_support() -> None:
    shown = README.split("<!-- support -->\n", 1)[1].split("<!-- /support -->", 1)[0]
    assert shown == table()


def test_targets() -> None:
    shown = README.split("<!-- targets -->\n", 1)[1].split("<!-- /targets -->", 1)[0]
    assert shown == matrix()


def test_support_has_all_types_of_peft() -> None:
    named = [row.method.split()[0] for row in supported()]
    assert set(named) == {kind.value for kind in PeftType}
    assert len(named) == len(PeftType) + 2
