"""Weights in MLC's layout: every family, against PEFT's merge and independent formulas."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf  # noqa: TID251
from runtime.models import MODELS, Model, decoder
from safetensors.torch import load_file, save_file
from tvm.contrib import tvmjs

from adaptool.architectures.mlc import model_types
from adaptool.canonical import Checkpoint, DType, LazyTensor, Provenance
from adaptool.containers import open_checkpoint
from adaptool.encodings.mlc import SCHEMES, decoded
from adaptool.errors import IncompatibleError
from adaptool.targets.webllm.hyperparameters import read_hyperparameters
from adaptool.targets.webllm.weights import write_weights

from . import literal
from .exports import chat_config, exported, records, write_adapter, write_model

Tensors = dict[str, torch.Tensor]

FAMILIES: dict[str, Model] = {
    "llama": MODELS["llama"],
    "llama-tied": MODELS["llama-tied"],
    "mistral": MODELS["mistral"],
    "mistral-tied": Model(
        tf.MistralForCausalLM, tf.MistralConfig,
        decoder(sliding_window=None, tie_word_embeddings=True),
    ),
    "qwen2": MODELS["qwen2"],
    "qwen3": MODELS["qwen3"],
    "qwen3-biased": Model(tf.Qwen3ForCausalLM, tf.Qwen3Config, decoder(attention_bias=True)),
    "gemma": MODELS["gemma"],
    "gemma2": MODELS["gemma2"],
    "phi3": MODELS["phi3"],
}  # fmt: skip


def expected(model: str, state: Tensors) -> Tensors:
    """MLC's parameters by MLC's names, spelled out per family, without the package's tables."""
    found: Tensors = {}
    fused = "c_attn" if model.startswith("qwen") else "qkv_proj"
    gemma = model.startswith("gemma")
    for name, tensor in state.items():
        match name.split(".")[-2:]:
            case ["q_proj", _]:
                parts = [state[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
                found[name.replace("q_proj", fused)] = torch.cat(parts)
            case ["gate_proj", _]:
                parts = [tensor, state[name.replace("gate_proj", "up_proj")]]
                found[name.replace("gate_proj", "gate_up_proj")] = torch.cat(parts)
            case ["k_proj" | "v_proj" | "up_proj", _]:
                continue
            case [module, _] if gemma and module.endswith("norm"):
                found[name] = tensor + 1
            case ["lm_head", _] if model in ("llama-tied", "gemma", "gemma2"):
                continue
            case _:
                found[name] = tensor
    if model == "mistral-tied":
        found["lm_head.weight"] = state["model.embed_tokens.weight"]
    if model == "phi3":
        found = {phi3_name(name): tensor for name, tensor in found.items()}
    return found


def phi3_name(name: str) -> str:
    for theirs, ours in (
        ("model.layers", "transformer.h"), ("model.norm", "transformer.norm"),
        ("model.embed_tokens", "transformer.embd"), ("input_layernorm", "ln"),
        ("self_attn.o_proj", "mixer.out_proj"), ("self_attn.qkv_proj", "mixer.qkv_proj"),
    ):  # fmt: skip
        name = name.replace(theirs, ours)
    return name


def decode(web: Any, scheme: str, widths: Tensors) -> Tensors:
    """All parameters of an export as float32, by their plain names."""
    tensors = open_checkpoint(web).tensors
    found = {}
    for name, tensor in tensors.items():
        if name.endswith("q_scale"):
            continue
        if not name.endswith("q_weight"):
            found[name] = tensor.values().float()
            continue
        plain = name.replace("q_weight", "weight")
        scales = tensors[name.replace("q_weight", "q_scale")]
        width = widths[plain].shape[1]
        found[plain] = decoded(SCHEMES[scheme], tensor, scales, width).values()
    return found


def state_of(folder: Any) -> Tensors:
    """A checkpoint's tensors."""
    return load_file(folder / "model.safetensors")


def test_every_family_is_tested():
    assert {name.partition("-")[0] for name in FAMILIES} == set(model_types())


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_plain_weights_are_exact(model, dtype, tmp_path):
    base = write_model(tmp_path / "base", FAMILIES[model], dtype)
    exported(base, tmp_path / "web", "q0f32")
    wanted = expected(model, {k: v.float() for k, v in state_of(base).items()})
    found = decode(tmp_path / "web", "q0f32", wanted)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor.bfloat16().float()), name


@pytest.mark.parametrize("model", FAMILIES)
def test_merged_weights_in_codes(model, tmp_path):
    """Every code and scale is the literal formula's of PEFT's merged weights, rounding aside."""
    family = FAMILIES[model]
    base = write_model(tmp_path / "base", family)
    state = write_adapter(tmp_path / "adapter", base, family.kind)
    for scheme in ("q4f16_1", "q4f32_1", "q3f16_1"):
        web = tmp_path / scheme
        exported(base, web, scheme, tmp_path / "adapter")
        wanted = expected(model, state)
        found = decode(web, scheme, wanted)
        assert found.keys() == wanted.keys()
        top, group = 2 ** (SCHEMES[scheme].bits - 1) - 1, SCHEMES[scheme].group
        for name, tensor in wanted.items():
            error = (found[name].double() - tensor.double()).abs()
            if tensor.ndim == 1:
                assert (error <= tensor.double().abs() * 2.0**-8).all(), name
                continue
            size = tensor.double().abs()
            missing = -size.shape[1] % group
            size = torch.nn.functional.pad(size, (0, missing)).view(size.shape[0], -1, group)
            largest = size.amax(-1).repeat_interleave(group, 1)[:, : tensor.shape[1]]
            # half a step, and what scale and product lose in their own type
            assert (error <= largest * (0.5 / top + 0.01)).all(), name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tvm_reads_the_same(scheme, tmp_path):
    base = write_model(tmp_path / "base", "qwen3")
    exported(base, tmp_path / "web", scheme)
    hub = tmp_path / "web/resolve/main"
    loaded, _ = tvmjs.load_tensor_cache(str(hub), _cpu())
    ours = open_checkpoint(tmp_path / "web").tensors
    assert loaded.keys() == ours.keys()
    wanted = expected("qwen3", state_of(base))
    for name, array in loaded.items():
        there, here = array.numpy(), ours[name].values()
        here = here.float() if here.dtype is torch.bfloat16 else here
        assert np.array_equal(there, here.numpy()), name
        if name.endswith("q_weight"):
            values = wanted[name.replace("q_weight", "weight")].numpy()
            words, _ = literal.quantised(scheme, values)
            assert np.array_equal(there, words), name


def _cpu() -> Any:
    import tvm

    return tvm.cpu()


def test_records_come_in_the_order_of_the_checkpoint(tmp_path):
    """A fused tensor stands where its first part stood, codes before scales."""
    base = write_model(tmp_path / "base", "llama")
    state = state_of(base)
    layers = [f"model.layers.{i}." for i in range(2)]
    order = ["model.embed_tokens.weight"]
    for at in layers:
        order += [at + x for x in (
            "self_attn.v_proj.weight", "input_layernorm.weight", "mlp.up_proj.weight",
            "self_attn.o_proj.weight", "self_attn.q_proj.weight", "mlp.gate_proj.weight",
            "self_attn.k_proj.weight", "mlp.down_proj.weight", "post_attention_layernorm.weight",
        )]  # fmt: skip
    order += ["lm_head.weight", "model.norm.weight"]
    for name in state:
        assert name in order
    numbered = {f"{i:03}": state[name] for i, name in enumerate(order)}
    save_file(numbered, base / "model.safetensors")
    _rename(base / "model.safetensors", {f"{i:03}": name for i, name in enumerate(order)})
    exported(base, tmp_path / "web", "q4f16_1")
    expected_names = ["model.embed_tokens"]
    for at in layers:
        expected_names += [at + x for x in (
            "self_attn.qkv_proj", "input_layernorm", "mlp.gate_up_proj", "self_attn.o_proj",
            "mlp.down_proj", "post_attention_layernorm",
        )]  # fmt: skip
    expected_names += ["lm_head", "model.norm"]
    found = [record["name"] for record in records(tmp_path / "web")]
    stems = [name.rpartition(".")[0] for name in found]
    assert list(dict.fromkeys(stems)) == expected_names
    kinds = {stem: [n.rpartition(".")[2] for n in found if n.startswith(f"{stem}.")]
             for stem in stems}  # fmt: skip
    assert kinds["model.embed_tokens"] == ["q_weight", "q_scale"]
    assert kinds["model.norm"] == ["weight"]


def _rename(path: Any, names: dict[str, str]) -> None:
    """Give the tensors of a safetensors file other names, in their order in the header."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    tensors = {names[k]: header[k] for k in sorted(names)}
    text = json.dumps(tensors).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def test_nothing_is_computed_before_it_is_written():
    """Planning an export reads no value."""
    config = {
        **decoder(), "model_type": "llama", "rms_norm_eps": 1e-5, "hidden_act": "silu",
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (96, 64), "lm_head.weight": (96, 64),
              "model.norm.weight": (64,)}  # fmt: skip
    for i in range(2):
        at = f"model.layers.{i}."
        shapes |= {
            f"{at}self_attn.q_proj.weight": (64, 64), f"{at}self_attn.k_proj.weight": (32, 64),
            f"{at}self_attn.v_proj.weight": (32, 64), f"{at}self_attn.o_proj.weight": (64, 64),
            f"{at}mlp.gate_proj.weight": (96, 64), f"{at}mlp.up_proj.weight": (96, 64),
            f"{at}mlp.down_proj.weight": (64, 96), f"{at}input_layernorm.weight": (64,),
            f"{at}post_attention_layernorm.weight": (64,),
        }  # fmt: skip

    def read(*_: int) -> Any:
        raise AssertionError("a value was read")

    tensors = {name: LazyTensor(shape, DType.FLOAT32, read) for name, shape in shapes.items()}
    checkpoint = Checkpoint(tensors, "safetensors", Provenance("m", "safetensors"), config)
    model = read_hyperparameters(config)
    weights = write_weights(checkpoint, model, SCHEMES["q4f16_1"], optimize=True)
    assert weights.checkpoint.metadata["parameters"] == sum(t.count for t in tensors.values())
    with pytest.raises(AssertionError, match="a value was read"):
        weights.checkpoint.tensors["lm_head.q_weight"].values()


# -- refusals -------------------------------------------------------------------------------------


def change(folder: Any, **tensors: torch.Tensor | None) -> None:
    """Tensors of a checkpoint replaced, added or (None) taken away; `__` stands for a dot."""
    path = folder / "model.safetensors"
    state = state_of(folder) | {k.replace("__", "."): v for k, v in tensors.items()}
    save_file({k: v.contiguous() for k, v in state.items() if v is not None}, path)


def refusal(folder: Any, tmp_path: Any) -> IncompatibleError:
    with pytest.raises(IncompatibleError) as caught:
        exported(folder, tmp_path / "web", "q4f16_1")
    assert not (tmp_path / "web").exists()
    return caught.value


def test_a_tensor_without_a_place_is_refused_by_name(tmp_path):
    base = write_model(tmp_path / "base", "llama")
    change(base, model__layers__1__self_attn__q_proj__bias=torch.zeros(64))
    error = refusal(base, tmp_path)
    assert error.code == "UNPLACED"
    assert "model.layers.1.self_attn.q_proj.bias" in error.message
    assert "biases" in error.hint


def test_a_missing_tensor_is_refused_by_name(tmp_path):
    base = write_model(tmp_path / "base", "qwen2")
    change(base, model__layers__0__self_attn__k_proj__bias=None)
    error = refusal(base, tmp_path)
    assert error.code == "INCOMPLETE_MODEL"
    assert "model.layers.0.self_attn.k_proj.bias" in error.message


def test_another_shape_is_refused(tmp_path):
    base = write_model(tmp_path / "base", "llama")
    change(base, model__layers__0__self_attn__k_proj__weight=torch.zeros(16, 64))
    error = refusal(base, tmp_path)
    assert error.code == "SHAPE_MISMATCH"
    assert "[16, 64]" in error.message


def test_a_head_of_its_own_is_refused_where_the_runtime_ties_it(tmp_path):
    base = write_model(tmp_path / "base", "gemma")
    change(base, lm_head__weight=torch.randn(96, 64))
    assert refusal(base, tmp_path).code == "UNTIED_HEAD"


def test_a_head_that_is_the_embedding_is_left_out(tmp_path):
    base = write_model(tmp_path / "base", "llama-tied")
    change(base, lm_head__weight=state_of(base)["model.embed_tokens.weight"].clone())
    report = exported(base, tmp_path / "web", "q0f16")
    assert "lm_head.weight" not in {record["name"] for record in records(tmp_path / "web")}
    assert any("lm_head.weight" in note for note in report.notes)


def test_stored_angles_are_left_out(tmp_path):
    base = write_model(tmp_path / "base", "llama")
    change(base, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8))
    report = exported(base, tmp_path / "web", "q0f16")
    assert any("inv_freq" in note for note in report.notes)


@pytest.mark.parametrize(
    ("model", "config", "code", "words"),
    [
        ("llama", {"attention_bias": True}, "UNSUPPORTED_MODEL", "biases"),
        ("llama", {"mlp_bias": True}, "UNSUPPORTED_MODEL", "biases"),
        ("llama", {"hidden_act": "gelu"}, "UNSUPPORTED_MODEL", "gelu"),
        ("gemma2", {"query_pre_attn_scalar": 144}, "UNSUPPORTED_MODEL", "144"),
        ("qwen2", {"head_dim": 32}, "UNSUPPORTED_MODEL", "heads"),
        ("cohere", {}, "UNSUPPORTED_ARCHITECTURE", "cohere"),
        ("qwen2-yarn", {}, "UNSUPPORTED_ROPE", "yarn"),
        (
            "llama", {"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 1e4}},
            "UNSUPPORTED_ROPE", "linear",
        ),
        (
            "mistral", {"rope_scaling": {"type": "dynamic", "factor": 2}, "rope_parameters": None},
            "UNSUPPORTED_ROPE", "dynamic",
        ),
    ],
)  # fmt: skip
def test_what_the_runtime_would_leave_out_is_refused(model, config, code, words, tmp_path):
    error = refusal(write_model(tmp_path / "base", model, **config), tmp_path)
    assert error.code == code
    assert words in error.message


def test_softcapping_of_attention_is_said_to_be_left_out(tmp_path):
    base = write_model(tmp_path / "base", "gemma2", attn_logit_softcapping=50.0)
    report = exported(base, tmp_path / "web", "q4f32_1")
    assert any("attn_logit_softcapping" in note for note in report.notes)


def test_a_window_of_attention_bounds_the_context(tmp_path):
    windowed = replace(FAMILIES["mistral"], options=decoder(sliding_window=32))
    report = exported(write_model(tmp_path / "base", windowed), tmp_path / "web", "q4f32_1")
    config = chat_config(tmp_path / "web")
    assert (config["context_window_size"], config["sliding_window_size"]) == (32, -1)
    assert any("32 tokens" in note for note in report.notes)
