"""Adapters extracted from fine-tuned models: against float64, merged back, loaded by PEFT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel  # noqa: TID251
from safetensors.torch import load_file, save_file
from zoo.models import BASES, Base, Tensors, read_tensors

from adaptool.canonical import Adapter, DType, ExpertLowRank, LowRank, Replacement, Site
from adaptool.cli import main
from adaptool.containers import SaveOptions, open_checkpoint, save_checkpoint
from adaptool.demonstration import demo_folder
from adaptool.errors import CorruptInputError, IncompatibleError, UsageError
from adaptool.extraction import Extraction, extract
from adaptool.formats import WriteOptions, modules, read_adapter
from adaptool.jobs.extracting import extract_files
from adaptool.merging import merge
from adaptool.ranks import RankRequest

DEMO = demo_folder()
NUDGE = 0.02


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- models to extract from -----------------------------------------------------------------------


@dataclass(frozen=True)
class Tuned:
    """A random base, and the same with some of its parameters moved."""

    kind: Base
    base: Path
    tuned: Path

    def extract(self, rank: int = 4, **options) -> Extraction:
        return extract(
            open_checkpoint(self.base), open_checkpoint(self.tuned), RankRequest(rank=rank),
            **options,
        )  # fmt: skip


def tune(folder: Path, name: str, moved: Callable[[str], bool] = lambda _: True,
         dtype: torch.dtype = torch.float32) -> Tuned:  # fmt: skip
    """Write a base of the zoo and a fine-tune of it: noise on every parameter that is `moved`."""
    kind = BASES[name]
    kind.write(folder / "base", dtype)
    model = kind.read(folder / "base", dtype)
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter, values in model.named_parameters():
            noise = NUDGE * torch.randn(values.shape, generator=draw)
            if moved(parameter):
                values.copy_(values.float() + noise)
    if kind.loader is not None:
        model.save_pretrained(folder / "tuned")
    else:
        shutil.copytree(folder / "base", folder / "tuned")
        save_file(dict(model.state_dict()), folder / "tuned" / "model.safetensors")
    return Tuned(kind, folder / "base", folder / "tuned")


def no_biases(name: str) -> bool:
    """Parameters whose replacement PEFT can load."""
    return not name.endswith(("bias", "sinks"))


def rewrite(folder: Path, change: Callable[[Tensors], None], **config) -> None:
    """Change the tensors and the config of a stored model."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


def write(adapter: Adapter, folder: Path) -> Adapter:
    """The adapter as it is read back from disk."""
    modules()["peft"].write(adapter, folder, WriteOptions())
    return read_adapter(folder)


def merge_back(base: Path, adapter: Adapter) -> Tensors:
    """The tensors of the base with the adapter in it."""
    merged = merge(open_checkpoint(base), [(adapter, 1.0)])
    return {name: tensor.values() for name, tensor in merged.checkpoint.tensors.items()}


def dense(update: LowRank) -> torch.Tensor:
    """Its difference in float64, as stored in the model where that is [out, in]."""
    a = update.a.values().double().reshape(update.rank, -1)
    product = update.b.values().double() @ a * update.scaling
    return product.T if update.embedding else product


