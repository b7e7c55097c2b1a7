"""Small checkpoints in memory, their files, and how llama.cpp reads a text with them."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from runtime import llama

from adaptool.canonical import Checkpoint, Provenance
from adaptool.canonical.tensors import from_values
from adaptool.containers import SaveOptions, save_checkpoint
from adaptool.conversion import to_gguf

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32,
    "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip


def tensors(rows: int, config: Mapping[str, Any] = CONFIG) -> dict[str, torch.Tensor]:
    """A Llama's weights by Hugging Face name."""
    torch.manual_seed(0)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    found = {"model.embed_tokens.weight": torch.randn(rows, hidden), "model.norm.weight": None}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            found[f"{at}.self_attn.{name}.weight"] = torch.randn(hidden, hidden)
        for name, shape in (
            ("gate_proj", (inner, hidden)), ("up_proj", (inner, hidden)),
            ("down_proj", (hidden, inner)),
        ):  # fmt: skip
            found[f"{at}.mlp.{name}.weight"] = torch.randn(shape)
        found[f"{at}.input_layernorm.weight"] = found[f"{at}.post_attention_layernorm.weight"] = (
            None
        )
    return {k: torch.ones(hidden) if v is None else v for k, v in found.items()}


def checkpoint(
    rows: int = 16,
    files: Mapping[str, bytes] | None = None,
    config: Mapping[str, Any] | None = None,
    extra: Mapping[str, torch.Tensor] | None = None,
) -> Checkpoint:
    """A Llama with so many tokens."""
    stated = {**CONFIG, "vocab_size": rows, **(config or {})}
    weights = tensors(rows) | dict(extra or {})
    return Checkpoint(
        {name: from_values(values) for name, values in weights.items()},
        "safetensors",
        Provenance("tiny", "safetensors"),
        config=stated,
        side_files=dict(files or {}),
    )


def tokenizer_files(tokenizer: Tokenizer, **settings: Any) -> dict[str, bytes]:
    """What `save_pretrained` would leave."""
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
    }


def save(model: Checkpoint, path: Path) -> Path:
    """A GGUF file."""
    save_checkpoint(model, path, SaveOptions(force=True))
    return path


def with_tokenizer(tokenizer: Tokenizer, path: Path, **options: Any) -> Path:
    """A Llama that has this vocabulary, as GGUF."""
    rows = tokenizer.get_vocab_size() + 3
    model = checkpoint(rows, tokenizer_files(tokenizer))
    return save(to_gguf(model, outtype="f32", **options), path)


class Reader:
    """A GGUF model's vocabulary, in llama.cpp's hands."""

    def __init__(self, path: Path) -> None:
        self.library = llama._library()
        options = self.library.llama_model_default_params()
        options.vocab_only = True
        self.model = self.library.llama_model_load_from_file(str(path).encode(), options)
        assert self.model, f"llama.cpp does not load {path}: {llama._log}"
        self.vocabulary = self.library.llama_model_get_vocab(self.model)
        self.library.llama_tokenize.argtypes = [
            ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32),
            ctypes.c_int32, ctypes.c_bool, ctypes.c_bool,
        ]  # fmt: skip

    def read(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids; with what the model puts around a text if `special`."""
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 8))()
        count = self.library.llama_tokenize(
            self.vocabulary, data, len(data), room, len(room), special, True
        )
        assert count >= 0
        return list(room[:count])

    def close(self) -> None:
        self.library.llama_model_free(self.model)
