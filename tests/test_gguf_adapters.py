"""GGUF adapters: what is written and read, and names and rows that move both ways."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptool.architectures.gguf import layout_of, layout_of_model
from adaptool.architectures.gguf.translation import to_gguf, to_huggingface
from adaptool.canonical import (
    Adapter,
    DType,
    ExpertLowRank,
    LowRank,
    Provenance,
    Replacement,
    Site,
    Update,
)
from adaptool.canonical.tensors import from_values
from adaptool.containers import SaveOptions
from adaptool.containers.gguf import Kind, Value, save_file
from adaptool.errors import AdaptoolError, CorruptInputError, IncompatibleError, UsageError
from adaptool.formats import ReadOptions, WriteOptions, ggla, gguf, read_adapter
from adaptool.jobs.converting import convert

LLAMA = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "vocab_size": 50,
}  # fmt: skip
Q, K = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.k_proj"


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def low_rank(out: int, inputs: int, rank: int, *, scaling: float = 2.0, seed: int = 0) -> LowRank:
    a, b = values(rank, inputs, seed=seed), values(out, rank, seed=seed + 1)
    return LowRank(from_values(a), from_values(b), scaling)


def adapter(updates: Mapping[str, Update], **changes: object) -> Adapter:
    sites = {Site(*name.rsplit(".", 1)): update for name, update in updates.items()}
    made = Adapter(sites, "lora", "org/base", Provenance("pirate", "peft"))
    return replace(made, **changes)  # type: ignore[arg-type]


def dense(update: Update) -> torch.Tensor:
    assert isinstance(update, LowRank)
    return update.scaling * update.b.values().double() @ update.a.values().double()


def written(found: Adapter, path: Path, **options: object) -> Adapter:
    gguf.write(found, path, WriteOptions(**options))  # type: ignore[arg-type]
    return gguf.read(path, ReadOptions())


# -- the file -------------------------------------------------------------------------------------


def test_rows_of_q_and_k_lie_in_pairs(tmp_path: Path) -> None:
    """HF's halves [0..h/2) [h/2..h) of each head become pairs (0, h/2), (1, h/2 + 1) ..."""
    q, k = low_rank(32, 32, 2), low_rank(16, 32, 2, seed=5)
    made = to_gguf(adapter({f"{Q}.weight": q, f"{K}.weight": k}), layout_of(LLAMA))
    found = written(made, tmp_path / "a.gguf").updates
    pairs = [head * 8 + half * 4 + i for head in range(4) for i in range(4) for half in range(2)]
    moved = found[Site("blk.0.attn_q")]
    assert torch.equal(dense(moved), dense(q)[pairs])
    assert torch.equal(dense(found[Site("blk.1.attn_k")]), dense(k)[pairs[:16]])
    assert moved.scaling == 2.0


def test_one_alpha_states_what_it_can_and_b_takes_the_rest(tmp_path: Path) -> None:
    modules = {
        "model.layers.0.mlp.up_proj.weight": low_rank(48, 32, 4, scaling=2.0),
        "model.layers.0.mlp.gate_proj.weight": low_rank(48, 32, 4, scaling=2.0, seed=3),
        "model.layers.0.mlp.down_proj.weight": low_rank(32, 48, 8, scaling=8 / 8**0.5, seed=5),
        "model.layers.1.mlp.down_proj.weight": low_rank(32, 48, 2, scaling=0.0, seed=7),
        "model.layers.1.mlp.up_proj.weight": low_rank(48, 32, 2, scaling=-1.5, seed=9),
    }
    made = to_gguf(adapter(modules), layout_of(LLAMA))
    found = written(made, tmp_path / "a.gguf")
    assert found.config["adapter.lora.alpha"] == 8.0
    back = to_huggingface(found, layout_of(LLAMA))
    for name, update in modules.items():
        got = back.updates[Site(*name.rsplit(".", 1))]
        assert float((dense(got) - dense(update)).norm()) <= 1e-7 * float(dense(update).norm())
    up = back.updates[Site("model.layers.0.mlp.up_proj")]
    assert torch.equal(up.b.values(), modules["model.layers.0.mlp.up_proj.weight"].b.values())


@pytest.mark.parametrize(("dtype", "encoding", "bound"), [
    (DType.FLOAT32, None, 0.0), (DType.FLOAT16, None, 1e-3), (DType.BFLOAT16, None, 8e-3),
    (None, "q8_0", 2e-2),
])  # fmt: skip
def test_types_of_factors(
    tmp_path: Path, dtype: DType | None, encoding: str | None, bound: float
) -> None:
    update = low_rank(48, 32, 4)
    made = to_gguf(adapter({"model.layers.0.mlp.up_proj.weight": update}), layout_of(LLAMA))
    found = written(made, tmp_path / "a.gguf", dtype=dtype, encoding=encoding)
    got = dense(found.updates[Site("blk.0.ffn_up")])
    assert float((got - dense(update)).norm() / dense(update).norm()) <= bound


