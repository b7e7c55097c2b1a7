"""PVeRA: VeRA whose hidden values are drawn from a distribution; merged, their mean is taken.

W + diag(b) B diag(d) A, with the first halves of d [2 r] and A [2 r, in], which give the means;
the second halves give variances.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from adaptool.canonical import Update
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts
from adaptool.tuners._projected import Projected, read_projected

suffixes = ("pvera_lambda_b", "pvera_lambda_d")
shared = ("pvera_A", "pvera_B")


@dataclass(frozen=True)
class Pvera(Projected):
    """diag(b) B diag(d) A, without the variances."""

    peft_type: ClassVar[str] = "PVERA"
    prefix: ClassVar[str] = "pvera"
    stacked: ClassVar[int] = 2


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`pvera_lambda_b` [out], `pvera_lambda_d` [2 r]; shared A [2 r, in] and B [out, r]."""
    return read_projected(Pvera, parts, options)
