"""Adapters on tiny random models, and what PEFT computes with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: TID251
from peft.tuners.lora.layer import LoraLayer  # noqa: TID251
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM  # noqa: TID251
from zoo.cases import ATTENTION, EXPERTS, MLP, lora
from zoo.recipes import change_config, fill

from .models import MODELS, VOCABULARY, Model

if TYPE_CHECKING:
    import numpy as np

TOKENS = torch.randint(3, VOCABULARY, (24,), generator=torch.Generator().manual_seed(7)).tolist()


@dataclass(frozen=True)
class Case:
    """One adapter on one model.

    Attributes:
        base: name of the model.
        lora: arguments of LoraConfig.
        unable: why llama.cpp cannot run the adapter beside the model; "" where it can.
        half: whether half the strength is defined by PEFT: it is for factors alone.
        after: rewrites the adapter's files before anybody reads them.
    """

    base: str
    lora: dict[str, Any]
    unable: str = ""
    half: bool = True
    after: Callable[[Path], None] | None = None

    @property
    def model(self) -> Model:
        """The base."""
        return MODELS[self.base]

    def build(self, folder: Path) -> Built:
        """Write base and adapter."""
        base, adapter = folder / "base", folder / "adapter"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model.write(base)
            model = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", **self.lora))
            fill(model)
            model.save_pretrained(adapter)
        if self.after is not None:
            self.after(adapter)
        return Built(self, base, adapter)


@dataclass(frozen=True)
class Built:
    """Folders of a case."""

    case: Case
    base: Path
    adapter: Path
    known: dict[float, np.ndarray] = field(default_factory=dict, compare=False)

    def expected(self, scale: float) -> np.ndarray:
        """PEFT's logits with the adapter at `scale` beside the model, [TOKENS, VOCABULARY]."""
        if scale not in self.known:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = load(self.base)
                if scale:
                    model = PeftModel.from_pretrained(model, self.adapter).eval()
                    rescale(model, scale)
            self.known[scale] = forward(model)
        return self.known[scale]


def load(folder: Path) -> torch.nn.Module:
    """The stored model, in float32."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def rescale(model: PeftModel, scale: float) -> None:
    """Multiply the scaling of every adapted layer."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert layers
    for layer in layers:
        for name in layer.scaling:
            layer.scaling[name] *= scale


