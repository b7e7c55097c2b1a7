"""Rotary position embeddings: what config.json says about them, and what llama.cpp reads.

transformers 4 kept `rope_theta` and `rope_scaling` apart, transformers 5 has `rope_parameters`,
by kind of attention where a model has several.  The scalings are those of
transformers/modeling_rope_utils.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.containers.gguf.values import Value
from adaptool.conversion.settings import Settings
from adaptool.errors import CorruptInputError, IncompatibleError

if TYPE_CHECKING:
    import torch

_THETA = {"mixtral": 1e6, "smollm3": 2e6, "gemma3_text": 1e6}
"""Base of the angles where a configuration is silent; elsewhere 10000."""

_PARTIAL = {"gpt_neox": 0.25, "stablelm": 0.25}
"""Part of a head that rotates where a configuration is silent; elsewhere all of it."""


@dataclass(frozen=True)
class Rope:
    """How positions rotate.

    Attributes:
        theta: base of the angles.
        local: base in layers with a sliding window, or None for the same.
        kind: "default", or how long contexts are reached: linear, dynamic, yarn, longrope, llama3.
        scaling: further parameters of that.
        part: part of every head that rotates.
    """

    theta: float
    local: float | None
    kind: str
    scaling: Settings
    part: float


def read_rope(model: Settings) -> Rope:
    """What the configuration says, in either spelling."""
    stated = model.table("rope_parameters", "rope_scaling")
    full, sliding = stated, Settings({})
    if "full_attention" in stated.values or "sliding_attention" in stated.values:
        full, sliding = stated.table("full_attention"), stated.table("sliding_attention")
    theta = _THETA.get(model.model_type, 10000.0)
    outer = model.positive("rope_theta", "rotary_emb_base", default=theta)
    local = sliding.find("rope_theta") or model.find("rope_local_base_freq")
    if local is None and model.model_type == "gemma3_text":
        local = 10000.0
    kind = full.text("rope_type", "type", default="default").lower()
    part = model.number(
        "partial_rotary_factor", "rotary_pct", "rope_pct",
        default=_PARTIAL.get(model.model_type, 1.0),
    )  # fmt: skip
    return Rope(
        theta=full.positive("rope_theta", default=outer),
        local=Settings({"rope_local_base_freq": local}).number("rope_local_base_freq")
        if local is not None
        else None,
        kind={"su": "longrope"}.get(kind, kind),
        scaling=Settings({**_original_length(model), **full.values}),
        part=full.number("partial_rotary_factor", default=part),
    )


def _original_length(model: Settings) -> dict[str, int]:
    found = model.find("original_max_position_embeddings")
    return {} if found is None else {"original_max_position_embeddings": model.count(
        "original_max_position_embeddings")}  # fmt: skip


def describe_rope(rope: Rope, model: Settings) -> dict[str, Value]:
    """The key-values of a scaling, without the architecture's prefix.

    Raises IncompatibleError for a kind that llama.cpp does not know.
    """
    values = {"rope.freq_base": Value.f32(rope.theta)}
    if rope.local is not None:
        values["rope.freq_base_swa"] = Value.f32(rope.local)
    match rope.kind:
        case "default" | "dynamic" | "llama3":
            # dynamic begins where the trained context ends; llama3 is a tensor of factors
            pass
        case "linear" | "yarn":
            values["rope.scaling.type"] = Value.string(rope.kind)
            values["rope.scaling.factor"] = Value.f32(rope.scaling.positive("factor"))
            if rope.kind == "yarn":
                values |= _describe_yarn(rope.scaling)
        case "longrope":
            values |= _describe_longrope(rope.scaling, model)
        case other:
            raise IncompatibleError(
                f"llama.cpp knows no rotary scaling of the kind {other!r}",
                hint="known: default, dynamic, linear, yarn, longrope, llama3",
                code="UNSUPPORTED_ROPE",
            )
    return values


def _describe_yarn(scaling: Settings) -> dict[str, Value]:
    """Peng et al. 2023, arXiv 2309.00071."""
    length = scaling.count("original_max_position_embeddings")
    values = {"rope.scaling.original_context_length": Value.u32(length)}
    for key, names in (
        ("yarn_ext_factor", ("extrapolation_factor",)),
        ("yarn_attn_factor", ("attention_factor", "attn_factor")),
        ("yarn_beta_fast", ("beta_fast",)),
        ("yarn_beta_slow", ("beta_slow",)),
    ):
        if scaling.find(*names) is not None:
            values[f"rope.scaling.{key}"] = Value.f32(scaling.number(*names))
    return values


def _describe_longrope(scaling: Settings, model: Settings) -> dict[str, Value]:
    """Ding et al. 2024, arXiv 2402.13753; the attention factor as in transformers."""
    longest = model.count("max_position_embeddings")
    length = scaling.count("original_max_position_embeddings")
    if length < 2:
        raise CorruptInputError(
            f"config.json: original_max_position_embeddings is {length}, not a length"
        )
    grown = longest / length
    attention = math.sqrt(1 + math.log(grown) / math.log(length)) if grown > 1 else 1.0
    if scaling.find("attention_factor") is not None:
        attention = scaling.number("attention_factor")
    return {
        "rope.scaling.original_context_length": Value.u32(length),
        "rope.scaling.attn_factor": Value.f32(attention),
    }


def frequency_tensors(rope: Rope, dims: int) -> dict[str, torch.Tensor]:
    """What divides the frequencies of a head's `dims` rotating values: float32 [dims / 2].

    llama3 (Llama 3.1: low frequencies are divided by a factor, high ones kept, those between
    blended) and longrope (factors learned for short and for long contexts).
    """
    import torch

    if rope.kind == "llama3":
        return {"rope_freqs.weight": torch.tensor(_llama3_factors(rope, dims))}
    if rope.kind != "longrope":
        return {}
    tensors = {}
    for name in ("long", "short"):
        factors = rope.scaling.numbers(f"{name}_factor")
        if factors is None or len(factors) != dims // 2:
            raise IncompatibleError(
                f"config.json: {name}_factor has {len(factors or ())} numbers, "
                f"but {dims // 2} frequencies rotate",
                code="CONFIG_INCOMPLETE",
            )
        tensors[f"rope_factors_{name}.weight"] = torch.tensor(factors, dtype=torch.float32)
    return tensors


def _llama3_factors(rope: Rope, dims: int) -> list[float]:
    factor = rope.scaling.positive("factor")
    low = rope.scaling.positive("low_freq_factor")
    high = rope.scaling.positive("high_freq_factor")
    length = rope.scaling.count("original_max_position_embeddings")
    factors = []
    for i in range(0, dims, 2):
        wavelength = 2 * math.pi * rope.theta ** (i / dims)
        if wavelength < length / high:
            factors.append(1.0)
        elif wavelength >= length / low:
            factors.append(factor)
        else:
            kept = (length / wavelength - low) / (high - low)
            factors.append(1 / ((1 - kept) / factor + kept))
    return factors
