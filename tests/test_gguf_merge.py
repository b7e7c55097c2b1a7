"""Merging into GGUF models: types kept or changed, bytes kept where nothing moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adaptool.canonical import (
    Adapter,
    Checkpoint,
    Dora,
    ExpertLowRank,
    LowRank,
    Provenance,
    Replacement,
    Site,
    TokenRows,
    Update,
)
from adaptool.canonical.tensors import from_values
from adaptool.containers import SaveOptions, open_checkpoint, save_checkpoint
from adaptool.containers.gguf import Value
from adaptool.conversion import to_gguf
from adaptool.errors import IncompatibleError, UsageError
from adaptool.formats import WriteOptions, format_for
from adaptool.jobs.merging import merge_files
from adaptool.merging import merge

HIDDEN, FFN, VOCABULARY, LAYERS = 256, 512, 96, 2
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": FFN, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "max_position_embeddings": 64, "rope_theta": 10000.0, "tie_word_embeddings": True,
}  # fmt: skip
LINEARS = {
    "self_attn.q_proj": (256, 256), "self_attn.k_proj": (128, 256), "self_attn.v_proj": (128, 256),
    "self_attn.o_proj": (256, 256), "mlp.gate_proj": (512, 256), "mlp.up_proj": (512, 256),
    "mlp.down_proj": (256, 512),
}  # fmt: skip
UP = "model.layers.1.mlp.up_proj"


def values(*shape: int, seed: int = 0, scale: float = 0.05) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def hugging_face(*, tied: bool = True) -> Checkpoint:
    tensors = {"model.embed_tokens.weight": values(VOCABULARY, HIDDEN, seed=1)}
    for layer in range(LAYERS):
        for i, (name, shape) in enumerate(LINEARS.items()):
            tensors[f"model.layers.{layer}.{name}.weight"] = values(*shape, seed=10 * layer + i)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = 1 + values(HIDDEN, seed=7)
    tensors["model.norm.weight"] = 1 + values(HIDDEN, seed=8)
    if not tied:
        tensors["lm_head.weight"] = values(VOCABULARY, HIDDEN, seed=9)
    return Checkpoint(
        {name: from_values(tensor) for name, tensor in tensors.items()},
        "safetensors", Provenance("tiny", "safetensors"),
        {**CONFIG, "tie_word_embeddings": tied},
    )  # fmt: skip


def saved(path: Path, outtype: str, *, tied: bool = True) -> Path:
    model = to_gguf(hugging_face(tied=tied), outtype=outtype, vocabulary=None)
    save_checkpoint(model, path, SaveOptions())
    return path


def low_rank(name: str, strength: float = 1.0, seed: int = 0) -> LowRank:
    out, inputs = LINEARS[name.split(".", 3)[3]]
    a, b = values(4, inputs, seed=seed, scale=1), values(out, 4, seed=seed + 1, scale=1)
    return LowRank(from_values(a), from_values(b), strength / 256)


def adapter(*names: str, strength: float = 1.0) -> Adapter:
    modules = names or tuple(f"model.layers.{i}.{n}" for i in range(LAYERS) for n in LINEARS)
    return made({n: low_rank(n, strength, seed=i) for i, n in enumerate(modules)})


def made(updates: dict[str, Update], **changes: object) -> Adapter:
    sites = {Site(name): update for name, update in updates.items()}
    return replace(Adapter(sites, "lora", None, Provenance("a", "peft")), **changes)  # type: ignore[arg-type]


def on_disk(path: Path, found: Adapter) -> Path:
    format_for(path, "peft").write(found, path, WriteOptions())
    return path


def dense(update: Update) -> torch.Tensor:
    assert isinstance(update, LowRank)
    return update.scaling * update.b.values().double() @ update.a.values().double()


def opened(path: Path) -> dict[str, torch.Tensor]:
    return {name: t.values().double() for name, t in open_checkpoint(path).tensors.items()}


KINDS = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k", "q2_k", "iq4_xs"]


@pytest.mark.parametrize("kind", KINDS)
def test_scale_0_reproduces_the_file(tmp_path: Path, kind: str) -> None:
    base = saved(tmp_path / "base.gguf", kind)
    pirate = on_disk(tmp_path / "pirate", adapter())
    report = merge_files(base, {str(pirate): 0.0}, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == base.read_bytes()
    assert report.changed == 0


@pytest.mark.parametrize("kind", KINDS)
def test_types_header_and_untouched_bytes_are_kept(tmp_path: Path, kind: str) -> None:
    base, out = saved(tmp_path / "base.gguf", kind), tmp_path / "out.gguf"
    pirate = on_disk(tmp_path / "pirate", adapter(UP, strength=30))
    report = merge_files(base, {str(pirate): 0.5}, out)
    before, after = base.read_bytes(), out.read_bytes()
    stored = open_checkpoint(base).tensors["blk.1.ffn_up.weight"].stored
    assert stored is not None
    first, last = stored.offset, stored.offset + stored.size
    assert before[:first] + before[last:] == after[:first] + after[last:]
    wanted = opened(base)["blk.1.ffn_up.weight"] + 0.5 * dense(low_rank(UP, 30))
    got = opened(out)["blk.1.ffn_up.weight"]
    step = {"f32": 1e-6, "f16": 1e-3, "bf16": 8e-3, "q8_0": 0.01, "q6_k": 0.03, "q5_k_m": 0.05}
    assert float((got - wanted).norm() / wanted.norm()) < step.get(kind, 0.4)
    assert report.survival is not None
    assert report.survival.ratio == pytest.approx(1.0, abs=0.05)


def test_all_linears_merge_as_in_the_checkpoint(tmp_path: Path) -> None:
    """Row orders included: merge then convert equals convert then merge."""
    base, out = saved(tmp_path / "base.gguf", "f32"), tmp_path / "out.gguf"
    pirate = adapter(strength=20)
    merge_files(base, {str(on_disk(tmp_path / "pirate", pirate)): 0.75}, out)
    other = merge(hugging_face(), [(pirate, 0.75)]).checkpoint
    save_checkpoint(
        to_gguf(other, outtype="f32", vocabulary=None), tmp_path / "other.gguf", SaveOptions()
    )
    wanted = opened(tmp_path / "other.gguf")
    for name, got in opened(out).items():
        assert torch.allclose(got, wanted[name], atol=2e-7), name


def test_a_small_update_of_4_bit_blocks_is_refused_with_the_ways_out(tmp_path: Path) -> None:
    base, out = saved(tmp_path / "base.gguf", "q4_0"), tmp_path / "out.gguf"
    pirate = str(on_disk(tmp_path / "pirate", adapter(strength=0.06)))
    with pytest.raises(IncompatibleError, match="of the update would survive") as caught:
        merge_files(base, {pirate: 1.0}, out)
    assert "--base-weights" in str(caught.value.hint)
    assert not out.exists()
    lossy = merge_files(base, {pirate: 1.0}, out, allow_loss=True)
    assert lossy.survival is not None
    assert lossy.survival.ratio is not None
    assert lossy.survival.ratio < 0.5
    assert set(lossy.by_type) == {"Q4_0"}


def test_stochastic_rounding_keeps_it_on_average(tmp_path: Path) -> None:
    base = saved(tmp_path / "base.gguf", "q4_0")
    pirate = str(on_disk(tmp_path / "pirate", adapter(strength=0.06)))
    first, again, other = (tmp_path / f"{n}.gguf" for n in ("first", "again", "other"))
    for out, seed, threads in ((first, 1, 1), (again, 1, 2), (other, 2, 1)):
        report = merge_files(
            base, {pirate: 1.0}, out, rounding="stochastic", seed=seed, threads=threads
        )
        assert report.survival is not None
        assert report.survival.ratio == pytest.approx(1.0, abs=0.35)
        assert report.survival.stored > 2 * report.survival.meant
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


@pytest.mark.parametrize("original", ["checkpoint", "f32.gguf"])
def test_original_weights_are_quantised_once(tmp_path: Path, original: str) -> None:
    """Touched tensors equal the quantised merge of the full-precision model, bit for bit."""
    base, out = saved(tmp_path / "base.gguf", "q4_k_m"), tmp_path / "out.gguf"
    if original == "checkpoint":
        source = tmp_path / "model"
        checkpoint = hugging_face()
        side = {"config.json": __import__("json").dumps(dict(checkpoint.config)).encode()}
        save_checkpoint(replace(checkpoint, side_files=side), source, SaveOptions())
    else:
        source = saved(tmp_path / original, "f32")
    pirate = adapter(strength=0.5)
    report = merge_files(
        base, {str(on_disk(tmp_path / "pirate", pirate)): 1.0}, out, base_weights=source
    )
    other = merge(hugging_face(), [(pirate, 1.0)]).checkpoint
    save_checkpoint(
        to_gguf(other, outtype="q4_k_m", vocabulary=None), tmp_path / "other.gguf", SaveOptions()
    )
    assert report.survival is not None
    assert report.survival.ratio == pytest.approx(1.0, abs=0.3)
    wanted = opened(tmp_path / "other.gguf")
    for name, got in opened(out).items():
        assert torch.equal(got, wanted[name]), name


def test_touched_tensors_may_be_written_wider(tmp_path: Path) -> None:
    base, out = saved(tmp_path / "base.gguf", "q4_k_m"), tmp_path / "out.gguf"
    pirate = str(on_disk(tmp_path / "pirate", adapter(UP)))
    merge_files(base, {pirate: 1.0}, out, dtype="f16")
    found, stored = open_checkpoint(out), open_checkpoint(base)
    kinds = {n for n, t in found.tensors.items() if t.kind != stored.tensors[n].kind}
    assert kinds == {"blk.1.ffn_up.weight"}
    assert found.config["general.file_type"] == 1
    assert found.metadata.get("adaptool") is not None
    wanted = opened(base)["blk.1.ffn_up.weight"] + dense(low_rank(UP))
    assert torch.allclose(opened(out)["blk.1.ffn_up.weight"], wanted, atol=1e-3)


def test_a_float_base_is_quantised_on_the_way(tmp_path: Path) -> None:
    base, out = saved(tmp_path / "base.gguf", "f16"), tmp_path / "out.gguf"
    merge_files(base, {str(on_disk(tmp_path / "p", adapter(UP))): 1.0}, out, dtype="q8_0")
    kinds = {t.kind for n, t in open_checkpoint(out).tensors.items() if "norm" not in n}
    assert kinds == {"Q8_0"}


def test_a_head_of_its_own_is_written_when_one_end_changes(tmp_path: Path) -> None:
    base, out = saved(tmp_path / "base.gguf", "f16"), tmp_path / "out.gguf"
    a, b = values(2, HIDDEN, scale=1), values(VOCABULARY, 2, scale=1)
    head = made({"lm_head": LowRank(from_values(a), from_values(b), 0.01)})
    merge_files(base, {str(on_disk(tmp_path / "head", head)): 1.0}, out)
    before, after = opened(base), opened(out)
    assert torch.equal(after["token_embd.weight"], before["token_embd.weight"])
    wanted = before["token_embd.weight"] + 0.01 * b.double() @ a.double()
    assert torch.allclose(after["output.weight"], wanted, atol=1e-3)


def test_norms_heads_token_rows_and_dora(tmp_path: Path) -> None:
    base = saved(tmp_path / "base.gguf", "f32", tied=False)
    stored = open_checkpoint(base)
    norm, rows = 1 + values(HIDDEN, seed=30), values(2, HIDDEN, seed=31)
    q = "model.layers.0.self_attn.q_proj"
    magnitude = values(256, seed=32, scale=1).abs() + 1
    found = merge(stored, [(made({
        "model.layers.1.input_layernorm": Replacement(from_values(norm)),
        "model.embed_tokens": TokenRows((3, 90), from_values(rows)),
        q: Dora(low_rank(q, 20), from_values(magnitude)),
    }), 1.0)]).checkpoint.tensors  # fmt: skip
    assert torch.equal(found["blk.1.attn_norm.weight"].values(), norm)
    assert torch.equal(found["token_embd.weight"].values()[[3, 90]], rows)
    weight = hugging_face().tensors[f"{q}.weight"].values().double() + dense(low_rank(q, 20))
    wanted = magnitude.double()[:, None] * weight / weight.norm(dim=1, keepdim=True)
    pairs = [h * 64 + half * 32 + i for h in range(4) for i in range(32) for half in range(2)]
    assert torch.allclose(found["blk.0.attn_q.weight"].values().double(), wanted[pairs], atol=1e-5)


def test_norm_plus_1_architectures(tmp_path: Path) -> None:
    config = {
        **CONFIG,
        "model_type": "gemma",
        "head_dim": 64,
        "hidden_activation": "gelu_pytorch_tanh",
    }
    model = replace(hugging_face(), config=config)
    stored = to_gguf(model, outtype="f32", vocabulary=None)
    norm = values(HIDDEN, seed=30)
    update = made({"model.layers.1.input_layernorm": Replacement(from_values(norm))})
    found = merge(stored, [(update, 0.5)]).checkpoint.tensors["blk.1.attn_norm.weight"].values()
    before = model.tensors["model.layers.1.input_layernorm.weight"].values()
    assert torch.allclose(found, 1 + (before + norm) / 2, atol=1e-6)


def test_untouched_experts_keep_their_bytes(tmp_path: Path) -> None:
    config = {**CONFIG, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    tensors = {n: t for n, t in hugging_face().tensors.items() if ".mlp." not in n}
    for layer in range(LAYERS):
        block = f"model.layers.{layer}.block_sparse_moe"
        tensors[f"{block}.gate.weight"] = from_values(values(4, HIDDEN, seed=3))
        for e in range(4):
            for i, (part, shape) in enumerate(
                {"w1": (FFN, HIDDEN), "w2": (HIDDEN, FFN), "w3": (FFN, HIDDEN)}.items()
            ):
                tensors[f"{block}.experts.{e}.{part}.weight"] = from_values(
                    values(*shape, seed=100 * layer + 10 * e + i)
                )
    model = replace(hugging_face(), tensors=tensors, config=config)
    base = tmp_path / "base.gguf"
    save_checkpoint(to_gguf(model, outtype="q4_k_m", vocabulary=None), base, SaveOptions())
    stored = open_checkpoint(base)
    a, b = values(4, 4, HIDDEN, scale=1), values(4, 2 * FFN, 4, seed=1, scale=1)
    b[[0, 1, 3]] = 0
    one = LowRank(from_values(a[2]), from_values(b[2, :FFN].contiguous()), 0.2)
    name = "model.layers.0.block_sparse_moe.experts.2.w1"
    merged = merge(stored, [(made({name: one}), 1.0)]).checkpoint.tensors
    before, after = (t["blk.0.ffn_gate_exps.weight"] for t in (stored.tensors, merged))
    old, new = (b"".join(bytes(part) for part in t.bytes()) for t in (before, after))
    quarter = len(old) // 4
    assert old[: 2 * quarter] == new[: 2 * quarter]
    assert old[3 * quarter :] == new[3 * quarter :]
    wanted = before.values()[2].double() + dense(one)
    assert float((after.values()[2].double() - wanted).norm() / wanted.norm()) < 0.1
    fused = made({})
    fused = replace(
        fused,
        updates={
            Site("model.layers.0.mlp.experts", "gate_up_proj"): ExpertLowRank(
                from_values(a), from_values(b), 0.2
            )
        },
    )
    again = merge(stored, [(fused, 1.0)]).checkpoint.tensors
    gate = again["blk.0.ffn_gate_exps.weight"].values()[2].double()
    assert float((gate - wanted).norm() / wanted.norm()) < 0.1
    up = before_up = stored.tensors["blk.0.ffn_up_exps.weight"].values()[2].double()
    up = again["blk.0.ffn_up_exps.weight"].values()[2].double()
    moved = before_up + 0.2 * b[2, FFN:].double() @ a[2].double()
    assert float((up - moved).norm() / moved.norm()) < 0.1


def test_a_scale_beside_the_weight_is_respected(tmp_path: Path) -> None:
    """llama.cpp computes scale * W x: the stored W moves by dW / scale."""
    stored = to_gguf(hugging_face(), outtype="f32", vocabulary=None)
    tensors = {**stored.tensors, "blk.1.ffn_up.scale": from_values(torch.tensor([4.0]))}
    base = replace(stored, tensors=tensors)
    found = merge(base, [(adapter(UP), 1.0)]).checkpoint.tensors["blk.1.ffn_up.weight"].values()
    wanted = stored.tensors["blk.1.ffn_up.weight"].values().double() + dense(low_rank(UP)) / 4
    assert torch.allclose(found.double(), wanted, atol=1e-7)


def test_importance_is_taken(tmp_path: Path) -> None:
    """Columns that matter come out closer than without an importance matrix."""
    from adaptool.containers.gguf import save_file

    base = saved(tmp_path / "base.gguf", "q4_k_m")
    weights = torch.full((HIDDEN,), 1e-3)
    weights[::16] = 100.0
    values_of = {
        "general.type": Value.string("imatrix"), "general.architecture": Value.string("llama"),
        "imatrix.chunk_count": Value.u32(1), "imatrix.chunk_size": Value.u32(512),
        "imatrix.datasets": Value.strings(["x"]),
    }  # fmt: skip
    tensors = {
        "blk.1.ffn_up.weight.in_sum2": from_values(weights.reshape(1, -1)),
        "blk.1.ffn_up.weight.counts": from_values(torch.ones(1, 1)),
    }
    save_file(tmp_path / "imatrix.gguf", values_of, tensors, SaveOptions())
    pirate = str(on_disk(tmp_path / "p", adapter(UP, strength=30)))
    errors = []
    for imatrix in (None, tmp_path / "imatrix.gguf"):
        out = tmp_path / f"{imatrix is None}.gguf"
        merge_files(base, {pirate: 1.0}, out, imatrix=imatrix)
        wanted = opened(base)["blk.1.ffn_up.weight"] + dense(low_rank(UP, 30))
        error = (opened(out)["blk.1.ffn_up.weight"] - wanted)[:, ::16]
        errors.append(float(error.norm()))
    assert errors[1] < 0.9 * errors[0]


def test_refusals(tmp_path: Path) -> None:
    base = saved(tmp_path / "base.gguf", "q8_0")
    model = open_checkpoint(base)
    with pytest.raises(IncompatibleError, match="fit nowhere"):
        merge(model, [(made({"model.layers.9.mlp.up_proj": low_rank(UP)}), 1.0)])
    with pytest.raises(IncompatibleError, match="expects"):
        merge(model, [(made({"model.layers.1.mlp.down_proj": low_rank(UP)}), 1.0)])
    bigger = made({"model.embed_tokens": Replacement(from_values(values(VOCABULARY + 8, HIDDEN)))})
    with pytest.raises(IncompatibleError, match="the base has"):
        merge(model, [(bigger, 1.0)])
    theirs = made({"blk.1.ffn_up": low_rank(UP)}, naming="gguf",
                  config={"general.architecture": "qwen2"})  # fmt: skip
    with pytest.raises(IncompatibleError, match="qwen2"):
        merge(model, [(theirs, 1.0)])
    pirate = str(on_disk(tmp_path / "p", adapter(UP)))
    with pytest.raises(UsageError, match="unknown outtype"):
        merge_files(base, {pirate: 1.0}, tmp_path / "o.gguf", dtype="q9_9")
    with pytest.raises(UsageError, match="quantised GGUF"):
        merge_files(
            Path(__file__).parent.parent / "fixtures/demo/model",
            {str(Path(__file__).parent.parent / "fixtures/demo/pirate"): 1.0},
            tmp_path / "o", rounding="stochastic",
        )  # fmt: skip


def test_a_gguf_adapter_needs_no_translation(tmp_path: Path) -> None:
    from adaptool.jobs.converting import convert

    base, pirate = saved(tmp_path / "base.gguf", "q8_0"), on_disk(tmp_path / "p", adapter())
    convert(pirate, tmp_path / "p.gguf", base=base)
    for name in ("p", "p.gguf"):
        merge_files(base, {str(tmp_path / name): 1.0}, tmp_path / f"{name}.out.gguf")
    assert (tmp_path / "p.out.gguf").read_bytes() == (tmp_path / "p.gguf.out.gguf").read_bytes()
