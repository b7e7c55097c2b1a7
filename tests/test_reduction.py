"""Reduced adapters: the best approximation there is, within the size, loaded by PEFT."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from time import sleep

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel  # noqa: TID251
from peft.tuners.lora import LoraLayer  # noqa: TID251
from safetensors.torch import load_file
from zoo import RECIPES

from adaptool import RankRequest, open_checkpoint, read_adapter, reduce, reduce_file
from adaptool.canonical import (
    Adapter,
    Addition,
    Checkpoint,
    Dora,
    DType,
    ExpertLowRank,
    LowRank,
    Provenance,
    Rebased,
    Replacement,
    Site,
    TokenRows,
    Window,
)
from adaptool.canonical.parts import low_rank, members
from adaptool.canonical.tensors import from_values
from adaptool.cli import main
from adaptool.demonstration import answer, demo_folder
from adaptool.errors import AdaptoolError, CorruptInputError, IncompatibleError, UsageError
from adaptool.formats import WriteOptions, format_for
from adaptool.importance import importance_of
from adaptool.jobs.converting import convert
from adaptool.jobs.merging import merge_files
from adaptool.reduction import plan_reduction
from adaptool.workers import run_each

DEMO = demo_folder()
PEFT = format_for(Path("folder"), "peft")


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def lora(out: int, inputs: int, rank: int, seed: int = 0, scaling: float = 0.5,
         dtype: torch.dtype = torch.float32, decay: float = 1.0) -> LowRank:  # fmt: skip
    """An update whose singular values fall."""
    fall = (1.0 + torch.arange(rank)) ** -decay
    a = (values(rank, inputs, seed=seed) * fall[:, None]).to(dtype)
    b = values(out, rank, seed=seed + 1, dtype=dtype)
    return LowRank(from_values(a), from_values(b), scaling)


def adapter_of(**updates) -> Adapter:
    """An adapter; `weight` of the named module, or `name__parameter`."""
    sites = {}
    for name, update in updates.items():
        module, _, parameter = name.partition("__")
        sites[Site(module, parameter or "weight")] = update
    return Adapter(sites, "lora", None, Provenance("test", "peft"))


def dense(update) -> torch.Tensor:
    """What the low-rank part adds, float64, [experts, out, in]."""
    low = low_rank(update)
    return torch.stack([
        m.scaling * m.b.values().double() @ m.a.values().double().reshape(m.rank, -1)
        for m in members(low)
    ])  # fmt: skip


def tail(whole: torch.Tensor, rank: int) -> float:
    """The least error of that rank, for a stack [n, out, in]: from the dense SVD."""
    return float(torch.linalg.svdvals(whole.double())[:, rank:].norm())


def only(adapter: Adapter):
    (update,) = adapter.updates.values()
    return update


# -- the approximation ----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(out=st.integers(1, 24), inputs=st.integers(1, 24), rank=st.integers(1, 8),
       to=st.integers(1, 8), seed=st.integers(0, 99),
       scaling=st.sampled_from([0.5, -2.0, 1e-3, 7.0]))  # fmt: skip
def test_truncation_is_as_good_as_the_dense_svd(out, inputs, rank, to, seed, scaling):
    low = lora(out, inputs, rank, seed, scaling)
    found = reduce(adapter_of(m=low), RankRequest(rank=to))
    cut, whole = only(found.adapter), dense(low)
    assert cut.rank <= to
    assert cut.scaling == scaling
    size = float(whole.norm())
    error = float((dense(cut) - whole).norm())
    assert error == pytest.approx(tail(whole, to), abs=1e-5 * size)
    assert found.error == pytest.approx(error / size, abs=1e-5)
    assert found.stored_error == pytest.approx(error / size, abs=1e-6)


def test_what_keeps_its_rank_keeps_its_bits():
    low = lora(12, 10, 4)
    for request in (RankRequest(rank=4), RankRequest(energy=1.0), RankRequest(error=0.0)):
        found = reduce(adapter_of(m=low), request)
        assert only(found.adapter) == low
        assert (found.error, found.stored_error) == (0.0, 0.0)
        assert found.notes == ("no rank changed",)


def test_ranks_beyond_the_update_are_dropped_without_loss():
    one = lora(20, 16, 3)
    double = LowRank(from_values(torch.cat([one.a.values()] * 2)),
                     from_values(torch.cat([one.b.values()] * 2, dim=1)), 0.25)  # fmt: skip
    for request in (RankRequest(error=0.0), RankRequest(params=10_000), RankRequest(energy=1)):
        cut = only(reduce(adapter_of(m=double), request).adapter)
        assert cut.rank == 3
        assert torch.allclose(dense(cut), dense(double), atol=1e-6)
    wide = lora(3, 16, 5)  # a rank above the smaller side
    assert only(reduce(adapter_of(m=wide), RankRequest(rank=4)).adapter).rank == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types_stay_and_the_stored_error_has_the_rounding(dtype):
    low = lora(40, 30, 6, dtype=dtype)
    found = reduce(adapter_of(m=low), RankRequest(rank=3))
    cut, whole = only(found.adapter), dense(low)
    assert cut.a.dtype == cut.b.dtype == DType(str(dtype).removeprefix("torch."))
    stored = float((dense(cut) - whole).norm() / whole.norm())
    assert found.stored_error == pytest.approx(stored, rel=1e-9)
    assert found.stored_error > found.error
    wide = reduce(adapter_of(m=low), RankRequest(rank=3), dtype=DType.FLOAT32)
    assert only(wide.adapter).a.dtype == DType.FLOAT32
    assert wide.stored_error == pytest.approx(found.error, rel=1e-6)


def test_convolutions_and_embeddings():
    conv = LowRank(from_values(values(5, 3, 2, 2)), from_values(values(8, 5, seed=1)), 2.0)
    rows = LowRank(from_values(values(5, 50)), from_values(values(8, 5, seed=1)), 2.0,
                   embedding=True)  # fmt: skip
    found = reduce(adapter_of(conv=conv, embed_tokens=rows), RankRequest(rank=2)).adapter
    for site, update in (("conv", conv), ("embed_tokens", rows)):
        cut = found.updates[Site(site)]
        assert (cut.rank, cut.shape, cut.embedding) == (2, update.shape, update.embedding)
        error = float((dense(cut) - dense(update)).norm())
        assert error == pytest.approx(tail(dense(update), 2), rel=1e-5)


def test_experts_share_a_rank_and_are_cut_one_by_one():
    a, b = values(3, 6, 10), values(3, 12, 6, seed=1)
    a[1] *= 10  # one expert dominates the energies
    stack = ExpertLowRank(from_values(a), from_values(b), 0.7)
    found = reduce(adapter_of(experts__down_proj=stack), RankRequest(energy=0.9))
    cut, whole = only(found.adapter), dense(stack)
    squares = torch.linalg.svdvals(whole).square().sum(dim=0)
    wanted = int((squares.cumsum(0) < 0.9 * squares.sum()).sum()) + 1
    assert (cut.rank, cut.shape, cut.scaling) == (wanted, stack.shape, 0.7)
    assert 1 < wanted < 6
    error = float((dense(cut) - whole).norm())
    assert error == pytest.approx(tail(whole, wanted), rel=1e-5)
    assert found.error == pytest.approx(error / float(whole.norm()), rel=1e-5)
    for index in range(3):
        apart = float((dense(cut)[index] - whole[index]).norm())
        assert apart == pytest.approx(tail(whole[index : index + 1], wanted), rel=1e-4)


def test_dora_keeps_the_norms_of_its_rows():
    direction, weight = lora(12, 10, 5), values(12, 10, seed=3)
    magnitude = values(12, seed=4).abs() + 0.5
    dora = Dora(direction, from_values(magnitude))
    found = reduce(adapter_of(m=dora), RankRequest(rank=2))
    cut = only(found.adapter)
    assert cut.magnitude is dora.magnitude
    assert float((dense(cut) - dense(dora)).norm()) == pytest.approx(tail(dense(dora), 2), rel=1e-5)
    window = Window(slice(0, 12), slice(0, 10), (12, 10))
    moved = cut.applier(torch.float64, torch.device("cpu"))(weight.double(), window, 1.0)
    assert torch.allclose(moved.norm(dim=1), magnitude.double(), atol=1e-12)
    assert any("DoRA" in note for note in found.notes)


def test_what_is_not_low_rank_passes_through():
    low = lora(12, 10, 5)
    rest = {
        "m__bias": Addition(from_values(values(12)), 0.5),
        "lm_head": Replacement(from_values(values(7, 10))),
        "embed_tokens": TokenRows((1, 4), from_values(values(2, 10))),
        "wte": Rebased(from_values(values(30, 10)), lora(30, 10, 4)),
    }
    source = adapter_of(m=low, **rest)
    found = reduce(source, RankRequest(rank=2))
    for name in ("lm_head", "embed_tokens"):
        assert found.adapter.updates[Site(name)] is source.updates[Site(name)]
    assert found.adapter.updates[Site("m", "bias")] is rest["m__bias"]
    assert found.adapter.updates[Site("m")].scaling == low.scaling  # what the bias is scaled by
    wte = found.adapter.updates[Site("wte")]
    assert wte.value is rest["wte"].value
    assert wte.update.rank == 2
    assert [str(row.site) for row in found.rows] == ["m.weight", "wte.weight"]


def test_an_untrained_module_keeps_rank_one():
    zero = LowRank(from_values(values(4, 10)), from_values(torch.zeros(12, 4)), 2.0)
    off = LowRank(from_values(values(4, 10)), from_values(values(12, 4)), 0.0)
    source = adapter_of(zero=zero, off=off, m=lora(12, 10, 4))
    for request in (RankRequest(energy=0.9), RankRequest(error=0.1), RankRequest(params=10_000)):
        found = reduce(source, request)
        for name in ("zero", "off"):
            cut = found.adapter.updates[Site(name)]
            assert cut.rank == 1
            assert cut.scaling == source.updates[Site(name)].scaling
            assert dense(cut).count_nonzero() == 0
        assert {row.kept for row in found.rows if row.after == 1} >= {1.0}


def test_one_thread_and_several_give_the_same():
    source = adapter_of(**{f"m{i}": lora(30, 20, 6, seed=i) for i in range(12)})
    one, many = (reduce(source, RankRequest(error=0.3), threads=n) for n in (1, 4))
    assert one.rows == many.rows
    for site, update in one.adapter.updates.items():
        assert torch.equal(update.a.values(), many.adapter.updates[site].a.values())


def test_workers_keep_the_order_and_raise_the_first_error():
    before = torch.get_num_threads()
    assert run_each(lambda n: n * n, range(50), threads=4) == [n * n for n in range(50)]
    done = []

    def work(item: int) -> None:
        if item == 3:
            raise UsageError("the third")
        assert torch.get_num_threads() == 1
        sleep(0.002)
        done.append(item)

    with pytest.raises(UsageError, match="the third"):
        run_each(work, range(5_000), threads=2)
    assert len(done) < 4_999  # what waited was dropped
    assert torch.get_num_threads() == before


# -- budgets --------------------------------------------------------------------------------------


def mixture(dtype: torch.dtype = torch.float32) -> Adapter:
    """Modules of several shapes and strengths, with a trained head."""
    modules = {
        f"model.layers.{i}.{name}": lora(out, inputs, 8, seed=10 * i + j, dtype=dtype,
                                         decay=0.4 + 0.3 * i, scaling=0.3 + 0.4 * j)
        for i in range(3)
        for j, (name, out, inputs) in enumerate((("q", 48, 32), ("up", 64, 32), ("down", 32, 64)))
    }  # fmt: skip
    return adapter_of(**modules, score=Replacement(from_values(values(5, 32, dtype=dtype))))


MIXTURES = {dtype: mixture(dtype) for dtype in (torch.float32, torch.bfloat16)}


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 1), kind=st.sampled_from(list(MIXTURES)),
       to=st.sampled_from([None, DType.FLOAT32, DType.BFLOAT16]),
       least=st.integers(1, 2))  # fmt: skip
def test_a_size_is_never_exceeded_and_well_spent(share, kind, to, least):
    source, options = MIXTURES[kind], WriteOptions(to)

    def weigh(adapter: Adapter) -> int:
        return PEFT.plan(adapter, Path("out"), options).nbytes

    low = weigh(plan_reduction(source, RankRequest(rank=least), dtype=to).adapter)
    high = weigh(source)
    size = round(low + share * (high - low))
    request = RankRequest(size=size, min_rank=least)
    found = reduce(source, request, dtype=to, weigh=weigh)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        written = PEFT.write(found.adapter, out, options)
        assert bytes_in(out) == written.nbytes <= size
    spectra, costs = {}, {}
    for site, update in source.updates.items():
        if isinstance(update, LowRank):
            spectra[site] = torch.linalg.svdvals(dense(update)[0]).square()
            costs[site] = sum(update.shape) * (to.bits if to else update.a.dtype.bits) // 8
    ranks = {row.site: row.after for row in found.rows}
    left = found.budget - sum(costs[site] * rank for site, rank in ranks.items())
    assert min(ranks.values()) >= least
    assert 0 <= left < max(costs.values())
    for giver, has in ranks.items():
        for taker, taken in ranks.items():
            free = giver != taker and has > least and taken < 8
            if free and costs[taker] - costs[giver] <= left:
                gain = spectra[taker][taken] - spectra[giver][has - 1]
                assert gain <= 1e-9 * spectra[taker][0]


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0, 1))
def test_a_count_of_values_is_never_exceeded(share):
    source = MIXTURES[torch.float32]
    low = plan_reduction(source, RankRequest(rank=1)).adapter.parameters
    count = round(low + share * (source.parameters - low))
    found = plan_reduction(source, RankRequest(params=count))
    assert found.adapter.parameters <= count
    assert found.adapter.parameters > count - 96 or found.adapter.parameters == source.parameters


def test_a_global_budget_beats_one_rank_for_all():
    source = MIXTURES[torch.float32]
    uniform = reduce(source, RankRequest(rank=3))
    spent = reduce(source, RankRequest(params=uniform.adapter.parameters))
    assert spent.adapter.parameters <= uniform.adapter.parameters
    assert spent.error < 0.95 * uniform.error
    reached = reduce(source, RankRequest(error=uniform.error))
    assert reached.error <= uniform.error
    assert reached.adapter.parameters < 0.95 * uniform.adapter.parameters


def test_a_budget_below_what_has_to_stay_is_refused_with_numbers():
    source = MIXTURES[torch.float32]  # 9 modules: 3 * (80 + 96 + 96) values per rank; head 160
    with pytest.raises(IncompatibleError, match=r"900 parameters.*816.*160") as caught:
        plan_reduction(source, RankRequest(params=900))
    assert caught.value.code == "BUDGET_TOO_SMALL"
    assert caught.value.details == {"least_ranks": 816, "not_reducible": 160, "unit": "parameters"}
    assert plan_reduction(source, RankRequest(params=976)).adapter.parameters == 976
    with pytest.raises(IncompatibleError, match=r"2,000 bytes.*6,528.*640"):
        plan_reduction(source, RankRequest(size=2000, min_rank=2))


def test_a_size_without_a_format_is_that_of_the_values():
    found = plan_reduction(MIXTURES[torch.float32], RankRequest(size=9_000))
    assert 8_500 < found.adapter.nbytes <= 9_000


def test_importance_moves_the_ranks():
    one, two = lora(30, 20, 6, seed=1), lora(30, 20, 6, seed=1)
    source = adapter_of(a=one, b=two)
    request = RankRequest(params=300)
    alike = {row.site: row.after for row in plan_reduction(source, request).rows}
    assert alike == {Site("a"): 3, Site("b"): 3}
    weights = {Site("a"): 1.0, Site("b"): 100.0}
    found = plan_reduction(source, request, importance=weights)
    ranks = {row.site: row.after for row in found.rows}
    assert ranks[Site("a")] < 3 < ranks[Site("b")]
    squares = torch.linalg.svdvals(dense(one)[0]).square()
    lost = {site: float(squares[rank:].sum()) for site, rank in ranks.items()}
    weighted = sum(weights[site] * part for site, part in lost.items()) / (101 * squares.sum())
    assert found.weighted_error == pytest.approx(float(weighted) ** 0.5)
    assert found.error == pytest.approx(float(sum(lost.values()) / (2 * squares.sum())) ** 0.5)


# -- refusals -------------------------------------------------------------------------------------


def test_nothing_to_reduce_is_refused():
    source = adapter_of(lm_head=Replacement(from_values(values(7, 10))))
    with pytest.raises(IncompatibleError, match="no update of this adapter is low-rank"):
        reduce(source, RankRequest(rank=2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    a = values(4, 10)
    a[1, 2] = bad
    source = adapter_of(fine=lora(12, 10, 4), broken=LowRank(from_values(a),
                        from_values(values(12, 4)), 1.0))  # fmt: skip
    with pytest.raises(CorruptInputError, match=r"broken.*not finite"):
        reduce(source, RankRequest(rank=2))


# -- PEFT -----------------------------------------------------------------------------------------


def lora_layers(model) -> dict[str, LoraLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}


def delta(layer: LoraLayer) -> torch.Tensor:
    """PEFT's own difference as a stack of matrices."""
    with torch.no_grad():
        found = layer.get_delta_weight("default").detach().double()
    if type(layer).__name__ == "ParamWrapper":
        return found if found.dim() == 3 else found[None]
    return found.reshape(1, found.shape[0], -1)


