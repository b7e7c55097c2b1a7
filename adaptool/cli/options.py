"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import click

from adaptool.cli.console import Console

_Function = TypeVar("_Function", bound=Callable[..., Any])

DTYPES = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}


class Dtype(click.ParamType[str]):
    """An element type by its short or its full name."""

    name = "type"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        """The names worth showing in --help."""
        return "[f32|f16|bf16|f64]"

    def convert(self, value: object, param: click.Parameter | None,
                ctx: click.Context | None) -> str:  # fmt: skip
        """Parse one value, or fail as click does."""
        text = str(value).lower()
        text = DTYPES.get(text, text)
        if text not in DTYPES.values():
            self.fail(f"{value!r} is not one of {', '.join(DTYPES)}", param, ctx)
        return text


class Scale(click.ParamType[float]):
    """Any finite number."""

    name = "number"

    def convert(self, value: object, param: click.Parameter | None,
                ctx: click.Context | None) -> float:  # fmt: skip
        """Parse one value, or fail as click does."""
        return parse_scale(str(value), lambda message: self.fail(message, param, ctx))


class Size(click.ParamType[int]):
    """Bytes, with an SI or IEC suffix: 5GB, 500MB, 2GiB."""

    name = "size"
    _UNITS: ClassVar = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4,
              "ki": 1024, "mi": 1024**2, "gi": 1024**3, "ti": 1024**4}  # fmt: skip

    def convert(self, value: object, param: click.Parameter | None,
                ctx: click.Context | None) -> int:  # fmt: skip
        """Parse one value, or fail as click does."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?", str(value).strip().lower())
        if match is None or float(match[1]) * self._UNITS[match[2]] < 1:
            self.fail(f"{value!r} is not a size such as 5GB or 500MiB", param, ctx)
        return int(float(match[1]) * self._UNITS[match[2]])


def parse_scale(text: str, fail: Callable[[str], object]) -> float:
    """A finite number, or whatever `fail` does."""
    try:
        value = float(text)
    except ValueError:
        fail(f"{text!r} is not a number")
        return 0.0
    if not isfinite(value):
        fail(f"{text!r} is not a finite number")
    return value


def output_option(help_text: str) -> Callable[[_Function], _Function]:
    """-o/--output, required."""
    return click.option(
        "-o", "--output", required=True, type=click.Path(path_type=Path), help=help_text
    )


def common_options(function: _Function) -> _Function:
    """--json, -q, -v."""
    function = click.option("-v", "--verbose", count=True, help="Show details.")(function)
    function = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")(
        function
    )
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(function)


def console_of(*, as_json: bool, quiet: bool, verbose: int) -> Console:
    """The console that the common options ask for."""
    return Console(as_json=as_json, verbosity=-1 if quiet else verbose)


def examples(*lines: str) -> str:
    """An epilog with copyable lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
