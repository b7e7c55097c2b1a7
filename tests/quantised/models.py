"""Tiny quantised models, written by the libraries that own the schemes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers as tf  # noqa: TID251
from safetensors.torch import load_file, save_file

HIDDEN, FFN, LAYERS, VOCABULARY = 128, 256, 2, 96

Tensors = dict[str, torch.Tensor]


def tiny_config(**changes: object) -> tf.LlamaConfig:
    return tf.LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=VOCABULARY,
        max_position_embeddings=64, **changes,
    )  # fmt: skip


def write_plain(folder: Path, dtype: torch.dtype = torch.bfloat16, **changes: object) -> Path:
    """A random llama in full precision."""
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(tiny_config(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(dtype).save_pretrained(folder)
    return folder


def write_bitsandbytes(folder: Path, plain: Path, *, max_shard_size: str = "50GB",
                       dtype: torch.dtype = torch.bfloat16, **how: object) -> Path:  # fmt: skip
    """The same model as transformers stores it with bitsandbytes."""
    settings = tf.BitsAndBytesConfig(**how)  # type: ignore[arg-type]
    model = tf.AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=settings, dtype=dtype, device_map={"": "cpu"}
    )
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def read_tensors(folder: Path) -> Tensors:
    found: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def write_settings(folder: Path, tensors: Tensors, settings: dict[str, object],
                   config: dict[str, object] | None = None) -> Path:  # fmt: skip
    """A folder with these tensors and this quantization_config."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    content = {**(config or {"dtype": "bfloat16"}), "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(content))
    return folder
