"""Models whose files stack their experts as [expert, in, out]: gpt-oss and Llama 4."""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.architectures.gguf.dimensions import Dimensions
from adaptool.architectures.gguf.table import (
    GATED,
    STACKS,
    Family,
    Row,
    attention,
    bare,
    feed_forward,
    lay,
    norm,
    norms,
    stacked_experts,
)
from adaptool.canonical.arrangement import Regroup


def _gpt_oss(d: Dimensions) -> Iterator[Row]:
    """Gate and up rows take turns."""
    yield Row("input_layernorm")
    yield norm("post_attention_layernorm", to="post_attention_norm")
    yield from attention()
    yield bare("self_attn.sinks", "attn_sinks.weight")
    yield Row("mlp.router")
    gate, up, down = STACKS
    rows = d.expert_feed_forward
    for first, to in enumerate((gate, up)):
        order = Regroup((rows, 2), (0, 1), axis=1, start=first, stop=first + 1)
        for e in range(d.experts):
            place = lay(slot=e, expert=e, row_order=order)
            yield bare("mlp.experts.gate_up_proj", f"{to}.weight", place, turned=True)
        yield bare("mlp.experts.gate_up_proj_bias", f"{to}.bias", lay(col_order=order))
    for e in range(d.experts):
        place = lay(slot=e, expert=e)
        yield bare("mlp.experts.down_proj", f"{down}.weight", place, turned=True)
    yield bare("mlp.experts.down_proj_bias", f"{down}.bias")


def _llama4(d: Dimensions) -> Iterator[Row]:
    yield from norms()
    yield from attention()
    yield from feed_forward(module="feed_forward")
    yield Row("feed_forward.router")
    yield from stacked_experts(
        d, "feed_forward.experts", ("gate_up_proj", "down_proj"), turned=True
    )
    yield from feed_forward(*GATED, module="feed_forward.shared_expert")


FAMILIES = (
    Family("gpt-oss", ("gpt_oss",), _gpt_oss),
    Family("llama4", ("llama4_text", "llama4"), _llama4),
)
