"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import click

from adaptool.canonical.dtypes import SHORT_NAMES, dtype_named
from adaptool.cli.console import Console
from adaptool.errors import UsageError

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Dtype(click.ParamType[str]):
    """An element type by its short or its full name; with `blocks` also a type of GGUF."""

    name = "type"

    def __init__(self, *, blocks: bool = False) -> None:
        self.blocks = blocks

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        """The names worth showing in --help."""
        return "[f32|f16|bf16|q8_0|q4_k_m ...]" if self.blocks else "[f32|f16|bf16|f64]"

    def convert(self, value: object, param: click.Parameter | None,
                ctx: click.Context | None) -> str:  # fmt: skip
        """Parse one value, or fail as click does."""
        text = str(value).lower()
        plain = dtype_named(text)
        if plain is not None:
            return next(short for short, dtype in SHORT_NAMES.items() if dtype is plain)
        known = list(SHORT_NAMES)
        if self.blocks:
            from adaptool.encodings.ggml.mixtures import OUTTYPES

            known += [name for name in OUTTYPES if name not in SHORT_NAMES]
        if text not in known:
            self.fail(f"{value!r} is not one of {', '.join(known)}", param, ctx)
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


def weighted(item: str, default: float = 1.0) -> tuple[str, float]:
    """`PATH=NUMBER` or `PATH`; a path that exists is one, whatever its name.

    Raises UsageError for what is no finite number.
    """
    path, separator, number = item.rpartition("=")
    if not separator or os.path.lexists(item):
        return item, default

    def fail(message: str) -> None:
        raise UsageError(f"{item}: {message}", hint="ADAPTER=NUMBER, such as pirate=0.7")

    return path, parse_scale(number, fail)


def setting(item: str) -> tuple[str, str]:
    """`NAME=VALUE`. Raises UsageError without a value."""
    name, separator, value = item.partition("=")
    if not separator:
        raise UsageError(f"--set {item}: no value", hint="--set NAME=VALUE, such as density=0.3")
    return name, value


def method_options(function: _Function) -> _Function:
    """--method, --set, --space, --seed: how adapters are combined."""
    function = click.option("--seed", type=int, default=0, show_default=True,
                            help="Of all that is random.")(function)  # fmt: skip
    function = click.option("--space", default="delta", show_default=True,
                            metavar="[delta|factors|core]",
                            help="On the updates; on A and B apart, as PEFT does; or on small "
                            "matrices in a basis that all share: three different results.",
                            )(function)  # fmt: skip
    function = click.option("--set", "settings", multiple=True, metavar="NAME=VALUE",
                            help="A parameter of the method; repeatable.")(function)  # fmt: skip
    return click.option("--method", default="linear", show_default=True,
                        help="See `adaptool combine --list-methods`.")(function)  # fmt: skip


_RANK = click.option("--rank", type=click.IntRange(1), help="This rank everywhere.")
_ENERGY = click.option("--energy", type=float, metavar="SHARE",
                       help="Per module: keep this share of the squared singular values.",
                       )  # fmt: skip
_ERROR = click.option("--error", type=float, metavar="SHARE",
                      help="In all: lose at most this share of |dW| (Frobenius).")  # fmt: skip
_MAX_RANK = click.option("--max-rank", type=click.IntRange(1), help="No module gets more.")


def optional_rank_options(function: _Function) -> _Function:
    """--rank, --energy, --error and --max-rank as one `request`; None where none is given."""

    @wraps(function)
    def bundled(*, rank: int | None, energy: float | None, error: float | None,
                max_rank: int | None, **rest: object) -> object:  # fmt: skip
        from adaptool.ranks import RankRequest

        asked = (rank, energy, error, max_rank) != (None,) * 4
        request = RankRequest(rank, energy, error, max_rank=max_rank) if asked else None
        return function(request=request, **rest)

    for option in (_MAX_RANK, _ERROR, _ENERGY, _RANK):
        option(bundled)
    return cast("_Function", bundled)


def rank_options(function: _Function) -> _Function:
    """--rank, --energy and their kin, given to the command as one `request`."""

    @wraps(function)
    def bundled(*, rank: int | None, energy: float | None, error: float | None,
                nbytes: int | None, params: int | None, min_rank: int, max_rank: int | None,
                criterion: str | None = None, **rest: object) -> object:  # fmt: skip
        from adaptool.ranks import RankRequest

        request = RankRequest(
            rank=rank,
            energy=energy,
            error=error,
            size=nbytes,
            params=params,
            criterion=_criterion(criterion) if criterion else None,
            min_rank=min_rank,
            max_rank=max_rank,
        )
        return function(request=request, **rest)

    for option in reversed((
        _RANK, _ENERGY, _ERROR,
        click.option("--size", "nbytes", type=Size(),
                     help="In all: write at most so many bytes, spent optimally."),
        click.option("--params", type=click.IntRange(1), metavar="N",
                     help="In all: keep at most so many values, spent optimally."),
        click.option("--min-rank", type=click.IntRange(1), default=1, show_default=True,
                     help="No module gets less."),
        _MAX_RANK,
    )):  # fmt: skip
        option(bundled)
    return cast("_Function", bundled)


def _criterion(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")

    def fail(message: str) -> None:
        raise UsageError(f"--criterion {text}: {message}", hint="--criterion sv_fro=0.9")

    return name, parse_scale(number, fail)


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
