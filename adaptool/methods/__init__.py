"""Methods: several adapters -> one. A module in this folder is a method.

It says what it does, lists its parameters, and offers one verb or both:

    merge(parts, settings)    low-rank updates of one weight -> one, exactly: spectral methods
    rule(settings)            what becomes of the values at one place: sign and sparsity methods

Adding a method is adding one file. Formulas see canonical updates only: an update is
D_i = scaling_i * B_i A_i, and w_i is the user's weight of it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol, cast, runtime_checkable

from adaptool import plugins
from adaptool.canonical import LowRank
from adaptool.canonical.blending import Rule
from adaptool.errors import JSON, UsageError

Value = float | str
Part = tuple[LowRank, float]
"""An update and its weight."""


@dataclass(frozen=True)
class Number:
    """A parameter that is a number in [low, high]."""

    name: str
    default: float
    low: float
    high: float
    text: str

    @property
    def range(self) -> str:
        """For people."""
        return f"{self.low:g} to {self.high:g}"

    def parse(self, text: str) -> float | None:
        """The value, or None for anything out of range."""
        try:
            value = float(text)
        except ValueError:
            return None
        return value if self.low <= value <= self.high else None


@dataclass(frozen=True)
class Choice:
    """A parameter that is one of a few words."""

    name: str
    default: str
    words: tuple[str, ...]
    text: str

    @property
    def range(self) -> str:
        """For people."""
        return "|".join(self.words)

    def parse(self, text: str) -> str | None:
        """The word, or None for any other."""
        return text if text in self.words else None


Parameter = Number | Choice


@dataclass(frozen=True)
class Settings:
    """Values of all parameters of a method."""

    values: Mapping[str, Value]

    def number(self, name: str) -> float:
        """The value of a `Number`."""
        return float(self.values[name])

    def word(self, name: str) -> str:
        """The value of a `Choice`."""
        return str(self.values[name])


class Method(Protocol):
    """What every module in this folder offers."""

    SUMMARY: str
    PARAMETERS: tuple[Parameter, ...]


@runtime_checkable
class Exact(Protocol):
    """A method whose result is of low rank by nature."""

    def merge(self, parts: Sequence[Part], settings: Settings) -> LowRank:
        """The combined update, of rank at most the sum of ranks.

        Raises UsageError for weights or a number of updates that the method has no answer to.
        """
        ...


@runtime_checkable
class Elementwise(Protocol):
    """A method that works value by value, on any matrices."""

    def rule(self, settings: Settings) -> Rule:
        """What becomes of the values at one place."""
        ...


def method_named(name: str) -> Method:
    """The method of that name.

    Raises UsageError with the list of methods for any other name.
    """
    folder = _folder()
    if name not in plugins.names(folder):
        raise UsageError(f"unknown method {name!r}; known: {', '.join(plugins.names(folder))}")
    return cast("Method", plugins.load(folder, name))


def settings_for(name: str, given: Mapping[str, str | float]) -> Settings:
    """Values for every parameter of a method: those given, else the defaults.

    Raises UsageError for an unknown name or a value out of range, with the list of parameters.
    """
    parameters = {p.name: p for p in method_named(name).PARAMETERS}
    values: dict[str, Value] = {p.name: p.default for p in parameters.values()}
    known = "; ".join(f"{p.name}={p.range}" for p in parameters.values())
    hint = f"{name} takes {known}" if known else f"{name} takes no parameters"
    for key, text in given.items():
        parameter = parameters.get(key)
        if parameter is None:
            raise UsageError(f"{name} has no parameter {key!r}", hint=hint)
        value = parameter.parse(str(text))
        if value is None:
            raise UsageError(f"{key}={text} is not {parameter.range}", hint=hint)
        values[key] = value
    return Settings(values)


def facts() -> dict[str, JSON]:
    """Every method with what it does and what it takes, as plain data."""
    return {
        name: {
            "summary": method.SUMMARY,
            "parameters": {
                p.name: {"default": p.default, "range": p.range, "text": p.text}
                for p in method.PARAMETERS
            },
        }
        for name, method in cast("dict[str, Method]", plugins.load_all(_folder())).items()
    }


def _folder() -> ModuleType:
    return sys.modules[__name__]
