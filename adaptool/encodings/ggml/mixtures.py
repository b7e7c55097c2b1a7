"""Which type each tensor of a model gets when a user names one type for all of it.

A mixture such as Q4_K_M gives the tensors that suffer most, and cost least, more bits than the
rest. The choices are those of llama.cpp v0.5 (llama-quant.cpp), so that a file made here has the
tensor types, and nearly the size, of one made there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from adaptool.encodings.ggml.types import NAMED
from adaptool.errors import IncompatibleError, UsageError


@dataclass(frozen=True, slots=True)
class _Model:
    """What the rules ask about a model."""

    architecture: str
    heads_per_kv_head: int
    experts: int
    layers: int
    has_importance: bool


@dataclass(frozen=True, slots=True)
class _Spot:
    """One tensor among those of its kind: number `index` of `count`."""

    index: int
    count: int
    model: _Model


Rule = Callable[[_Spot], str | None]
"""The type at a spot, or None for the mixture's base."""


# -- rules -----------------------------------------------------------------------------------------


def _always(kind: str) -> Rule:
    return lambda _: kind


def _at_first(number: int, kind: str, rest: str | None = None) -> Rule:
    return lambda spot: kind if spot.index < number else rest


def _in_first_share(parts: int, kind: str, rest: str | None = None) -> Rule:
    return lambda spot: kind if spot.index < spot.count // parts else rest


def _at_ends_and_every_third(kind: str) -> Rule:
    return lambda spot: kind if _matters_more(spot) else None


def _matters_more(spot: _Spot) -> bool:
    """The first and the last eighth, and every third between them."""
    eighth = spot.count // 8
    return (
        spot.index < eighth
        or spot.index >= 7 * spot.count // 8
        or (spot.index - eighth) % 3 == 2
    )  # fmt: skip


def _if_grouped(kind: str, rest: str | None = None) -> Rule:
    """Four or more heads share each key and value: their matrix is small."""
    return lambda spot: kind if spot.model.heads_per_kv_head >= 4 else rest


def _if_importance(given: bool, rule: Rule) -> Rule:
    return lambda spot: rule(spot) if spot.model.has_importance == given else None


def _if_falcon(falcon: Rule, others: Rule) -> Rule:
    return lambda spot: (falcon if spot.model.architecture == "falcon" else others)(spot)


def _first_of(*rules: Rule) -> Rule:
    return lambda spot: next((kind for rule in rules if (kind := rule(spot))), None)


# -- mixtures --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mixture:
    """What a user's word stands for.

    Attributes:
        base: the type of every tensor that no rule speaks of.
        file_type: general.file_type (enum llama_ftype).
        rules: by kind of tensor: "value", "down", "out", "embedding".
        dense_out: with eight experts the attention's output gets Q5_K instead of its rule.
    """

    base: str
    file_type: int
    rules: Mapping[str, Rule] = field(default_factory=dict)
    dense_out: bool = False


_MORE = _at_ends_and_every_third
_NONE = _always("")
_IQ4 = {
    "value": _if_grouped("Q5_K"),
    "down": _if_importance(False, _in_first_share(8, "Q5_K")),
}  # fmt: skip
_TERNARY = {"embedding": _always("Q4_K")}

