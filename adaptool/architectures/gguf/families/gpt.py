"""Descendants of GPT-2: learned positions or ALiBi, layer norms with biases, fused attention."""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.architectures.gguf.dimensions import Dimensions
from adaptool.architectures.gguf.table import Family, Row, Rows, lay, stretch
from adaptool.canonical import Placement
from adaptool.canonical.arrangement import Regroup


def _gpt2(*, turned: bool) -> Rows:
    """GPT-2 keeps its linear layers as [in, out] (Conv1D), StarCoder does not."""
    linear = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    rows = (Row("ln_1"), Row("ln_2"), *(Row(name, turned=turned) for name in linear))
    return lambda _: rows


def _gpt2_outer(_: Dimensions) -> Iterator[Row]:
    yield from (Row("transformer.wte"), Row("transformer.wpe"), Row("transformer.ln_f"))
    yield Row("lm_head")


def _falcon(d: Dimensions) -> Iterator[Row]:
    """Each group of query heads is followed by its key and its value head."""
    yield from (Row("input_layernorm"), Row("ln_attn"), Row("ln_mlp"))
    dim, heads, groups = d.head_dim, d.heads, _falcon_groups(d)
    shape = (groups, heads // groups + 2, dim)
    rows, kv = heads * dim, groups * dim
    for start, stop, band in (
        (0, heads // groups, (0, rows)),
        (heads // groups, heads // groups + 1, (rows, rows + kv)),
        (heads // groups + 1, heads // groups + 2, (rows + kv, rows + 2 * kv)),
    ):
        order = stretch(shape, start, stop)
        yield Row("self_attention.query_key_value", layout=lay(rows=band, row_order=order))
    yield Row("self_attention.dense")
    yield from (Row("mlp.dense_h_to_4h"), Row("mlp.dense_4h_to_h"))


def _falcon_groups(d: Dimensions) -> int:
    """Key and value heads; before the new decoder architecture the config's number is void."""
    if d.architecture is not None or d.truth("new_decoder_architecture", default=False):
        return d.kv_heads
    return 1 if d.truth("multi_query", default=True) else d.heads


def _falcon_outer(_: Dimensions) -> Iterator[Row]:
    yield from (Row("transformer.word_embeddings"), Row("transformer.ln_f"), Row("lm_head"))


def _per_head(d: Dimensions) -> Placement:
    """Query, key and value rows of each head, told one head after the other."""
    return lay(row_order=Regroup((d.heads, 3, d.hidden // d.heads), (1, 0, 2)))


def _bloom(d: Dimensions) -> Iterator[Row]:
    yield from (Row("input_layernorm"), Row("post_attention_layernorm"))
    yield Row("self_attention.query_key_value", layout=_per_head(d))
    yield Row("self_attention.dense")
    yield from (Row("mlp.dense_h_to_4h"), Row("mlp.dense_4h_to_h"))


def _bloom_outer(d: Dimensions) -> Iterator[Row]:
    yield from _falcon_outer(d)
    yield Row("transformer.word_embeddings_layernorm")


def _neox(d: Dimensions) -> Iterator[Row]:
    yield from (Row("input_layernorm"), Row("post_attention_layernorm"))
    yield Row("attention.query_key_value", layout=_per_head(d))
    yield Row("attention.dense")
    yield from (Row("mlp.dense_h_to_4h"), Row("mlp.dense_4h_to_h"))


def _neox_outer(_: Dimensions) -> Iterator[Row]:
    yield from (Row("gpt_neox.embed_in"), Row("gpt_neox.final_layer_norm"), Row("embed_out"))


def _mpt(_: Dimensions) -> Iterator[Row]:
    yield from (Row("norm_1"), Row("norm_2"), Row("attn.Wqkv"), Row("attn.out_proj"))
    yield from (Row("ffn.up_proj"), Row("ffn.down_proj"))


def _mpt_outer(_: Dimensions) -> Iterator[Row]:
    yield from (Row("transformer.wte"), Row("transformer.norm_f"), Row("lm_head"))


H, WTE, WORDS = "transformer.h.{}.", "transformer.wte.weight", "transformer.word_embeddings.weight"
FAMILIES = (
    Family("gpt2", ("gpt2",), _gpt2(turned=True), _gpt2_outer, H, WTE),
    Family("starcoder", ("gpt_bigcode",), _gpt2(turned=False), _gpt2_outer, H, WTE),
    Family("falcon", ("falcon",), _falcon, _falcon_outer, H, WORDS),
    Family("bloom", ("bloom",), _bloom, _bloom_outer, H, WORDS),
    Family("gptneox", ("gpt_neox",), _neox, _neox_outer, "gpt_neox.layers.{}.",
           "gpt_neox.embed_in.weight", "embed_out.weight"),
    Family("mpt", ("mpt",), _mpt, _mpt_outer, "transformer.blocks.{}.", WTE),
)  # fmt: skip
