"""Qwen3-Next and Qwen3.5: linear attention (gated delta rule) between full attention.

llama.cpp repeats key heads in tiles where Hugging Face repeats each one in place, so the value
heads of Qwen3.5, grouped by key head, are stored with the place in the group first.
"""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.architectures.gguf.dimensions import Dimensions
from adaptool.architectures.gguf.families.qwen import shared, sparse
from adaptool.architectures.gguf.table import (
    Family,
    Row,
    attention,
    bare,
    convolution,
    decoder,
    feed_forward,
    head_norms,
    lay,
    norms,
    stretch,
)
from adaptool.canonical.arrangement import Regroup


def _full_attention() -> Iterator[Row]:
    yield from attention()
    yield from head_norms(shift=1)


def _linear_next(d: Dimensions) -> Iterator[Row]:
    """Queries, keys, values and gates of each key head, told one head after the other."""
    yield from (Row("linear_attn.norm"), Row("linear_attn.out_proj"))
    yield convolution("linear_attn.conv1d")
    yield from (Row("linear_attn.in_proj_ba"), *_decay(None))
    keys, group = d.linear_key_heads, d.linear_value_heads // d.linear_key_heads
    key, value = d.linear_key_dim, group * d.linear_value_dim
    row, start, name = 0, 0, "linear_attn.in_proj_qkvz"
    for size in (key, key, value):
        order = stretch((keys, 2 * key + 2 * value, 1), start, start + size)
        yield Row(name, "attn_qkv", lay(rows=(row, row + keys * size), row_order=order))
        row, start = row + keys * size, start + size
    order = stretch((keys, 2 * key + 2 * value, 1), start, start + value)
    yield Row(name, "attn_gate", lay(row_order=order))
    yield Row(name, "ssm_in", instead=True)


def _linear(d: Dimensions) -> Iterator[Row]:
    keys, values, dim = d.linear_key_heads, d.linear_value_heads, d.linear_value_dim
    group = values // keys
    tiles = Regroup((keys, group, dim), (1, 0, 2)) if group > 1 else None
    singles = Regroup((keys, group), (1, 0)) if group > 1 else None
    before = 2 * keys * d.linear_key_dim
    after = before + values * dim
    yield Row("linear_attn.norm")
    for band, order in (((0, before), None), ((before, after), tiles)):
        place = lay(rows=band, part=band, row_order=order)
        yield Row("linear_attn.in_proj_qkv", layout=place)
        yield convolution("linear_attn.conv1d", place)
    yield Row("linear_attn.in_proj_z", layout=lay(row_order=tiles))
    yield Row("linear_attn.in_proj_b", layout=lay(row_order=singles))
    yield Row("linear_attn.in_proj_a", layout=lay(row_order=singles))
    yield Row("linear_attn.out_proj", layout=lay(col_order=tiles))
    yield from _decay(singles)


def _decay(order: Regroup | None) -> Iterator[Row]:
    yield bare("linear_attn.A_log", "ssm_a", lay(row_order=order), decays=True)
    yield bare("linear_attn.dt_bias", "ssm_dt.bias", lay(row_order=order))


def _qwen3_next(d: Dimensions) -> Iterator[Row]:
    yield from norms(shift=1)
    yield from _full_attention() if d.attends_fully else _linear_next(d)
    yield from sparse(d)
    yield from shared(d)


def _qwen3_5(d: Dimensions) -> Iterator[Row]:
    yield from norms(shift=1)
    yield from _full_attention() if d.attends_fully else _linear(d)
    yield from feed_forward()


def _qwen3_5_moe(d: Dimensions) -> Iterator[Row]:
    yield from norms(shift=1)
    yield from _full_attention() if d.attends_fully else _linear(d)
    yield from sparse(d)
    yield from shared(d)


OUTER = decoder(shift=1)
FAMILIES = (
    Family("qwen3next", ("qwen3_next",), _qwen3_next, OUTER, gated=True),
    Family("qwen35", ("qwen3_5_text", "qwen3_5"), _qwen3_5, OUTER, gated=True),
    Family("qwen35moe", ("qwen3_5_moe_text", "qwen3_5_moe"), _qwen3_5_moe, OUTER, gated=True),
)
