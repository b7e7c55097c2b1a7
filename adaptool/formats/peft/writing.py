"""Canonical updates as a folder that PEFT loads; factors stay exact.

What the config has to say follows from the updates, so it is the same whatever format the
adapter was read from: the most common rank and alpha as defaults, the rest as patterns.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path

from adaptool.canonical import (
    Adapter,
    Addition,
    Dora,
    DType,
    ExpertLowRank,
    LazyTensor,
    LowRank,
    Rebased,
    Replacement,
    Site,
    TokenRows,
    Update,
)
from adaptool.containers import SaveOptions
from adaptool.containers.safetensors import save_file, size_of_file
from adaptool.errors import JSON, IncompatibleError
from adaptool.formats import WriteOptions, Written
from adaptool.formats.peft.card import card
from adaptool.formats.peft.factors import folded_b, times
from adaptool.formats.peft.files import CONFIG, WEIGHTS
from adaptool.formats.peft.keys import PREFIX
from adaptool.formats.peft.rewriting import is_tuned, tuned_tensors, unwritable
from adaptool.formats.peft.settings import LORA
from adaptool.records import RECORD, described, record

_FREE_KEYS = (
    "task_type", "auto_mapping", "revision", "inference_mode", "peft_version", "lora_dropout",
    "modules_to_save", "target_modules", "target_parameters", "exclude_modules", "bias",
    "fan_in_fan_out", "layers_to_transform", "layers_pattern", "layer_replication",
    "trainable_token_indices", "ensure_weight_tying", "alora_invocation_tokens", "lora_bias",
)  # fmt: skip
"""Keys that are carried over from a config that was read, since no update states them."""


@dataclass
class _Draft:
    """What the updates say, collected."""

    tensors: dict[str, LazyTensor]
    ranks: dict[str, int]
    alphas: dict[str, float]
    targets: set[str]
    parameters: set[str]
    saved: set[str]
    tokens: dict[str, JSON]
    bias_scalings: dict[str, float] = field(default_factory=dict)
    dora: bool = False
    lora_bias: bool = False
    biases: bool = False


def plan(adapter: Adapter, path: Path, options: WriteOptions) -> Written:
    """What `write` would write."""
    tensors, small = compose(adapter, options)
    size = size_of_file(tensors, {"format": "pt"}) + sum(map(len, small.values()))
    return Written(path, size, (WEIGHTS, *small))


def write(adapter: Adapter, path: Path, options: WriteOptions) -> Written:
    """Write config, weights and card to the folder `path`.

    Raises:
        StorageError: see `adaptool.storage.Staging`.
    """
    tensors, small = compose(adapter, options)
    save = SaveOptions(force=options.force, inputs=options.inputs)
    saved = save_file(path, WEIGHTS, tensors, {"format": "pt"}, small, save)
    return Written(path, saved.nbytes, (WEIGHTS, *small), saved.stale)


def compose(
    adapter: Adapter, options: WriteOptions
) -> tuple[dict[str, LazyTensor], dict[str, bytes]]:
    """The tensors by PEFT's names, and the content of the small files beside them."""
    dtype = options.dtype
    if adapter.unmergeable and not adapter.updates:
        tensors = {k: _cast(v, dtype) for k, v in adapter.extras.items()}
        config = dict(adapter.config)
    elif is_tuned(adapter):
        tensors = {k: _cast(v, dtype) for k, v in sorted(tuned_tensors(adapter).items())}
        config = dict(adapter.config)
    else:
        draft = _draft(adapter)
        tensors = {k: _cast(v, dtype) for k, v in sorted(draft.tensors.items())}
        config = _config(adapter, draft)
    small = {
        CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        "README.md": card(adapter).encode(),
        RECORD: record(options.operation, [described(adapter.provenance)]),
    }
    return tensors, small


def _cast(tensor: LazyTensor, dtype: DType | None) -> LazyTensor:
    return tensor.cast(dtype) if dtype is not None and tensor.dtype.is_floating else tensor


def _draft(adapter: Adapter) -> _Draft:
    draft = _Draft({}, {}, {}, set(), set(), set(), {})
    replicated = _wrapper_depths(adapter)
    for site, update in adapter.updates.items():
        kinds = type(update).__mro__
        write_one = next((_WRITERS[kind] for kind in kinds if kind in _WRITERS), None)
        if write_one is None:
            raise unwritable(site, update, LORA)
        write_one(draft, site, update, replicated.get(site, 0))
    _match_biases(draft)
    _wrap_biases(draft)
    return draft


def _wrap_biases(draft: _Draft) -> None:
    """A layer with factors is a wrapper: its own bias stands one step further down."""
    for module in draft.targets:
        plain, wrapped = (f"{PREFIX}{module}{step}.bias" for step in ("", ".base_layer"))
        if plain in draft.tensors:
            draft.tensors[wrapped] = draft.tensors.pop(plain)


def _match_biases(draft: _Draft) -> None:
    """Trained biases at the strength of their modules, which is the one that PEFT applies."""
    for module, scaling in draft.bias_scalings.items():
        rank = draft.ranks.get(module, 1)
        stated = draft.alphas.get(module, rank) / rank
        if stated and scaling != stated:
            key = f"{PREFIX}{module}.lora_B.bias"
            draft.tensors[key] = times(draft.tensors[key], scaling / stated)


def _wrapper_depths(adapter: Adapter) -> dict[Site, int]:
    """How many `base_layer` steps a stacked parameter's factors stand behind (first: most)."""
    stacks: dict[str, list[Site]] = {}
    for site, update in adapter.updates.items():
        if isinstance(update, ExpertLowRank):
            stacks.setdefault(site.module, []).append(site)
    depths: dict[Site, int] = {}
    for sites in stacks.values():
        ordered = sorted(sites, key=lambda s: ("gate_up" not in s.parameter, s.parameter))
        depths |= {site: len(ordered) - 1 - i for i, site in enumerate(ordered)}
    return depths


