"""Laying numbered parameters out by hand, by the letter of their placements."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch

from adaptool.architectures.gguf import Layout
from adaptool.canonical import Placement

Shapes = Mapping[str, list[int]]


@dataclass(frozen=True)
class Case:
    """A tiny model, and what llama.cpp's converter made of its numbered parameters.

    Attributes:
        config: its config.json.
        architecture: general.architecture.
        values: whole numbers among the key-values of the GGUF model.
        parameters: shapes by Hugging Face name, as they are in a file.
        tensors: shape and digest of each tensor of the GGUF model, by its name there.
        fused: the tensors that differ under --fuse-qkv (and --fuse-gate-up-exps).
        dropped: parameters that the converter leaves out.
    """

    config: dict[str, Any]
    architecture: str
    values: dict[str, Any]
    parameters: dict[str, list[int]]
    tensors: dict[str, tuple[list[int], str]]
    fused: dict[str, tuple[list[int], str]]
    dropped: tuple[str, ...]


@cache
def cases() -> dict[str, Case]:
    """Recorded with the converter of llama.cpp v0.5.0 (September 2026)."""
    text = (Path(__file__).parent / "gguf_layouts.json").read_text()
    return {
        name: Case(**({"fused": {}, "dropped": ()} | case))
        for name, case in json.loads(text).items()
    }


def numbered(parameters: Shapes) -> dict[str, torch.Tensor]:
    """Parameters whose elements are numbered through; those of A_log from zero."""
    found, first = {}, 0
    for name, shape in parameters.items():
        count = prod(shape)
        start = 0 if name.endswith("A_log") else first
        found[name] = torch.arange(start, start + count, dtype=torch.float64).reshape(shape)
        first += 0 if name.endswith("A_log") else count
    return found


def digest(tensor: torch.Tensor) -> str:
    """Of the numbers; where all are negative they were -exp(number)."""
    tensor = tensor.to(torch.float64).contiguous()
    if bool((tensor < 0).all()):
        tensor = torch.log(-tensor).round()
    return hashlib.sha256(tensor.numpy().astype("<f8").tobytes()).hexdigest()[:12]


def laid_out(
    parameters: Mapping[str, torch.Tensor],
    layout: Layout,
    shapes: Mapping[str, list[int]],
    tensors: Collection[str] | None = None,
) -> dict[str, torch.Tensor]:
    """GGUF tensors of the given shapes; fails where two parameters claim one element."""
    stored = {
        name: torch.full(shape, torch.nan, dtype=torch.float64) for name, shape in shapes.items()
    }
    for name, parameter in parameters.items():
        weight = parameter
        if layout.stored_transposed(name) and weight.ndim > 1:
            weight = weight.transpose(-1, -2)
        if layout.decays(name):
            weight = -torch.exp(weight)
        for place in layout.place(name, tensors):
            target = stored[place.tensor]
            target = target if place.slot is None else target[place.slot]
            target = target if place.rows is None else target[slice(*place.rows)]
            assert bool(target.isnan().all()), f"{name} overlaps in {place}"
            target.copy_((_taken(weight, place) + place.shift).reshape(target.shape))
    return stored


def _taken(weight: torch.Tensor, place: Placement) -> torch.Tensor:
    weight = weight if place.expert is None else weight[place.expert]
    weight = weight if place.part is None else weight[slice(*place.part)]
    if place.row_order is not None:
        weight = weight[place.row_order.indices(len(weight))]
    if place.col_order is not None:
        weight = weight[:, place.col_order.indices(weight.shape[1])]
    return weight.T if place.transposed else weight