def test_a_missing_alpha_means_no_division(tmp_path: Path) -> None:
    """llama.cpp: `scale = alpha ? user_scale * alpha / rank : user_scale`."""
    path = tmp_path / "a.gguf"
    for alpha, strength in ((None, 1.0), (0.0, 1.0), (6.0, 3.0)):
        stated = {} if alpha is None else {gguf.ALPHA: Value.f32(alpha)}
        save(path, stated)
        assert gguf.read(path, ReadOptions()).updates[Site("blk.0.ffn_up")].scaling == strength


def save(path: Path, changes: Mapping[str, Value | None] | None = None,
         tensors: Mapping[str, torch.Tensor] | None = None) -> None:  # fmt: skip
    """A small adapter file with other values or tensors."""
    stated: dict[str, Value | None] = {
        "general.architecture": Value.string("llama"), "general.type": Value.string("adapter"),
        "adapter.type": Value.string("lora"), **(changes or {}),
    }  # fmt: skip
    factors = tensors or {
        "blk.0.ffn_up.weight.lora_a": values(2, 32), "blk.0.ffn_up.weight.lora_b": values(48, 2),
    }  # fmt: skip
    save_file(
        path,
        {key: value for key, value in stated.items() if value is not None},
        {name: from_values(tensor) for name, tensor in factors.items()},
        SaveOptions(force=True),
    )


A, B = "blk.0.ffn_up.weight.lora_a", "blk.0.ffn_up.weight.lora_b"


@pytest.mark.parametrize(("changes", "tensors", "error", "message"), [
    ({"adapter.type": Value.string("control")}, None, IncompatibleError, "type control"),
    ({"adapter.type": None}, None, IncompatibleError, "type None"),
    ({"general.architecture": None}, None, CorruptInputError, "architecture is missing"),
    ({gguf.ALPHA: Value.u32(8)}, None, CorruptInputError, "of type U32, expected F32"),
    ({gguf.ALPHA: Value.f32(float("nan"))}, None, CorruptInputError, "alpha is nan"),
    (None, {A: values(2, 32)}, CorruptInputError, "lora_b is missing"),
    (None, {B: values(48, 2)}, CorruptInputError, "lora_a is missing"),
    (None, {A: values(2, 32), B: values(48, 3)}, CorruptInputError, "factors of"),
    (None, {A: values(3, 2, 32), B: values(2, 48, 2)}, CorruptInputError, "factors of"),
    (None, {A: values(32), B: values(48)}, CorruptInputError, "factors of"),
    (None, {A: values(2, 32), B: values(48, 2), "output_norm.weight": values(32)},
     IncompatibleError, "neither .lora_a nor .lora_b"),
])  # fmt: skip
def test_refuses(tmp_path: Path, changes: Mapping[str, Value | None] | None,
                 tensors: Mapping[str, torch.Tensor] | None, error: type[AdaptoolError],
                 message: str) -> None:  # fmt: skip
    save(tmp_path / "a.gguf", changes, tensors)
    with pytest.raises(error, match=message):
        read_adapter(tmp_path / "a.gguf")


def test_invocation_tokens_travel(tmp_path: Path) -> None:
    made = adapter(
        {f"{Q}.weight": low_rank(32, 32, 2)},
        config={"alora_invocation_tokens": [5, 7]}, unmergeable="needs tokens",
    )  # fmt: skip
    found = written(to_gguf(made, layout_of(LLAMA)), tmp_path / "a.gguf")
    assert found.config["alora_invocation_tokens"] == [5, 7]
    assert found.unmergeable
    assert to_huggingface(found, layout_of(LLAMA)).config["alora_invocation_tokens"] == [5, 7]


def test_what_gguf_cannot_say_is_refused_with_the_way_out() -> None:
    for update in (Replacement(from_values(values(32))),):
        with pytest.raises(IncompatibleError, match="is replacement") as caught:
            to_gguf(adapter({"model.norm.weight": update}), layout_of(LLAMA))
        assert "adaptool merge" in str(caught.value.hint)
    with pytest.raises(IncompatibleError, match="no such parameter"):
        to_gguf(adapter({"model.vision.q.weight": low_rank(4, 4, 1)}), layout_of(LLAMA))
    with pytest.raises(IncompatibleError, match="does not fit"):
        to_gguf(adapter({f"{Q}.weight": low_rank(20, 32, 1)}), layout_of(LLAMA))