def forward(model: torch.nn.Module) -> np.ndarray:
    """The model's logits for TOKENS."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([TOKENS]), use_cache=False).logits[0].numpy()


def every_linear(**more: Any) -> dict[str, Any]:
    """The same for all linear layers but the head."""
    return lora(**more) | {"target_modules": "all-linear"}


def per_expert(
    block: str, parts: dict[str, tuple[int, int]], experts: int, folder: Path, layers: int = 2
) -> None:
    """Put into an adapter the factors of experts that were modules of their own, as in 2025."""
    generator = torch.Generator().manual_seed(4)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for layer in range(layers):
        for expert in range(experts):
            for part, (rows, columns) in parts.items():
                key = f"base_model.model.model.layers.{layer}.{block}.experts.{expert}.{part}"
                a, b = (torch.randn(s, generator=generator) for s in ((4, columns), (rows, 4)))
                tensors |= {f"{key}.lora_A.weight": 0.2 * a, f"{key}.lora_B.weight": 0.2 * b}
    save_file(tensors, path, {"format": "pt"})
    change_config(folder, target_modules=[*ATTENTION, *parts], target_parameters=None)


_MIXTRAL_PARTS = {"w1": (96, 64), "w2": (64, 96), "w3": (96, 64)}
_QWEN_PARTS = {"gate_proj": (32, 64), "up_proj": (32, 64), "down_proj": (64, 32)}

ALL = (*ATTENTION, *MLP)
CASES: dict[str, Case] = {
    "llama": Case("llama", lora(*ALL)),
    "llama-rslora": Case("llama", lora(*ALL, use_rslora=True)),
    "llama-patterns": Case(
        "llama",
        lora(
            *ALL,
            rank_pattern={"q_proj": 2, r"layers\.1\.mlp\..*": 6, "up_proj": 3},
            alpha_pattern={"k_proj": 9, r"layers\.0\..*": 3, r"layers\.1\.mlp\.down_proj": 5},
        ),
    ),
    "llama-embedding-head": Case("llama", lora("embed_tokens", "lm_head", "q_proj", "up_proj")),
    "llama-tied": Case("llama-tied", lora(*ALL)),
    "mistral": Case("mistral", every_linear()),
    "qwen2": Case("qwen2", every_linear()),
    "qwen3": Case("qwen3", every_linear()),
    "gemma2": Case("gemma2", every_linear()),
    "gemma3": Case("gemma3", every_linear()),
    "phi3": Case("phi3", every_linear()),
    "gpt2": Case("gpt2", lora("c_attn", "c_proj", "c_fc", fan_in_fan_out=True)),
    "falcon": Case("falcon", every_linear()),
    "falcon-new": Case("falcon-new", every_linear()),
    "bloom": Case("bloom", every_linear()),
    "cohere": Case("cohere", every_linear()),
    "olmo2": Case("olmo2", every_linear()),
    "starcoder2": Case("starcoder2", every_linear()),
    "mixtral": Case("mixtral", lora(*ATTENTION, target_parameters=EXPERTS)),
    "mixtral-modules": Case(
        "mixtral",
        lora(*ATTENTION),
        after=partial(per_expert, "block_sparse_moe", _MIXTRAL_PARTS, 3),
    ),
    "qwen3-moe": Case("qwen3-moe", lora(*ATTENTION, target_parameters=EXPERTS)),
    "qwen3-moe-modules": Case(
        "qwen3-moe", lora(*ATTENTION), after=partial(per_expert, "mlp", _QWEN_PARTS, 4)
    ),
    "gemma": Case("gemma", every_linear()),
    "smollm3": Case("smollm3", every_linear()),
    "granite": Case("granite", every_linear()),
    "stablelm": Case("stablelm", every_linear()),
    "neox": Case("neox", every_linear()),
    "olmo": Case("olmo", every_linear()),
    "olmoe": Case("olmoe", lora(*ATTENTION, target_parameters=EXPERTS)),
    "qwen2-moe": Case("qwen2-moe", every_linear(target_parameters=EXPERTS)),
    "cohere2": Case("cohere2", every_linear()),
    "llama3": Case("llama3", every_linear()),
    "qwen2-yarn": Case("qwen2-yarn", every_linear()),
    "phi3-long": Case("phi3-long", every_linear()),
    "deepseek2": Case("deepseek2", lora("o_proj", *MLP)),
    # What llama.cpp cannot run beside the model, but a merge can put into it.
    "deepseek2-latent": Case(
        "deepseek2",
        lora("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),
        unable="its graph leaves the factors of latent attention out",
    ),
    "llama-tied-embedding": Case(
        "llama-tied", lora("embed_tokens"), unable="it aborts on factors of a tied embedding"
    ),
    "llama-tied-head": Case(
        "llama-tied", lora("lm_head"), unable="a tied head has no tensor of its own"
    ),
    "llama-tied-both": Case(
        "llama-tied", lora("embed_tokens", "lm_head", "q_proj"), unable="as the two above"
    ),
    "qwen3-dora": Case(
        "qwen3", every_linear(use_dora=True), unable="its factors have no magnitudes", half=False
    ),
    "llama-norms-saved": Case(
        "llama",
        lora("q_proj", modules_to_save=["input_layernorm", "norm"]),
        unable="it ignores the norms of an adapter",
        half=False,
    ),
    "gemma3-norms-saved": Case(
        "gemma3",
        lora("q_proj", modules_to_save=["input_layernorm", "q_norm"]),
        unable="it ignores the norms of an adapter",
        half=False,
    ),
    "llama-head-saved": Case(
        "llama",
        lora("q_proj", modules_to_save=["lm_head"]),
        unable="an adapter holds factors only",
        half=False,
    ),
    "qwen2-biases": Case(
        "qwen2", lora(*ATTENTION, bias="all"), unable="an adapter holds no biases", half=False
    ),
    "qwen2-lora-biases": Case(
        "qwen2",
        lora("q_proj", "k_proj", lora_bias=True),
        unable="an adapter holds no biases",
        half=False,
    ),
}

STRENGTHS = {
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "patterns": {
        "alpha_pattern": {r".*\.0\..*att.*": 3}, "rank_pattern": {r".*\.1\..*att.*": 2},
    },
}  # fmt: skip
"""What one alpha in a file cannot say, on many of llama.cpp's graphs."""

CASES |= {
    f"{name}-{kind}": replace(CASES[name], lora=CASES[name].lora | settings)
    for name in (
        "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "falcon", "bloom", "cohere", "olmo2",
        "starcoder2", "mixtral", "qwen3-moe", "deepseek2",
    )
    for kind, settings in STRENGTHS.items()
}  # fmt: skip

# Models whose head is their embedding wherever llama.cpp loads them: it has no place for another.
HEADLESS: dict[str, Case] = {
    "gemma2": Case("gemma2", lora("lm_head")),
    "cohere": Case("cohere", lora("embed_tokens", "q_proj")),
}