_MIXTURES = {
    "f32": _Mixture("F32", 0),
    "f16": _Mixture("F16", 1),
    "bf16": _Mixture("BF16", 32),
    "q8_0": _Mixture("Q8_0", 7),
    "q4_0": _Mixture("Q4_0", 2, {"down": _if_importance(True, _in_first_share(8, "Q4_1"))}),
    "q4_1": _Mixture("Q4_1", 3),
    "q5_0": _Mixture("Q5_0", 8, {"down": _if_importance(True, _in_first_share(8, "Q5_1"))}),
    "q5_1": _Mixture("Q5_1", 9),
    "q2_k": _Mixture("Q2_K", 10, {
        "value": _if_grouped("Q4_K", "Q3_K"),
        "down": _always("Q3_K"),
        "out": _if_falcon(_NONE, _always("Q3_K")),
    }, dense_out=True),
    "q2_k_s": _Mixture("Q2_K", 21, {
        "value": _if_grouped("Q4_K"),
        "down": _in_first_share(8, "Q4_K"),
    }),
    "q3_k_s": _Mixture("Q3_K", 11, dense_out=True),
    "q3_k_m": _Mixture("Q3_K", 12, {
        "value": _at_first(2, "Q5_K", "Q4_K"),
        "down": _first_of(
            _in_first_share(16, "Q5_K"), _if_falcon(_MORE("Q4_K"), _always("Q4_K")),
        ),
        "out": _if_falcon(_NONE, _always("Q4_K")),
    }, dense_out=True),
    "q3_k_l": _Mixture("Q3_K", 13, {
        "value": _always("Q5_K"),
        "down": _if_falcon(_always("Q4_K"), _always("Q5_K")),
        "out": _if_falcon(_always("Q4_K"), _always("Q5_K")),
    }),
    "q4_k_s": _Mixture("Q4_K", 14, {
        "value": _at_first(4, "Q5_K"),
        "down": _if_falcon(_NONE, _in_first_share(8, "Q5_K")),
    }, dense_out=True),
    "q4_k_m": _Mixture("Q4_K", 15, {
        "value": _MORE("Q6_K"),
        "down": _if_falcon(
            _first_of(_in_first_share(16, "Q6_K"), _MORE("Q5_K")), _MORE("Q6_K"),
        ),
    }, dense_out=True),
    "q5_k_s": _Mixture("Q5_K", 16),
    "q5_k_m": _Mixture("Q5_K", 17, {"value": _MORE("Q6_K"), "down": _MORE("Q6_K")}),
    "q6_k": _Mixture("Q6_K", 18),
    "iq4_nl": _Mixture("IQ4_NL", 25, _IQ4, dense_out=True),
    "iq4_xs": _Mixture("IQ4_XS", 30, _IQ4, dense_out=True),
    "mxfp4_moe": _Mixture("MXFP4", 38),
    "tq1_0": _Mixture("TQ1_0", 36, _TERNARY),
    "tq2_0": _Mixture("TQ2_0", 37, _TERNARY),
}  # fmt: skip

OUTTYPES = tuple(_MIXTURES)
"""The words that a user may give."""

_SEVENTY_BILLION = {"llama", "qwen2", "deci", "olmoe"}
"""Architectures whose models of 80 layers llama.cpp takes for one of 70 billion parameters."""


# -- tensors ---------------------------------------------------------------------------------------

_WHOLE = re.compile(
    r"_norm\.weight$|ffn_gate_inp\.weight|ffn_gate_inp_shexp\.weight"
    r"|^position_embd\.weight|^token_types\.weight|ssm_conv1d|shortconv\.conv\.weight"
    r"|time_mix_(first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight"
    r"|attn_rel_b\.weight|indexer\.[kq]_proj|altup_(correct|predict)_coef"
    r"|\.position_embd|sam\.pos_embd|sam\.neck\.|sam\.net_|\.rel_pos|\.patch_embd|\.patch_merger"
)
"""Tensors that ggml computes with in full precision, or that are too small to be worth less."""
_HALF = re.compile(r"altup|laurel|per_layer_model_proj")
"""Tensors that are never in blocks."""

_KINDS = (
    ("value", re.compile(r"attn_(qkv|kv_b|v)\.weight")),
    ("key", re.compile(r"attn_k\.weight")),
    ("out", re.compile(r"attn_output\.weight")),
    ("down", re.compile(r"ffn_down")),
)
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")

