"""LyCORIS and sd-scripts files: formulas, names that lost their dots, what is refused.

`golden/lycoris` holds a file as LyCORIS 4.1.3 writes it, the weights that it was made for, and by
how much its modules' own forward passes change them (measured with unit inputs).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from adaptool.architectures.speaking import parameters_of, spoken_by
from adaptool.architectures.underscored import named
from adaptool.canonical import (
    Adapter,
    Applicable,
    Checkpoint,
    Dora,
    LowRank,
    Provenance,
    Site,
    Window,
)
from adaptool.canonical.tensors import from_values
from adaptool.containers import SaveOptions, open_checkpoint, save_checkpoint
from adaptool.conversion import to_gguf
from adaptool.errors import AdaptoolError, CorruptInputError, IncompatibleError, UsageError
from adaptool.formats import WriteOptions, find, format_for, read_adapter
from adaptool.inspection import Details, inspect
from adaptool.jobs.converting import convert
from adaptool.jobs.merging import merge_files

GOLDEN = Path(__file__).parent / "golden" / "lycoris"
CPU = torch.device("cpu")
Tensors = Mapping[str, torch.Tensor]

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2,
    "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 24,
    "intermediate_size": 48, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}  # fmt: skip
SHAPES = {
    "self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32), "mlp.gate_proj": (48, 32), "mlp.up_proj": (48, 32),
    "mlp.down_proj": (32, 48),
}  # fmt: skip
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (made * 0.3).to(dtype)


def flat(module: str, prefix: str = "lycoris_") -> str:
    return prefix + module.replace(".", "_")


def written(path: Path, tensors: Tensors, **metadata: str) -> Path:
    save_file(
        {name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, metadata
    )
    return path


def llama() -> dict[str, torch.Tensor]:
    tensors = {"model.embed_tokens.weight": values(24, 32), "lm_head.weight": values(24, 32)}
    for layer in range(2):
        for seed, (name, shape) in enumerate(SHAPES.items()):
            tensors[f"model.layers.{layer}.{name}.weight"] = values(*shape, seed=9 * layer + seed)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = 1 + values(32, seed=7)
    return {**tensors, "model.norm.weight": 1 + values(32, seed=8)}


def saved_llama(folder: Path) -> Path:
    folder.mkdir()
    written(folder / "model.safetensors", llama(), format="pt")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def lora(module: str, out: int, inputs: int, *, rank: int = 4, alpha: float | None = 2.0,
         prefix: str = "lycoris_", seed: int = 3) -> dict[str, torch.Tensor]:  # fmt: skip
    name = flat(module, prefix)
    found = {
        f"{name}.lora_down.weight": values(rank, inputs, seed=seed),
        f"{name}.lora_up.weight": values(out, rank, seed=seed + 1),
    }
    return found if alpha is None else {**found, f"{name}.alpha": torch.tensor(alpha)}


def base_of(tensors: Tensors) -> Checkpoint:
    found = {name: from_values(tensor) for name, tensor in tensors.items()}
    return Checkpoint(found, "safetensors", Provenance("tiny", "safetensors"))


def changed(adapter: Adapter, base: Tensors) -> dict[str, torch.Tensor]:
    """U(W) - W of every update, in float64."""
    made = {}
    for site, update in spoken_by(base_of(base), adapter).updates.items():
        assert isinstance(update, Applicable)
        weight = base[str(site)].double()
        matrix = weight.reshape(weight.shape[0], -1)
        size = (matrix.shape[0], matrix.shape[1])
        window = Window(slice(0, size[0]), slice(0, size[1]), size)
        moved = update.applier(torch.float64, CPU)(matrix.clone(), window, 1.0)
        made[str(site)] = (moved - matrix).reshape(weight.shape)
    return made


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# -- formulas -------------------------------------------------------------------------------------


def test_every_algorithm_is_what_the_library_computes() -> None:
    base, expected = (load_file(GOLDEN / f"{n}.safetensors") for n in ("base", "changes"))
    found = changed(read_adapter(GOLDEN / "adapter.safetensors"), base)
    moved = {name for name, change in expected.items() if float(change.abs().max()) > 1e-7}
    assert set(found) == moved
    assert len(found) == 35
    worst = {name: distance(change, expected[name]) for name, change in found.items()}
    # the library rotates in float32, everything else in float64
    assert not {n: d for n, d in worst.items() if d > (1e-6 if "oft" in n else 2e-7)}


def test_loras_of_linears_and_convolutions_by_hand(tmp_path: Path) -> None:
    base = {"net.conv.weight": values(6, 5, 3, 3), "net.fc.weight": values(7, 5)}
    mid, up, down = (
        values(2, 2, 3, 3, seed=1),
        values(6, 2, 1, 1, seed=2),
        values(2, 5, 1, 1, seed=3),
    )
    conv = {"lora_mid.weight": mid, "lora_up.weight": up, "lora_down.weight": down,
            "alpha": torch.tensor(3.0, dtype=torch.bfloat16)}  # fmt: skip
    tensors = {f"lora_unet_net_conv.{role}": t for role, t in conv.items()}
    fc = lora("net.fc", 7, 5, alpha=None, prefix="lora_unet_")
    found = changed(read_adapter(written(tmp_path / "a.safetensors", {**tensors, **fc})), base)
    expected = 1.5 * torch.einsum(
        "mnkl,im,nj->ijkl", mid.double(), up.double()[..., 0, 0], down.double()[..., 0, 0]
    )
    assert distance(found["net.conv.weight"], expected) < 1e-7  # the core is joined in float32
    up, down = (fc[f"lora_unet_net_fc.lora_{end}.weight"].double() for end in ("up", "down"))
    assert distance(found["net.fc.weight"], up @ down) < 1e-12


@pytest.mark.parametrize(
    ("alpha", "strength"), [(None, 1.0), (0.0, 1.0), (1.0, 0.25), (-8.0, -2.0)]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_alpha_by_rank(
    tmp_path: Path, alpha: float | None, strength: float, dtype: torch.dtype
) -> None:
    tensors = lora(Q, 32, 32, alpha=alpha)
    tensors = {n: t.to(dtype) if n.endswith("alpha") else t for n, t in tensors.items()}
    (update,) = read_adapter(written(tmp_path / "a.safetensors", tensors)).updates.values()
    assert isinstance(update, LowRank)
    assert update.scaling == strength


def test_products_by_hand(tmp_path: Path) -> None:
    """LoHa: (A1 B1) * (A2 B2). LoKr: kron(w1, w2), whose alpha counts if one is a product."""
    base = {n: values(6, 8) for n in ("a.loha.weight", "a.pair.weight", "a.whole.weight")}
    sides = {f"hada_w{i}_{e}": values(*((6, 2) if e == "a" else (2, 8)), seed=i + ord(e))
             for i in (1, 2) for e in "ab"}  # fmt: skip
    w1, w2 = values(2, 2, seed=4), values(3, 4, seed=5)
    pair = {"lokr_w2_a": values(3, 1, seed=6), "lokr_w2_b": values(1, 4, seed=7), "lokr_w1": w1}
    alpha = {"alpha": torch.tensor(0.5)}
    modules = {
        "lora_te_a_loha": {**sides, **alpha}, "lora_te_a_pair": {**pair, **alpha},
        "lora_te_a_whole": {"lokr_w1": w1, "lokr_w2": w2, **alpha},
    }  # fmt: skip
    tensors = {f"{m}.{role}": t for m, roles in modules.items() for role, t in roles.items()}
    found = changed(read_adapter(written(tmp_path / "a.safetensors", tensors)), base)
    a1, b1, a2, b2 = (t.double() for t in sides.values())
    assert distance(found["a.loha.weight"], 0.25 * (a1 @ b1) * (a2 @ b2)) < 1e-12
    product = pair["lokr_w2_a"].double() @ pair["lokr_w2_b"].double()
    assert distance(found["a.pair.weight"], 0.5 * torch.kron(w1.double(), product)) < 1e-12
    assert distance(found["a.whole.weight"], torch.kron(w1.double(), w2.double())) < 1e-12


@pytest.mark.parametrize("axis", [0, 1])
def test_magnitudes_divide_by_the_norm_of_the_changed_weight(tmp_path: Path, axis: int) -> None:
    base = {"a.fc.weight": values(32, 24)}
    shape = (32, 1) if axis == 0 else (1, 24)
    m = 1 + values(*shape, seed=8).abs()
    tensors = {**lora("a.fc", 32, 24), "lycoris_a_fc.dora_scale": m}
    path = written(tmp_path / "a.safetensors", tensors)
    up, down = (tensors[f"lycoris_a_fc.lora_{end}.weight"].double() for end in ("up", "down"))
    weight = base["a.fc.weight"].double()
    v = weight + 0.5 * up @ down
    expected = m.double() / v.norm(dim=1 - axis, keepdim=True) * v - weight
    assert distance(changed(read_adapter(path), base)["a.fc.weight"], expected) < 1e-12
    written(tmp_path / "base.safetensors", base)
    out = tmp_path / "out.safetensors"
    merge_files(tmp_path / "base.safetensors", {str(path): 1.0}, out)  # in windows, as it must be
    assert distance(load_file(out)["a.fc.weight"], weight + expected) < 1e-6


# -- merging and converting -----------------------------------------------------------------------


def test_merge_into_checkpoint_and_gguf(tmp_path: Path) -> None:
    base = saved_llama(tmp_path / "base")
    tensors = {**lora(Q, 32, 32), **lora(DOWN, 32, 48), "lycoris_model_norm.w_norm": values(32)}
    path = written(tmp_path / "any name", tensors)
    merge_files(base, {str(path): 1.0}, tmp_path / "out")
    merged, before = load_file(tmp_path / "out" / "model.safetensors"), llama()
    for module in (Q, DOWN):
        up, down = (tensors[f"{flat(module)}.lora_{end}.weight"] for end in ("up", "down"))
        expected = before[f"{module}.weight"].double() + 0.5 * up.double() @ down.double()
        assert distance(merged[f"{module}.weight"], expected) < 1e-7
    assert distance(merged["model.norm.weight"], before["model.norm.weight"] + values(32)) < 1e-7
    same = merged.keys() - {f"{Q}.weight", f"{DOWN}.weight", "model.norm.weight"}
    assert all(torch.equal(merged[name], before[name]) for name in same)

    for folder, name in ((base, "before.gguf"), (tmp_path / "out", "expected.gguf")):
        model = to_gguf(open_checkpoint(folder), outtype="f32", vocabulary=None)
        save_checkpoint(model, tmp_path / name, SaveOptions())
    merge_files(tmp_path / "before.gguf", {str(path): 1.0}, tmp_path / "after.gguf")
    found, wanted = (open_checkpoint(tmp_path / f"{n}.gguf").tensors for n in ("after", "expected"))
    worst = {n: distance(t.values(), wanted[n].values()) for n, t in found.items()}
    assert max(worst.values()) < 1e-6


def test_merge_the_library_s_file(tmp_path: Path) -> None:
    """All algorithms at once, windows and all, of linears and convolutions."""
    out = tmp_path / "out.safetensors"
    merge_files(GOLDEN / "base.safetensors", {str(GOLDEN / "adapter.safetensors"): 1.0}, out)
    base, changes = (load_file(GOLDEN / f"{n}.safetensors") for n in ("base", "changes"))
    for name, merged in load_file(out).items():
        assert torch.allclose(merged, base[name] + changes[name], rtol=1e-5, atol=1e-5)


def test_merge_into_a_graph(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    net = torch.nn.Sequential()
    net.add_module("up_proj", torch.nn.Linear(8, 16))
    net.add_module("down_proj", torch.nn.Linear(16, 8))
    x, model = values(3, 8), tmp_path / "m.onnx"
    torch.onnx.export(net.eval(), (x,), str(model), dynamo=False, input_names=["x"])
    path = written(tmp_path / "a", {**lora("up_proj", 16, 8), **lora("down_proj", 8, 16)})
    weights = net.state_dict()
    for name, change in changed(read_adapter(path), weights).items():
        weights[name] += change
    merge_files(model, {str(path): 1.0}, tmp_path / "out.onnx")
    (found,) = onnxruntime.InferenceSession(tmp_path / "out.onnx").run(None, {"x": x.numpy()})
    assert distance(torch.tensor(found), net(x).detach()) < 1e-6


def in_peft(tensors: Tensors, folder: Path, base: Path) -> Path:
    path = written(folder / "a.safetensors", tensors)
    adapter = spoken_by(open_checkpoint(base), read_adapter(path))
    assert adapter.naming == "huggingface"
    format_for(folder / "peft", None).write(adapter, folder / "peft", WriteOptions())
    return folder / "peft"


def llama_loha() -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for module, (out, into), rank in ((Q, (32, 32), 2), (DOWN, (32, 48), 3)):
        for i, side in enumerate(("hada_w1", "hada_w2")):
            found[f"{flat(module)}.{side}_a"] = values(out, rank, seed=i)
            found[f"{flat(module)}.{side}_b"] = values(rank, into, seed=i + 5)
        found[f"{flat(module)}.alpha"] = torch.tensor(1.5)
    return found


def llama_lokr() -> dict[str, torch.Tensor]:
    """As LyCORIS splits with a factor of 4; one w2 whole, one a product."""
    q, down = flat(Q), flat(DOWN)
    return {
        f"{q}.lokr_w1": values(4, 4), f"{q}.lokr_w2": values(8, 8, seed=1),
        f"{q}.alpha": torch.tensor(7.0),
        f"{down}.lokr_w1": values(4, 4, seed=2), f"{down}.lokr_w2_a": values(8, 2, seed=3),
        f"{down}.lokr_w2_b": values(2, 12, seed=4), f"{down}.alpha": torch.tensor(1.0),
    }  # fmt: skip


PEFT_CASES = {
    "lora": {**lora(Q, 32, 32), **lora(DOWN, 32, 48, rank=2, alpha=5.0)},
    "dora": {**lora(Q, 32, 32), f"{flat(Q)}.dora_scale": 1 + values(32, 1).abs()},
    "loha": llama_loha(),
    "lokr": llama_lokr(),
}


@pytest.mark.parametrize("case", PEFT_CASES)
def test_peft_loads_what_was_converted(tmp_path: Path, case: str) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = saved_llama(tmp_path / "base")
    folder = in_peft(PEFT_CASES[case], tmp_path, base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    merged = peft.PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()
    before = {n: t.double() for n, t in llama().items()}
    adapter = read_adapter(tmp_path / "a.safetensors")
    for name, change in changed(adapter, before).items():
        assert distance(merged[name].double() - before[name], change) < 1e-6
    again = changed(read_adapter(folder), before)
    assert all(distance(again[n], c) < 1e-12 for n, c in changed(adapter, before).items())


def test_what_peft_lacks_is_not_written(tmp_path: Path) -> None:
    base = saved_llama(tmp_path / "base")
    uneven = {f"{flat(Q)}.lokr_w1": values(8, 4), f"{flat(Q)}.lokr_w2": values(4, 8)}
    full = {f"{flat(Q)}.diff": values(32, 32)}
    input_norms = {**lora(Q, 32, 32), f"{flat(Q)}.dora_scale": values(1, 32)}
    mixed = {**llama_loha(), **lora("model.layers.1.mlp.up_proj", 48, 32)}
    for tensors in (uneven, full, input_norms, mixed):
        with pytest.raises(IncompatibleError, match="cannot hold"):
            in_peft(tensors, tmp_path, base)
        assert not (tmp_path / "peft").exists()


def test_a_bias_goes_with_its_factors(tmp_path: Path) -> None:
    base = {"a.fc.weight": values(32, 24), "a.fc.bias": values(32)}
    path = written(
        tmp_path / "a.safetensors", {**lora("a.fc", 32, 24), "lycoris_a_fc.diff_b": values(32)}
    )
    found = changed(read_adapter(path), {**base, "a.fc.bias": base["a.fc.bias"].reshape(32, 1)})
    assert torch.allclose(found["a.fc.bias"][:, 0], values(32).double())


def test_convert_asks_a_base_for_names(tmp_path: Path) -> None:
    base = saved_llama(tmp_path / "base")
    path = written(tmp_path / "a", {**lora(Q, 32, 32), **lora(DOWN, 32, 48)})
    model = to_gguf(open_checkpoint(base), outtype="f32", vocabulary=None)
    save_checkpoint(model, tmp_path / "m.gguf", SaveOptions())
    for number, told in enumerate((base, base / "config.json", tmp_path / "m.gguf")):
        convert(path, tmp_path / f"peft-{number}", base=told)
        convert(path, tmp_path / f"{number}.gguf", base=told)
        found = read_adapter(tmp_path / f"peft-{number}").updates
        assert set(found) == {Site(Q), Site(DOWN)}
        assert set(read_adapter(tmp_path / f"{number}.gguf").updates) == {
            Site("blk.0.attn_q"), Site("blk.1.ffn_down"),
        }  # fmt: skip
    with pytest.raises(UsageError) as raised:
        convert(path, tmp_path / "peft")
    assert raised.value.code == "BASE_NEEDED"
    facts = inspect(path, Details(against=str(base)))
    assert facts["fits"] is True
    assert list(facts["modules"]) == [f"{Q}.weight", f"{DOWN}.weight"]


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "module"), [
    ("lycoris_model_layers_0_self_attn_q_proj", "model.layers.0.self_attn.q_proj"),
    ("lycoris_layers_0_self_attn_q_proj", "model.layers.0.self_attn.q_proj"),
    ("lora_unet__model_diffusion_model_out_2", "out.2"),
    ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "encoder.layers.0.mlp.fc1"),
    ("lora_unet_transformer_blocks_0_attn_to_q", "transformer_blocks.0.attn.to_q"),
])  # fmt: skip
def test_dots_come_back(name: str, module: str) -> None:
    adapter = one(name)
    others = ["model.layers.0.self_attn.k_proj.weight", "blocks.0.attn.to_q.weight", "lm_head.bias"]
    assert list(named(adapter, [f"{module}.weight", *others], "tiny").updates) == [Site(module)]


def one(*names: str) -> Adapter:
    low = LowRank(from_values(values(2, 4)), from_values(values(4, 2)), 1.0)
    sites = {Site(name): low for name in names}
    return Adapter(sites, "lora", None, Provenance("a", "lycoris"), naming="underscored")


def test_names_that_are_nobody_s_or_two_modules() -> None:
    base = ["net.a_b.c.weight", "net.a.b_c.weight", "net.out.weight", "model.up.weight"]
    with pytest.raises(IncompatibleError, match=r"net\.a\.b_c or net\.a_b\.c in tiny") as raised:
        named(one("lycoris_net_a_b_c"), base, "tiny")
    assert raised.value.code == "AMBIGUOUS_NAME"
    with pytest.raises(IncompatibleError, match="1 of 2 names mean no module of tiny") as raised:
        named(one("lycoris_net_out", "lycoris_net_outs"), base, "tiny")
    assert "net.out" in str(raised.value.hint)
    with pytest.raises(IncompatibleError, match=r"both mean net\.out") as raised:
        named(one("lycoris_net_out", "lora_unet_net_out"), base, "tiny")
    assert raised.value.code == "PLACED_TWICE"
    with pytest.raises(IncompatibleError) as raised:
        named(one("lora_te_zzz", "lora_unet_net_out"), base, "tiny")
    assert "several models (lora_te, lora_unet)" in str(raised.value.hint)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.sampled_from(("a", "b_c", "model", "0")), min_size=1, max_size=4),
                min_size=1, max_size=5, unique_by=tuple))  # fmt: skip
def test_a_name_is_resolved_to_its_module_or_refused(paths: list[list[str]]) -> None:
    modules = [".".join(path) for path in paths]
    try:
        found = named(one(flat(modules[0])), [f"{m}.weight" for m in modules], "tiny")
    except IncompatibleError as error:
        assert error.code == "AMBIGUOUS_NAME"
        assert sum(flat(m) == flat(modules[0]) for m in modules) > 1
    else:
        assert [site.module for site in found.updates] == [modules[0]]


def test_gguf_models_are_asked_with_their_hugging_face_names(tmp_path: Path) -> None:
    model = to_gguf(open_checkpoint(saved_llama(tmp_path / "b")), outtype="f32", vocabulary=None)
    save_checkpoint(model, tmp_path / "m.gguf", SaveOptions())
    assert set(parameters_of(open_checkpoint(tmp_path / "m.gguf"))) == set(llama())


# -- what a file is -------------------------------------------------------------------------------


def test_inspect_needs_no_base_and_no_torch(tmp_path: Path) -> None:
    path = written(tmp_path / "x", lora(Q, 32, 32), ss_sd_model_name="org/base")
    facts = inspect(path)
    expected = {"kind": "adapter", "format": "lycoris", "method": "lora", "base": "org/base"}
    assert {key: facts[key] for key in expected} == expected
    assert facts["modules"] == {
        f"{flat(Q)}.weight": {
            "kind": "low-rank", "shape": [32, 32], "rank": 4, "scaling": 0.5, "alpha": 2.0,
        }
    }  # fmt: skip
    code = (
        f"import sys, adaptool; adaptool.inspect({str(path)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("tensors", [
    {"fc.weight": values(2, 2), "fc.bias": values(2)},
    {"model.layers.0.mlp.up_proj.weight": values(2, 2), "model.alpha": values(1)},
    {f"base_model.model.fc.lora_{end}.weight": values(2, 2) for end in "AB"},
    {"diff.weight": values(2), "net.diff": values(2), "net.alpha": values(1)},
    {"lora_A": values(2, 2), "lycoris_": values(1)},
])  # fmt: skip
def test_models_and_other_adapters_are_not_taken_for_one(tmp_path: Path, tensors: Tensors) -> None:
    assert find(written(tmp_path / "lycoris.safetensors", tensors)) is None


def test_the_name_of_the_file_does_not_matter(tmp_path: Path) -> None:
    found = find(written(tmp_path / "model.safetensors", lora(Q, 32, 32)))
    assert found is not None
    assert found[0] == "lycoris"
    assert find(tmp_path) is None


def test_split_qkv_is_told(tmp_path: Path) -> None:
    arguments = json.dumps({"split_qkv": "True"})
    path = written(tmp_path / "a", lora(Q, 32, 32), ss_network_args=arguments)
    assert any("split_qkv" in note for note in read_adapter(path).provenance.notes)
    plain = read_adapter(written(tmp_path / "b", lora(Q, 32, 32), ss_network_args="{}"))
    assert plain.provenance.notes == ()


# -- refusals -------------------------------------------------------------------------------------

NAME = flat(Q)
BROKEN: dict[str, tuple[Tensors, str]] = {
    "half a pair": ({f"{NAME}.lora_up.weight": values(4, 2)}, "lacks its lora_down.weight"),
    "other half": ({f"{NAME}.lora_down.weight": values(2, 4)}, "lacks its lora_up.weight"),
    "ranks": ({f"{NAME}.lora_up.weight": values(4, 2), f"{NAME}.lora_down.weight": values(3, 4)},
              r"\[3, 4\]"),
    "scalars": ({f"{NAME}.lora_up.weight": torch.tensor(1.0),
                 f"{NAME}.lora_down.weight": torch.tensor(1.0)}, r"lora_down.weight is \[\]"),
    "integers": ({f"{NAME}.lora_up.weight": torch.ones(4, 2, dtype=torch.int32),
                  f"{NAME}.lora_down.weight": values(2, 4)}, "not real numbers"),
    "empty": ({f"{NAME}.lora_up.weight": values(4, 0), f"{NAME}.lora_down.weight": values(0, 4)},
              "is empty"),
    "two alphas": ({**lora(Q, 4, 4), f"{NAME}.alpha": torch.ones(2)}, "expected one number"),
    "alpha is no number": ({**lora(Q, 4, 4), f"{NAME}.alpha": torch.tensor(float("nan"))},
                           "alpha is nan"),
    "mid": ({**lora(Q, 4, 4), f"{NAME}.lora_mid.weight": values(2, 2)}, "lora_mid.weight is"),
    "magnitudes": ({**lora(Q, 4, 4), f"{NAME}.dora_scale": values(5, 1)}, "for a weight of 4 rows"),
    "half a loha": ({f"{NAME}.hada_w1_a": values(4, 2)}, "lacks its hada_w1_b"),
    "half a lokr": ({f"{NAME}.lokr_w1": values(4, 2)}, "lacks its lokr_w2_a"),
    "lokr ranks": ({f"{NAME}.lokr_w1_a": values(4, 2), f"{NAME}.lokr_w1_b": values(2, 4),
                    f"{NAME}.lokr_w2_a": values(4, 3), f"{NAME}.lokr_w2_b": values(3, 4)},
                   "factors of rank"),
    "scalar of a lokr": ({f"{NAME}.lokr_w1": torch.tensor(1.0),
                          f"{NAME}.lokr_w2": torch.tensor(1.0)}, "no matrix"),
    "no squares": ({f"{NAME}.oft_blocks": values(2, 3, 4)}, "expected squares"),
    "blocks of nothing": ({f"{NAME}.oft_blocks": values(3)}, "expected squares"),
    "no butterfly": ({f"{NAME}.oft_blocks": values(3, 2, 4, 4)}, "no butterfly of 3 levels"),
    "rescale": ({f"{NAME}.oft_blocks": values(2, 2, 2), f"{NAME}.rescale": values(3, 1)},
                "for 4 rows"),
    "glora": ({f"{NAME}.a1.weight": values(4, 2), f"{NAME}.a2.weight": values(2, 4),
               f"{NAME}.b1.weight": values(4, 2), f"{NAME}.b2.weight": values(2, 5)}, "b2.weight"),
    "no module": ({"lora_up.weight": values(2, 2), **lora(Q, 4, 4), "stray": values(1)},
                  "stray"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(tmp_path: Path, case: str) -> None:
    tensors, message = BROKEN[case]
    path = written(tmp_path / "a.safetensors", tensors)
    assert find(path) is not None
    with pytest.raises(CorruptInputError, match=message):
        read_adapter(path)


@pytest.mark.parametrize(("role", "message"), [
    ("q_layer.weight", "step of the diffusion"),
    ("bias_indices", "sparse difference"),
    ("lora_left.weight", "lora_left.weight belongs to no algorithm"),
    ("lokr_t1", "lokr_t1 belongs to no algorithm"),
    ("hada_w1_a", "hada_w1_a belongs to no algorithm"),
])  # fmt: skip
def test_what_is_not_read_is_named(tmp_path: Path, role: str, message: str) -> None:
    path = written(tmp_path / "a", {**lora(Q, 4, 4), f"{NAME}.{role}": values(2, 2)})
    with pytest.raises(IncompatibleError, match=message):
        read_adapter(path)


def test_updates_of_another_weight_are_refused(tmp_path: Path) -> None:
    base = base_of(llama())
    wrong: list[Tensors] = [
        {f"{NAME}.oft_blocks": values(3, 4, 4)},
        {f"{NAME}.lokr_w1": values(4, 4), f"{NAME}.lokr_w2": values(8, 9)},
        {**lora(Q, 32, 32), f"{NAME}.dora_scale": values(1, 31)},
    ]
    for tensors in wrong:
        adapter = read_adapter(written(tmp_path / "a", tensors))
        with pytest.raises(IncompatibleError) as raised:
            spoken_by(base, adapter)
        assert raised.value.code == "SHAPE_MISMATCH"


def test_nothing_is_written_in_this_format(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="read here, not written"):
        format_for(tmp_path / "a", "lycoris").write(
            one("lycoris_a"), tmp_path / "a", WriteOptions()
        )


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(
    st.sampled_from(("lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha", "dora_scale",
                     "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
                     "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
                     "lokr_t2", "oft_blocks", "rescale", "weight", "on_input", "diff", "diff_b",
                     "a1.weight", "a2.weight", "b1.weight", "b2.weight", "w_norm", "b_norm")),
    st.lists(st.integers(0, 3), max_size=5)), min_size=1, max_size=6))  # fmt: skip
def test_no_combination_of_tensors_crashes(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[str, list[int]]]
) -> None:
    tensors = {f"{NAME}.{role}": torch.zeros(shape) for role, shape in found}
    path = written(tmp_path_factory.mktemp("fuzz") / "a.safetensors", tensors)
    try:
        adapter = read_adapter(path)
        assert all(update.shape is not None for update in adapter.updates.values())
        spoken_by(base_of({f"{Q}.weight": torch.ones(2, 2), f"{Q}.bias": torch.ones(2)}), adapter)
    except AdaptoolError:
        pass


def test_dora_of_a_convolution_is_peft_s(tmp_path: Path) -> None:
    tensors = {
        "lycoris_conv.lora_down.weight": values(2, 4, 3, 3),
        "lycoris_conv.lora_up.weight": values(6, 2, 1, 1),
        "lycoris_conv.dora_scale": values(6, 1, 1, 1),
    }
    (update,) = read_adapter(written(tmp_path / "a", tensors)).updates.values()
    assert isinstance(update, Dora)
    assert update.magnitude.shape == (1, 6, 1, 1)
