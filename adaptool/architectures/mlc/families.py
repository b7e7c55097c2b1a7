"""The families whose layout is known: what MLC's parameters are called, and made of.

Source of names and order: the loaders of mlc_llm (python/mlc_llm/model/*/*_loader.py), which lay
q, k, v and gate, up one below another and add 1 to the norms of Gemma.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Head(Enum):
    """Whose weight makes the logits."""

    STATED = "its own, or the embedding's where tie_word_embeddings says so"
    OWN = "always its own, be it a copy"
    EMBEDDING = "always the embedding's"


@dataclass(frozen=True)
class Module:
    """A module of MLC's model.

    Attributes:
        name: as MLC calls it, with `{}` for the number of the layer.
        parts: the Hugging Face modules that lie in it one below another.
        size: which of the model's sizes its weight has, a key of `Shape.sizes`.
        bias: where it has one: never, always, or where attention_bias says so.
        shift: what is added to the weight.
    """

    name: str
    parts: tuple[str, ...]
    size: str
    bias: bool | None = False
    shift: float = 0.0


@dataclass(frozen=True)
class Family:
    """How one architecture is laid out.

    Attributes:
        model_type: in config.json, and in mlc-chat-config.json.
        layer: the modules of every layer.
        embedding, norm: the modules before and after the layers.
        head: whose weight makes the logits.
    """

    model_type: str
    layer: tuple[Module, ...]
    embedding: Module
    norm: Module
    head: Head = Head.STATED


EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"
_LAYER = "model.layers.{}."


def _same(name: str, size: str, *, shift: float = 0.0, bias: bool | None = False) -> Module:
    return Module(_LAYER + name, (_LAYER + name,), size, bias, shift)


def _fused(name: str, parts: tuple[str, ...], size: str, bias: bool | None = False) -> Module:
    return Module(_LAYER + name, tuple(_LAYER + part for part in parts), size, bias)


def _renamed(name: str, part: str, size: str) -> Module:
    return Module("transformer.h.{}." + name, (_LAYER + part,), size)


def _attention(name: str, bias: bool | None = False) -> Module:
    parts = tuple(f"self_attn.{x}_proj" for x in "qkv")
    return _fused(f"self_attn.{name}", parts, "attention", bias)


_GATED = _fused("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj"), "gated")
_DOWN = _same("mlp.down_proj", "down")
_OUT = _same("self_attn.o_proj", "out")
_NORMS = (_same("input_layernorm", "norm"), _same("post_attention_layernorm", "norm"))
_EMBEDDING = Module(EMBEDDING, (EMBEDDING,), "embedding")
_NORM = Module("model.norm", ("model.norm",), "norm")
_NORM_PLUS_1 = Module("model.norm", ("model.norm",), "norm", shift=1.0)
_LLAMA = (_attention("qkv_proj"), _OUT, _GATED, _DOWN, *_NORMS)
_GEMMA_NORMS = ("input_layernorm", "post_attention_layernorm")
_GEMMA2_NORMS = (*_GEMMA_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def _gemma(model_type: str, norms: tuple[str, ...]) -> Family:
    shifted = tuple(_same(name, "norm", shift=1.0) for name in norms)
    layer = (_attention("qkv_proj"), _OUT, _GATED, _DOWN, *shifted)
    return Family(model_type, layer, _EMBEDDING, _NORM_PLUS_1, Head.EMBEDDING)


_FAMILIES = (
    Family("llama", _LLAMA, _EMBEDDING, _NORM),
    Family("mistral", _LLAMA, _EMBEDDING, _NORM, Head.OWN),
    Family(
        "qwen2", (_attention("c_attn", bias=True), _OUT, _GATED, _DOWN, *_NORMS), _EMBEDDING, _NORM
    ),
    Family(
        "qwen3",
        (
            _attention("c_attn", bias=None),
            _same("self_attn.o_proj", "out", bias=None),
            _same("self_attn.q_norm", "head"),
            _same("self_attn.k_norm", "head"),
            _GATED,
            _DOWN,
            *_NORMS,
        ),
        _EMBEDDING,
        _NORM,
    ),
    _gemma("gemma", _GEMMA_NORMS),
    _gemma("gemma2", _GEMMA2_NORMS),
    Family(
        "phi3",
        (
            _renamed("ln", "input_layernorm", "norm"),
            _renamed("mixer.qkv_proj", "self_attn.qkv_proj", "attention"),
            _renamed("mixer.out_proj", "self_attn.o_proj", "out"),
            _renamed("post_attention_layernorm", "post_attention_layernorm", "norm"),
            _renamed("mlp.gate_up_proj", "mlp.gate_up_proj", "gated"),
            _renamed("mlp.down_proj", "mlp.down_proj", "down"),
        ),
        Module("transformer.embd", (EMBEDDING,), "embedding"),
        Module("transformer.norm", ("model.norm",), "norm"),
    ),
)
FAMILIES: Mapping[str, Family] = {family.model_type: family for family in _FAMILIES}
"""model_type -> family."""
