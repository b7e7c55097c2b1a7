"""GGUF files of a tiny Llama by gguf's own writer, for what adaptool is not to be asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

from .models import VOCABULARY

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
HEADS = {"q_proj": 4, "k_proj": 2}
SETTINGS = {
    "llama__vocab_size": VOCABULARY,
    "llama__block_count": 2,
    "llama__context_length": 64,
    "llama__embedding_length": 64,
    "llama__feed_forward_length": 96,
    "llama__attention__head_count": 4,
    "llama__attention__head_count_kv": 2,
    "llama__attention__layer_norm_rms_epsilon": 1e-6,
}


def name_of(module: str) -> str:
    """model.layers.0.mlp.up_proj -> blk.0.ffn_up.weight."""
    _, _, inner = module.partition("layers.")
    layer, _, rest = inner.partition(".")
    return f"blk.{layer}.{NAMES[rest]}.weight" if inner else f"{NAMES[module]}.weight"


def paired(values: np.ndarray, module: str) -> np.ndarray:
    """Rows in the order of ggml's rotary embedding: the two halves of each head interleaved."""
    heads = HEADS.get(module.rpartition(".")[2])
    if heads is None:
        return values
    halves = values.reshape(heads, 2, -1, values.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def write(
    path: Path,
    kind: str,
    tensors: Mapping[str, np.ndarray],
    architecture: str = "llama",
    **values: float,
) -> Path:
    """A GGUF file with gguf's own writer."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(kind)
    for key, value in values.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(key.replace("__", "."), value)
    if kind == "adapter":
        writer.add_string("adapter.type", "lora")
    else:
        writer.add_tokenizer_model("none")
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_model(folder: Path, path: Path, *, fused: bool = False) -> Path:
    """The zoo's Llama; with q, k and v in one tensor if it is to be `fused`."""
    tensors = {}
    for name, values in load_file(folder / "model.safetensors").items():
        module = name.removesuffix(".weight")
        tensors[name_of(module)] = paired(values, module)
    for layer in range(2 if fused else 0):
        parts = [tensors.pop(f"blk.{layer}.attn_{part}.weight") for part in "qkv"]
        tensors[f"blk.{layer}.attn_qkv.weight"] = np.concatenate(parts)
    return write(path, "model", tensors, **SETTINGS)


def factors(folder: Path) -> dict[str, np.ndarray]:
    """The adapter's factors as llama.cpp stores them."""
    tensors = {}
    for key, values in load_file(folder / "adapter_model.safetensors").items():
        module, _, side = key.removeprefix("base_model.model.").rpartition(".lora_")
        if side == "A.weight":
            tensors[f"{name_of(module)}.lora_a"] = values
        else:
            tensors[f"{name_of(module)}.lora_b"] = paired(values, module)
    return tensors