# -- both ways ------------------------------------------------------------------------------------

CONFIGS = {
    "llama": LLAMA,
    "qwen2": {**LLAMA, "model_type": "qwen2"},
    "phi3": {**LLAMA, "model_type": "phi3"},
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 50},
    "falcon": {
        "model_type": "falcon", "num_hidden_layers": 2, "hidden_size": 32, "vocab_size": 50,
        "num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": True,
    },
    "bloom": {"model_type": "bloom", "n_layer": 2, "hidden_size": 32, "n_head": 4},
    "mixtral": {**LLAMA, "model_type": "mixtral", "num_local_experts": 3},
    "qwen3_moe": {
        **LLAMA, "model_type": "qwen3_moe", "num_experts": 3, "head_dim": 8,
        "moe_intermediate_size": 24,
    },
}  # fmt: skip
SHAPES = {
    "self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.o_proj": (32, 32),
    "mlp.up_proj": (48, 32), "mlp.down_proj": (32, 48), "self_attn.qkv_proj": (64, 32),
    "mlp.gate_up_proj": (96, 32), "attn.c_attn": (96, 32), "attn.c_proj": (32, 32),
    "mlp.c_fc": (128, 32), "mlp.c_proj": (32, 128), "self_attention.query_key_value": (64, 32),
    "self_attention.dense": (32, 32), "w1": (48, 32), "w2": (32, 48), "w3": (48, 32),
    "gate_proj": (24, 32), "down_proj": (32, 24),
}  # fmt: skip


def shape_of(model: str, parameter: str) -> tuple[int, int] | None:
    module = parameter.removesuffix(".weight")
    if model == "bloom" and module.endswith("query_key_value"):
        return (96, 32)
    ends = (e for e in SHAPES if module.endswith("." + e))
    return next((SHAPES[e] for e in ends), None) if parameter.endswith(".weight") else None


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_there_and_back_is_lossless(data: st.DataObject) -> None:
    """Whatever modules an adapter has: the factors come back bit for bit, or padded by zeros."""
    model = data.draw(st.sampled_from(sorted(CONFIGS)))
    layout = layout_of(CONFIGS[model])
    known = {p: s for p in layout.parameters() if (s := shape_of(model, p)) is not None}
    chosen = data.draw(
        st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=5, unique=True)
    )
    updates = {
        name: low_rank(*known[name], data.draw(st.integers(1, 4)), seed=i, scaling=0.5)
        for i, name in enumerate(chosen)
    }
    back = to_huggingface(to_gguf(adapter(updates), layout), layout)
    for name, update in updates.items():
        found = back.updates[Site(*name.rsplit(".", 1))]
        assert torch.allclose(dense(found), dense(update), rtol=1e-6, atol=1e-7), name
        if "experts" not in name:
            assert torch.equal(found.a.values(), update.a.values())
            assert torch.equal(found.b.values(), update.b.values())
            assert found.scaling == update.scaling
    extra = set(map(str, back.updates)) - set(updates)
    assert all(not dense(back.updates[Site(*n.rsplit(".", 1))]).any() for n in extra)


def test_partial_experts_are_filled_with_zeros() -> None:
    layout = layout_of(CONFIGS["mixtral"])
    name = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    update = low_rank(48, 32, 3)
    found = to_gguf(adapter({name: update}), layout).updates[Site("blk.0.ffn_gate_exps")]
    assert isinstance(found, ExpertLowRank)
    assert found.shape == (3, 48, 32)
    assert torch.equal(dense(found.expert(1)), dense(update))
    assert not dense(found.expert(0)).any()


def test_fused_experts_are_split(tmp_path: Path) -> None:
    """transformers 5: experts.gate_up_proj [experts, gate rows then up rows, in]."""
    a, b = values(3, 2, 32), values(3, 96, 2, seed=1)
    update = ExpertLowRank(from_values(a), from_values(b), 1.5)
    made = to_gguf(
        adapter({"model.layers.0.mlp.experts.gate_up_proj": update}),
        layout_of({**CONFIGS["mixtral"]}),
    )
    found = written(made, tmp_path / "a.gguf").updates
    wanted = 1.5 * b.double() @ a.double()
    for expert in range(3):
        gate, up = (found[Site(f"blk.0.ffn_{part}_exps")].expert(expert) for part in ("gate", "up"))
        assert torch.allclose(dense(gate), wanted[expert, :48])
        assert torch.allclose(dense(up), wanted[expert, 48:])


