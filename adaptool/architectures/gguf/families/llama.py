"""Llama and those who build like it: rotary order for queries and keys, experts of Mixtral."""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.architectures.gguf.dimensions import Dimensions
from adaptool.architectures.gguf.table import (
    STACKS,
    Family,
    Row,
    attention,
    bare,
    convolution,
    experts,
    feed_forward,
    lay,
    norms,
    stacked_experts,
)

W = ("w1", "w3", "w2")
"""Mixtral's names of gate, up and down."""


def _llama(d: Dimensions) -> Iterator[Row]:
    yield from norms()
    yield from attention(d)
    if d.experts:
        yield Row("block_sparse_moe.gate", "ffn_gate_inp")
        yield from experts(d, W, "block_sparse_moe")
    else:
        yield from feed_forward()


def _relu(d: Dimensions) -> Iterator[Row]:
    yield from norms()
    yield from attention(d)
    yield from feed_forward("up_proj", "down_proj")


def _granite_moe(d: Dimensions) -> Iterator[Row]:
    """Gate and up are one stacked matrix, `input_linear`; the router is a module of a module."""
    yield from norms()
    yield from attention(d)
    gate, up, down = STACKS
    half = d.expert_feed_forward
    for e in range(d.experts):
        yield _granite("input_linear", gate, e, (0, half))
        yield _granite("input_linear", up, e, (half, 2 * half))
        yield _granite("output_linear", down, e)
    yield from stacked_experts(d, "mlp.experts", ("gate_up_proj", "down_proj"), alias=True)
    if d.experts:
        yield Row("block_sparse_moe.router.layer")
        yield Row("block_sparse_moe.router", "ffn_gate_inp", alias=True)
    shared, kind = d.shared_feed_forward, "_shexp" if d.experts else ""
    if shared:
        yield Row("shared_mlp.input_linear", f"ffn_gate{kind}", lay(part=(0, shared)))
        yield Row("shared_mlp.input_linear", f"ffn_up{kind}", lay(part=(shared, 2 * shared)))
        yield Row("shared_mlp.output_linear", f"ffn_down{kind}")


def _granite(name: str, to: str, e: int, part: tuple[int, int] | None = None) -> Row:
    name = f"block_sparse_moe.{name}.weight"
    return bare(name, f"{to}.weight", lay(slot=e, expert=e, part=part))


def _granite_hybrid(d: Dimensions) -> Iterator[Row]:
    """Some blocks attend, most are Mamba-2."""
    yield from _granite_moe(d)
    yield from (Row("mamba.in_proj"), convolution("mamba.conv1d"), Row("mamba.out_proj"))
    yield Row("mamba.norm", shape=(d.state_groups, -1))
    yield bare("mamba.A_log", "ssm_a", decays=True, shape=(0, 1))
    yield from (bare("mamba.D", "ssm_d", shape=(0, 1)), bare("mamba.dt_bias", "ssm_dt.bias"))


FAMILIES = (
    Family("llama", ("llama", "mistral", "mixtral", "internlm3"), _llama),
    Family("mistral3", ("ministral3", "mistral3"), _llama),
    Family("smollm3", ("smollm3",), _llama),
    Family("granite", ("granite",), _llama),
    Family("granitemoe", ("granitemoe", "granitemoeshared"), _granite_moe),
    Family("granitehybrid", ("granitemoehybrid",), _granite_hybrid),
    Family("minicpm", ("minicpm",), _llama),
    Family("arcee", ("arcee",), _relu),
)
