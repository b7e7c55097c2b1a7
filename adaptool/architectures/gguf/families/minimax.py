"""MiniMax-M2: attention with normalised queries and keys, Mixtral's experts."""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.architectures.gguf.dimensions import Dimensions
from adaptool.architectures.gguf.families.llama import W
from adaptool.architectures.gguf.table import (
    Family,
    Row,
    attention,
    bare,
    experts,
    head_norms,
    norms,
)


def _minimax(d: Dimensions) -> Iterator[Row]:
    yield from norms()
    yield from attention()
    yield from head_norms()
    yield Row("block_sparse_moe.gate")
    yield bare("block_sparse_moe.e_score_correction_bias", "exp_probs_b.bias")
    yield from experts(d, W, "block_sparse_moe")


FAMILIES = (Family("minimax-m2", ("minimax_m2",), _minimax),)