def test_a_fused_base_gets_one_block_structured_pair() -> None:
    """A model with attn_qkv where llama has three tensors: A's stacked, B's on their own rows."""
    shapes = {"blk.0.attn_qkv.weight": (64, 32)}
    names = ("q_proj", "k_proj", "v_proj")
    modules = {
        f"model.layers.0.self_attn.{n}.weight": low_rank(32 if n == "q_proj" else 16, 32, 2, seed=i)
        for i, n in enumerate(names)
    }
    layout = layout_of_model({
        "general.architecture": "llama", "llama.block_count": 2, "llama.embedding_length": 32,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.feed_forward_length": 48,
    })  # fmt: skip
    found = to_gguf(adapter(modules), layout, shapes).updates
    assert list(map(str, found)) == ["blk.0.attn_qkv.weight"]
    separate = to_gguf(adapter(modules), layout).updates
    rows = [dense(separate[Site(f"blk.0.attn_{n}")]) for n in ("q", "k", "v")]
    assert torch.allclose(dense(found[Site("blk.0.attn_qkv")]), torch.cat(rows))


def test_the_embedding_is_stored_as_llama_cpp_wants_it(tmp_path: Path) -> None:
    update = replace(low_rank(32, 50, 2), embedding=True)
    made = to_gguf(adapter({"model.embed_tokens.weight": update}), layout_of(LLAMA))
    path = tmp_path / "a.gguf"
    gguf.write(made, path, WriteOptions())
    from gguf import GGUFReader

    stored = {t.name: t.data.shape for t in GGUFReader(path).tensors}
    assert stored == {"token_embd.weight.lora_a": (50, 2), "token_embd.weight.lora_b": (32, 2)}
    back = to_huggingface(gguf.read(path, ReadOptions()), layout_of(LLAMA))
    assert torch.equal(dense(back.updates[Site("model.embed_tokens")]), dense(update))


# -- ggla -----------------------------------------------------------------------------------------


def ggla_file(
    path: Path, tensors: Mapping[str, torch.Tensor], rank: int = 2, alpha: int = 4
) -> None:
    content = struct.pack("<4siii", b"algg", 1, rank, alpha)
    for name, tensor in tensors.items():
        text = name.encode()
        kind = 1 if tensor.dtype == torch.float16 else 0
        content += struct.pack("<iii", 2, len(text), kind)
        content += struct.pack("<ii", *reversed(tensor.shape)) + text
        content += bytes(-len(content) % 32) + tensor.numpy().tobytes()
    path.write_bytes(content)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_ggla_files_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    a, b = values(2, 32).to(dtype), values(32, 2, seed=1).to(dtype)
    path = tmp_path / "ggml-adapter-model.bin"
    for name in ("layers.0.attention.wq.weight", "blk.0.attn_q.weight"):
        ggla_file(path, {f"{name}.loraA": a.T.contiguous(), f"{name}.loraB": b})
        with pytest.raises(UsageError, match="whose order"):
            read_adapter(path)
        mine = read_adapter(path, ReadOptions(row_order="hf"))
        theirs = read_adapter(path, ReadOptions(row_order="ggml"))
        wanted = 2.0 * b.double() @ a.double()
        assert torch.equal(dense(mine.updates[Site(Q)]), wanted)
        assert torch.equal(dense(theirs.updates[Site("blk.0.attn_q")]), wanted)
        assert not torch.equal(
            dense(to_huggingface(theirs, layout_of(LLAMA)).updates[Site(Q)]), wanted
        )


@pytest.mark.parametrize("cut", [3, 10, 16, 20, 30, 60, 100, -1])
def test_broken_ggla_files_are_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.bin"
    ggla_file(path, {"blk.0.attn_q.weight.loraA": values(32, 2)})
    path.write_bytes(path.read_bytes()[:cut])
    if cut == 3:
        assert not ggla.recognises(path)
        return
    with pytest.raises((CorruptInputError, IncompatibleError)):
        ggla.read(path, ReadOptions(row_order="hf"))


# -- the job --------------------------------------------------------------------------------------


def test_a_base_is_asked_for_only_where_worlds_differ(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    save(path)
    with pytest.raises(UsageError, match="does not say how its base") as caught:
        convert(path, tmp_path / "out", to="peft")
    assert "--base" in str(caught.value.hint)
    half = convert(path, tmp_path / "half.gguf", dtype="f16", scale=0.5)
    found = read_adapter(half.path).updates[Site("blk.0.ffn_up")]
    assert (found.a.dtype, found.scaling) == (DType.FLOAT16, 0.5)


def test_kinds_of_alpha() -> None:
    assert Value.f32(8.0).kind is Kind.F32