@pytest.mark.parametrize(
    "name",
    ["llama", "llama-rslora", "llama-patterns", "llama-embedding", "gpt2", "conv", "llama-dora",
     "llama-lora-bias", "mixtral-experts", "gpt-oss-experts-first", "llama-resized", "bert"],
)  # fmt: skip
def test_peft_loads_what_is_written(name, tmp_path):
    recipe = RECIPES[name]
    built = recipe.build(tmp_path, torch.float32)
    before = {n: (delta(m), m) for n, m in lora_layers(
        recipe.adapted(tmp_path, torch.float32)).items()}  # fmt: skip
    report = reduce_file(built.adapter, tmp_path / "small", RankRequest(error=0.45))
    after = lora_layers(
        PeftModel.from_pretrained(recipe._load(built.base, torch.float32), tmp_path / "small")
    )
    assert set(after) == set(before)
    ranks = {layer.r["default"] for layer in after.values()}
    assert len(ranks) > 1 or len(after) < 3, "the patterns are not used"
    lost = total = 0.0
    for path, layer in after.items():
        (whole, old), found = before[path], delta(layer)
        error = float((found - whole).norm())
        assert error == pytest.approx(tail(whole, layer.r["default"]), rel=1e-4, abs=1e-5)
        lost, total = lost + error**2, total + float(whole.norm()) ** 2
        for key, kept in old.lora_magnitude_vector.items():
            assert torch.equal(kept.weight, layer.lora_magnitude_vector[key].weight)
    assert (lost / total) ** 0.5 == pytest.approx(report.reduction.error, rel=1e-4)
    assert 0.2 < report.reduction.error <= 0.45


