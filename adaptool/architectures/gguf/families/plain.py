"""Decoders of today's shape whose weights GGUF stores as they are."""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.architectures.gguf.dimensions import Dimensions
from adaptool.architectures.gguf.table import (
    Family,
    Row,
    attention,
    decoder,
    feed_forward,
    head_norms,
    lay,
    norms,
)


def _stablelm(d: Dimensions) -> Iterator[Row]:
    yield from norms()
    yield from attention()
    yield from feed_forward()
    for name, to, heads in (("q", "attn_q_norm", d.heads), ("k", "attn_k_norm", d.kv_heads)):
        for h in range(heads):  # a norm for each head, in GGUF a stack of vectors
            yield Row(f"self_attn.{name}_layernorm.norms.{h}", to, lay(slot=h))


def _cohere(_: Dimensions) -> Iterator[Row]:
    yield Row("input_layernorm")
    yield from attention()
    yield from head_norms()
    yield from feed_forward()


def _cohere2(_: Dimensions) -> Iterator[Row]:
    yield Row("input_layernorm")
    yield from attention()
    yield from feed_forward()


def _olmo(d: Dimensions) -> Iterator[Row]:
    yield from attention(d)
    yield from feed_forward()


def _olmo_outer(_: Dimensions) -> Iterator[Row]:
    yield from (Row("model.embed_tokens"), Row("lm_head"))  # its norms have no weights


def _olmo2(_: Dimensions) -> Iterator[Row]:
    yield from norms("post_attention_layernorm", "post_feedforward_layernorm")
    yield from attention()
    yield from head_norms()
    yield from feed_forward()


def _starcoder2(_: Dimensions) -> Iterator[Row]:
    yield from norms()
    yield from attention()
    yield from feed_forward("c_fc", "c_proj")


def _nemotron(_: Dimensions) -> Iterator[Row]:
    yield from norms(shift=1)
    yield from attention()
    yield from feed_forward("up_proj", "down_proj")


def _seed_oss(_: Dimensions) -> Iterator[Row]:
    yield from norms()
    yield from attention()
    yield from feed_forward()


def _exaone(_: Dimensions) -> Iterator[Row]:
    yield from norms("ln_1", "ln_2")
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        yield Row(f"attn.attention.{name}")
    yield from feed_forward("c_fc_0", "c_fc_1", "c_proj")


def _exaone_outer(_: Dimensions) -> Iterator[Row]:
    yield from (Row("transformer.wte"), Row("transformer.ln_f"), Row("lm_head"))


FAMILIES = (
    Family("stablelm", ("stablelm",), _stablelm),
    Family("command-r", ("cohere",), _cohere, decoder(head=False)),
    Family("cohere2", ("cohere2",), _cohere2, decoder(head=False)),
    Family("olmo", ("olmo",), _olmo, _olmo_outer),
    Family("olmo2", ("olmo2", "olmo3"), _olmo2),
    Family("starcoder2", ("starcoder2",), _starcoder2),
    Family("nemotron", ("nemotron",), _nemotron, decoder(shift=1)),
    Family("seed_oss", ("seed_oss",), _seed_oss),
    Family("exaone4", ("exaone4",), _olmo2),
    Family(
        "exaone",
        ("exaone",),
        _exaone,
        _exaone_outer,
        "transformer.h.{}.",
        "transformer.wte.weight",
    ),
)
