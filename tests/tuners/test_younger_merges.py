"""HRA, VB-LoRA, SHiRA, MiSS, RandLoRA, C3A, RoAd, DeLoRA, HiRA, younger types; LoRA's variants."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
from peft import (  # noqa: TID251
    BeftConfig,
    C3AConfig,
    DeftConfig,
    DeloraConfig,
    FrodConfig,
    GloraConfig,
    GraloraConfig,
    HiraConfig,
    HRAConfig,
    LoraConfig,
    MissConfig,
    OSFConfig,
    PeanutConfig,
    PsoftConfig,
    PveraConfig,
    RandLoraConfig,
    RoadConfig,
    ShiraConfig,
    SupertuningConfig,
    TinyLoraConfig,
    UniLoraConfig,
    VBLoRAConfig,
    WaveFTConfig,
)
from peft.tuners.lora.config import BdLoraConfig, KasaConfig  # noqa: TID251

from .matrix import Case, build, check, check_half, merged

if TYPE_CHECKING:
    from pathlib import Path

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
GPT2 = ["c_attn", "c_proj", "c_fc"]
BERT = ["query", "value", "dense"]
PLANES = ["plane", "point"]

lora = partial(LoraConfig, r=4, lora_alpha=6, target_modules=ALL)
hra = partial(HRAConfig, r=4, target_modules=ALL)
vblora = partial(VBLoRAConfig, r=2, num_vectors=9, vector_length=8, target_modules=ALL)
miss = partial(MissConfig, r=6, target_modules=ALL)
randlora = partial(RandLoraConfig, r=5, projection_prng_key=7, target_modules=ALL)
drawn = partial(randlora, save_projection=False)
road = partial(RoadConfig, group_size=4, target_modules=ATTENTION)
hira = partial(HiraConfig, r=3, target_modules=ALL)
gralora = partial(GraloraConfig, r=6, alpha=5, target_modules=ALL)
deft = partial(DeftConfig, r=3, target_modules=ALL)
psoft = partial(PsoftConfig, r=4, psoft_alpha=5, target_modules=ALL)
peanut = partial(PeanutConfig, r=4, target_modules=ALL)
supertuning = partial(SupertuningConfig, sparsity=0.8, target_modules=ALL)
waveft = partial(WaveFTConfig, n_frequency=50, target_modules=ALL)
tinylora = partial(TinyLoraConfig, r=2, u=5, target_modules=ALL)
pvera = partial(PveraConfig, r=4, projection_prng_key=9, target_modules=ALL)
glora = partial(GloraConfig, r=2, target_modules=ALL)
classes = partial(glora, target_modules=BERT, task_type="SEQ_CLS")

CASES = {
    "hra": Case("llama", hra),
    "hra-orthogonal": Case("llama", partial(hra, apply_GS=True)),
    "hra-odd": Case("llama", partial(hra, r=3)),
    "hra-bert": Case("bert", partial(hra, target_modules=BERT, task_type="SEQ_CLS")),
    "hra-conv": Case("conv", partial(hra, target_modules=PLANES)),
    "vblora": Case("llama", vblora),
    "vblora-largest": Case("llama", partial(vblora, topk=3, save_only_topk_weights=True)),
    "vblora-gpt2": Case("gpt2", partial(vblora, target_modules=GPT2)),
    "shira": Case("llama", partial(ShiraConfig, r=2, random_seed=3, target_modules=ALL)),
    "miss": Case("llama", miss),
    "miss-bat": Case("llama", partial(miss, r=4, init_weights="bat")),
    "miss-mini": Case(
        "llama", partial(miss, r=5, mini_r=4, init_weights="mini", target_modules=ATTENTION)
    ),
    "randlora": Case("llama", randlora),
    "randlora-drawn": Case("llama", drawn),
    "randlora-sparse": Case("llama", partial(drawn, sparse=True)),
    "randlora-very-sparse": Case("llama", partial(drawn, very_sparse=True)),
    "randlora-gpt2": Case("gpt2", partial(drawn, target_modules=GPT2)),
    "c3a": Case("llama", partial(C3AConfig, block_size=8, target_modules=ALL)),
    "c3a-vit": Case("vit", partial(C3AConfig, block_size=8, target_modules=["q_proj", "fc1"])),
    "road-1": Case("llama", road),
    "road-2-biases": Case("bert", partial(road, variant="road_2", target_modules=BERT)),
    "road-4": Case("llama", partial(road, variant="road_4")),
    "road-mixtral": Case("mixtral", road),
    "delora": Case("llama", partial(DeloraConfig, r=3, target_modules=ALL)),
    "delora-patterns": Case(
        "llama", partial(DeloraConfig, r=3, rank_pattern={"q_proj": 2}, target_modules=ALL)
    ),
    "hira": Case("llama", partial(hira, target_modules=[*ALL, "embed_tokens"])),
    "hira-gpt2": Case("gpt2", partial(hira, target_modules=GPT2)),
    "hira-conv": Case("conv", partial(hira, target_modules=["line", *PLANES, "space", "head"])),
    "gralora": Case("llama", gralora),
    "gralora-hybrid": Case("llama", partial(gralora, hybrid_r=2, gralora_k=4, r=8)),
    "gralora-gpt2": Case("gpt2", partial(gralora, target_modules=GPT2)),
    "deft": Case("llama", deft),
    "deft-qr": Case("llama", partial(deft, alpha=5, decomposition_method="qr")),
    "deft-para": Case(
        "gpt2", partial(deft, para=True, decomposition_method="qr", target_modules=GPT2)
    ),
    "osf": Case("llama", partial(OSFConfig, effective_rank=5, target_modules=ALL), within=1e-5),
    "psoft": Case("llama", psoft),
    "psoft-series": Case(
        "llama",
        partial(psoft, use_cayley_neumann=True, cayley_neumann_eps=0.5, ab_svd_init="pissa_init"),
    ),
    "psoft-terms-2": Case(
        "llama", partial(psoft, use_cayley_neumann=True, num_cayley_neumann_terms=2)
    ),
    "psoft-terms-3": Case(
        "llama", partial(psoft, use_cayley_neumann=True, num_cayley_neumann_terms=3)
    ),
    "psoft-sketched": Case(
        "llama", partial(psoft, psoft_svd="lowrank", random_seed=3), within=2e-5
    ),
    "psoft-matrix": Case("llama", partial(psoft, psoft_orth=False, psoft_mag_a=False)),
    "peanut": Case("llama", peanut),
    "peanut-deep": Case("llama", partial(peanut, depth=2, act_fn="silu", scaling=0.7)),
    "beft": Case("bert", partial(BeftConfig, target_modules=BERT)),
    "supertuning": Case("llama", supertuning),
    "supertuning-supra": Case("llama", partial(supertuning, r=2, lora_alpha=3)),
    "supertuning-searched": Case(
        "llama",
        partial(supertuning, r=2, lora_alpha=3, select_top=False, save_precomputed_indices=False),
    ),
    "waveft": Case("llama", waveft),
    "waveft-db3": Case("llama", partial(waveft, wavelet_family="db3")),
    "waveft-db10": Case("llama", partial(waveft, wavelet_family="db10")),
    "waveft-gpt2": Case("gpt2", partial(waveft, wavelet_family="db4", target_modules=GPT2)),
    "waveft-plain": Case("gpt2", partial(waveft, use_idwt=False, target_modules=GPT2)),
    "tinylora": Case("llama", tinylora),
    "tinylora-tied": Case("llama", partial(tinylora, weight_tying=0.7)),
    "tinylora-one-vector": Case("llama", partial(tinylora, weight_tying=1.0)),
    "tinylora-drawn": Case(
        "llama", partial(tinylora, save_projection=False, target_modules=["q_proj"])
    ),
    "unilora": Case(
        "llama", partial(UniLoraConfig, theta_d_length=20, save_indices=True, target_modules=ALL)
    ),
    "pvera": Case("llama", pvera),
    "pvera-drawn": Case("llama", partial(pvera, save_projection=False)),
    "frod": Case(
        "llama", partial(FrodConfig, sparse_rate=0.1, target_modules=ALL, progressbar=False)
    ),
    "glora": Case("llama", glora),
    "glora-biases": Case("bert", classes),
    "glora-vectors": Case(
        "bert", partial(classes, config_A_B="vector", config_C="vector", config_D_E="vector")
    ),
    "glora-constants": Case("bert", partial(classes, config_A_B="constant", config_C="none")),
    "glora-column-alone": Case(
        "bert", partial(classes, config_A_B="none", config_C="vector", config_D_E="none")
    ),
    "pissa": Case("llama", partial(lora, init_lora_weights="pissa"), within=1e-5),
    "pissa-gpt2": Case(
        "gpt2", partial(lora, init_lora_weights="pissa", target_modules=["c_attn"]), within=1e-5
    ),
    "olora": Case("llama", partial(lora, init_lora_weights="olora", use_rslora=True), within=1e-5),
    "kasa": Case("llama", partial(lora, kasa_config=KasaConfig()), within=1e-5),
    "bd-lora": Case(
        "llama",
        partial(
            lora,
            use_bdlora=BdLoraConfig(["q_proj", "down"], ["o_proj"], nblocks=2, match_strict=False),
        ),
    ),
}
HALVES = ["road-2-biases", "deft-para", "psoft", "glora-vectors", "kasa"]


@pytest.mark.parametrize("name", CASES)
def test_merge_equals_peft(name: str, tmp_path: Path) -> None:
    built = build(CASES[name], tmp_path)
    check(CASES[name], built, merged(built, tmp_path / "out"))


@pytest.mark.parametrize("name", HALVES)
def test_scale_half_is_the_middle(name: str, tmp_path: Path) -> None:
    built = build(CASES[name], tmp_path)
    check_half(built, merged(built, tmp_path / "out", "--scale", "0.5"))


@pytest.mark.parametrize("name", ["hra", "delora", "hira", "waveft"])
def test_bfloat16_is_rounded_once(name: str, tmp_path: Path) -> None:
    built = build(CASES[name], tmp_path, torch.bfloat16)
    wide = merged(built, tmp_path / "wide", "--dtype", "float32")
    for tensor, value in merged(built, tmp_path / "out").items():
        assert torch.equal(value, wide[tensor].bfloat16()), tensor
        error = (value.double() - built.expected[tensor].double()).norm()
        assert error <= 2**-7 * value.double().norm(), tensor  # PEFT rounds up to four times
