"""Qwen: rows as they are; experts, a shared expert with a gate of its own."""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.architectures.gguf.dimensions import Dimensions
from adaptool.architectures.gguf.table import (
    Family,
    Row,
    attention,
    experts,
    feed_forward,
    head_norms,
    norms,
)


def _qwen(_: Dimensions) -> Iterator[Row]:
    yield from (Row("ln_1"), Row("ln_2"), Row("attn.c_attn"), Row("attn.c_proj"))
    yield from feed_forward("w1", "w2", "c_proj")


def _attentive(*, normed: bool = False) -> Iterator[Row]:
    yield from norms()
    yield from attention()
    if normed:
        yield from head_norms()


def _qwen2(_: Dimensions) -> Iterator[Row]:
    yield from _attentive()
    yield from feed_forward()


def _qwen3(_: Dimensions) -> Iterator[Row]:
    yield from _attentive(normed=True)
    yield from feed_forward()


def sparse(d: Dimensions) -> Iterator[Row]:
    """A router and experts, in place of the feed-forward layer of a block."""
    yield Row("mlp.gate")
    yield from experts(d)


def shared(_: Dimensions) -> Iterator[Row]:
    """The shared expert, and how much of it."""
    yield from feed_forward(module="mlp.shared_expert")
    yield Row("mlp.shared_expert_gate")


def _qwen2_moe(d: Dimensions) -> Iterator[Row]:
    yield from _attentive()
    yield from sparse(d)
    yield from shared(d)


def _qwen3_moe(d: Dimensions) -> Iterator[Row]:
    yield from _attentive(normed=True)
    yield from sparse(d)


def _qwen_outer(_: Dimensions) -> Iterator[Row]:
    yield from (Row("transformer.wte"), Row("transformer.ln_f"), Row("lm_head"))


FAMILIES = (
    Family("qwen", ("qwen",), _qwen, _qwen_outer, "transformer.h.{}.", "transformer.wte.weight"),
    Family("qwen2", ("qwen2",), _qwen2),
    Family("qwen2vl", ("qwen2_vl_text", "qwen2_vl", "qwen2_5_vl_text", "qwen2_5_vl"), _qwen2),
    Family("qwen2moe", ("qwen2_moe",), _qwen2_moe),
    Family("qwen3", ("qwen3",), _qwen3),
    Family("qwen3vl", ("qwen3_vl_text", "qwen3_vl"), _qwen3),
    Family("qwen3moe", ("qwen3_moe",), _qwen3_moe),
    Family("olmoe", ("olmoe",), _qwen3_moe),
)