def _write_low_rank(draft: _Draft, site: Site, update: LowRank, depth: int) -> None:
    prefix = PREFIX + site.module
    kernel = len(update.a.shape) - 2
    if update.embedding:
        draft.tensors[f"{prefix}.lora_embedding_A"] = update.a
        draft.tensors[f"{prefix}.lora_embedding_B"] = update.b
    else:
        draft.tensors[f"{prefix}.lora_A.weight"] = update.a
        draft.tensors[f"{prefix}.lora_B.weight"] = update.b.reshaped(*update.b.shape, *[1] * kernel)
    draft.targets.add(site.module)
    draft.ranks[site.module] = update.rank
    draft.alphas[site.module] = update.scaling * update.rank


def _write_dora(draft: _Draft, site: Site, update: Dora, depth: int) -> None:
    _write_low_rank(draft, site, update.direction, depth)
    draft.tensors[f"{PREFIX}{site.module}.lora_magnitude_vector"] = update.magnitude
    draft.dora = True


def _write_experts(draft: _Draft, site: Site, update: ExpertLowRank, depth: int) -> None:
    prefix = PREFIX + site.module + ".base_layer" * depth
    rows = update.experts * update.rank
    draft.tensors[f"{prefix}.lora_A.weight"] = update.a.reshaped(rows, update.shape[2])
    draft.tensors[f"{prefix}.lora_B.weight"] = folded_b(update.b)
    draft.parameters.add(str(site))
    draft.ranks[str(site)] = update.rank
    draft.alphas[str(site)] = update.scaling * update.rank


def _write_replacement(draft: _Draft, site: Site, update: Replacement, depth: int) -> None:
    draft.tensors[f"{PREFIX}{site}"] = update.value
    if site.parameter == "bias":
        draft.biases = True
    else:
        draft.saved.add(site.module)


def _write_addition(draft: _Draft, site: Site, update: Addition, depth: int) -> None:
    if site.parameter != "bias":
        raise IncompatibleError(
            f"{site}: PEFT has no place for a difference of a whole weight",
            hint="merge it into the model: adaptool merge",
            code="NOT_EXPRESSIBLE",
        )
    draft.tensors[f"{PREFIX}{site.module}.lora_B.bias"] = update.value
    draft.bias_scalings[site.module] = update.scaling
    draft.lora_bias = True


def _write_token_rows(draft: _Draft, site: Site, update: TokenRows, depth: int) -> None:
    key = f"{PREFIX}{site.module}.token_adapter.trainable_tokens_delta"
    draft.tensors[key] = update.values
    draft.tokens[site.module.rpartition(".")[2]] = list(update.indices)


def _write_rebased(draft: _Draft, site: Site, update: Rebased, depth: int) -> None:
    inner = update.update
    if isinstance(inner, Dora):
        _write_dora(draft, site, inner, depth)
    elif isinstance(inner, LowRank):
        _write_low_rank(draft, site, inner, depth)
    else:
        raise unwritable(site, inner, LORA)
    draft.tensors[f"{PREFIX}{site.module}.base_layer.weight"] = update.value


_WRITERS: Mapping[type[Update], Callable[..., None]] = {
    LowRank: _write_low_rank,
    Dora: _write_dora,
    ExpertLowRank: _write_experts,
    Replacement: _write_replacement,
    Addition: _write_addition,
    TokenRows: _write_token_rows,
    Rebased: _write_rebased,
}


def _config(adapter: Adapter, draft: _Draft) -> dict[str, JSON]:
    was = adapter.config
    config: dict[str, JSON] = {k: was[k] for k in _FREE_KEYS if was.get(k) is not None}
    rslora = was.get("use_rslora") is True
    rank = Counter(draft.ranks.values()).most_common(1)[0][0] if draft.ranks else 8
    strengths = {m: _alpha(a, draft.ranks[m], rslora) for m, a in draft.alphas.items()}
    alpha = Counter(strengths.values()).most_common(1)[0][0] if strengths else rank
    config |= {
        "peft_type": LORA,
        "base_model_name_or_path": adapter.base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {_exact(m): r for m, r in sorted(draft.ranks.items()) if r != rank},
        "alpha_pattern": {_exact(m): a for m, a in sorted(strengths.items()) if a != alpha},
        "use_rslora": rslora,
        "use_dora": draft.dora,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    config.setdefault("task_type", adapter.task)
    config.setdefault("bias", "none")
    if not config.get("target_modules"):
        config["target_modules"] = [*sorted(draft.targets)] or None
    if draft.parameters and not config.get("target_parameters"):
        config["target_parameters"] = [*sorted(draft.parameters)]
    if draft.saved and not config.get("modules_to_save"):
        config["modules_to_save"] = [*sorted(draft.saved)]
    if draft.tokens and not config.get("trainable_token_indices"):
        config["trainable_token_indices"] = draft.tokens
    if draft.biases and config["bias"] == "none":
        config["bias"] = "all"
    if draft.lora_bias:
        config["lora_bias"] = True
    if adapter.ties_embeddings:
        config["ensure_weight_tying"] = True
    return config


def _alpha(product: float, rank: int, rslora: bool) -> float | int:
    """The alpha that gives scaling * rank = `product`; a whole number stays one."""
    alpha = product / sqrt(rank) if rslora else product
    return round(alpha) if abs(alpha - round(alpha)) < 1e-9 * max(1.0, abs(alpha)) else alpha


def _exact(module: str) -> str:
    """A pattern that matches this module and no other."""
    return "^" + re.escape(module).replace("\\_", "_")