def test_a_trained_bias_keeps_its_strength(tmp_path):
    recipe = RECIPES["llama-lora-bias"]
    built = recipe.build(tmp_path, torch.float32)
    reduce_file(built.adapter, tmp_path / "small", RankRequest(rank=2))
    for source in (built.adapter, tmp_path / "small"):
        merge_files(built.base, [(str(source), 1.0)], tmp_path / f"merged-{source.name}")
    one, two = (load_file(tmp_path / f"merged-{n}" / "model.safetensors")
                for n in (built.adapter.name, "small"))  # fmt: skip
    biases = [name for name in one if name.endswith("bias")]
    assert biases
    assert all(torch.equal(one[name], two[name]) for name in biases)
    assert any(not torch.equal(one[name], two[name]) for name in one)


# -- files and the command line -------------------------------------------------------------------


def test_files_are_within_the_size_and_say_what_was_done(tmp_path):
    report = reduce_file(DEMO / "pirate", tmp_path / "small", RankRequest(size=120_000))
    assert bytes_in(tmp_path / "small") == report.written.nbytes <= 120_000
    assert report.written.nbytes > 117_000
    config = json.loads((tmp_path / "small" / "adapter_config.json").read_text())
    ranks = {str(row.site): row.after for row in report.reduction.rows}
    assert len(config["rank_pattern"]) == sum(rank != config["r"] for rank in ranks.values())
    assert (
        "ranks were reduced by adaptool: size 120000"
        in (tmp_path / "small" / "adaptool.json").read_text()
    )
    read = read_adapter(tmp_path / "small")
    assert {str(site): update.rank for site, update in read.updates.items()} == ranks
    assert {update.scaling for update in read.updates.values()} == {2.0}


