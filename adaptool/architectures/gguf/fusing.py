"""Tensors that a base in the wild has in place of those that its family normally has.

llama.cpp's converter can fuse queries, keys and values (`--fuse-qkv`), or gates and ups of
experts (`--fuse-gate-up-exps`), one after the other; Mixtral files of early 2024 have a tensor
for each expert.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from adaptool.architectures.gguf.dimensions import Dimensions
from adaptool.canonical import Placement

_NAME = re.compile(r"^blk\.(?P<block>\d+)\.(?P<stem>\w+)\.(?P<suffix>weight|bias)$")
_EXPERT = re.compile(r"^(?P<stem>blk\.\d+\.ffn_(?:gate|up|down))\.\d+\.(?P<suffix>weight|bias)$")
_FUSED = {"attn_qkv": ("attn_q", "attn_k", "attn_v"),
          "ffn_gate_up_exps": ("ffn_gate_exps", "ffn_up_exps")}  # fmt: skip
_PARTS = {part: fused for fused, parts in _FUSED.items() for part in parts}
_STACKED = {"ffn_gate_exps": "ffn_gate", "ffn_up_exps": "ffn_up", "ffn_down_exps": "ffn_down"}


def alternatives(placement: Placement, d: Dimensions, *, gated: bool) -> Iterator[Placement]:
    """Other places, first the likelier, where what lies in `placement` may lie instead.

    Args:
        placement: where it lies in files as the converter makes them by default.
        d: sizes of its block.
        gated: queries bring gates along, as many rows again.
    """
    found = _NAME.match(placement.tensor)
    if found is None or placement.rows is not None or placement.transposed:
        return
    block, stem, suffix = found["block"], found["stem"], found["suffix"]
    if stem in _PARTS:
        fused = _PARTS[stem]
        band = _bands(fused, d, 2 if gated else 1)[_FUSED[fused].index(stem)]
        yield replace(placement, tensor=f"blk.{block}.{fused}.{suffix}", rows=band)
    if stem in _STACKED and placement.slot is not None:
        name = f"blk.{block}.{_STACKED[stem]}.{placement.slot}.{suffix}"
        yield replace(placement, tensor=name, slot=None)


def usual_forms(tensor: str) -> tuple[str, ...]:
    """Names of the tensors that `tensor` stands for; empty if it is nothing unusual."""
    if found := _EXPERT.match(tensor):
        return (f"{found['stem']}_exps.{found['suffix']}",)
    if found := _NAME.match(tensor):
        fused = found["stem"]
        return tuple(tensor.replace(fused, stem) for stem in _FUSED.get(fused, ()))
    return ()


def _bands(fused: str, d: Dimensions, queries: int) -> tuple[tuple[int, int], ...]:
    if fused == "attn_qkv":
        sizes = [queries * d.heads * d.head_dim, d.kv_heads * d.head_dim, d.kv_heads * d.value_dim]
    else:
        sizes = [d.expert_feed_forward] * 2
    bands, start = [], 0
    for size in sizes:
        bands.append((start, start + size))
        start += size
    return tuple(bands)