_NARROWER = {
    "IQ4_XS": "IQ4_NL", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
"""What a row gets that does not divide into blocks of 256."""


def file_type(outtype: str) -> int:
    """The number of a mixture for `general.file_type`.

    Raises UsageError for a word that is none of OUTTYPES.
    """
    return _find_mixture(outtype).file_type


def choose_types(
    tensors: Mapping[str, tuple[int, ...]],
    outtype: str,
    *,
    architecture: str,
    heads: int,
    kv_heads: int,
    experts: int,
    layers: int,
    has_importance: bool,
) -> dict[str, str]:
    """The type of every tensor.

    Args:
        tensors: shapes by GGUF name, slowest dimension first, as numpy has them.
        outtype: one of OUTTYPES.
        architecture: `general.architecture`.
        heads: attention heads of the first layer.
        kv_heads: heads of its keys and values.
        experts: experts of a layer; 0 for a dense model.
        layers: `<architecture>.block_count`.
        has_importance: whether an importance matrix guides the searches.

    Raises:
        UsageError: no such outtype.
        IncompatibleError: the outtype is of no use without an importance matrix.
    """
    mixture = _find_mixture(outtype)
    ratio = heads // kv_heads if kv_heads else 0
    model = _Model(architecture, ratio, experts, layers, has_importance)
    chosen = {}
    spots = _Spots(tensors, model)
    for name in sorted(tensors, key=_by_layer):
        shape = tensors[name]
        if len(shape) < 2 or not name.endswith("weight") or _WHOLE.search(name):
            chosen[name] = "F32"
        elif NAMED[mixture.base].block == 1:
            chosen[name] = mixture.base
        elif _HALF.search(name):
            chosen[name] = "BF16"
        else:
            chosen[name] = _fit_width(_choose(name, shape, outtype, spots), shape[-1])
    if outtype == "q2_k_s" and not has_importance:
        _refuse_without_importance(chosen)
    return {name: chosen[name] for name in tensors}


def _refuse_without_importance(chosen: Mapping[str, str]) -> None:
    coarse = [name for name, kind in chosen.items() if kind == "Q2_K" and name not in _EMBEDDINGS]
    if coarse:
        raise IncompatibleError(
            f"q2_k_s leaves too little of {coarse[0]} and {len(coarse) - 1} more tensors without "
            "an importance matrix",
            hint="Give one, or choose q2_k.",
            code="IMPORTANCE_NEEDED",
        )


def _find_mixture(outtype: str) -> _Mixture:
    if outtype not in _MIXTURES:
        raise UsageError(f"{outtype!r} is no type of a GGUF model", code="OUTTYPE_UNKNOWN",
                         hint=f"One of {', '.join(OUTTYPES)}.")  # fmt: skip
    return _MIXTURES[outtype]


_LAYER = re.compile(r"blk\.(\d+)\.")


def _by_layer(name: str) -> tuple[int, str]:
    found = _LAYER.match(name)
    return (int(found[1]) if found else -1), name


class _Spots:
    """Counts the tensors of a kind while they go by, layer after layer."""

    def __init__(self, names: Mapping[str, object], model: _Model) -> None:
        self.model = model
        self.tied = "output.weight" not in names
        self._values = sum(1 for name in names if _kind_of(name) == "value")
        self._seen = {"value": 0, "down": 0}

    def next_of(self, kind: str, name: str) -> _Spot:
        """Where the next tensor of that kind is among its kin."""
        index = self._seen.get(kind, 0)
        self._seen[kind] = index + 1
        if kind == "value":
            return _Spot(index, self._values, self.model)
        if self.model.experts > 1:  # a layer may hold several: count layers
            index = _by_layer(name)[0]
        return _Spot(index, self.model.layers, self.model)


def _kind_of(name: str) -> str | None:
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), None)


def _choose(name: str, shape: tuple[int, ...], outtype: str, spots: _Spots) -> str:
    mixture, model = _MIXTURES[outtype], spots.model
    embedding = name in _EMBEDDINGS
    if name == "output.weight" or (embedding and spots.tied):
        return _choose_output(mixture, shape[-1], model)
    if mixture.base == "MXFP4":
        return "MXFP4" if len(shape) > 2 and shape[0] > 1 else "Q8_0"
    kind = "embedding" if embedding else _kind_of(name)
    if kind is None:
        return mixture.base
    rule = mixture.rules.get(kind, _NONE)
    found = rule(spots.next_of(kind, name)) or mixture.base
    return _correct(kind, found, mixture, model)


def _correct(kind: str, found: str, mixture: _Mixture, model: _Model) -> str:
    """What models with eight experts or eighty layers get whatever the mixture says."""
    if model.experts == 8 and kind in ("value", "key"):
        return "Q8_0"
    if model.experts == 8 and kind == "out" and model.architecture != "falcon":
        return "Q5_K" if mixture.dense_out else mixture.base
    large = model.layers == 80 and model.architecture in _SEVENTY_BILLION
    if large and kind == "value" and found in ("Q3_K", "Q4_K"):
        return "Q5_K"
    return found


def _choose_output(mixture: _Mixture, width: int, model: _Model) -> str:
    if mixture.base in ("Q8_0", "MXFP4") or model.architecture == "falcon":
        return "Q8_0"
    return "Q8_0" if width % NAMED[mixture.base].block else "Q6_K"


def _fit_width(kind: str, width: int) -> str:
    if width % NAMED[kind].block:
        kind = _NARROWER.get(kind, "F16")
    return "F16" if width % NAMED[kind].block else kind
