"""How alike two adapters are, against dense float64."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptool import RankRequest, compare, compare_files, read_adapter, reduce
from adaptool.canonical import (
    Adapter,
    Addition,
    Dora,
    ExpertLowRank,
    LowRank,
    Provenance,
    Rebased,
    Replacement,
    Site,
    TokenRows,
)
from adaptool.canonical.tensors import from_values
from adaptool.cli import main
from adaptool.demonstration import demo_folder
from adaptool.errors import CorruptInputError, IncompatibleError

DEMO = demo_folder()


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lora(out: int, inputs: int, rank: int, seed: int = 0, scaling: float = 0.5) -> LowRank:
    a, b = values(rank, inputs, seed=seed), values(out, rank, seed=seed + 1)
    return LowRank(from_values(a), from_values(b), scaling)


def adapter_of(**updates) -> Adapter:
    """An adapter; `weight` of the named module, or `name__parameter`."""
    sites = {}
    for name, update in updates.items():
        module, _, parameter = name.partition("__")
        sites[Site(module, parameter or "weight")] = update
    return Adapter(sites, "lora", None, Provenance("test", "peft"))


def dense(low: LowRank) -> torch.Tensor:
    return low.scaling * low.b.values().double() @ low.a.values().double().reshape(low.rank, -1)


def only(found):
    (meeting,) = found.modules.values()
    return meeting


def projector(basis: torch.Tensor) -> torch.Tensor:
    """On the column space of a full-rank matrix."""
    return basis @ torch.linalg.pinv(basis)


cases = given(out=st.integers(2, 20), inputs=st.integers(2, 20), one=st.integers(1, 6),
              two=st.integers(1, 6), seed=st.integers(0, 99))  # fmt: skip


@settings(max_examples=60, deadline=None)
@cases
def test_all_measures_equal_their_dense_definitions(out, inputs, one, two, seed):
    first, second = lora(out, inputs, one, seed), lora(out, inputs, two, seed + 7, -1.5)
    found = only(compare(adapter_of(m=first), adapter_of(m=second)))
    x, y = dense(first), dense(second)
    squares = float(x.square().sum()), float(y.square().sum())
    assert found.cosine == pytest.approx(float((x * y).sum() / (x.norm() * y.norm())), abs=1e-9)
    assert found.ratio == pytest.approx(float(y.norm() / x.norm()), rel=1e-9)
    lost = 1 - float((x + y).square().sum()) / sum(squares)
    assert found.cancellation == pytest.approx(lost, abs=1e-9)
    ranks = [int(torch.linalg.matrix_rank(m)) for m in (x, y)]
    left, right = ((projector(m), projector(n)) for m, n in ((x, y), (x.T, y.T)))
    overlaps = [float((p @ q).trace()) / min(ranks) for p, q in (left, right)]
    assert found.overlaps == pytest.approx(overlaps, abs=1e-6)
    inside = [left[1] @ x @ right[1], left[0] @ y @ right[0]]
    shares = [float(m.square().sum()) / s for m, s in zip(inside, squares, strict=True)]
    assert found.shared == pytest.approx(shares, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(out=st.integers(1, 20), inputs=st.integers(1, 20), rank=st.integers(1, 6),
       strength=st.sampled_from([1.0, 1e-4, 300.0, -2.0]), seed=st.integers(0, 99))  # fmt: skip
def test_an_adapter_is_like_itself_at_every_strength(out, inputs, rank, strength, seed):
    source = adapter_of(m=lora(out, inputs, rank, seed))
    found = only(compare(source, source.scaled(strength)))
    sign = 1.0 if strength > 0 else -1.0
    assert found.cosine == pytest.approx(sign, abs=1e-12)
    assert found.ratio == pytest.approx(abs(strength), rel=1e-12)
    assert (*found.overlaps, *found.shared) == pytest.approx([1.0] * 4, abs=1e-9)
    expected = -2 * strength / (1 + strength**2)
    assert found.cancellation == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40, deadline=None)
@cases
def test_strength_changes_nothing_but_norms_and_the_order_nothing_but_names(
    out, inputs, one, two, seed
):
    first, second = (adapter_of(m=lora(out, inputs, r, s)) for r, s in ((one, seed), (two, 50)))
    plain, strong = (only(compare(first, other)) for other in (second, second.scaled(40.0)))
    assert strong.cosine == pytest.approx(plain.cosine, abs=1e-9)
    assert strong.overlaps == pytest.approx(plain.overlaps, abs=1e-9)
    assert strong.shared == pytest.approx(plain.shared, abs=1e-9)
    back = only(compare(second, first))
    assert back.cosine == pytest.approx(plain.cosine, abs=1e-12)
    assert back.shared == pytest.approx(plain.shared[::-1], abs=1e-12)
    assert back.ratio == pytest.approx(1 / plain.ratio, rel=1e-9)


def test_how_an_update_is_factored_does_not_matter():
    low = lora(30, 20, 4)
    mixed = torch.linalg.qr(values(4, 4, seed=9))[0] * torch.tensor([1e3, 1.0, 1e-2, 5.0])
    a = torch.linalg.inv(mixed) @ low.a.values()
    other = LowRank(from_values(a), from_values(low.b.values() @ mixed), low.scaling)
    found = only(compare(adapter_of(m=low), adapter_of(m=other)))
    assert found.cosine == pytest.approx(1, abs=1e-6)
    assert (*found.overlaps, *found.shared) == pytest.approx([1.0] * 4, abs=1e-6)


def test_updates_in_spaces_of_their_own_do_not_meet():
    a, b = torch.eye(8), torch.eye(10)
    one = LowRank(from_values(a[:3]), from_values(b[:, :3]), 1.0)
    apart = LowRank(from_values(a[4:6]), from_values(b[:, 5:7]), 1.0)
    found = only(compare(adapter_of(m=one), adapter_of(m=apart)))
    assert (found.cosine, *found.overlaps, *found.shared, found.cancellation) == (0.0,) * 6
    # the same spaces, other pairs: they share energy, yet are orthogonal
    turned = LowRank(one.a, from_values(b[:, [1, 2, 0]]), 1.0)
    found = only(compare(adapter_of(m=one), adapter_of(m=turned)))
    assert (found.cosine, *found.overlaps, *found.shared) == (0.0, 1.0, 1.0, 1.0, 1.0)


def test_a_reduced_adapter_lies_inside_its_original():
    source = read_adapter(DEMO / "pirate")
    done = reduce(source, RankRequest(error=0.3))
    found = compare(source, done.adapter)
    for row in done.rows:
        meeting = found.modules[row.site]
        assert meeting.cosine == pytest.approx(row.kept**0.5, abs=1e-5)
        assert meeting.shared == pytest.approx((row.kept, 1.0), abs=1e-5)
    assert found.total.cosine == pytest.approx((1 - done.error**2) ** 0.5, abs=1e-5)


def test_rank_deficient_and_zero_updates():
    low = lora(12, 10, 2)
    twice = LowRank(from_values(torch.cat([low.a.values()] * 2)),
                    from_values(torch.cat([low.b.values()] * 2, dim=1)), 0.25)  # fmt: skip
    found = only(compare(adapter_of(m=low), adapter_of(m=twice)))
    assert found.common == 2
    assert (found.cosine, *found.overlaps) == pytest.approx((1.0, 1.0, 1.0), abs=1e-9)
    zero = LowRank(low.a, from_values(torch.zeros(12, 2)), 1.0)
    found = only(compare(adapter_of(m=low), adapter_of(m=zero)))
    assert (found.cosine, found.overlaps, found.ratio) == (None, (None, None), 0.0)
    assert found.shared == (0.0, None)
    nothing = compare(adapter_of(m=zero), adapter_of(m=zero))
    assert (nothing.total.cosine, nothing.total.ratio, nothing.total.cancellation) == (None,) * 3


def test_the_total_counts_what_only_one_has_as_zero():
    shared, mine, theirs = lora(12, 10, 2), lora(9, 10, 3, seed=4), lora(12, 9, 1, seed=6)
    bias = Addition(from_values(values(12)), 2.0)
    first = adapter_of(m=shared, mine=mine, m__bias=bias)
    second = adapter_of(m=shared.scaled(-3.0), theirs=theirs)
    found = compare(first, second)
    assert found.only == ((Site("mine"), Site("m", "bias")), (Site("theirs"),))
    x = float(dense(shared).square().sum())
    one = x + float(dense(mine).square().sum()) + 4 * float(values(12).double().square().sum())
    two = 9 * x + float(dense(theirs).square().sum())
    assert found.total.cosine == pytest.approx(-3 * x / (one * two) ** 0.5, rel=1e-6)
    assert found.total.cancellation == pytest.approx(6 * x / (one + two), rel=1e-6)


def test_biases_are_compared_as_differences():
    one, two = values(12), values(12, seed=1)
    found = compare(adapter_of(m__bias=Addition(from_values(one), 2.0)),
                    adapter_of(m__bias=Addition(from_values(two), -1.0)))  # fmt: skip
    cosine = -float(torch.nn.functional.cosine_similarity(one.double(), two.double(), dim=0))
    assert only(found).cosine == pytest.approx(cosine, abs=1e-9)
    assert found.total.cosine == pytest.approx(cosine, abs=1e-9)


def test_experts_convolutions_and_embeddings():
    a, b = values(3, 4, 10), values(3, 12, 4, seed=1)
    other = values(3, 12, 4, seed=2)
    stack = ExpertLowRank(from_values(a), from_values(b), 0.5)
    twin = ExpertLowRank(from_values(a), from_values(other), 2.0)
    conv = LowRank(from_values(values(4, 3, 2, 2)), from_values(values(8, 4)), 1.0)
    rows = LowRank(from_values(values(4, 50)), from_values(values(8, 4)), 1.0, embedding=True)
    first = adapter_of(e__down_proj=stack, conv=conv, emb=rows)
    found = compare(first, adapter_of(e__down_proj=twin, conv=conv, emb=rows))
    x, y = (b.double() @ a.double() * 0.5), (other.double() @ a.double() * 2)
    meeting = found.modules[Site("e", "down_proj")]
    assert meeting.cosine == pytest.approx(float((x * y).sum() / (x.norm() * y.norm())), abs=1e-9)
    assert meeting.overlaps[1] == pytest.approx(1.0)
    assert found.modules[Site("conv")].cosine == pytest.approx(1.0)
    assert found.modules[Site("emb")].cosine == pytest.approx(1.0)


def test_of_dora_the_directions_are_compared():
    low = lora(12, 10, 3)
    dora = Dora(low, from_values(values(12)))
    for other in (low, dora, Rebased(from_values(values(12, 10)), low)):
        found = compare(adapter_of(m=dora), adapter_of(m=other))
        assert only(found).cosine == pytest.approx(1.0)
        assert "directions" in found.notes[0]


def test_trained_copies_stay_out_of_the_total():
    head, other = values(7, 10), values(7, 10, seed=1)
    first = adapter_of(m=lora(12, 10, 2), head=Replacement(from_values(head)),
                       emb=TokenRows((1, 3), from_values(values(2, 10))))  # fmt: skip
    second = adapter_of(m=lora(12, 10, 2), head=Replacement(from_values(other)),
                        emb=TokenRows((1, 4), from_values(values(2, 10))))  # fmt: skip
    found = compare(first, second)
    cosine = torch.nn.functional.cosine_similarity(head.double().ravel(), other.double().ravel(), 0)
    assert found.copies[Site("head")].cosine == pytest.approx(float(cosine), abs=1e-9)
    assert found.total.cosine == pytest.approx(1.0)
    assert found.unlike == {Site("emb"): "rows of different tokens"}
    assert "stay out of the total" in found.notes[0]


def test_what_cannot_be_compared_is_named():
    low = lora(12, 10, 2)
    others = {
        "kinds": (low, Replacement(from_values(values(12, 10)))),
        "shapes": (low, lora(12, 11, 2)),
        "sides": (low, replace(low, embedding=True)),
        "heads": (Replacement(from_values(values(3, 4))), Replacement(from_values(values(2, 4)))),
    }
    found = compare(*(adapter_of(**{n: pair[i] for n, pair in others.items()}) for i in (0, 1)))
    assert {str(site) for site in found.unlike} == {f"{name}.weight" for name in others}
    assert found.unlike[Site("kinds")] == "low-rank and replacement"
    assert found.unlike[Site("shapes")] == "shapes [12, 10] and [12, 11]"
    assert (found.modules, found.copies) == ({}, {})


def test_names_of_two_library_versions_are_one_module():
    low = lora(12, 10, 2)
    first = adapter_of(**{"model.layers.0.block_sparse_moe.experts.1.w1": low})
    second = adapter_of(**{"model.layers.0.mlp.experts.1.gate_proj": low})
    found = compare(first, second)
    assert list(found.modules) == list(first.updates)
    assert found.only == ((), ())


def test_refusals():
    empty = replace(adapter_of(), unmergeable="prompts add tokens")
    with pytest.raises(IncompatibleError, match="prompts add tokens"):
        compare(adapter_of(m=lora(12, 10, 2)), empty)
    with pytest.raises(IncompatibleError, match="gguf's"):
        source = adapter_of(m=lora(12, 10, 2))
        compare(source, replace(source, naming="gguf"))
    broken = lora(12, 10, 2)
    bad = values(12, 2)
    bad[3, 1] = float("nan")
    broken = LowRank(broken.a, from_values(bad), 1.0)
    for pair in ((lora(12, 10, 2), broken), (broken, broken)):
        with pytest.raises(CorruptInputError, match=r"m\.weight.*not finite"):
            compare(*(adapter_of(m=update) for update in pair))
    with pytest.raises(CorruptInputError, match=r"n\.weight.*not finite"):
        compare(adapter_of(m=lora(12, 10, 2)), adapter_of(m=lora(12, 10, 2), n=broken))


def test_adapters_trained_apart_hardly_meet():
    found = compare_files(DEMO / "pirate", DEMO / "cowboy")
    assert abs(found.total.cosine) < 0.1
    assert max(found.total.shared) < 0.1
    assert len(found.only[0]) == 6
    same = compare_files(DEMO / "pirate", DEMO / "pirate", threads=3)
    assert same.total.cosine == pytest.approx(1.0)
    assert same.total.cancellation == pytest.approx(-1.0)


def test_the_command(capsys):
    pirate, cowboy = str(DEMO / "pirate"), str(DEMO / "cowboy")
    assert main(["diff", pirate, cowboy, "-v"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80
    assert "1.self_attn.v_proj" in out
    assert "only in pirate: down_proj x2, gate_proj x2, up_proj x2" in out
    assert "merged together" in out
    assert main(["diff", pirate, pirate, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["total"]["cosine"] == pytest.approx(1.0)
    assert facts["total"]["shared"] == pytest.approx([1.0, 1.0])
    assert len(facts["modules"]) == 14
    assert facts["only_in_first"] == facts["only_in_second"] == []
    assert main(["diff", pirate, "nowhere"]) == 6