def test_a_smaller_type_makes_room_for_ranks(tmp_path):
    wide = reduce_file(DEMO / "pirate", tmp_path / "a", RankRequest(size=80_000))
    half = reduce_file(DEMO / "pirate", tmp_path / "b", RankRequest(size=80_000), dtype="bfloat16")
    assert bytes_in(tmp_path / "b") <= 80_000
    assert half.reduction.stored_error < 0.6 * wide.reduction.stored_error


def test_a_reduced_adapter_still_speaks(tmp_path):
    report = reduce_file(DEMO / "pirate", tmp_path / "small", RankRequest(error=0.2))
    merge_files(DEMO / "model", [(str(tmp_path / "small"), 1.0)], tmp_path / "merged")
    assert answer(tmp_path / "merged", "hello ada") == "ahoy ada, welcome aboard, matey!"
    assert report.written.nbytes < 0.7 * report.before


def test_a_size_holds_in_gguf_too(tmp_path):
    convert(DEMO / "pirate", tmp_path / "pirate.gguf", base=DEMO / "model")
    small = tmp_path / "small.gguf"
    report = reduce_file(tmp_path / "pirate.gguf", small, RankRequest(size=60_000), dtype="f16")
    assert 57_000 < small.stat().st_size == report.written.nbytes <= 60_000
    ranks = {str(row.site): row.after for row in report.reduction.rows}
    read = read_adapter(small)
    assert {str(site): update.rank for site, update in read.updates.items()} == ranks
    with pytest.raises(IncompatibleError, match="names are gguf's"):
        reduce_file(tmp_path / "pirate.gguf", tmp_path / "folder", RankRequest(rank=2))
    with pytest.raises(UsageError, match="unknown type 'q8_0'"):
        reduce_file(DEMO / "pirate", tmp_path / "folder", RankRequest(rank=2), dtype="q8_0")


