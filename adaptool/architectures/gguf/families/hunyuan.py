"""Hunyuan: normalised queries and keys; in the large ones experts with a shared layer."""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.architectures.gguf.dimensions import Dimensions
from adaptool.architectures.gguf.table import (
    Family,
    Row,
    attention,
    experts,
    feed_forward,
    norms,
)


def _attentive() -> Iterator[Row]:
    yield from norms()
    yield from attention()
    yield from norms("self_attn.query_layernorm", "self_attn.key_layernorm")


def _dense(_: Dimensions) -> Iterator[Row]:
    yield from _attentive()
    yield from feed_forward()


def _sparse(d: Dimensions) -> Iterator[Row]:
    yield from _attentive()
    yield Row("mlp.gate.wg")
    yield from experts(d)
    yield from feed_forward(module="mlp.shared_mlp")


FAMILIES = (
    Family("hunyuan-dense", ("hunyuan_v1_dense",), _dense),
    Family("hunyuan-moe", ("hunyuan_v1_moe",), _sparse),
)