def logits(kind: Base, model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found = model(**kind.inputs())
    return found.logits if hasattr(found, "logits") else found


# -- what comes back ------------------------------------------------------------------------------


def test_an_adapter_comes_back_from_its_merge(tmp_path):
    adapter = read_adapter(DEMO / "pirate")
    merged = merge(open_checkpoint(DEMO / "model"), [(adapter, 1.0)], dtype=DType.FLOAT32)
    save_checkpoint(merged.checkpoint, tmp_path / "tuned", SaveOptions())
    before, after = open_checkpoint(DEMO / "model"), open_checkpoint(tmp_path / "tuned")
    done = extract(before, after, RankRequest(rank=32))
    assert set(done.adapter.updates) == set(adapter.updates)
    assert done.error < 1e-5
    assert done.same == len(before.tensors) - len(adapter.updates)
    for site, update in adapter.updates.items():
        wanted, found = dense(update), done.adapter.updates[site]
        assert found.rank <= 10, "values that are rounding are no rank"
        assert float((dense(found) - wanted).norm()) < 1e-4 * float(wanted.norm())


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_what_is_lost_is_stated(tmp_path, dtype):
    merged = merge(open_checkpoint(DEMO / "model"), [(read_adapter(DEMO / "pirate"), 1.0)])
    save_checkpoint(merged.checkpoint, tmp_path / "tuned", SaveOptions())
    report = extract_files(
        DEMO / "model", tmp_path / "tuned", tmp_path / "out", RankRequest(rank=8), dtype=dtype
    )
    before, after = read_tensors(DEMO / "model"), read_tensors(tmp_path / "tuned")
    adapter = read_adapter(tmp_path / "out")
    squares = 0.0
    for row in report.extraction.rows:
        difference = after[str(row.site)].double() - before[str(row.site)].double()
        lost = float((difference - dense(adapter.updates[row.site])).norm())
        assert row.lost == pytest.approx(lost, rel=1e-3)
        assert row.norm == pytest.approx(float(difference.norm()), rel=1e-6)
        assert row.kept == pytest.approx(1 - (lost / float(difference.norm())) ** 2, rel=1e-6)
        squares += lost**2
    assert report.extraction.error * report.extraction.norm == pytest.approx(squares**0.5, rel=1e-3)


@pytest.mark.parametrize("exact", [False, True])
def test_energy_is_that_of_the_full_decomposition(exact):
    shape, draw = (400, 300), torch.Generator().manual_seed(3)
    before = torch.randn(shape, generator=draw).bfloat16()
    after = (before.float() + 0.05 * torch.randn(shape, generator=draw)).bfloat16()
    done = extract(*checkpoints(before, after), RankRequest(rank=8), exact=exact)
    values = torch.linalg.svdvals(after.double() - before.double())
    share = float(values[:8].square().sum() / values.square().sum())
    assert done.rows[0].kept == pytest.approx(share, rel=1e-5 if exact else 1e-3)


def checkpoints(before: torch.Tensor, after: torch.Tensor, name: str = "model.a.weight"):
    """Two models of one tensor, in memory."""
    from adaptool.canonical import Checkpoint, Provenance
    from adaptool.canonical.tensors import from_values

    return [
        Checkpoint({name: from_values(values)}, "safetensors", Provenance(label, "safetensors"))
        for label, values in (("base", before), ("tuned", after))
    ]


@pytest.mark.parametrize("wide", [DType.FLOAT32, DType.FLOAT64])
def test_small_changes_of_large_weights(wide):
    draw = torch.Generator().manual_seed(3)
    before = torch.randn(40, 30, generator=draw, dtype=torch.float64).to(wide.torch)
    step = 1e-4 if wide is DType.FLOAT32 else 1e-12
    after = before + step * torch.randn(40, 1, generator=draw, dtype=before.dtype)
    done = extract(*checkpoints(before, after), RankRequest(rank=1))
    wanted = after.double() - before.double()
    update = done.adapter.updates[Site("model.a")]
    assert float((dense(update) - wanted).norm()) < 2e-3 * float(wanted.norm())


MERGED = ["llama-tied", "gpt2", "neox", "mixtral", "gpt-oss", "bert", "vit", "conv"]


@pytest.mark.parametrize("name", MERGED)
def test_merged_back_it_is_the_fine_tuned_model(tmp_path, name):
    models = tune(tmp_path, name)
    done = models.extract()
    found = merge_back(models.base, write(done.adapter, tmp_path / "out"))
    before, after = read_tensors(models.base), read_tensors(models.tuned)
    rows = {str(row.site): row for row in done.rows}
    assert set(found) == set(after)
    assert any(row.rank is None for row in done.rows)
    assert any(row.rank is not None and 0.1 < row.kept < 0.95 for row in done.rows)
    for tensor, wanted in after.items():
        distance = float((found[tensor] - wanted).norm())
        lost = rows[tensor].lost if tensor in rows else 0.0
        assert distance == pytest.approx(lost, rel=1e-3, abs=1e-5), tensor
        assert (tensor in rows) == (not torch.equal(before[tensor], wanted)), tensor


LOADED = ["llama", "llama-tied", "gpt2", "qwen2", "gpt-oss", "bert", "conv", "llama-score"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LOADED)
def test_peft_loads_it(tmp_path, name):
    models = tune(tmp_path, name, no_biases)
    done = models.extract()
    write(done.adapter, tmp_path / "out")
    merged = merge(open_checkpoint(models.base), [(done.adapter, 1.0)])
    save_checkpoint(merged.checkpoint, tmp_path / "merged", SaveOptions())
    kind = models.kind
    base = kind.read(models.base, torch.float32)
    before = logits(kind, base)
    wanted = logits(kind, kind.read(tmp_path / "merged", torch.float32))
    found = logits(kind, PeftModel.from_pretrained(base, tmp_path / "out").eval())
    assert torch.allclose(found, wanted, atol=1e-5)
    assert float((wanted - before).abs().max()) > 100 * float((found - wanted).abs().max())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_a_head_follows_the_embedding_that_it_shares(tmp_path, name):
    models = tune(
        tmp_path, name, lambda parameter: parameter.endswith(("tokens.weight", "wte.weight"))
    )
    done = models.extract(rank=32)
    adapter = write(done.adapter, tmp_path / "out")
    assert adapter.ties_embeddings
    assert set(merge_back(models.base, adapter)) == set(read_tensors(models.tuned))
    kind = models.kind
    wanted = logits(kind, kind.read(models.tuned, torch.float32))
    base = kind.read(models.base, torch.float32)
    found = logits(kind, PeftModel.from_pretrained(base, tmp_path / "out").eval())
    assert torch.allclose(found, wanted, atol=1e-4)


# -- what becomes of each parameter ---------------------------------------------------------------


def test_forms(tmp_path):
    gpt2 = tune(tmp_path / "gpt2", "gpt2").extract().adapter
    assert {type(u) for s, u in gpt2.updates.items() if s.parameter == "bias"} == {Replacement}
    assert gpt2.updates[Site("transformer.h.0.attn.c_attn")].shape == (96, 32)
    assert gpt2.updates[Site("transformer.h.0.attn.c_proj")].shape == (32, 32)
    for module in ("transformer.wte", "transformer.wpe"):
        assert gpt2.updates[Site(module)].embedding
    assert gpt2.config["fan_in_fan_out"] is True
    conv = tune(tmp_path / "conv", "conv").extract().adapter
    assert conv.updates[Site("space")].a.shape == (4, 6, 1, 3, 2)
    oss = tune(tmp_path / "oss", "gpt-oss").extract().adapter
    experts = oss.updates[Site("model.layers.0.mlp.experts", "gate_up_proj")]
    assert isinstance(experts, ExpertLowRank)
    assert experts.shape == (3, 96, 32)


def test_a_square_conv1d_is_stored_transposed(tmp_path):
    models = tune(tmp_path, "gpt2", lambda name: name.endswith("attn.c_proj.weight"))
    update = models.extract().adapter.updates[Site("transformer.h.0.attn.c_proj")]
    name = "transformer.h.0.attn.c_proj.weight"
    change = (read_tensors(models.tuned)[name] - read_tensors(models.base)[name]).double()
    values = torch.linalg.svdvals(change)
    assert float((dense(update).T - change).norm()) == pytest.approx(
        float(values[4:].norm()), rel=1e-4
    )


def test_an_embedding_is_replaced_where_that_is_smaller(tmp_path):
    models = tune(tmp_path, "llama", lambda name: "embed_tokens" in name, torch.bfloat16)
    site = Site("model.embed_tokens")
    assert isinstance(models.extract(rank=4).adapter.updates[site], LowRank)
    done = models.extract(rank=24)
    assert isinstance(done.adapter.updates[site], Replacement)
    assert done.error == 0


def test_depthwise_convolutions_and_routers_are_replaced():
    draw = torch.Generator().manual_seed(0)
    for name, shape in (("a.conv1d.weight", (16, 1, 4)), ("a.mlp.gate.weight", (8, 32))):
        before = torch.randn(shape, generator=draw)
        done = extract(*checkpoints(before, before + 1, name), RankRequest(rank=2))
        assert [type(u) for u in done.adapter.updates.values()] == [Replacement]


def test_a_budget_counts_all_that_is_written(tmp_path):
    models = tune(tmp_path, "gpt2")  # its head is written as well, and norms and biases
    both = open_checkpoint(models.base), open_checkpoint(models.tuned)
    done = extract(*both, RankRequest(params=9_000))
    assert Site("lm_head") in done.adapter.updates
    assert 8_000 < done.adapter.parameters <= 9_000
    done = extract(*both, RankRequest(size=36_000))
    assert 32_000 < done.adapter.nbytes <= 36_000


@pytest.mark.filterwarnings("ignore")
def test_a_replaced_norm_brings_its_bias(tmp_path):
    models = tune(tmp_path, "gpt2", lambda name: name.endswith("ln_f.weight"))
    adapter = models.extract().adapter
    assert set(adapter.updates) == {Site("transformer.ln_f"), Site("transformer.ln_f", "bias")}


def test_ranks_by_energy_error_size_and_count(tmp_path):
    merged = merge(open_checkpoint(DEMO / "model"), [(read_adapter(DEMO / "pirate"), 1.0)])
    save_checkpoint(merged.checkpoint, tmp_path / "tuned", SaveOptions())

    def run(**goal) -> tuple[Extraction, int]:
        report = extract_files(DEMO / "model", tmp_path / "tuned", tmp_path / "out",
                               RankRequest(**goal), dry_run=True)  # fmt: skip
        return report.extraction, report.written.nbytes

    done, _ = run(energy=0.9)
    assert all(0.9 <= row.kept < 0.999 for row in done.rows)
    assert len({row.rank for row in done.rows}) > 1
    done, _ = run(error=0.2)
    assert 0.17 < done.error <= 0.2 * (1 + 1e-3)
    for limit in (60_000, 120_000):
        done, nbytes = run(size=limit)
        assert 0.95 * limit < nbytes <= limit
    done, _ = run(params=20_000)
    assert 19_000 < done.adapter.parameters <= 20_000
    done, _ = run(energy=0.999, max_rank=3, min_rank=2)
    assert {row.rank for row in done.rows} <= {2, 3}
    assert any("--max-rank" in note for note in done.notes)


def test_modules_to_take_and_to_leave(tmp_path):
    models = tune(tmp_path, "llama")
    done = models.extract(modules=r"layers\.0|norm", skip="mlp")
    taken = {row.site.module for row in done.rows}
    assert taken == {
        *(f"model.layers.0.self_attn.{name}_proj" for name in "qkvo"), "model.norm",
        *(f"model.layers.{i}.{norm}_layernorm"
          for i in (0, 1) for norm in ("input", "post_attention")),
    }  # fmt: skip
    before, after = read_tensors(models.base), read_tensors(models.tuned)
    assert dict(done.left_out) == {
        Site(name.removesuffix(".weight")): pytest.approx(
            float((after[name] - before[name]).norm())
        )
        for name in after
        if name.removesuffix(".weight") not in taken
    }


def test_threads_and_seeds(tmp_path):
    models = tune(tmp_path, "llama")
    one, two = (models.extract(threads=threads).adapter.updates for threads in (1, 3))
    assert list(one) == list(two)
    for site, update in one.items():
        for role, tensor in update.tensors.items():
            assert torch.equal(tensor.values(), two[site].tensors[role].values())


# -- models that differ in more than values -------------------------------------------------------


def test_names_of_another_library_version(tmp_path):
    models = tune(tmp_path, "llama")
    rewrite(models.base, lambda t: [t.update({k.removeprefix("model."): t.pop(k)}) for k in [*t]])
    done = models.extract()
    assert Site("model.layers.0.self_attn.q_proj") in done.adapter.updates
    found = merge_back(models.base, write(done.adapter, tmp_path / "out"))
    after = read_tensors(models.tuned)
    assert torch.equal(found["norm.weight"], after["model.norm.weight"])


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_a_larger_vocabulary(tmp_path, name):
    models = tune(tmp_path, name)
    ends = {"model.embed_tokens.weight", "lm_head.weight"} & {*read_tensors(models.base)}

    def grow(tensors: Tensors) -> None:
        for end in ends:
            tensors[end] = torch.cat([tensors[end], torch.ones(3, tensors[end].shape[1])])

    rewrite(models.tuned, grow, vocab_size=99)
    done = models.extract()
    assert any("resize" in note for note in done.notes)
    assert {str(row.site) for row in done.rows if row.norm is None} == ends
    found = merge_back(models.base, write(done.adapter, tmp_path / "out"))
    after = read_tensors(models.tuned)
    assert set(found) == set(after)
    assert all(torch.equal(found[end], after[end]) for end in ends)


def test_a_head_that_the_base_lacks(tmp_path):
    models = tune(tmp_path, "llama-new-score", lambda name: "q_proj" in name)
    done = models.extract()
    assert isinstance(done.adapter.updates[Site("score")], Replacement)
    assert done.adapter.task == "SEQ_CLS"
    assert any("lm_head" in note for note in done.notes), "what only the base has is mentioned"
    found = merge_back(models.base, write(done.adapter, tmp_path / "out"))
    assert torch.equal(found["score.weight"], read_tensors(models.tuned)["score.weight"])


def test_a_head_that_was_tied_before(tmp_path):
    models = tune(tmp_path, "llama-tied", lambda name: "q_proj" in name)
    draw = torch.Generator().manual_seed(0)

    def untie(tensors: Tensors) -> None:
        shared = tensors["model.embed_tokens.weight"]
        tensors["lm_head.weight"] = shared + torch.randn(shared.shape, generator=draw)

    rewrite(models.tuned, untie, tie_word_embeddings=False)
    done = models.extract(rank=32)
    assert not done.adapter.ties_embeddings
    assert Site("model.embed_tokens") not in done.adapter.updates
    found = merge_back(models.base, write(done.adapter, tmp_path / "out"))
    for name, wanted in read_tensors(models.tuned).items():
        assert torch.allclose(found[name], wanted, atol=1e-5), name


# -- refusals -------------------------------------------------------------------------------------


def refused(models: Tuned, code: str, error: type[Exception] = IncompatibleError, **options) -> str:
    with pytest.raises(error) as caught:
        models.extract(**options)
    assert caught.value.code == code
    return caught.value.message


def test_equal_models_are_refused(tmp_path):
    models = tune(tmp_path, "llama", lambda _: False)
    assert "do not differ" in refused(models, "NOTHING_TO_EXTRACT")
    models = tune(tmp_path / "2", "llama", lambda name: "mlp" in name)
    assert "to be extracted" in refused(models, "NOTHING_TO_EXTRACT", skip="mlp")


def test_the_same_values_in_another_type_are_equal(tmp_path):
    models = tune(tmp_path, "llama", lambda _: False, torch.bfloat16)
    rewrite(models.tuned, lambda t: t.update({k: v.float() for k, v in t.items()}))
    refused(models, "NOTHING_TO_EXTRACT")


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_layer_that_only_one_has_is_refused(tmp_path, side):
    models = tune(tmp_path, "llama")
    rewrite(getattr(models, side), lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    assert "1 tensors of" in refused(models, "UNPAIRED")
    models.extract(skip="up_proj")


def test_another_architecture_is_refused(tmp_path):
    models = tune(tmp_path, "llama")
    rewrite(models.tuned, lambda t: t.update({"model.norm.weight": torch.ones(5)}))
    message = refused(models, "SHAPE_MISMATCH")
    assert "[32]" in message
    assert "[5]" in message


def test_quantised_weights_are_refused(tmp_path):
    models = tune(tmp_path, "llama")
    name = "model.layers.0.mlp.up_proj.weight"
    for folder in (models.base, models.tuned):
        rewrite(folder, lambda t: t.update({name: t[name].to(torch.float8_e4m3fn)}))
    assert "float8" in refused(models, "QUANTISED_WEIGHT")
    left_out = dict(models.extract(skip="layers.0.mlp.up_proj").left_out)
    assert left_out == {Site(name.removesuffix(".weight")): None}


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
def test_what_is_not_finite_is_refused(tmp_path, name):
    models = tune(tmp_path, "llama")
    rewrite(models.tuned, lambda t: t[name].view(-1)[3:4].fill_(float("nan")))
    message = refused(models, "NOT_FINITE", CorruptInputError)
    assert name.removesuffix(".weight") in message
    assert str(models.tuned) in message


def test_names_of_another_world_are_refused():
    from dataclasses import replace

    before, after = checkpoints(torch.zeros(4, 4), torch.ones(4, 4))
    with pytest.raises(IncompatibleError, match="gguf"):
        extract(replace(before, container="gguf"), after, RankRequest(rank=1))


def test_goals_out_of_reach_are_refused(tmp_path):
    models = tune(tmp_path, "llama")
    both = open_checkpoint(models.base), open_checkpoint(models.tuned)
    for goal in ({"size": 100}, {"params": 100}, {"error": 0.01, "max_rank": 2}):
        with pytest.raises(UsageError):
            extract(*both, RankRequest(**goal))
    refused(models, "USAGE", UsageError, modules="(")


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "model"
    merged = merge(open_checkpoint(DEMO / "model"), [(read_adapter(DEMO / "cowboy"), 1.0)])
    save_checkpoint(merged.checkpoint, folder, SaveOptions())
    return folder


def test_the_command_writes_what_it_says(tuned, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["extract", str(DEMO / "model"), str(tuned), "-o", "out", "--rank", "3"]
    assert main([*words, "--dry-run"]) == 0
    assert "would be written" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(words) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "model.layers.0.self_attn.q_proj" in text
    assert main([*words, "--json"]) == 6, "an output is not replaced without --force"
    assert json.loads(capsys.readouterr().out)["ok"] is False
    assert main([*words, "--json", "--force", "--skip", "k_proj"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bytes"] == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert len(facts["modules"]) == 6
    assert len(facts["left_out"]) == 2
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 3)
    assert config["base_model_name_or_path"] == "model"


def test_the_command_needs_one_goal(tuned, tmp_path, capsys):
    words = ["extract", str(DEMO / "model"), str(tuned), "-o", str(tmp_path / "out")]
    for goals in ([], ["--rank", "3", "--energy", "0.5"], ["--energy", "1.5"]):
        assert main([*words, *goals]) == 2
    assert not (tmp_path / "out").exists()
