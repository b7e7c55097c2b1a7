"""Key-values: those of llama.cpp's own converter, and refusals where its graph is another model's.

`hyperparameters.json` has, for models of many kinds, the config.json that transformers 5 writes and
the key-values that llama.cpp's converter (of llama-cpp-python 0.3.36) makes of it; what it
could not read of transformers 5 (gpt2's n_ctx, rotary_pct, falcon's one key-value head) was told to
it.  Left out are the context lengths of Falcon and BLOOM, for which it writes constants.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptool.architectures.gguf import layout_of
from adaptool.conversion.families import FAMILIES
from adaptool.conversion.hyperparameters import Hyperparameters, read_hyperparameters
from adaptool.conversion.settings import settings
from adaptool.errors import CorruptInputError, IncompatibleError, ResourceLimitError

from .made import CONFIG

GOLDEN = json.loads(Path(__file__).with_name("hyperparameters.json").read_text())


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "long_factor": [1.0] * 8, "short_factor": [1.0] * 8,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def read(config: dict[str, Any]) -> Hyperparameters:
    return read_hyperparameters(config, layout_of(config).architecture, config["vocab_size"])


def plain(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value.plain() for key, value in read(config).values.items()}


@pytest.mark.parametrize("name", GOLDEN)
def test_as_llama_cpp_s_converter(name: str) -> None:
    values = plain(GOLDEN[name]["config"])
    for key, expected in GOLDEN[name]["expected"].items():
        near = pytest.approx(expected, rel=1e-6) if isinstance(expected, float) else expected
        assert values[key] == near, key


@pytest.mark.parametrize("name", GOLDEN)
def test_in_the_words_of_transformers_4(name: str) -> None:
    """The same model, as the previous major version would have stated it."""
    config = GOLDEN[name]["config"]
    old, new = plain(as_version_4(config)), plain(config)
    local = f"{layout_of(config).architecture}.rope.freq_base_swa"
    if local not in old and local in new:  # version 4 stated one base, for both kinds of layers
        assert new.pop(local) == new[local.removesuffix("_swa")]
    assert old == new


def as_version_4(config: dict[str, Any]) -> dict[str, Any]:
    old = dict(config)
    stated = old.pop("rope_parameters", None)
    if stated is None:
        return old
    if "full_attention" in stated:
        sliding = stated.get("sliding_attention", {})
        if old["model_type"] == "gemma3_text":
            old["rope_local_base_freq"] = sliding["rope_theta"]
        stated = stated["full_attention"]
    stated = dict(stated)
    old["rope_theta"] = stated.pop("rope_theta")
    part = stated.pop("partial_rotary_factor", None)
    if part is not None:
        old["rotary_pct" if old["model_type"] == "gpt_neox" else "partial_rotary_factor"] = part
    if stated["rope_type"] != "default":
        stated["type"] = stated.pop("rope_type")
        old["rope_scaling"] = stated
    return old


def test_every_family_is_covered() -> None:
    covered = {layout_of(entry["config"]).architecture for entry in GOLDEN.values()}
    assert covered == set(FAMILIES)


def test_defaults_are_those_of_transformers() -> None:
    from transformers import Gemma3TextConfig  # noqa: TID251

    known = Gemma3TextConfig().to_dict()
    filled = settings({"model_type": "gemma3_text"}).values
    assert {name: known[name] for name in filled} == dict(filled)


# -- rotary embeddings ----------------------------------------------------------------------------


def test_llama3_factors_are_those_of_transformers() -> None:
    from transformers import LlamaConfig  # noqa: TID251
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: TID251

    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = {**CONFIG, "vocab_size": 16, "head_dim": 128, "rope_parameters": rope}
    factors = read(config).tensors["rope_freqs.weight"]
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**config), torch.device("cpu"))
    plain_ones = 500000.0 ** -(torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    assert factors.dtype == torch.float32
    assert torch.allclose(plain_ones / factors.double(), scaled.double(), rtol=1e-6)
    assert factors[0] == 1
    assert factors[-1] == 8


def test_longrope_factors_are_carried() -> None:
    entry = GOLDEN["phi3-long"]["config"]
    found = read(entry).tensors
    for name in ("long", "short"):
        expected = torch.tensor(entry["rope_parameters"][f"{name}_factor"])
        assert torch.equal(found[f"rope_factors_{name}.weight"], expected)


def test_longrope_factors_of_another_length() -> None:
    entry = json.loads(json.dumps(GOLDEN["phi3-long"]["config"]))
    entry["rope_parameters"]["long_factor"].append(1.0)
    with pytest.raises(IncompatibleError, match="long_factor has 9"):
        read(entry)


# -- what llama.cpp would compute differently -----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("llama", {"hidden_act": "gelu"}, "activation gelu"),
        ("gemma2", {"hidden_activation": "silu"}, "activation silu"),
        ("gemma2", {"query_pre_attn_scalar": 20}, "query_pre_attn_scalar = 20"),
        ("gemma3", {"query_pre_attn_scalar": 20}, "query_pre_attn_scalar = 20"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("qwen3-moe", {"norm_topk_prob": False}, "norm_topk_prob = False"),
        ("qwen3-moe", {"mlp_only_layers": [1]}, "mlp_only_layers"),
        ("qwen3-moe", {"decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
        ("qwen2-moe", {"norm_topk_prob": True}, "norm_topk_prob = True"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window = True"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1, 1]}, "no_rope_layers"),
        ("falcon", {"alibi": True}, "alibi = True"),
        ("falcon", {"parallel_attn": False}, "parallel_attn = False"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("cohere", {"use_qk_norm": True}, "use_qk_norm"),
        ("olmoe", {"num_key_value_heads": 2}, "num_key_value_heads = 2"),
        ("qwen2", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "llama3"),
        ("llama", {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "spiral"),
        ("deepseek2", {"q_lora_rank": None}, "q_lora_rank"),
    ],
)
def test_refused(name: str, change: dict[str, Any], what: str) -> None:
    with pytest.raises(IncompatibleError, match=what):
        read({**GOLDEN[name]["config"], **change})


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"hidden_size": "wide"}, CorruptInputError),
        ({"hidden_size": -1}, CorruptInputError),
        ({"hidden_size": True}, CorruptInputError),
        ({"hidden_size": 1 << 40}, CorruptInputError),
        ({"hidden_size": 0}, IncompatibleError),
        ({"num_attention_heads": 0}, IncompatibleError),
        ({"rms_norm_eps": "small"}, CorruptInputError),
        ({"rms_norm_eps": None}, IncompatibleError),
        ({"rope_parameters": [1]}, CorruptInputError),
        ({"max_position_embeddings": None}, IncompatibleError),
        ({"rms_norm_eps": 1e300}, CorruptInputError),
        ({"num_hidden_layers": 1 << 30}, ResourceLimitError),
        ({"head_dim": 1 << 30}, ResourceLimitError),
        ({"rope_theta": 0.0, "rope_parameters": None}, CorruptInputError),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, CorruptInputError),
        ({"rope_parameters": {**LLAMA3, "factor": 0}}, CorruptInputError),
        ({"rope_parameters": {**LLAMA3, "high_freq_factor": -1}}, CorruptInputError),
        ({"rope_parameters": {**LONG, "original_max_position_embeddings": 1}}, CorruptInputError),
        ({"rope_parameters": {**LONG, "long_factor": ["1"]}}, CorruptInputError),
        ({"rope_parameters": {**LONG, "long_factor": None}}, IncompatibleError),
    ],
)
def test_broken_settings(change: dict[str, Any], error: type[Exception]) -> None:
    config = {**CONFIG, "vocab_size": 16, **change}
    with pytest.raises(error):
        read_hyperparameters(config, "llama", 16)


def test_an_unknown_architecture() -> None:
    with pytest.raises(IncompatibleError, match="mamba") as caught:
        read_hyperparameters(CONFIG, "mamba", 16)
    assert "llama, qwen2" in str(caught.value.hint)
