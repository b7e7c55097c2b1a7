"""Where parameters lie in GGUF: against llama.cpp's converter, and against themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptool.architectures.gguf import (
    Layout,
    Source,
    architectures,
    layout_of,
    layout_of_model,
    model_types,
)
from adaptool.canonical import Placement
from adaptool.errors import CorruptInputError, IncompatibleError

from .laying import cases, digest, laid_out, numbered

CASES = cases()
POSITIONS = "embeddings.position_embeddings.weight"


@pytest.mark.parametrize("name", CASES)
def test_as_llama_cpp_lays_it_out(name: str) -> None:
    case = CASES[name]
    layout = layout_of(case.config)
    assert layout.architecture == case.architecture
    shapes = {tensor: shape for tensor, (shape, _) in case.tensors.items()}
    unplaced = [p for p in case.parameters if not layout.place(p)]
    assert sorted(unplaced) == sorted(case.dropped)
    stored = laid_out(numbered(case.parameters), layout, shapes)
    assert {t: digest(v) for t, v in stored.items()} == {t: d for t, (_, d) in case.tensors.items()}


@pytest.mark.parametrize("name", CASES)
def test_shapes_in_gguf(name: str) -> None:
    """Of tensors that hold one parameter and all of it."""
    case = CASES[name]
    layout = layout_of(case.config)
    for tensor, (wanted, _) in case.tensors.items():
        parameters = {source.parameter for source in layout.sources(tensor)}
        if len(parameters) != 1 or not parameters <= set(case.parameters):
            continue
        (parameter,) = parameters
        places = layout.place(parameter)
        split = any(place.tensor != tensor or place.slot is not None for place in places)
        if split or parameter == POSITIONS:
            continue
        shape = tuple(case.parameters[parameter])
        shape = shape[::-1] if layout.stored_transposed(parameter) else shape
        assert layout.stored_shape(tensor, shape) == tuple(wanted), tensor


def test_shapes_by_hand() -> None:
    case = CASES["granitemoehybrid"]
    layout = layout_of(case.config)
    assert layout.stored_shape("blk.0.ssm_conv1d.weight", (40, 1, 4)) == (40, 4)
    assert layout.stored_shape("blk.0.ssm_conv1d.bias", (40,)) == (40,)
    assert layout.stored_shape("blk.0.ssm_d", (4,)) == (4, 1)
    assert layout.stored_shape("blk.0.ssm_norm.weight", (32,)) == (1, 32)
    assert layout.stored_shape("blk.0.ssm_in.weight", (76, 16)) == (76, 16)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.fused])
def test_lands_in_fused_tensors(name: str) -> None:
    case = CASES[name]
    layout = layout_of(case.config)
    parts = ("attn_q.", "attn_k.", "attn_v.", "ffn_gate_exps.", "ffn_up_exps.")
    names = {t for t in case.tensors if not any(part in t for part in parts)} | set(case.fused)
    shapes = {t: shape for t, (shape, _) in {**case.tensors, **case.fused}.items() if t in names}
    stored = laid_out(numbered(case.parameters), layout, shapes, names)
    for tensor, (_, wanted) in case.fused.items():
        assert digest(stored[tensor]) == wanted, tensor
        sources = layout.sources(tensor)
        assert sources
        for source in sources:
            assert source.placement in layout.place(source.parameter, names)


@pytest.mark.parametrize("name", CASES)
def test_a_gguf_model_tells_the_same(name: str) -> None:
    case = CASES[name]
    there, here = layout_of_model(case.values), layout_of(case.config)
    assert there.blocks == here.blocks
    for parameter in case.parameters:
        if parameter != POSITIONS:  # a GGUF model does not state how many were left out
            assert there.place(parameter) == here.place(parameter), parameter


@pytest.mark.parametrize("name", CASES)
def test_place_and_sources_are_inverse(name: str) -> None:
    case = CASES[name]
    layout = layout_of(case.config)
    told = layout.parameters()
    for parameter, places in told.items():
        assert places == layout.place(parameter), parameter
        for place in places:
            assert Source(parameter, place) in layout.sources(place.tensor)
    for tensor in case.tensors:
        sources = layout.sources(tensor)
        assert sources, tensor
        for source in sources:
            assert source.placement.tensor == tensor
            assert source.placement in told[source.parameter]


@pytest.mark.parametrize("name", CASES)
def test_files_use_the_names_that_are_told(name: str) -> None:
    case = CASES[name]
    if name != "ernie4_5_fused":  # the spelling of another library
        told = layout_of(case.config).parameters()
        assert set(case.parameters) - set(told) == set(case.dropped)


@pytest.mark.parametrize("name", CASES)
def test_embedding_and_head(name: str) -> None:
    case = CASES[name]
    layout = layout_of(case.config)
    assert [p.tensor for p in layout.place(layout.embedding)] == ["token_embd.weight"]
    assert [p.tensor for p in layout.place(layout.head)] in ([], ["output.weight"])
    assert layout.embedding in case.parameters
    if "output.weight" in case.tensors:
        assert layout.place(layout.head)
        assert layout.head in case.parameters


def test_every_family_is_recorded() -> None:
    recorded = {case.architecture for case in CASES.values()}
    same_tables = {"mistral3", "qwen2vl", "qwen3vl"}  # those of llama, qwen2 and qwen3
    assert recorded | same_tables == set(architectures())


# -- by hand --------------------------------------------------------------------------------------


def llama(**more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {"model_type": "llama", "intermediate_size": 6, **sizes, **more}


def order_of(layout: Layout, parameter: str, rows: int) -> list[int]:
    (place,) = layout.place(parameter)
    assert place.row_order is not None
    return place.row_order.indices(rows).tolist()


def test_rotary_order_by_hand() -> None:
    layout = layout_of(llama(num_key_value_heads=1))
    assert order_of(layout, "model.layers.0.self_attn.q_proj.weight", 8) == [0, 2, 1, 3, 4, 6, 5, 7]
    assert order_of(layout, "model.layers.0.self_attn.k_proj.bias", 4) == [0, 2, 1, 3]
    assert layout.place("model.layers.0.self_attn.v_proj.weight") == (
        Placement("blk.0.attn_v.weight"),
    )


@pytest.mark.parametrize("model_type", ["qwen2", "gemma2", "phi", "stablelm", "cohere", "nemotron"])
def test_no_rotary_order_for_others(model_type: str) -> None:
    layout = layout_of(llama() | {"model_type": model_type, "num_key_value_heads": 2})
    for name in "qk":
        (place,) = layout.place(f"model.layers.0.self_attn.{name}_proj.weight")
        assert place == Placement(f"blk.0.attn_{name}.weight")


def test_latent_attention_by_hand() -> None:
    config = llama(qk_nope_head_dim=3, qk_rope_head_dim=2, v_head_dim=2)
    layout = layout_of(config | {"model_type": "deepseek_v3"})
    name = "model.layers.0.self_attn.kv_b_proj.weight"
    assert layout.place(name) == (
        Placement("blk.0.attn_k_b.weight", slot=0, part=(0, 3), transposed=True),
        Placement("blk.0.attn_v_b.weight", slot=0, part=(3, 5)),
        Placement("blk.0.attn_k_b.weight", slot=1, part=(5, 8), transposed=True),
        Placement("blk.0.attn_v_b.weight", slot=1, part=(8, 10)),
    )
    whole = Placement("blk.0.attn_kv_b.weight")
    assert layout.place(name, {"blk.0.attn_kv_b.weight"}) == (whole,)
    assert layout.sources("blk.0.attn_kv_b.weight") == (Source(name, whole),)


def test_latent_attention_of_older_files() -> None:
    """Before the two stacks there were no sizes of their own for them either."""
    values = {
        "general.architecture": "deepseek2", "deepseek2.block_count": 1,
        "deepseek2.embedding_length": 8, "deepseek2.attention.head_count": 2,
        "deepseek2.attention.head_count_kv": 2, "deepseek2.attention.key_length": 5,
        "deepseek2.attention.value_length": 2, "deepseek2.rope.dimension_count": 2,
    }  # fmt: skip
    (key, value, *_) = layout_of_model(values).place("model.layers.0.self_attn.kv_b_proj.weight")
    assert (key.part, value.part) == ((0, 3), (3, 5))


def test_norms_of_gemma_are_shifted() -> None:
    layout = layout_of(llama() | {"model_type": "gemma"})
    for name in ("model.norm.weight", "model.layers.0.input_layernorm.weight"):
        assert [place.shift for place in layout.place(name)] == [1.0]
    assert layout.place("lm_head.weight") == ()  # the runtime has no head but the embedding


@pytest.mark.parametrize(
    "spelling",
    [
        "model.layers.0.self_attn.o_proj.weight",
        "language_model.model.layers.0.self_attn.o_proj.weight",
        "model.language_model.layers.0.self_attn.o_proj.weight",
        "model.text_model.layers.0.self_attn.o_proj.weight",
    ],
)
def test_wrappers_do_not_matter(spelling: str) -> None:
    assert layout_of(llama()).place(spelling) == (Placement("blk.0.attn_output.weight"),)


@pytest.mark.parametrize(
    "stranger",
    [
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.experts.0.gate_proj.weight",
        "score.weight",
    ],
)
def test_strangers_have_no_place(stranger: str) -> None:
    assert layout_of(llama()).place(stranger) == ()


def test_no_sources_beyond_the_model() -> None:
    layout = layout_of(llama())
    assert layout.sources("blk.1.attn_q.weight") == ()
    assert layout.sources("blk.0.attn_sinks.weight") == ()
    assert layout.sources("rope_freqs.weight") == ()


def test_old_mixtral_files_have_a_tensor_for_each_expert() -> None:
    config = llama(num_local_experts=2) | {"model_type": "mixtral"}
    layout = layout_of(config)
    there = {f"blk.0.ffn_{name}.{e}.weight" for name in ("gate", "up", "down") for e in (0, 1)}
    spellings = ("block_sparse_moe.experts.1.w3", "mlp.experts.1.up_proj")
    for spelling in spellings:
        places = layout.place(f"model.layers.0.{spelling}.weight", there)
        assert places == (Placement("blk.0.ffn_up.1.weight"),)
    halves = layout.place("model.layers.0.mlp.experts.gate_up_proj", there)
    assert Placement("blk.0.ffn_gate.0.weight", expert=0, part=(0, 6)) in halves
    assert len(halves) == 4
    assert layout.sources("blk.0.ffn_up.1.weight") == (
        Source("model.layers.0.block_sparse_moe.experts.1.w3.weight",
               Placement("blk.0.ffn_up.1.weight")),
    )  # fmt: skip


def test_a_gguf_model_understands_every_spelling_of_its_architecture() -> None:
    layout = layout_of_model({
        "general.architecture": "chatglm", "chatglm.block_count": 1,
        "chatglm.embedding_length": 8, "chatglm.attention.head_count": 2,
        "chatglm.attention.head_count_kv": 1,
    })  # fmt: skip
    name = "transformer.encoder.layers.0.self_attention.query_key_value.weight"
    assert layout.place(name) == (Placement("blk.0.attn_qkv.weight"),)
    (key,) = layout.place("model.layers.0.self_attn.k_proj.weight", {"blk.0.attn_qkv.weight"})
    assert key == Placement("blk.0.attn_qkv.weight", rows=(8, 12))
    told = [source.parameter for source in layout.sources("blk.0.attn_qkv.weight")]
    assert told == [f"model.layers.0.self_attn.{p}_proj.weight" for p in "qkv"]


def test_head_counts_per_block() -> None:
    values = {
        "general.architecture": "llama", "llama.block_count": 2, "llama.embedding_length": 16,
        "llama.attention.head_count": [4, 2], "llama.attention.head_count_kv": [2, 1],
        "llama.attention.key_length": 4, "llama.attention.value_length": 3,
    }  # fmt: skip
    layout = layout_of_model(values)
    second = "model.layers.1.self_attn.q_proj.weight"
    assert order_of(layout, second, 8) == [0, 2, 1, 3, 4, 6, 5, 7]
    (place,) = layout.place("model.layers.1.self_attn.v_proj.weight", {"blk.1.attn_qkv.weight"})
    assert place.rows == (12, 15)


# -- refusals -------------------------------------------------------------------------------------


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="'mamba'") as refusal:
        layout_of({"model_type": "mamba", "num_hidden_layers": 1})
    assert "llama" in (refusal.value.hint or "")
    with pytest.raises(IncompatibleError, match="'whisper'"):
        layout_of_model({"general.architecture": "whisper"})


def test_a_missing_size_is_refused_when_it_is_needed() -> None:
    layout = layout_of({"model_type": "llama", "num_hidden_layers": 1})
    with pytest.raises(IncompatibleError, match="num_attention_heads"):
        layout.place("model.layers.0.self_attn.q_proj.weight")
    assert layout.place("model.embed_tokens.weight")


@pytest.mark.parametrize("sizes", [
    {"num_hidden_layers": 1 << 40}, {"num_attention_heads": 0}, {"num_local_experts": -1},
])  # fmt: skip
def test_an_absurd_size_is_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(CorruptInputError, match=next(iter(sizes))):
        layout_of(llama() | sizes).parameters()


def test_known_models_are_told_in_order() -> None:
    assert list(model_types()) == sorted(model_types())
    assert {"llama", "mixtral", "gpt2", "qwen3_5_text"} <= set(model_types())


# -- fused parameters take every row exactly once -------------------------------------------------

SIZES = st.integers(1, 4)


@given(groups=SIZES, group=SIZES, half=SIZES, value=SIZES)
def test_every_row_lies_somewhere_once(groups: int, group: int, half: int, value: int) -> None:
    dim, heads = 2 * half, groups * group
    sizes = {"num_hidden_layers": 1, "num_attention_heads": heads, "num_key_value_heads": groups,
             "hidden_size": heads * dim, "intermediate_size": 3}  # fmt: skip
    latent = {"qk_nope_head_dim": half, "qk_rope_head_dim": 2, "v_head_dim": value}
    linear = {"linear_num_key_heads": groups, "linear_num_value_heads": heads,
              "linear_key_head_dim": half, "linear_value_head_dim": value}  # fmt: skip
    qkv = (heads + 2 * groups) * dim
    before = 2 * groups * half + heads * value
    for model, parameter, rows in (
        ("falcon", "transformer.h.0.self_attention.query_key_value", qkv),
        ("internlm2", "model.layers.0.attention.wqkv", qkv),
        ("ernie4_5", "model.layers.0.self_attn.qkv_proj", qkv),
        ("baichuan", "model.layers.0.self_attn.W_pack", 3 * heads * dim),
        ("bloom", "transformer.h.0.self_attention.query_key_value", 3 * heads * dim),
        ("deepseek_v3", "model.layers.0.self_attn.kv_b_proj", heads * (half + value)),
        ("qwen3_next", "model.layers.0.linear_attn.in_proj_qkvz", before + heads * value),
        ("qwen3_5", "model.layers.0.linear_attn.in_proj_qkv", before),
    ):
        config = {"model_type": model, "new_decoder_architecture": True}
        layout = layout_of(config | sizes | latent | linear)
        taken = []
        for place in layout.place(f"{parameter}.weight"):
            source = torch.arange(rows)
            source = source if place.part is None else source[slice(*place.part)]
            if place.row_order is not None:
                source = source[place.row_order.indices(len(source))]
            assert place.rows is None or place.rows[1] - place.rows[0] == len(source)
            taken += source.tolist()
        assert sorted(taken) == list(range(rows)), model
