"""Uni-LoRA: all factors of a model are made of the values of one vector (arXiv:2506.00799, eq. 2).

A = theta[iA] o sA, B = theta[iB] o sB with positions i and scales s that a file holds when it was
saved with `save_indices`.  Without them the positions are dealt out to the modules in the order in
which the model's class has them, which no file states: such an adapter is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from adaptool.canonical import LazyTensor, Update
from adaptool.tuners._factored import double, factored
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts
from adaptool.tuners._positions import read_positions, take_positions

if TYPE_CHECKING:
    import torch

_THETA = "unilora_theta_d"
_SIDES = ("A", "B")

suffixes = tuple(f"unilora_{what}_{side}" for what in ("indices", "scales") for side in _SIDES)
shared = (_THETA,)


def read(parts: Parts, options: Options) -> Mapping[str, Update]:  # noqa: ARG001
    """`unilora_indices_A` and `_scales_A` [r, in], `_B` [out, r]; `unilora_theta_d` [d]."""
    theta = parts.common(_THETA, None)
    if theta is None:
        raise parts.corrupt(f"the file holds no {_THETA}")
    tensors: list[LazyTensor] = [theta]
    for side in _SIDES:
        positions = take_positions(parts, f"unilora_indices_{side}", None, None)
        tensors += [positions, parts.need(f"unilora_scales_{side}", *positions.shape)]
    a, b = tensors[1].shape, tensors[3].shape
    if a[0] != b[1]:
        raise parts.corrupt(f"positions {list(a)} and {list(b)}: ranks disagree")
    make = partial(_factors, tensors, f"{parts.where}: unilora_indices")
    return {"weight": factored([theta], (b[0], a[1]), a[0], make)}


def _factors(tensors: list[LazyTensor], what: str) -> tuple[torch.Tensor, torch.Tensor]:
    theta, in_a, scales_a, in_b, scales_b = tensors
    values = double(theta)
    a, b = (values[read_positions(p, values.numel(), what)] for p in (in_a, in_b))
    return a * double(scales_a), b * double(scales_b)