def test_a_dry_run_says_the_same_and_writes_nothing(tmp_path):
    request = RankRequest(energy=0.8)
    planned = reduce_file(DEMO / "pirate", tmp_path / "small", request, dry_run=True)
    assert not (tmp_path / "small").exists()
    done = reduce_file(DEMO / "pirate", tmp_path / "small", request)
    assert planned.written == done.written
    assert planned.reduction.rows == done.reduction.rows
    assert planned.reduction.stored_error is None


def test_weights_of_the_base_are_measured():
    source = read_adapter(DEMO / "pirate")
    base = open_checkpoint(DEMO / "model")
    found = importance_of(source, base)
    assert set(found) == set(source.updates)
    for site, weight in found.items():
        norm = base.tensors[str(site)].values().double().norm()
        assert weight == pytest.approx(float(norm) ** -2, rel=1e-9)


def test_weights_are_measured_where_they_lie_in_a_stack():
    name, stack = "model.layers.0.mlp.experts.gate_up_proj", values(3, 8, 5)
    base = Checkpoint({name: from_values(stack)}, "safetensors", Provenance("base", "test"))
    halves = {"gate_proj": slice(0, 4), "up_proj": slice(4, 8)}
    source = adapter_of(**{
        f"model.layers.0.mlp.experts.{expert}.{half}": lora(4, 5, 2)
        for expert in range(3) for half in halves
    })  # fmt: skip
    for site, weight in importance_of(source, base).items():
        _, expert, half = site.module.rsplit(".", 2)
        square = float(stack[int(expert), halves[half]].double().square().sum())
        assert 1 / weight == pytest.approx(square, rel=1e-12)
    whole = ExpertLowRank(from_values(values(3, 2, 5)), from_values(values(3, 8, 2)), 1.0)
    source = adapter_of(**{"model.layers.0.mlp.experts__gate_up_proj": whole})
    (weight,) = importance_of(source, base).values()
    assert 1 / weight == pytest.approx(float(stack.double().square().sum()), rel=1e-12)


