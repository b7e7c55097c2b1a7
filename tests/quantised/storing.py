"""Checkpoints in memory and on disk with one quantised weight, and how it is read."""

from __future__ import annotations

from typing import Any

import torch

from adaptool.canonical import Checkpoint, LazyTensor, Provenance
from adaptool.canonical.tensors import from_values
from adaptool.encodings.checkpoints import Opened, StoredWeight, open_quantised

Tensors = dict[str, torch.Tensor]


def checkpoint(tensors: Tensors, **config: Any) -> Checkpoint:
    lazy = {name: from_values(tensor) for name, tensor in tensors.items()}
    return Checkpoint(lazy, "safetensors", Provenance("tiny", "safetensors"), config)


def opened(tensors: Tensors, method: str, dtype: str = "bfloat16", **settings: Any) -> Opened:
    return open_quantised(
        checkpoint(tensors, dtype=dtype, quantization_config={"quant_method": method, **settings})
    )


def only_weight(found: Opened) -> StoredWeight:
    (weight,) = found.weights.values()
    return weight


def check_slices(tensor: LazyTensor, whole: torch.Tensor) -> None:
    """Any part of a tensor is that part of the whole, in pieces of any size."""
    flat = whole.reshape(-1)
    row = whole.shape[-1]
    for start, stop, block in (
        (0, flat.numel(), 7), (row, 3 * row, row), (1, row + 3, 5), (0, row, 1),
        (flat.numel() - 2, flat.numel(), 64), (2 * row, flat.numel(), 100 * row),
    ):  # fmt: skip
        pieces = [piece.clone() for piece in tensor.pieces(start, stop, block)]
        assert all(piece.numel() <= block for piece in pieces)
        assert torch.equal(torch.cat(pieces), flat[start:stop])


def encoded(found: Opened, values: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """The tensors of a checkpoint whose one weight takes other values, and what was observed."""
    weight = only_weight(found)
    seen = torch.full((values.numel(),), torch.nan)

    def observe(first: int, wanted: torch.Tensor, stored: torch.Tensor) -> None:
        there = slice(first, first + wanted.numel())
        assert torch.equal(wanted, values.reshape(-1)[there])
        seen[there] = stored

    assert weight.encode is not None
    made = weight.encode(from_values(values), observe)
    tensors = {n: made.get(n, t).values() for n, t in found.stored.tensors.items()}
    for name, tensor in made.items():
        assert tensor.shape == found.stored.tensors[name].shape
        assert tensor.dtype == found.stored.tensors[name].dtype
    return tensors, seen.view(values.shape)
