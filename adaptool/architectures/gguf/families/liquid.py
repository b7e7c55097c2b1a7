"""LFM2: short convolutions between attention."""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.architectures.gguf.dimensions import Dimensions
from adaptool.architectures.gguf.families.llama import W
from adaptool.architectures.gguf.table import (
    Family,
    Row,
    bare,
    convolution,
    experts,
    feed_forward,
    norms,
)


def _lfm2(_: Dimensions) -> Iterator[Row]:
    yield from norms("operator_norm", "ffn_norm")
    yield from norms("self_attn.q_layernorm", "self_attn.k_layernorm")
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        yield Row(f"self_attn.{name}")
    yield from (convolution("conv.conv"), Row("conv.in_proj"), Row("conv.out_proj"))
    yield from feed_forward(*W, module="feed_forward")


def _lfm2_moe(d: Dimensions) -> Iterator[Row]:
    yield from _lfm2(d)
    yield Row("feed_forward.gate")
    yield bare("feed_forward.expert_bias", "exp_probs_b.bias")
    yield from experts(d, W, "feed_forward")


def _outer(_: Dimensions) -> Iterator[Row]:
    yield from (Row("model.embed_tokens"), Row("model.embedding_norm"))


def _lfm2_outer(d: Dimensions) -> Iterator[Row]:
    yield from (*_outer(d), Row("lm_head"))


FAMILIES = (
    Family("lfm2", ("lfm2",), _lfm2, _lfm2_outer),
    Family("lfm2moe", ("lfm2_moe",), _lfm2_moe, _outer),
)