@pytest.mark.parametrize(
    ("weight", "says"),
    [(torch.zeros(8, 6), "is zero"), (torch.ones(8, 6, dtype=torch.int8), "quantised")],
)
def test_weights_that_nothing_is_relative_to_are_refused(weight, says):
    base = Checkpoint({"m.weight": from_values(weight)}, "safetensors", Provenance("base", "test"))
    with pytest.raises(IncompatibleError, match=says):
        importance_of(adapter_of(m=lora(8, 6, 2)), base)


@pytest.mark.parametrize("name", ["mixtral-experts", "mha", "llama-resized", "gpt2"])
def test_weights_are_found_wherever_they_lie(name, tmp_path):
    built = RECIPES[name].build(tmp_path, torch.float32)
    base, source = open_checkpoint(built.base), read_adapter(built.adapter)
    found = importance_of(source, base)
    assert set(found) == {site for site, update in source.updates.items() if low_rank(update)}
    total = sum(float(t.values().double().square().sum()) for t in base.tensors.values())
    assert all(0 < 1 / weight < 3 * total for weight in found.values())


def test_an_adapter_of_another_base_is_refused():
    source = adapter_of(**{"model.layers.9.mlp.up_proj": lora(8, 8, 2)})
    with pytest.raises(IncompatibleError, match="no such parameter"):
        importance_of(source, open_checkpoint(DEMO / "model"))


