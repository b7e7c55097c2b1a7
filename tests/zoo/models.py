"""Tiny random base models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers as tf  # noqa: TID251
from safetensors.torch import load_file, save_file
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Tensors = dict[str, torch.Tensor]


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter, biases and norms included, a value worth merging."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((0.1 * noise).to(parameter.dtype))


def read_tensors(folder: Path) -> Tensors:
    """All tensors of a folder's safetensors files, by the names on disk."""
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            assert name not in tensors, f"{name} is stored twice"
            tensors[name] = tensor
    return tensors


def text_inputs(vocabulary: int = 96) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {"input_ids": torch.randint(3, vocabulary, (2, 9), generator=generator)}


def image_inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}


@dataclass(frozen=True)
class Base:
    """How to make a base model, store it, and read it back."""

    make: Callable[[], nn.Module]
    loader: Any  # a class with from_pretrained, or None for a plain torch module
    inputs: Callable[[], dict[str, torch.Tensor]] = text_inputs

    def write(self, folder: Path, dtype: torch.dtype, **save: Any) -> None:
        """Store the random model."""
        torch.manual_seed(0)
        model = self.make().float()
        randomise(model)
        model.to(dtype).eval()
        if self.loader is not None:
            model.save_pretrained(folder, **save)
            return
        folder.mkdir(parents=True)
        save_file(dict(model.state_dict()), folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text("{}\n")

    def read(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        """Load the stored model."""
        if self.loader is not None:
            return self.loader.from_pretrained(folder, dtype=dtype).eval()
        model = self.make().to(dtype)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.eval()


def _decoder(**extra: Any) -> dict[str, Any]:
    return {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        **extra,
    }


def _of(model: Any, config: Any, **options: Any) -> Callable[[], nn.Module]:
    return lambda: model(config(**options))


_GPT2 = {
    "vocab_size": 96,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BERT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "num_labels": 3,
}
_VIT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 3,
}
_NEOX = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
_MIXTRAL = _decoder(num_local_experts=3, num_experts_per_tok=2)
_QWEN2_MOE = _decoder(
    num_experts=3,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    shared_expert_intermediate_size=40,
)
_GPT_OSS = _decoder(
    num_local_experts=3,
    num_experts_per_tok=2,
    sliding_window=16,
    layer_types=["sliding_attention", "full_attention"],
)


class Convolutions(nn.Module):
    """One convolution of every rank, and a 1x1, with and without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(4, 6, 3, padding=1)
        self.plane = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.point = nn.Conv2d(8, 6, 1)
        self.space = nn.Conv3d(6, 4, (1, 3, 2), padding="same")
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.line(x).relu()
        x = self.point(self.plane(x.unsqueeze(-1)).relu())
        return self.head(self.space(x.unsqueeze(-1)).mean((2, 3, 4)))


class Attention(nn.Module):
    """A packed multi-head attention and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.head(self.attn(x, x, x, need_weights=False)[0])


def _series() -> dict[str, torch.Tensor]:
    return {"x": torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(5))}


def _sequence() -> dict[str, torch.Tensor]:
    return {"x": torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(5))}


_CAUSAL = tf.AutoModelForCausalLM
_SEQUENCE = tf.AutoModelForSequenceClassification
_LLAMA = _of(tf.LlamaForCausalLM, tf.LlamaConfig, **_decoder())

BASES: dict[str, Base] = {
    "llama": Base(_LLAMA, _CAUSAL),
    "llama-tied": Base(
        _of(tf.LlamaForCausalLM, tf.LlamaConfig, **_decoder(tie_word_embeddings=True)), _CAUSAL
    ),
    "llama-biases": Base(
        _of(
            tf.LlamaForCausalLM,
            tf.LlamaConfig,
            **_decoder(attention_bias=True, mlp_bias=True),
        ),
        _CAUSAL,
    ),
    # A checkpoint with a head, an adapter trained on the model without it.
    "llama-headless": Base(_LLAMA, tf.AutoModel),
    "llama-body": Base(_of(tf.LlamaModel, tf.LlamaConfig, **_decoder()), tf.AutoModel),
    "llama-score": Base(
        _of(tf.LlamaForSequenceClassification, tf.LlamaConfig, **_decoder(num_labels=3)), _SEQUENCE
    ),
    # A language model checkpoint: the classifier exists only in the adapter.
    "llama-new-score": Base(_of(tf.LlamaForCausalLM, tf.LlamaConfig, **_decoder()), _SEQUENCE),
    "qwen2": Base(_of(tf.Qwen2ForCausalLM, tf.Qwen2Config, **_decoder()), _CAUSAL),
    "gemma": Base(
        _of(tf.GemmaForCausalLM, tf.GemmaConfig, **_decoder(tie_word_embeddings=True)), _CAUSAL
    ),
    "gpt2": Base(_of(tf.GPT2LMHeadModel, tf.GPT2Config, **_GPT2), _CAUSAL),
    "neox": Base(_of(tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig, **_NEOX), _CAUSAL),
    "mixtral": Base(_of(tf.MixtralForCausalLM, tf.MixtralConfig, **_MIXTRAL), _CAUSAL),
    "qwen2-moe": Base(_of(tf.Qwen2MoeForCausalLM, tf.Qwen2MoeConfig, **_QWEN2_MOE), _CAUSAL),
    "gpt-oss": Base(_of(tf.GptOssForCausalLM, tf.GptOssConfig, **_GPT_OSS), _CAUSAL),
    "bert": Base(_of(tf.BertForSequenceClassification, tf.BertConfig, **_BERT), _SEQUENCE),
    "bert-new-head": Base(_of(tf.BertForPreTraining, tf.BertConfig, **_BERT), _SEQUENCE),
    "vit": Base(
        _of(tf.ViTForImageClassification, tf.ViTConfig, **_VIT),
        tf.AutoModelForImageClassification,
        image_inputs,
    ),
    "conv": Base(Convolutions, None, _series),
    "mha": Base(Attention, None, _sequence),
}
