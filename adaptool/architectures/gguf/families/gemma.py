"""Gemma: every norm is stored as weight + 1."""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.architectures.gguf.dimensions import Dimensions
from adaptool.architectures.gguf.table import (
    Family,
    Row,
    attention,
    bare,
    decoder,
    feed_forward,
    head_norms,
    lay,
    norms,
)

SANDWICH = (
    "input_layernorm", "post_attention_layernorm",
    "pre_feedforward_layernorm", "post_feedforward_layernorm",
)  # fmt: skip


def _gemma(_: Dimensions) -> Iterator[Row]:
    yield from norms(shift=1)
    yield from attention()
    yield from feed_forward()


def _gemma2(_: Dimensions) -> Iterator[Row]:
    yield from norms(*SANDWICH, shift=1)
    yield from attention()
    yield from feed_forward()


def _gemma3(d: Dimensions) -> Iterator[Row]:
    yield from _gemma2(d)
    yield from head_norms(shift=1)


def _gemma4(d: Dimensions) -> Iterator[Row]:
    """Norms as they are; a second embedding feeds every block; experts beside a dense layer."""
    yield from norms(*SANDWICH)
    yield from attention()
    yield from head_norms()
    yield from feed_forward()
    yield from (Row("per_layer_input_gate"), Row("per_layer_projection"))
    yield Row("post_per_layer_input_norm")
    yield bare("layer_scalar", "layer_output_scale.weight")
    if d.experts:
        yield from norms("post_feedforward_layernorm_1", "post_feedforward_layernorm_2")
        yield from norms("pre_feedforward_layernorm_2")
        yield Row("router.proj")
        yield bare("router.scale", "ffn_gate_inp.scale")
        yield bare("router.per_expert_scale", "ffn_down_exps.scale")
    for e in range(d.experts):
        for name, to in (("gate_up_proj", "ffn_gate_up_exps"), ("down_proj", "ffn_down_exps")):
            yield bare(f"experts.{name}", f"{to}.weight", lay(slot=e, expert=e))


def _gemma4_outer(d: Dimensions) -> Iterator[Row]:
    yield from decoder()(d)
    yield from (Row("model.embed_tokens_per_layer"), Row("model.per_layer_model_projection"))
    yield Row("model.per_layer_projection_norm")


FAMILIES = (
    Family("gemma", ("gemma",), _gemma, decoder(shift=1, head=False)),
    Family("gemma2", ("gemma2",), _gemma2, decoder(shift=1, head=False)),
    Family("gemma3", ("gemma3_text", "gemma3"), _gemma3, decoder(shift=1)),
    Family("gemma4", ("gemma4_text", "gemma4"), _gemma4, _gemma4_outer),
)
