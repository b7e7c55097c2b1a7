"""VeRA: vectors around shared random matrices (arXiv:2310.11454, eq. 2).

W + diag(b) B diag(d) A: only b and d are trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from adaptool.canonical import Update
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts
from adaptool.tuners._projected import Projected, read_projected

suffixes = ("vera_lambda_b", "vera_lambda_d")
shared = ("vera_A", "vera_B")


@dataclass(frozen=True)
class Vera(Projected):
    """diag(b) B diag(d) A."""

    peft_type: ClassVar[str] = "VERA"
    prefix: ClassVar[str] = "vera"


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`vera_lambda_b` [out], `vera_lambda_d` [r]; shared `vera_A` [r, in], `vera_B` [out, r]."""
    return read_projected(Vera, parts, options)
