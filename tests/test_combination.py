"""Combining adapters: sums, ranks, heads, experts, DoRA, and straight into a model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

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
from adaptool.canonical.blending import Blended
from adaptool.canonical.tensors import from_values
from adaptool.cli import main
from adaptool.combination import Recipe, blends, combine
from adaptool.containers import open_checkpoint
from adaptool.demonstration import answer, demo_folder
from adaptool.errors import CorruptInputError, IncompatibleError, UsageError
from adaptool.formats import read_adapter
from adaptool.merging import merge

F64 = torch.float64
DEMO = demo_folder()


def update(out: int, inputs: int, rank: int, seed: int, strength: float = 0.5) -> LowRank:
    draw = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, inputs, generator=draw), torch.randn(out, rank, generator=draw)
    return LowRank(from_values(a), from_values(b), strength)


def dense(low: LowRank) -> torch.Tensor:
    a, b = low.factors(F64, torch.device("cpu"))
    return low.scaling * b @ a


def adapter(name: str = "a", /, **updates) -> Adapter:
    sites = {Site(module): u for module, u in updates.items()}
    return Adapter(sites, "lora", "org/base", Provenance(name, "peft"))


def only(found) -> object:
    (result,) = found.adapter.updates.values()
    return result


def value(*shape: int, seed: int = 0):
    return from_values(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


# -- the weighted sum -----------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(out=st.integers(1, 24), inputs=st.integers(1, 24), ranks=st.lists(st.integers(1, 6),
       min_size=1, max_size=4), seed=st.integers(0, 99), data=st.data())  # fmt: skip
def test_linear_is_the_dense_sum(out, inputs, ranks, seed, data) -> None:
    weights = data.draw(
        st.lists(st.floats(-3, 3, width=16), min_size=len(ranks), max_size=len(ranks))
    )
    lows = [update(out, inputs, r, seed + n, 0.3 + n) for n, r in enumerate(ranks)]
    pairs = [(adapter(x=low), w) for low, w in zip(lows, weights, strict=True)]
    result = only(combine(pairs))
    wanted = sum(w * dense(low) for low, w in zip(lows, weights, strict=True))
    size = sum(abs(w) * float(dense(low).norm()) for low, w in zip(lows, weights, strict=True))
    assert result.rank == sum(ranks)
    assert float((dense(result) - wanted).norm()) <= 1e-6 * size


@settings(max_examples=20, deadline=None)
@given(rank=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_rank_gives_the_optimum_and_says_what_it_took(rank, seed) -> None:
    one, two = update(20, 15, 4, seed), update(20, 15, 6, seed + 1, 2.0)
    found = combine([(adapter(x=one), 0.7), (adapter(x=two), -0.4)], Recipe(rank=rank))
    whole = 0.7 * dense(one) - 0.4 * dense(two)
    values = torch.linalg.svdvals(whole)
    optimum = float(values[rank:].norm() / values.norm())
    measured = float((dense(only(found)) - whole).norm() / whole.norm())
    assert measured == pytest.approx(optimum, abs=1e-5)
    if rank < 10:
        assert found.error == pytest.approx(optimum, abs=1e-5)
        assert only(found).rank == rank
    else:
        assert found.error is None  # nothing was cut


def test_the_error_is_of_the_whole_adapter() -> None:
    small, large = update(9, 9, 4, 1, 0.01), update(9, 9, 2, 2, 1.0)
    found = combine([(adapter(x=small, y=large), 1.0)], Recipe(rank=3))
    # only x is cut: y has rank 2
    values = torch.linalg.svdvals(dense(small))
    assert found.error == pytest.approx(float(values[3:].norm() / values.norm()), rel=1e-5)


def test_a_module_that_one_adapter_lacks_is_zero_there() -> None:
    x, y = update(5, 6, 2, 1), update(7, 6, 3, 2)
    found = combine([(adapter(x=x), 0.5), (adapter(y=y), 2.0)])
    assert [row.ranks for row in found.rows] == [(2, None), (None, 3)]
    assert torch.allclose(dense(found.adapter.updates[Site("x")]), 0.5 * dense(x))
    assert torch.allclose(dense(found.adapter.updates[Site("y")]), 2.0 * dense(y))


@pytest.mark.parametrize("method", ["linear", "ties", "knots", "tsv", "iso", "slerp"])
def test_convolutions_and_embeddings_keep_their_shape(method: str) -> None:
    conv = [LowRank(value(2, 3, 3, 3, seed=n), value(8, 2, seed=n + 9), 1.0) for n in (1, 2)]
    rows = [LowRank(value(3, 40, seed=n), value(6, 3, seed=n + 9), 2.0, embedding=True)
            for n in (3, 4)]  # fmt: skip
    pairs = [(adapter(conv=c, rows=r), 1.0) for c, r in zip(conv, rows, strict=True)]
    found = combine(pairs, Recipe(method)).adapter.updates
    assert found[Site("conv")].shape == (8, 3, 3, 3)
    assert found[Site("rows")].shape == (6, 40)
    assert found[Site("rows")].embedding
    if method == "linear":
        assert torch.allclose(dense(found[Site("conv")]), dense(conv[0]) + dense(conv[1]),
                              atol=1e-5)  # fmt: skip


def test_results_do_not_depend_on_threads_or_order() -> None:
    updates = {f"m{n}": update(30, 20, 3, n) for n in range(6)}
    other = {f"m{n}": update(30, 20, 4, n + 50) for n in range(6)}
    recipe = Recipe("dare", rank=5, seed=3)
    one, two = (
        combine([(adapter(**updates), 1.0), (adapter(**other), 0.5)], recipe, threads=threads)
        for threads in (1, 3)
    )
    reordered = dict(reversed(updates.items()))
    three = combine([(adapter(**reordered), 1.0), (adapter(**other), 0.5)], recipe)
    for site, low in one.adapter.updates.items():
        for again in (two, three):
            assert torch.equal(low.b.values(), again.adapter.updates[site].b.values())
    seeded = combine([(adapter(**updates), 1.0), (adapter(**other), 0.5)],
                     Recipe("dare", rank=5, seed=4))  # fmt: skip
    assert not torch.equal(seeded.adapter.updates[Site("m0")].b.values(),
                           one.adapter.updates[Site("m0")].b.values())  # fmt: skip


# -- sign and sparsity methods --------------------------------------------------------------------


def ties_by_hand(matrices, weights, density: float) -> torch.Tensor:
    kept = []
    for matrix, weight in zip(matrices, weights, strict=True):
        count = int(density * matrix.numel())
        order = matrix.abs().flatten().argsort(descending=True)[:count]
        mask = torch.zeros(matrix.numel(), dtype=F64)
        mask[order] = 1
        kept.append(weight * matrix * mask.reshape(matrix.shape))
    stack = torch.stack(kept)
    sign = torch.where(stack.sum(0) >= 0, 1.0, -1.0)
    agree = (stack.sign() == sign) & (stack != 0)
    return (stack * agree).sum(0) / agree.sum(0).clamp(min=1)


@pytest.mark.parametrize("held", [blends.HELD, 0])
def test_ties_on_updates_is_the_dense_ties(held: int, monkeypatch) -> None:
    """Held in memory or computed anew for each pass, the factors are those of the dense matrix."""
    monkeypatch.setattr(blends, "HELD", held)
    one, two, three = update(90, 70, 2, 1), update(90, 70, 4, 2, 2.0), update(90, 70, 3, 3)
    weights = [1.0, 0.5, -0.5]
    pairs = [(adapter(x=low), w) for low, w in zip((one, two, three), weights, strict=True)]
    wanted = ties_by_hand([dense(one), dense(two), dense(three)], weights, 0.3)
    found = combine(pairs, Recipe("ties", {"density": 0.3}))
    assert only(found).rank == 4  # the largest that went in
    values = torch.linalg.svdvals(wanted)
    optimum = float(values[4:].norm() / values.norm())
    assert found.error == pytest.approx(optimum, rel=1e-3)
    assert float((dense(only(found)) - wanted).norm() / wanted.norm()) == pytest.approx(
        optimum, rel=1e-3
    )
    full = combine(pairs, Recipe("ties", {"density": 0.3}, rank=70))
    assert torch.allclose(dense(only(full)), wanted, atol=1e-5 * float(values[0]))
    assert full.error == pytest.approx(0.0, abs=1e-6)


def test_core_space_is_another_result_of_exact_low_rank() -> None:
    one, two = update(40, 30, 3, 1), update(40, 30, 5, 2)
    pairs = [(adapter(x=one), 1.0), (adapter(x=two), 1.0)]
    core = combine(pairs, Recipe("ties", {"density": 0.5}, "core"))
    assert core.error is None
    assert only(core).rank <= 8
    # the definition, on matrices: bases of the concatenated factors, TIES in between
    (a1, b1), (a2, b2) = (low.factors(F64, torch.device("cpu")) for low in (one, two))
    left = torch.linalg.svd(torch.cat([b1, b2], 1), full_matrices=False).U
    right = torch.linalg.svd(torch.cat([a1, a2]), full_matrices=False).Vh
    cores = [left.T @ dense(low) @ right.T for low in (one, two)]
    wanted = left @ ties_by_hand(cores, [1.0, 1.0], 0.5) @ right
    assert torch.allclose(dense(only(core)), wanted, atol=1e-5)
    delta = combine(pairs, Recipe("ties", {"density": 0.5}, rank=30))
    assert float((dense(only(delta)) - wanted).norm()) > 0.1 * float(wanted.norm())


def test_linear_means_the_same_in_core_space() -> None:
    pairs = [(adapter(x=update(9, 8, 2, n)), 0.5) for n in (1, 2)]
    assert torch.allclose(dense(only(combine(pairs, Recipe(space="core")))),
                          dense(only(combine(pairs))))  # fmt: skip


def test_factors_of_different_ranks_do_not_combine_one_by_one() -> None:
    pairs = [(adapter(x=update(9, 8, r, r)), 0.5) for r in (2, 3)]
    with pytest.raises(IncompatibleError, match=r"x.weight: ranks \[2, 3\]"):
        combine(pairs, Recipe(space="factors"))
    with pytest.raises(UsageError, match="not on A and B apart"):
        combine(pairs, Recipe("tsv", space="factors"))


# -- straight into a model ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ties", "dare", "della", "magnitude"])
def test_unfactored_blends_are_exact(method: str) -> None:
    one, two = update(50, 40, 3, 1), update(50, 40, 5, 2)
    pairs = [(adapter(x=one), 1.0), (adapter(x=two), 0.5)]
    found = combine(pairs, Recipe(method, {"density": 0.4}, factored=False))
    blend = only(found)
    assert isinstance(blend, Blended)
    assert found.error is None
    assert found.rows[0].rank is None
    base = torch.randn(50, 40, generator=torch.Generator().manual_seed(5))
    apply = blend.applier(torch.float32, torch.device("cpu"))
    whole = apply(base.clone(), Window(slice(0, 50), slice(0, 40), (50, 40)), 1.0)
    factored = combine(pairs, Recipe(method, {"density": 0.4}, rank=40))
    assert torch.allclose(whole.double(), base.double() + dense(only(factored)), atol=1e-4)


def test_what_is_of_low_rank_stays_so_unfactored() -> None:
    pairs = [(adapter(x=update(9, 8, 2, n)), 0.5) for n in (1, 2)]
    for method in ("linear", "tsv", "iso", "knots", "slerp"):
        assert isinstance(only(combine(pairs, Recipe(method, factored=False))), LowRank)


# -- stacked experts ------------------------------------------------------------------------------


def experts(rank: int, seed: int, strength: float = 0.5) -> ExpertLowRank:
    return ExpertLowRank(value(4, rank, 6, seed=seed), value(4, 8, rank, seed=seed + 40), strength)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(rank=8), Recipe("tsv"), Recipe("ties")])
def test_experts_combine_one_by_one(recipe: Recipe) -> None:
    one, two = experts(2, 1), experts(3, 2, 2.0)
    found = combine([(adapter(x=one), 1.0), (adapter(x=two), -0.5)], recipe)
    stack = only(found)
    assert isinstance(stack, ExpertLowRank)
    assert stack.shape == (4, 8, 6)
    for e in range(4):
        alone = combine([(adapter(x=one.expert(e)), 1.0), (adapter(x=two.expert(e)), -0.5)], recipe)
        assert torch.allclose(dense(stack.expert(e)), dense(only(alone)), atol=1e-5)


def test_experts_are_random_each_in_its_own_way() -> None:
    same = ExpertLowRank(from_values(torch.ones(2, 1, 30)), from_values(torch.ones(2, 20, 1)), 1.0)
    stack = only(combine([(adapter(x=same), 1.0)], Recipe("dare", rank=20)))
    one, two = dense(stack.expert(0)), dense(stack.expert(1))
    assert 0.3 < float(((one > 1) == (two > 1)).double().mean()) < 0.7


def test_blends_of_experts_need_a_rank() -> None:
    pairs = [(adapter(x=experts(2, n)), 1.0) for n in (1, 2)]
    with pytest.raises(IncompatibleError, match="stacked experts"):
        combine(pairs, Recipe("ties", factored=False))
    assert only(combine(pairs, Recipe("ties", rank=2, factored=False))).rank == 2


# -- heads and the like ---------------------------------------------------------------------------


def test_heads_that_all_have_are_averaged() -> None:
    one, two = (Replacement(value(4, 3, seed=n)) for n in (1, 2))
    found = combine([(adapter(head=one), 1.5), (adapter(head=two), 0.5)])
    wanted = 0.75 * one.value.values() + 0.25 * two.value.values()
    assert torch.allclose(only(found).value.values(), wanted)
    assert found.notes == ("head.weight: averaged with weights 0.75, 0.25 (normalised to sum 1)",)


def test_a_head_with_one_owner_is_kept_with_a_notice() -> None:
    head = Replacement(value(4, 3))
    found = combine([(adapter("one", x=update(3, 3, 1, 0)), 0.1),
                     (adapter("two", head=head), 0.2)])  # fmt: skip
    assert found.adapter.updates[Site("head")] is head
    assert found.notes == ("head.weight: only two has one: kept as it is, in full",)


def conflicts():
    head = Replacement(value(4, 3))
    yield "three", [{"head": head}, {"head": head}, {"x": update(2, 2, 1, 0)}], "others do not"
    yield "shape", [{"head": head}, {"head": Replacement(value(5, 3))}], "kind and shape"
    yield "kind", [{"head": head}, {"head": update(4, 3, 2, 1)}], "kind and shape"
    rows = TokenRows((1, 2), value(2, 3)), TokenRows((1, 3), value(2, 3))
    yield "tokens", [{"head": rows[0]}, {"head": rows[1]}], "kind and shape"
    copies = [Rebased(value(4, 3, seed=n), update(4, 3, 1, n)) for n in (1, 2)]
    yield "copies", [{"head": copies[0]}, {"head": copies[1]}], "kind and shape"


@pytest.mark.parametrize(("name", "given", "says"), conflicts(), ids=lambda v: str(v)[:8])
def test_heads_that_disagree_are_refused_with_the_way_out(name, given, says) -> None:
    pairs = [(adapter(f"a{n}", **updates), 1.0) for n, updates in enumerate(given)]
    with pytest.raises(IncompatibleError, match=says) as caught:
        combine(pairs)
    assert "--keep-heads" in caught.value.hint
    found = combine(pairs, Recipe(keep_heads=1))
    assert found.adapter.updates[Site("head")] is given[1]["head"]
    assert any("that of a1 is kept, in full, that of a0 left out" in note for note in found.notes)


def test_weights_that_sum_to_zero_have_no_mean() -> None:
    pairs = [(adapter(head=Replacement(value(4, 3, seed=n))), w) for n, w in ((1, 1.0), (2, -1.0))]
    with pytest.raises(IncompatibleError, match="have no mean"):
        combine(pairs)


def test_token_rows_of_the_same_tokens_are_averaged() -> None:
    one, two = (TokenRows((5, 9), value(2, 3, seed=n)) for n in (1, 2))
    found = only(combine([(adapter(x=one), 1.0), (adapter(x=two), 1.0)]))
    assert found.indices == (5, 9)
    wanted = (one.values.values() + two.values.values()) / 2
    assert torch.allclose(found.values.values(), wanted)


def test_biases_of_updates_add_up() -> None:
    one, two = Addition(value(4, seed=1), 2.0), Addition(value(4, seed=2), 0.5)
    found = only(combine([(adapter(x=one), 0.5), (adapter(x=two), -1.0), (adapter(), 3.0)]))
    wanted = 1.0 * one.value.values() - 0.5 * two.value.values()
    assert torch.allclose(found.scaling * found.value.values(), wanted)


def test_updates_on_the_same_copy_of_the_base_add_up(tmp_path: Path) -> None:
    save_file({"copy": torch.randn(6, 5)}, tmp_path / "c.safetensors")
    copy = open_checkpoint(tmp_path / "c.safetensors").tensors["copy"]
    lows = [update(6, 5, 2, n) for n in (1, 2)]
    pairs = [(adapter(x=Rebased(copy, low)), w) for low, w in zip(lows, (0.5, 2.0), strict=True)]
    found = only(combine(pairs))
    assert found.value is copy
    assert torch.allclose(dense(found.update), 0.5 * dense(lows[0]) + 2 * dense(lows[1]),
                          atol=1e-5)  # fmt: skip


# -- DoRA -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
def test_dora_needs_its_base_and_is_exact_at_full_rank(transposed: bool) -> None:
    weight = torch.randn(12, 8, generator=torch.Generator().manual_seed(3))
    direction, plain = update(12, 8, 2, 1), update(12, 8, 3, 2)
    dora = Dora(direction, from_values(weight.norm(dim=1) * 1.3))
    pairs = [(adapter("d", x=dora), 0.5), (adapter("l", x=plain), 2.0)]
    with pytest.raises(IncompatibleError, match=r"x.weight: d is DoRA") as caught:
        combine(pairs)
    assert "--base" in caught.value.hint
    stored = weight.T.contiguous() if transposed else weight
    before = stored.clone()
    base = Checkpoint({"x.weight": from_values(stored)}, "safetensors", Provenance("b", "s"))
    moved = weight.double() + dense(direction)
    exact = moved * (1.3 * weight.double().norm(dim=1) / moved.norm(dim=1))[:, None] - weight
    found = combine(pairs, Recipe(rank=8), base=base)
    assert torch.allclose(dense(only(found)), 0.5 * exact + 2 * dense(plain), atol=1e-5)
    assert torch.equal(stored, before)
    cut = combine(pairs, base=base)
    values = torch.linalg.svdvals(exact)
    lost = float(values[2:].norm() / values.norm())
    assert f"relative error {lost:.3g}" in cut.notes[0]
    assert lost > 0.1


def test_a_base_without_the_module_is_refused() -> None:
    dora = Dora(update(4, 4, 1, 0), value(4))
    base = Checkpoint({}, "safetensors", Provenance("b", "s"))
    with pytest.raises(IncompatibleError, match="no such parameter"):
        combine([(adapter(x=dora), 1.0)], base=base)


# -- what cannot be combined ----------------------------------------------------------------------


def test_shapes_must_agree() -> None:
    pairs = [(adapter("one", x=update(4, 5, 1, 0)), 1.0),
             (adapter("two", x=update(4, 6, 1, 0)), 1.0)]  # fmt: skip
    with pytest.raises(IncompatibleError, match=r"one \[4, 5\], two \[4, 6\]"):
        combine(pairs)


def test_values_that_are_not_finite_are_refused() -> None:
    bad = LowRank(from_values(torch.full((1, 3), math.nan)), value(4, 1), 1.0)
    for recipe in (Recipe(), Recipe("ties"), Recipe("tsv"), Recipe(rank=1)):
        with pytest.raises(CorruptInputError, match="not finite"):
            combine([(adapter(x=bad), 1.0)], recipe)


def test_names_must_mean_the_same_weights() -> None:
    one = adapter(x=update(4, 4, 1, 0))
    two = Adapter(one.updates, "lora", None, one.provenance, {"layer_replication": [[0, 2]]})
    with pytest.raises(IncompatibleError, match="layer_replication"):
        combine([(one, 1.0), (two, 1.0)])
    assert combine([(two, 1.0), (two, 1.0)]).adapter.config["layer_replication"] == [[0, 2]]
    old, new = (Adapter({Site("x"): experts(2, 1)}, "lora", None, one.provenance,
                        {"peft_version": v}) for v in ("0.18.1", "0.19.0"))  # fmt: skip
    with pytest.raises(IncompatibleError, match="changed sides"):
        combine([(old, 1.0), (new, 1.0)])


def test_names_of_two_library_versions_are_one() -> None:
    old, new = "vit.encoder.layer.3.intermediate.dense", "vit.layers.3.mlp.fc1"
    one, two = update(4, 4, 1, 0), update(4, 4, 1, 1)
    found = combine([(adapter(**{old: one}), 1.0), (adapter(**{new: two}), 2.0)])
    assert list(found.adapter.updates) == [Site(old)]
    assert torch.allclose(dense(only(found)), dense(one) + 2 * dense(two), atol=1e-6)
    assert any("1 updates bear other names" in note for note in found.notes)
    # one adapter that has both keeps both
    both = adapter(**{old: one, new: two})
    assert len(combine([(both, 1.0), (both, 1.0)]).adapter.updates) == 2


def test_adapters_of_other_formats_keep_their_own_names(tmp_path: Path) -> None:
    sites = {Site("blk.0.attn_q"): update(4, 4, 2, 1)}
    config = {"general.architecture": "llama", "general.name": "x"}
    one = Adapter(sites, "lora", None, Provenance("g", "gguf"), config, naming="gguf")
    two = Adapter(sites, "lora", None, Provenance("h", "gguf"), config | {"general.name": "y"},
                  naming="gguf")  # fmt: skip
    found = combine([(one, 1.0), (two, 1.0)]).adapter
    assert (found.naming, found.config) == ("gguf", {"general.architecture": "llama"})
    with pytest.raises(IncompatibleError, match="whose names they bear"):
        combine([(one, 1.0), (adapter(x=update(4, 4, 2, 1)), 1.0)])


def test_wrong_requests_are_refused() -> None:
    one = adapter(x=update(4, 4, 1, 0))
    with pytest.raises(UsageError, match="no adapter"):
        combine([])
    with pytest.raises(UsageError, match="not a finite number"):
        combine([(one, math.inf)])
    with pytest.raises(UsageError, match="unknown space"):
        combine([(one, 1.0)], Recipe(space="dense"))
    with pytest.raises(UsageError, match="at least 1"):
        combine([(one, 1.0)], Recipe(rank=0))
    opaque = Adapter({}, "prompt", None, one.provenance, unmergeable="it adds virtual tokens")
    with pytest.raises(IncompatibleError, match="virtual tokens"):
        combine([(opaque, 1.0)])


def test_different_bases_and_tasks_are_noted() -> None:
    updates = {Site("x"): update(4, 4, 1, 0)}
    facts = (("p", "mit", "CAUSAL_LM"), ("q", "apache-2.0", "SEQ_CLS"))
    pairs = [
        (Adapter(updates, "lora", base, Provenance(base, "peft", license=terms), task=task), 1.0)
        for base, terms, task in facts
    ]
    found = combine(pairs)
    assert (found.adapter.base, found.adapter.task) == ("p", None)
    assert found.adapter.provenance.license == "other"
    assert len(found.notes) == 2


# -- trained adapters -----------------------------------------------------------------------------


EXPECTED = json.loads((DEMO / "expected.json").read_text())


def answers(tmp_path: Path, *arguments: str, prompts: tuple[str, ...]) -> dict[str, str]:
    """What the demo model says with its adapters combined and merged."""
    words = [str(DEMO / word) if (DEMO / word.partition("=")[0]).is_dir() else word
             for word in arguments]  # fmt: skip
    assert main(["combine", *words, "-o", str(tmp_path / "c")]) == 0
    merged = tmp_path / "merged"
    assert main(["merge", str(DEMO / "model"), str(tmp_path / "c"), "-o", str(merged)]) == 0
    return {prompt: answer(merged, prompt) for prompt in prompts}


def test_adding_and_taking_away_leaves_the_first(tmp_path: Path) -> None:
    prompts = ("hello ada", "how are you", "what is 2 plus 3")
    said = answers(tmp_path, "pirate=1", "cowboy=1", "cowboy=-1", prompts=prompts)
    assert said == {prompt: EXPECTED["adapters"]["pirate"][prompt] for prompt in prompts}


@pytest.mark.parametrize(("stronger", "weaker"), [("pirate", "cowboy"), ("cowboy", "pirate")])
def test_the_stronger_adapter_leads(stronger: str, weaker: str, tmp_path: Path) -> None:
    prompts = ("hello ada", "what colour is the sky")
    said = answers(tmp_path, f"{stronger}=0.8", f"{weaker}=0.2", prompts=prompts)
    own, other = {"pirate": ("matey", "be"), "cowboy": ("partner", "well")}[stronger], weaker
    assert said["hello ada"] == EXPECTED["adapters"][stronger]["hello ada"]
    assert own[1] in said["what colour is the sky"].replace(",", "").split()
    assert not any(text in EXPECTED["adapters"][other].values() for text in said.values())


def test_ties_speaks_in_both_styles(tmp_path: Path) -> None:
    prompts = ("hello ada", "hello grace")
    said = answers(tmp_path, "pirate=1", "cowboy=1", "--method", "ties", "--set", "density=0.5",
                   "--rank", "32", prompts=prompts)  # fmt: skip
    words = set(" ".join(said.values()).replace(",", " ").replace(".", " ").split())
    assert words & {"matey", "matey!", "aboard", "ahoy"}
    assert words & {"howdy", "partner"}


# -- the command ----------------------------------------------------------------------------------


def test_the_result_is_written_and_described(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(DEMO / "pirate=0.7"), str(DEMO / "cowboy=0.3"), "-o", "out"]
    assert main(["combine", *arguments, "--rank", "8", "-v"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "relative error of the rank: 0." in shown
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 8)
    record = (tmp_path / "out" / "adaptool.json").read_text()
    assert '"weight": 0.7' in record
    assert "sha256" in record
    assert "combined: linear rank=8" in record
    again = combine([(read_adapter(DEMO / n), w) for n, w in (("pirate", 0.7), ("cowboy", 0.3))],
                    Recipe(rank=8)).adapter  # fmt: skip
    stored = read_adapter(tmp_path / "out")
    assert set(stored.updates) == set(again.updates)
    for site, low in stored.updates.items():
        assert torch.equal(low.a.values(), again.updates[site].a.values())


def test_json_dry_run_and_force(tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    arguments = ["combine", str(DEMO / "pirate=1"), str(DEMO / "cowboy=1"), "-o", str(out)]
    assert main([*arguments, "--json", "--dry-run", "--method", "ties", "--rank", "4"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"]
    assert 0 < facts["error"] < 1
    assert [i["weight"] for i in facts["inputs"]] == [1.0, 1.0]
    assert not out.exists()
    assert main(arguments) == 0
    assert main(arguments) == 6  # it exists
    assert main([*arguments, "--force", "--dtype", "bf16"]) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--method", "tie"], "unknown method 'tie'; known: dare"),
        (["--set", "density=2", "--method", "ties"], "density=2 is not 0 to 1"),
        (["--set", "density"], "--set density: no value"),
        (["--space", "dense"], "unknown space 'dense'"),
        (["--keep-heads", "formal"], "--keep-heads formal: none of the adapters"),
    ],
)
def test_wrong_words_are_refused(words, says, tmp_path: Path, capsys) -> None:
    arguments = [str(DEMO / "pirate=1"), str(DEMO / "cowboy=x" if not words else DEMO / "cowboy")]
    assert main(["combine", *arguments, "-o", str(tmp_path / "out"), *words]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_the_command_needs_is_said(tmp_path: Path, capsys) -> None:
    assert main(["combine", str(DEMO / "pirate")]) == 2
    assert "adapters and an output are needed" in capsys.readouterr().err
    assert main(["combine", str(DEMO / "pirate=much"), "-o", str(tmp_path / "out")]) == 2
    assert "'much' is not a number" in capsys.readouterr().err


def test_methods_are_listed(capsys) -> None:
    assert main(["combine", "--list-methods"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "density=0.2  (0 to 1)" in shown
    assert main(["combine", "--list-methods", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)["methods"]
    assert known["ties"]["parameters"]["density"]["default"] == 0.2


def test_dora_on_disk_needs_the_base_option(tmp_path: Path, capsys) -> None:
    """The formal adapter is DoRA; of the demo's small weights rank 64 holds all."""
    arguments = ("formal=1", "cowboy=0")
    assert main(["combine", str(DEMO / "formal=1"), "-o", str(tmp_path / "no")]) == 4
    assert "--base MODEL" in capsys.readouterr().err
    said = answers(tmp_path, *arguments, "--base", str(DEMO / "model"), "--rank", "64",
                   prompts=("hello ada",))  # fmt: skip
    assert said["hello ada"] == EXPECTED["adapters"]["formal"]["hello ada"]
    assert "DoRA updates taken as factors against model, relative error" in capsys.readouterr().err


# -- straight into the demo model -----------------------------------------------------------------


def test_a_merge_takes_blends_as_they_are() -> None:
    base = open_checkpoint(DEMO / "model")
    pairs = [(read_adapter(DEMO / name), 1.0) for name in ("pirate", "cowboy")]
    recipe = Recipe("ties", {"density": 0.5}, factored=False)
    merged = merge(base, [(combine(pairs, recipe).adapter, 0.5)], dtype=DType.FLOAT32)
    name = "model.layers.0.self_attn.q_proj"
    lows = [read.updates[Site(name)] for read, _ in pairs]
    wanted = ties_by_hand([dense(low) for low in lows], [1.0, 1.0], 0.5)
    before = base.tensors[f"{name}.weight"].values().double()
    after = merged.checkpoint.tensors[f"{name}.weight"].values().double()
    assert float((after - before - 0.5 * wanted).abs().max()) <= 1e-6
