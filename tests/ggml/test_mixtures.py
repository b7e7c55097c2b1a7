"""Which type each tensor gets.

The literal expectations were read from files that llama.cpp v0.5.0 (`llama_model_quantize`) made
of small models with these names and shapes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import pytest
from gguf import LlamaFileType

from adaptool.encodings.ggml import can_encode
from adaptool.encodings.ggml.mixtures import OUTTYPES, choose_types, file_type
from adaptool.errors import IncompatibleError, UsageError

FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Model:
    architecture: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    inner: int
    experts: int = 0
    tied: bool = True
    fused: bool = False
    more: tuple[str, ...] = ()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        width, inner = self.width, self.inner
        kv_rows = width // self.heads * self.kv_heads
        found: dict[str, tuple[int, ...]] = {
            "token_embd.weight": (64, width), "output_norm.weight": (width,),
        }  # fmt: skip
        if not self.tied:
            found["output.weight"] = (64, width)
        for layer in range(self.layers):
            block: dict[str, tuple[int, ...]] = {"attn_norm": (width,), "ffn_norm": (width,)}
            if self.fused:
                block["attn_qkv"] = (width + 2 * kv_rows, width)
            else:
                block |= {"attn_q": (width, width), "attn_k": (kv_rows, width),
                          "attn_v": (kv_rows, width)}  # fmt: skip
            block["attn_output"] = (width, width)
            experts = (self.experts,) if self.experts else ()
            suffix = "_exps" if self.experts else ""
            if self.experts:
                block["ffn_gate_inp"] = (self.experts, width)
            block[f"ffn_gate{suffix}"] = block[f"ffn_up{suffix}"] = (*experts, inner, width)
            block[f"ffn_down{suffix}"] = (*experts, width, inner)
            block |= dict.fromkeys(self.more, (32, width))
            found |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
        return found

    def choose(self, outtype: str, *, has_importance: bool = False) -> dict[str, str]:
        return choose_types(
            self.shapes(), outtype, architecture=self.architecture, heads=self.heads,
            kv_heads=self.kv_heads, experts=self.experts, layers=self.layers,
            has_importance=has_importance,
        )  # fmt: skip


MODELS = {
    "grouped": Model("llama", 20, 256, 8, 2, 512),
    "narrow": Model("llama", 9, 256, 4, 4, 288, tied=False),
    "odd": Model("llama", 3, 96, 4, 2, 80),
    "eight experts": Model("llama", 16, 256, 4, 2, 256, experts=8, tied=False),
    "shared expert": Model("qwen2moe", 17, 256, 8, 1, 256, experts=4, more=("ffn_down_shexp",)),
    "falcon": Model("falcon", 33, 256, 8, 1, 256, fused=True, tied=False),
    "phi": Model("phi3", 24, 256, 4, 4, 256, fused=True, tied=False),
    "seventy": Model("llama", 80, 256, 8, 1, 256, tied=False),
}


def summarise(chosen: dict[str, str]) -> str:
    """`kind=type`, or `kind=type:layers/type:layers` where layers differ; floats left out."""
    kinds: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for name, kind in chosen.items():
        if kind == "F32":
            continue
        layer, _, place = name.removeprefix("blk.").removesuffix(".weight").rpartition(".")
        kinds[place][kind].append(int(layer or -1))
    return " ".join(sorted(f"{place}={_summarise_layers(kinds[place])}" for place in kinds))


def _summarise_layers(types: dict[str, list[int]]) -> str:
    commonest = max(types, key=lambda kind: len(types[kind]))
    rest = [f"/{kind}:{','.join(map(str, types[kind]))}" for kind in sorted(types)
            if kind != commonest]  # fmt: skip
    return commonest + "".join(rest)


EXPECTED: dict[tuple[str, str], str] = {
    ("grouped", "q8_0"): (
        "attn_k=Q8_0 attn_output=Q8_0 attn_q=Q8_0 attn_v=Q8_0 ffn_down=Q8_0 ffn_gate=Q8_0 "
        "ffn_up=Q8_0 token_embd=Q8_0"
    ),
    ("grouped", "q4_0"): (
        "attn_k=Q4_0 attn_output=Q4_0 attn_q=Q4_0 attn_v=Q4_0 ffn_down=Q4_0 ffn_gate=Q4_0 "
        "ffn_up=Q4_0 token_embd=Q6_K"
    ),
    ("grouped", "q4_1"): (
        "attn_k=Q4_1 attn_output=Q4_1 attn_q=Q4_1 attn_v=Q4_1 ffn_down=Q4_1 ffn_gate=Q4_1 "
        "ffn_up=Q4_1 token_embd=Q6_K"
    ),
    ("grouped", "q5_0"): (
        "attn_k=Q5_0 attn_output=Q5_0 attn_q=Q5_0 attn_v=Q5_0 ffn_down=Q5_0 ffn_gate=Q5_0 "
        "ffn_up=Q5_0 token_embd=Q6_K"
    ),
    ("grouped", "q5_1"): (
        "attn_k=Q5_1 attn_output=Q5_1 attn_q=Q5_1 attn_v=Q5_1 ffn_down=Q5_1 ffn_gate=Q5_1 "
        "ffn_up=Q5_1 token_embd=Q6_K"
    ),
    ("grouped", "q2_k"): (
        "attn_k=Q2_K attn_output=Q3_K attn_q=Q2_K attn_v=Q4_K ffn_down=Q3_K ffn_gate=Q2_K "
        "ffn_up=Q2_K token_embd=Q6_K"
    ),
    ("grouped", "q3_k_s"): (
        "attn_k=Q3_K attn_output=Q3_K attn_q=Q3_K attn_v=Q3_K ffn_down=Q3_K ffn_gate=Q3_K "
        "ffn_up=Q3_K token_embd=Q6_K"
    ),
    ("grouped", "q3_k_m"): (
        "attn_k=Q3_K attn_output=Q4_K attn_q=Q3_K attn_v=Q4_K/Q5_K:0,1 ffn_down=Q4_K/Q5_K:0 "
        "ffn_gate=Q3_K ffn_up=Q3_K token_embd=Q6_K"
    ),
    ("grouped", "q3_k_l"): (
        "attn_k=Q3_K attn_output=Q5_K attn_q=Q3_K attn_v=Q5_K ffn_down=Q5_K ffn_gate=Q3_K "
        "ffn_up=Q3_K token_embd=Q6_K"
    ),
    ("grouped", "q4_k_s"): (
        "attn_k=Q4_K attn_output=Q4_K attn_q=Q4_K attn_v=Q4_K/Q5_K:0,1,2,3 ffn_down=Q4_K/Q5_K:0,1"
        " ffn_gate=Q4_K ffn_up=Q4_K token_embd=Q6_K"
    ),
    ("grouped", "q4_k_m"): (
        "attn_k=Q4_K attn_output=Q4_K attn_q=Q4_K attn_v=Q6_K/Q4_K:2,3,5,6,8,9,11,12,14,15 "
        "ffn_down=Q6_K/Q4_K:2,3,5,6,8,9,11,12,14,15 ffn_gate=Q4_K ffn_up=Q4_K token_embd=Q6_K"
    ),
    ("grouped", "q5_k_s"): (
        "attn_k=Q5_K attn_output=Q5_K attn_q=Q5_K attn_v=Q5_K ffn_down=Q5_K ffn_gate=Q5_K "
        "ffn_up=Q5_K token_embd=Q6_K"
    ),
    ("grouped", "q5_k_m"): (
        "attn_k=Q5_K attn_output=Q5_K attn_q=Q5_K attn_v=Q6_K/Q5_K:2,3,5,6,8,9,11,12,14,15 "
        "ffn_down=Q6_K/Q5_K:2,3,5,6,8,9,11,12,14,15 ffn_gate=Q5_K ffn_up=Q5_K token_embd=Q6_K"
    ),
    ("grouped", "q6_k"): (
        "attn_k=Q6_K attn_output=Q6_K attn_q=Q6_K attn_v=Q6_K ffn_down=Q6_K ffn_gate=Q6_K "
        "ffn_up=Q6_K token_embd=Q6_K"
    ),
    ("grouped", "iq4_nl"): (
        "attn_k=IQ4_NL attn_output=IQ4_NL attn_q=IQ4_NL attn_v=Q5_K ffn_down=IQ4_NL/Q5_K:0,1 "
        "ffn_gate=IQ4_NL ffn_up=IQ4_NL token_embd=Q6_K"
    ),
    ("grouped", "iq4_xs"): (
        "attn_k=IQ4_XS attn_output=IQ4_XS attn_q=IQ4_XS attn_v=Q5_K ffn_down=IQ4_XS/Q5_K:0,1 "
        "ffn_gate=IQ4_XS ffn_up=IQ4_XS token_embd=Q6_K"
    ),
    ("grouped", "mxfp4_moe"): (
        "attn_k=Q8_0 attn_output=Q8_0 attn_q=Q8_0 attn_v=Q8_0 ffn_down=Q8_0 ffn_gate=Q8_0 "
        "ffn_up=Q8_0 token_embd=Q8_0"
    ),
    ("grouped", "tq1_0"): (
        "attn_k=TQ1_0 attn_output=TQ1_0 attn_q=TQ1_0 attn_v=TQ1_0 ffn_down=TQ1_0 ffn_gate=TQ1_0 "
        "ffn_up=TQ1_0 token_embd=Q6_K"
    ),
    ("grouped", "tq2_0"): (
        "attn_k=TQ2_0 attn_output=TQ2_0 attn_q=TQ2_0 attn_v=TQ2_0 ffn_down=TQ2_0 ffn_gate=TQ2_0 "
        "ffn_up=TQ2_0 token_embd=Q6_K"
    ),
    ("narrow", "q2_k"): (
        "attn_k=Q2_K attn_output=Q3_K attn_q=Q2_K attn_v=Q3_K ffn_down=Q4_0 ffn_gate=Q2_K "
        "ffn_up=Q2_K output=Q6_K token_embd=Q2_K"
    ),
    ("narrow", "q3_k_m"): (
        "attn_k=Q3_K attn_output=Q4_K attn_q=Q3_K attn_v=Q4_K/Q5_K:0,1 ffn_down=Q5_0 "
        "ffn_gate=Q3_K ffn_up=Q3_K output=Q6_K token_embd=Q3_K"
    ),
    ("narrow", "q4_k_m"): (
        "attn_k=Q4_K attn_output=Q4_K attn_q=Q4_K attn_v=Q6_K/Q4_K:1,2,4,5 "
        "ffn_down=Q8_0/Q5_0:1,2,4,5 ffn_gate=Q4_K ffn_up=Q4_K output=Q6_K token_embd=Q4_K"
    ),
    ("narrow", "q5_k_m"): (
        "attn_k=Q5_K attn_output=Q5_K attn_q=Q5_K attn_v=Q6_K/Q5_K:1,2,4,5 "
        "ffn_down=Q8_0/Q5_1:1,2,4,5 ffn_gate=Q5_K ffn_up=Q5_K output=Q6_K token_embd=Q5_K"
    ),
    ("narrow", "q6_k"): (
        "attn_k=Q6_K attn_output=Q6_K attn_q=Q6_K attn_v=Q6_K ffn_down=Q8_0 ffn_gate=Q6_K "
        "ffn_up=Q6_K output=Q6_K token_embd=Q6_K"
    ),
    ("narrow", "iq4_xs"): (
        "attn_k=IQ4_XS attn_output=IQ4_XS attn_q=IQ4_XS attn_v=IQ4_XS ffn_down=IQ4_NL/Q5_1:0 "
        "ffn_gate=IQ4_XS ffn_up=IQ4_XS output=Q6_K token_embd=IQ4_XS"
    ),
    ("narrow", "tq1_0"): (
        "attn_k=TQ1_0 attn_output=TQ1_0 attn_q=TQ1_0 attn_v=TQ1_0 ffn_down=Q4_0 ffn_gate=TQ1_0 "
        "ffn_up=TQ1_0 output=Q6_K token_embd=Q4_K"
    ),
    ("odd", "q4_k_m"): (
        "attn_k=Q5_0 attn_output=Q5_0 attn_q=Q5_0 attn_v=Q5_0/Q8_0:2 ffn_down=F16 ffn_gate=Q5_0 "
        "ffn_up=Q5_0 token_embd=Q8_0"
    ),
    ("odd", "q8_0"): (
        "attn_k=Q8_0 attn_output=Q8_0 attn_q=Q8_0 attn_v=Q8_0 ffn_down=F16 ffn_gate=Q8_0 "
        "ffn_up=Q8_0 token_embd=Q8_0"
    ),
    ("odd", "iq4_nl"): (
        "attn_k=IQ4_NL attn_output=IQ4_NL attn_q=IQ4_NL attn_v=IQ4_NL ffn_down=F16 "
        "ffn_gate=IQ4_NL ffn_up=IQ4_NL token_embd=Q8_0"
    ),
    ("eight experts", "q2_k"): (
        "attn_k=Q8_0 attn_output=Q5_K attn_q=Q2_K attn_v=Q8_0 ffn_down_exps=Q3_K "
        "ffn_gate_exps=Q2_K ffn_up_exps=Q2_K output=Q6_K token_embd=Q2_K"
    ),
    ("eight experts", "q3_k_l"): (
        "attn_k=Q8_0 attn_output=Q3_K attn_q=Q3_K attn_v=Q8_0 ffn_down_exps=Q5_K "
        "ffn_gate_exps=Q3_K ffn_up_exps=Q3_K output=Q6_K token_embd=Q3_K"
    ),
    ("eight experts", "q4_k_m"): (
        "attn_k=Q8_0 attn_output=Q5_K attn_q=Q4_K attn_v=Q8_0 "
        "ffn_down_exps=Q6_K/Q4_K:2,3,5,6,8,9,11,12 ffn_gate_exps=Q4_K ffn_up_exps=Q4_K "
        "output=Q6_K token_embd=Q4_K"
    ),
    ("eight experts", "q5_k_m"): (
        "attn_k=Q8_0 attn_output=Q5_K attn_q=Q5_K attn_v=Q8_0 "
        "ffn_down_exps=Q6_K/Q5_K:2,3,5,6,8,9,11,12 ffn_gate_exps=Q5_K ffn_up_exps=Q5_K "
        "output=Q6_K token_embd=Q5_K"
    ),
    ("eight experts", "iq4_xs"): (
        "attn_k=Q8_0 attn_output=Q5_K attn_q=IQ4_XS attn_v=Q8_0 ffn_down_exps=IQ4_XS/Q5_K:0,1 "
        "ffn_gate_exps=IQ4_XS ffn_up_exps=IQ4_XS output=Q6_K token_embd=IQ4_XS"
    ),
    ("eight experts", "mxfp4_moe"): (
        "attn_k=Q8_0 attn_output=Q8_0 attn_q=Q8_0 attn_v=Q8_0 ffn_down_exps=MXFP4 "
        "ffn_gate_exps=MXFP4 ffn_up_exps=MXFP4 output=Q8_0 token_embd=Q8_0"
    ),
    ("eight experts", "q4_0"): (
        "attn_k=Q8_0 attn_output=Q4_0 attn_q=Q4_0 attn_v=Q8_0 ffn_down_exps=Q4_0 "
        "ffn_gate_exps=Q4_0 ffn_up_exps=Q4_0 output=Q6_K token_embd=Q4_0"
    ),
    ("shared expert", "q3_k_m"): (
        "attn_k=Q3_K attn_output=Q4_K attn_q=Q3_K attn_v=Q4_K/Q5_K:0,1 ffn_down_exps=Q4_K/Q5_K:0 "
        "ffn_down_shexp=Q4_K/Q5_K:0 ffn_gate_exps=Q3_K ffn_up_exps=Q3_K token_embd=Q6_K"
    ),
    ("shared expert", "q4_k_s"): (
        "attn_k=Q4_K attn_output=Q4_K attn_q=Q4_K attn_v=Q4_K/Q5_K:0,1,2,3 "
        "ffn_down_exps=Q4_K/Q5_K:0,1 ffn_down_shexp=Q4_K/Q5_K:0,1 ffn_gate_exps=Q4_K "
        "ffn_up_exps=Q4_K token_embd=Q6_K"
    ),
    ("shared expert", "q4_k_m"): (
        "attn_k=Q4_K attn_output=Q4_K attn_q=Q4_K attn_v=Q6_K/Q4_K:2,3,5,6,8,9,11,12 "
        "ffn_down_exps=Q6_K/Q4_K:2,3,5,6,8,9,11,12 ffn_down_shexp=Q6_K/Q4_K:2,3,5,6,8,9,11,12 "
        "ffn_gate_exps=Q4_K ffn_up_exps=Q4_K token_embd=Q6_K"
    ),
    ("shared expert", "mxfp4_moe"): (
        "attn_k=Q8_0 attn_output=Q8_0 attn_q=Q8_0 attn_v=Q8_0 ffn_down_exps=MXFP4 "
        "ffn_down_shexp=Q8_0 ffn_gate_exps=MXFP4 ffn_up_exps=MXFP4 token_embd=Q8_0"
    ),
    ("falcon", "q2_k"): (
        "attn_output=Q2_K attn_qkv=Q4_K ffn_down=Q3_K ffn_gate=Q2_K ffn_up=Q2_K output=Q8_0 "
        "token_embd=Q2_K"
    ),
    ("falcon", "q3_k_m"): (
        "attn_output=Q3_K attn_qkv=Q4_K/Q5_K:0,1 "
        "ffn_down=Q3_K/Q4_K:2,3,6,9,12,15,18,21,24,27,28,29,30,31,32/Q5_K:0,1 ffn_gate=Q3_K "
        "ffn_up=Q3_K output=Q8_0 token_embd=Q3_K"
    ),
    ("falcon", "q3_k_l"): (
        "attn_output=Q4_K attn_qkv=Q5_K ffn_down=Q4_K ffn_gate=Q3_K ffn_up=Q3_K output=Q8_0 "
        "token_embd=Q3_K"
    ),
    ("falcon", "q4_k_s"): (
        "attn_output=Q4_K attn_qkv=Q4_K/Q5_K:0,1,2,3 ffn_down=Q4_K ffn_gate=Q4_K ffn_up=Q4_K "
        "output=Q8_0 token_embd=Q4_K"
    ),
    ("falcon", "q4_k_m"): (
        "attn_output=Q4_K attn_qkv=Q6_K/Q4_K:4,5,7,8,10,11,13,14,16,17,19,20,22,23,25,26 "
        "ffn_down=Q4_K/Q5_K:2,3,6,9,12,15,18,21,24,27,28,29,30,31,32/Q6_K:0,1 ffn_gate=Q4_K "
        "ffn_up=Q4_K output=Q8_0 token_embd=Q4_K"
    ),
    ("falcon", "q8_0"): (
        "attn_output=Q8_0 attn_qkv=Q8_0 ffn_down=Q8_0 ffn_gate=Q8_0 ffn_up=Q8_0 output=Q8_0 "
        "token_embd=Q8_0"
    ),
    ("phi", "q4_k_m"): (
        "attn_output=Q4_K attn_qkv=Q6_K/Q4_K:3,4,6,7,9,10,12,13,15,16,18,19 "
        "ffn_down=Q6_K/Q4_K:3,4,6,7,9,10,12,13,15,16,18,19 ffn_gate=Q4_K ffn_up=Q4_K output=Q6_K "
        "token_embd=Q4_K"
    ),
    ("phi", "q3_k_m"): (
        "attn_output=Q4_K attn_qkv=Q4_K/Q5_K:0,1 ffn_down=Q4_K/Q5_K:0 ffn_gate=Q3_K ffn_up=Q3_K "
        "output=Q6_K token_embd=Q3_K"
    ),
    ("seventy", "q2_k"): (
        "attn_k=Q2_K attn_output=Q3_K attn_q=Q2_K attn_v=Q5_K ffn_down=Q3_K ffn_gate=Q2_K "
        "ffn_up=Q2_K output=Q6_K token_embd=Q2_K"
    ),
    ("seventy", "q3_k_s"): (
        "attn_k=Q3_K attn_output=Q3_K attn_q=Q3_K attn_v=Q5_K ffn_down=Q3_K ffn_gate=Q3_K "
        "ffn_up=Q3_K output=Q6_K token_embd=Q3_K"
    ),
    ("seventy", "q4_k_m"): (
        "attn_k=Q4_K attn_output=Q4_K attn_q=Q4_K "
        "attn_v=Q6_K/Q5_K:10,11,13,14,16,17,19,20,22,23,25,26,28,29,31,32,34,35,37,38,40,41,43,44,46,47,49,50,52,53,55,56,58,59,61,62,64,65,67,68"
        " "
        "ffn_down=Q6_K/Q4_K:10,11,13,14,16,17,19,20,22,23,25,26,28,29,31,32,34,35,37,38,40,41,43,44,46,47,49,50,52,53,55,56,58,59,61,62,64,65,67,68"
        " ffn_gate=Q4_K ffn_up=Q4_K output=Q6_K token_embd=Q4_K"
    ),
}


@pytest.mark.parametrize(("model", "outtype"), EXPECTED)
def test_choices_are_those_of_llama_cpp(model, outtype):
    assert summarise(MODELS[model].choose(outtype)) == EXPECTED[model, outtype]


@pytest.mark.parametrize("outtype", OUTTYPES)
@pytest.mark.parametrize("model", MODELS)
def test_every_choice_can_be_written(model, outtype):
    shapes = MODELS[model].shapes()
    chosen = MODELS[model].choose(outtype, has_importance=True)
    assert list(chosen) == list(shapes)
    assert all(kind in FLOATS or can_encode(kind) for kind in chosen.values())
    assert all(chosen[name] == "F32" for name in shapes if "norm" in name or "gate_inp" in name)


@pytest.mark.parametrize("outtype", OUTTYPES)
def test_the_file_type_is_that_of_the_gguf_package(outtype):
    names = {"f32": "ALL_F32"}
    assert file_type(outtype) == LlamaFileType[names.get(outtype, f"MOSTLY_{outtype.upper()}")]


def test_importance_changes_the_first_downs():
    four = MODELS["grouped"].choose("q4_0", has_importance=True)
    assert [four[f"blk.{i}.ffn_down.weight"] for i in range(4)] == ["Q4_1", "Q4_1", "Q4_0", "Q4_0"]
    five = MODELS["grouped"].choose("q5_0", has_importance=True)
    assert [five[f"blk.{i}.ffn_down.weight"] for i in range(4)] == ["Q5_1", "Q5_1", "Q5_0", "Q5_0"]
    fine = MODELS["grouped"].choose("iq4_xs", has_importance=True)
    assert {fine[f"blk.{i}.ffn_down.weight"] for i in range(20)} == {"IQ4_XS"}


def test_the_coarsest_mixture_asks_for_importance():
    with pytest.raises(IncompatibleError, match="without an importance matrix"):
        MODELS["grouped"].choose("q2_k_s")
    assert MODELS["grouped"].choose("q2_k_s", has_importance=True)["blk.0.attn_q.weight"] == "Q2_K"


def test_an_unknown_word_is_refused():
    with pytest.raises(UsageError, match="'q4_k_x' is no type"):
        file_type("q4_k_x")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("blk.0.ssm_conv1d.weight", "F32"),
        ("blk.0.shortconv.conv.weight", "F32"),
        ("blk.0.ffn_gate_inp.weight", "F32"),
        ("blk.0.ffn_gate_inp_shexp.weight", "F32"),
        ("blk.0.time_mix_w1.weight", "F32"),
        ("position_embd.weight", "F32"),
        ("token_types.weight", "F32"),
        ("enc.blk.0.attn_rel_b.weight", "F32"),
        ("blk.0.attn_q.bias", "F32"),
        ("blk.0.ssm_a", "F32"),
        ("altup_proj.weight", "BF16"),
        ("blk.0.laurel_l.weight", "BF16"),
        ("per_layer_model_proj.weight", "BF16"),
        ("blk.0.ssm_in.weight", "Q4_K"),
        ("blk.0.time_mix_key.weight", "Q4_K"),
    ],
)
def test_some_tensors_are_never_in_blocks(name, kind):
    shapes = {"token_embd.weight": (64, 256), name: (256, 256)}
    chosen = choose_types(shapes, "q4_k_m", architecture="llama", heads=4, kv_heads=4, experts=0,
                          layers=1, has_importance=False)  # fmt: skip
    assert chosen[name] == kind


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16"])
def test_floats_are_for_matrices(outtype):
    chosen = MODELS["eight experts"].choose(outtype)
    kinds = {chosen[name] for name, shape in MODELS["eight experts"].shapes().items()
             if len(shape) > 1 and "gate_inp" not in name}  # fmt: skip
    assert kinds == {outtype.upper()}
    assert chosen["blk.0.ffn_gate_inp.weight"] == chosen["output_norm.weight"] == "F32"