def test_the_output_is_not_the_input(tmp_path):
    shutil.copytree(DEMO / "pirate", tmp_path / "pirate")
    with pytest.raises(AdaptoolError):
        reduce_file(tmp_path / "pirate", tmp_path / "pirate", RankRequest(rank=2), force=True)
    assert read_adapter(tmp_path / "pirate").updates[
        Site("model.layers.0.mlp.up_proj")
    ].rank == 8  # fmt: skip


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pirate = str(DEMO / "pirate")
    base = str(DEMO / "model")
    assert main(["reduce", pirate, "-o", "small", "--size", "120KB", "--against", base]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "0.mlp.down_proj" in out
    assert "relative to the base's weights" in out
    assert max(map(len, out.splitlines())) <= 80
    arguments = ["reduce", pirate, "-o", "small", "--criterion", "sv_fro=0.9", "--json"]
    assert main(arguments) == 6  # it exists
    capsys.readouterr()
    assert main([*arguments, "--force"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bytes"] == bytes_in(tmp_path / "small")
    assert 0 < facts["error"] < (1 - 0.81) ** 0.5
    assert facts["stored_error"] == pytest.approx(facts["error"], rel=1e-4)
    assert len(facts["modules"]) == 14
    assert all(m["energy_kept"] >= 0.81 for m in facts["modules"].values())
    costs = [point["bytes"] for point in facts["curve"]]
    assert costs == sorted(costs)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "one of rank, energy"),
        (["--rank", "4", "--error", "0.1"], 2, "rank and error"),
        (["--energy", "1.5"], 2, "share"),
        (["--criterion", "sv_max=1"], 2, "unknown criterion"),
        (["--criterion", "sv_fro"], 2, "not a number"),
        (["--size", "5KB"], 4, "least ranks"),
        (["--error", "0.01", "--max-rank", "2"], 2, "cannot be reached"),
        (["--rank", "0"], 2, "range"),
    ],
)
def test_the_command_refuses(arguments, code, says, tmp_path, capsys):
    command = ["reduce", str(DEMO / "pirate"), "-o", str(tmp_path / "small"), *arguments]
    assert main(command) == code
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_request_is_checked_where_it_is_made():
    with pytest.raises(UsageError):
        RankRequest(rank=1, size=5)
