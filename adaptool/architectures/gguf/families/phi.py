"""Phi: one feed-forward matrix in phi-2, fused projections in phi-3, experts in Phi-3.5-MoE."""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.architectures.gguf.dimensions import Dimensions
from adaptool.architectures.gguf.families.llama import W
from adaptool.architectures.gguf.table import (
    Family,
    Row,
    attention,
    experts,
    feed_forward,
    norms,
)


def _phi2(_: Dimensions) -> Iterator[Row]:
    yield Row("input_layernorm")
    yield from (Row(f"self_attn.{name}") for name in ("q_proj", "k_proj", "v_proj", "dense"))
    yield from feed_forward("fc1", "fc2")


def _phi2_outer(_: Dimensions) -> Iterator[Row]:
    yield from (Row("model.embed_tokens"), Row("model.final_layernorm"), Row("lm_head"))


def _phi3(_: Dimensions) -> Iterator[Row]:
    yield from norms()
    yield from (Row("self_attn.qkv_proj"), Row("self_attn.o_proj"))
    yield from feed_forward("gate_up_proj", "down_proj")


def _phimoe(d: Dimensions) -> Iterator[Row]:
    yield from norms()
    yield from attention()
    yield Row("block_sparse_moe.gate")
    yield Row("mlp.router", "ffn_gate_inp", alias=True)
    yield from experts(d, W, "block_sparse_moe")


FAMILIES = (
    Family("phi2", ("phi",), _phi2, _phi2_outer),
    Family("phi3", ("phi3",), _phi3),
    Family("phimoe", ("phimoe",), _phimoe),
)
