"""GraLoRA: low-rank factors of their own for each of k * k blocks (arXiv:2505.20355, eq. 5 to 7).

A [k, in / k, r] and B [k, r, out / k]; r is shared out among the k blocks that a piece of A or B
meets: the block of output piece d and input piece n is (A_n's d-th part) times (B_d's n-th part).
A matrix of such blocks is a product of two factors of rank k r, so it is a plain low-rank update;
a general pair may be added.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from adaptool.canonical import LazyTensor, Update
from adaptool.tuners._factored import double, factored
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

if TYPE_CHECKING:
    import torch

_GENERAL = ("gralora_A_general.weight", "gralora_B_general.weight")

_MOST = 64
"""Blocks along one side: the plain factors are so many times as large."""

suffixes = ("gralora_A", "gralora_B", *_GENERAL)
shared = ()


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`gralora_A` [k, in / k, r], `gralora_B` [k, r, out / k], a general pair."""
    a = parts.need("gralora_A", None, None, None)
    k, width, rank = a.shape
    b = parts.need("gralora_B", k, rank, None)
    size = (k * b.shape[2], k * width)
    if k > _MOST:
        raise parts.unsupported(f"gralora_k={k}")
    if rank % k:
        raise parts.corrupt(f"gralora_A {list(a.shape)}: rank {rank} is not shared out among {k}")
    tensors, general = [a, b], 0
    if parts.has(_GENERAL[0]):
        tensors.append(parts.need(_GENERAL[0], None, size[1]))
        general = tensors[-1].shape[0]
        tensors.append(parts.need(_GENERAL[1], size[0], general))
    scaling = options.number("alpha", 64) / (rank + general)
    make = partial(_factors, tensors)
    return {"weight": factored(tensors, size, k * rank + general, make, scaling)}


def _factors(tensors: list[LazyTensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero outside the blocks; the rank is listed as (d, n, share), then the general pair."""
    import torch

    a, b, *general = (double(tensor) for tensor in tensors)
    k, share = a.shape[0], a.shape[2] // a.shape[0]
    one = torch.eye(k, dtype=a.dtype)
    a, b = a.reshape(k, -1, k, share), b.reshape(k, k, share, -1)
    wide = torch.einsum("nids,nm->dnsmi", a, one)
    high = torch.einsum("dnso,de->eodns", b, one)
    left, right = wide.flatten(0, 2).flatten(1), high.flatten(2).flatten(0, 1)
    if general:
        left, right = torch.cat([left, general[0]]), torch.cat([right, general[1]], dim=1)
    return left, right
