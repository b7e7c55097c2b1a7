"""A dense difference of a weight, which full training gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from adaptool.canonical.updates import Dense


@dataclass(frozen=True)
class Difference(Dense):
    """Not an `Addition`: that is the trained bias of a module with factors, which PEFT can hold."""

    kind: ClassVar[str] = "difference"
