"""Spherical interpolation between two updates (Shoemake 1985, section 3.3), module by module.

    D = sin((1 - t) W) / sin W * D_1 + sin(t W) / sin W * D_2,   cos W = <D_1, D_2> / |D_1| |D_2|

with t = w_2 / (w_1 + w_2). Between orthogonal updates of one norm it keeps that norm, where the
weighted mean loses up to 29 %. Nearly parallel ones, and a module that only one adapter has, are
interpolated linearly. The result is a weighted sum, so it is exact in concatenated factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import acos, sin

from adaptool.canonical import LowRank
from adaptool.canonical.algebra import add
from adaptool.canonical.subspaces import shared_subspace
from adaptool.errors import UsageError
from adaptool.methods import Parameter, Part, Settings

SUMMARY = "two updates interpolated along the arc between them"
PARAMETERS: tuple[Parameter, ...] = ()

PARALLEL = 0.9995
"""Cosine from which the arc is a straight line."""


def merge(parts: Sequence[Part], settings: Settings) -> LowRank:
    """The interpolated update; its rank is the sum of both ranks.

    Raises UsageError unless there are two updates with weights that are not negative.
    """
    del settings
    weights = [weight for _, weight in parts]
    if len(parts) > 2 or min(weights) < 0 or sum(weights) == 0:
        raise UsageError("slerp takes two adapters, with weights that are not negative",
                         hint="the ratio of the weights is the point on the arc")  # fmt: skip
    if len(parts) < 2:
        return add(parts)
    (one, _), (two, _) = parts
    t = weights[1] / sum(weights)
    first, second = shared_subspace([one, two]).cores
    norms = float(first.norm()) * float(second.norm())
    cosine = float((first * second).sum()) / norms if norms else 1.0
    if abs(cosine) > PARALLEL:
        return add([(one, 1 - t), (two, t)])
    angle = acos(cosine)
    return add([(one, sin((1 - t) * angle) / sin(angle)), (two, sin(t * angle) / sin(angle))])
