"""Merges against PEFT: AdaLoRA, (IA)^3, LoHa, LoKr, OFT, BOFT, VeRA, norms, tokens, FourierFT."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
from peft import (  # noqa: TID251
    AdaLoraConfig,
    BOFTConfig,
    FourierFTConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    OFTConfig,
    TrainableTokensConfig,
    VeraConfig,
)

from .matrix import Case, build, check, check_half, merged

if TYPE_CHECKING:
    from pathlib import Path

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
ALL = [*ATTENTION, *MLP]
GPT2 = ["c_attn", "c_proj", "c_fc"]
BERT = ["query", "value", "dense"]
PLANES = ["plane", "point"]

adalora = partial(AdaLoraConfig, init_r=6, target_r=3, lora_alpha=12, total_step=10)
ia3 = partial(IA3Config, target_modules=ALL, feedforward_modules=["down_proj"])
loha = partial(LoHaConfig, r=4, alpha=6, target_modules=ALL)
lokr = partial(LoKrConfig, r=4, alpha=6, target_modules=ALL)
oft = partial(OFTConfig, r=0, oft_block_size=8, target_modules=ALL)
boft = partial(BOFTConfig, boft_block_size=8, target_modules=ALL)
vera = partial(VeraConfig, r=6, target_modules=ALL)
fourier = partial(FourierFTConfig, n_frequency=50, scaling=200.0, target_modules=ALL)

CASES = {
    "adalora": Case("llama", partial(adalora, target_modules=ALL)),
    "adalora-alpha-0": Case("llama", partial(adalora, target_modules=ALL, lora_alpha=0)),
    "adalora-gpt2": Case("gpt2", partial(adalora, target_modules=GPT2, fan_in_fan_out=True)),
    "adalora-bert": Case("bert", partial(adalora, target_modules=BERT, task_type="SEQ_CLS")),
    "adalora-mixtral": Case("mixtral", partial(adalora, target_modules=ATTENTION)),
    "ia3": Case("llama", ia3),
    "ia3-biases": Case("llama-biases", ia3),
    "ia3-gpt2": Case(
        "gpt2",
        partial(ia3, target_modules=GPT2, feedforward_modules=["c_proj"], fan_in_fan_out=True),
    ),
    "ia3-bert": Case(
        "bert",
        partial(ia3, target_modules=BERT, feedforward_modules=["dense"], task_type="SEQ_CLS"),
    ),
    "ia3-regex": Case("llama", partial(ia3, feedforward_modules=r".*\.(down|up)_proj")),
    "ia3-conv": Case(
        "conv", partial(ia3, target_modules=[*PLANES, "space"], feedforward_modules=["plane"])
    ),
    "loha": Case("llama", loha),
    "loha-patterns": Case(
        "llama", partial(loha, rank_pattern={"q_proj": 2}, alpha_pattern={"k_proj": 9})
    ),
    "loha-conv": Case("conv", partial(loha, target_modules=["line", *PLANES, "head"])),
    "loha-conv-cp": Case(
        "conv",
        partial(loha, target_modules=["line", *PLANES, "head"], use_effective_conv2d=True),
    ),
    "lokr": Case("llama", lokr),
    "lokr-both": Case("llama", partial(lokr, r=2, decompose_both=True, decompose_factor=4)),
    "lokr-full": Case("llama", partial(lokr, r=64)),
    "lokr-patterns": Case(
        "llama", partial(lokr, rank_pattern={"q_proj": 2}, alpha_pattern={"k_proj": 9})
    ),
    "lokr-conv": Case("conv", partial(lokr, r=1, target_modules=["line", *PLANES, "head"])),
    "lokr-conv-full": Case("conv", partial(lokr, r=64, target_modules=["line", *PLANES, "head"])),
    "lokr-conv-cp": Case(
        "conv",
        partial(lokr, r=1, target_modules=PLANES, use_effective_conv2d=True),
    ),
    "oft": Case("llama", oft),
    "oft-terms-2": Case("llama", partial(oft, num_cayley_neumann_terms=2)),
    "oft-terms-3": Case("llama", partial(oft, num_cayley_neumann_terms=3)),
    "oft-terms-7": Case("llama", partial(oft, num_cayley_neumann_terms=7)),
    "oft-exact": Case("llama", partial(oft, use_cayley_neumann=False)),
    "oft-shared": Case("llama", partial(oft, block_share=True)),
    "oft-coft": Case("llama", partial(oft, coft=True, eps=0.5)),
    "oft-embedding": Case("llama", partial(oft, target_modules=["embed_tokens", "q_proj"])),
    "oft-bert": Case("bert", partial(oft, target_modules=BERT, task_type="SEQ_CLS", bias="all")),
    "oft-vit": Case("vit", partial(oft, target_modules=["q_proj"], modules_to_save=["classifier"])),
    "oft-conv": Case("conv", partial(oft, oft_block_size=2, target_modules=["point"])),
    "boft": Case("llama", boft),
    "boft-bert": Case("bert", partial(boft, target_modules=BERT, bias="boft_only")),
    "boft-conv": Case("conv", partial(boft, boft_block_size=2, target_modules=PLANES)),
    "vera": Case("llama", vera),
    "vera-unsaved": Case("llama", partial(vera, save_projection=False, projection_prng_key=7)),
    "vera-gpt2": Case("gpt2", partial(vera, target_modules=GPT2, fan_in_fan_out=True)),
    "vera-gpt2-unsaved": Case(
        "gpt2",
        partial(vera, target_modules=GPT2, fan_in_fan_out=True, save_projection=False),
    ),
    "ln-llama": Case("llama", partial(LNTuningConfig, target_modules=["input_layernorm", "norm"])),
    "ln-bert": Case(
        "bert", partial(LNTuningConfig, target_modules=["LayerNorm"], task_type="SEQ_CLS")
    ),
    "tokens": Case(
        "llama",
        partial(TrainableTokensConfig, token_indices=[3, 90, 17], target_modules=["embed_tokens"]),
    ),
    "tokens-tied": Case(
        "llama-tied",
        partial(TrainableTokensConfig, token_indices=[5, 4], target_modules=["embed_tokens"]),
    ),
    "fourier": Case("llama", fourier),
    "fourier-gpt2": Case("gpt2", partial(fourier, target_modules=GPT2, fan_in_fan_out=True)),
    "fourier-patterns": Case("llama", partial(fourier, n_frequency_pattern={"q_proj": 20})),
}
HALVES = ["adalora", "ia3-biases", "loha", "lokr", "oft", "boft", "vera", "ln-bert", "tokens",
          "fourier-gpt2"]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_merge_equals_peft(name: str, tmp_path: Path) -> None:
    built = build(CASES[name], tmp_path)
    check(CASES[name], built, merged(built, tmp_path / "out"))


@pytest.mark.parametrize("name", HALVES)
def test_rounding_and_scale(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    built = build(case, tmp_path / "half", torch.bfloat16)
    check(case, built, merged(built, tmp_path / "half" / "out"))
    built = build(case, tmp_path)
    check_half(built, merged(built, tmp_path / "out", "--scale", "0.5"))
