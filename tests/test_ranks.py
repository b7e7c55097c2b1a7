"""Ranks from spectra: what each goal means, and that budgets are spent as well as can be."""

from __future__ import annotations

from itertools import product
from math import sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptool.budgets import CURVE_POINTS, Module, error_curve, least_cost, relative_error
from adaptool.errors import UsageError
from adaptool.ranks import CRITERIA, RankRequest, choose_ranks

LOSSLESS = 1e-12


def module(*values: float, cost: int = 10, **more: float) -> Module:
    """A module with these singular values."""
    return Module([v * v for v in values], cost, **more)


spectra = st.lists(st.floats(0, 8, width=16), min_size=1, max_size=5).map(
    lambda values: sorted(values, reverse=True)
)
few = st.lists(
    st.builds(
        lambda values, cost, importance: module(*values, cost=cost, importance=importance),
        spectra, st.integers(1, 12), st.sampled_from([0.25, 1.0, 3.0]),
    ),
    min_size=1, max_size=4,
).map(lambda modules: dict(enumerate(modules)))  # fmt: skip


def lost(modules, ranks) -> float:
    """Weighted energy that these ranks lose, by the definition."""
    return sum(m.importance * (sum(m.energies[ranks[k] :]) + m.rest) for k, m in modules.items())


def cost(modules, ranks) -> int:
    return sum(m.cost * ranks[k] for k, m in modules.items())


def every_choice(modules, least=1):
    """All ranks that can be chosen."""
    spans = [range(min(least, len(m.energies)), len(m.energies) + 1) for m in modules.values()]
    return (dict(zip(modules, ranks, strict=True)) for ranks in product(*spans))


# -- module by module -----------------------------------------------------------------------------


def test_one_rank_everywhere_within_what_there_is():
    modules = {"a": module(3, 2, 1), "b": module(5)}
    assert choose_ranks(modules, RankRequest(rank=2)) == {"a": 2, "b": 1}
    assert choose_ranks(modules, RankRequest(rank=9, max_rank=2)) == {"a": 2, "b": 1}


def test_energy_is_the_share_of_squares():
    modules = {"a": module(4, 2, 2, 1)}  # 16, 4, 4, 1 of 25
    for share, rank in ((0.5, 1), (0.64, 1), (0.65, 2), (0.8, 2), (0.96, 3), (0.97, 4), (1, 4)):
        assert choose_ranks(modules, RankRequest(energy=share)) == {"a": rank}, share
    assert choose_ranks(modules, RankRequest(energy=0.5, min_rank=3)) == {"a": 3}


def test_what_a_sketch_did_not_resolve_counts_as_energy():
    assert choose_ranks({"a": module(3, 1)}, RankRequest(energy=0.9)) == {"a": 1}
    assert choose_ranks({"a": module(3, 1, rest=2.0)}, RankRequest(energy=0.9)) == {"a": 2}
    assert module(3, 1, rest=2.0).kept(2) == pytest.approx(10 / 12)


@pytest.mark.parametrize(
    ("name", "value", "rank"),
    [
        # of 8, 4, 2, 2: at least sigma_1 / t; share of the norm sqrt(88); share of the sum 16
        ("sv_ratio", 1, 1), ("sv_ratio", 2, 2), ("sv_ratio", 3.9, 2), ("sv_ratio", 4, 4),
        ("sv_fro", 8 / sqrt(88), 1), ("sv_fro", 0.86, 2), ("sv_fro", sqrt(84 / 88), 3),
        ("sv_cumulative", 0.5, 1), ("sv_cumulative", 0.75, 2), ("sv_cumulative", 0.76, 3),
        ("sv_cumulative", 1.0, 4),
    ],
)  # fmt: skip
def test_criteria_of_sd_scripts_as_their_help_defines_them(name, value, rank):
    found = choose_ranks({"a": module(8, 4, 2, 2)}, RankRequest(criterion=(name, value)))
    assert found == {"a": rank}


@given(values=spectra, share=st.floats(0.01, 1))
def test_a_share_of_the_norm_is_a_share_of_the_energy_squared(values, share):
    modules = {"a": module(*values)}
    by_norm = choose_ranks(modules, RankRequest(criterion=("sv_fro", share)))
    assert by_norm == choose_ranks(modules, RankRequest(energy=share**2))


def test_an_update_that_is_zero_keeps_rank_one():
    modules = {"zero": module(0, 0, 0), "other": module(3, 2)}
    requests = [
        RankRequest(energy=0.9), RankRequest(error=0.01), RankRequest(params=1000),
        *(RankRequest(criterion=(name, 1.0)) for name in CRITERIA),
    ]  # fmt: skip
    for request in requests:
        assert choose_ranks(modules, request, 1000)["zero"] == 1, request
    nothing = {"zero": module(0, 0)}
    assert choose_ranks(nothing, RankRequest(error=0.0)) == {"zero": 1}
    assert relative_error(nothing, {"zero": 1}) == 0
    assert error_curve(nothing, RankRequest(rank=1).bounds(nothing)) == []


# -- all modules together -------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(modules=few, budget=st.integers(0, 200), least=st.integers(1, 3))
def test_a_budget_is_kept_and_no_exchange_of_one_rank_is_better(modules, budget, least):
    request = RankRequest(params=1, min_rank=least)
    if budget < least_cost(modules, request.bounds(modules)):
        with pytest.raises(UsageError, match="least ranks cost"):
            choose_ranks(modules, request, budget)
        return
    ranks = choose_ranks(modules, request, budget)
    assert cost(modules, ranks) <= budget
    bounds = request.bounds(modules)
    now = lost(modules, ranks)
    moves = [{taker: 1} for taker in modules]
    moves += [{g: -1, t: 1} for g in modules for t in modules if g != t]
    for move in moves:
        other = {k: r + move.get(k, 0) for k, r in ranks.items()}
        within = all(bounds[k][0] <= r <= bounds[k][1] for k, r in other.items())
        if within and cost(modules, other) <= budget:
            assert lost(modules, other) >= now * (1 - LOSSLESS)


@settings(max_examples=200, deadline=None)
@given(modules=few, budget=st.integers(0, 200))
def test_a_budget_is_spent_within_one_value_of_the_optimum(modules, budget):
    request = RankRequest(params=1)
    if budget < least_cost(modules, request.bounds(modules)):
        return
    found = lost(modules, choose_ranks(modules, request, budget))
    best = min(lost(modules, r) for r in every_choice(modules) if cost(modules, r) <= budget)
    largest = max(m.importance * e for m in modules.values() for e in m.energies)
    assert best <= found * (1 + LOSSLESS)
    assert found <= best + largest


@settings(max_examples=200, deadline=None)
@given(modules=few)
def test_equal_costs_are_spent_optimally_at_every_budget(modules):
    modules = {k: Module(m.energies, 7, importance=m.importance) for k, m in modules.items()}
    choices = list(every_choice(modules))
    for budget in {cost(modules, ranks) for ranks in choices}:
        best = min(lost(modules, r) for r in choices if cost(modules, r) <= budget)
        found = lost(modules, choose_ranks(modules, RankRequest(size=1), budget))
        assert found == pytest.approx(best, rel=1e-12, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(modules=few, error=st.floats(0, 0.99))
def test_an_error_is_met_and_no_rank_could_be_spared(modules, error):
    ranks = choose_ranks(modules, RankRequest(error=error))
    total = sum(m.importance * m.total for m in modules.values())
    allowed = error**2 * total
    assert lost(modules, ranks) <= allowed * (1 + LOSSLESS)
    for key, rank in ranks.items():
        if rank > 1:
            fewer = {**ranks, key: rank - 1}
            assert lost(modules, fewer) >= allowed * (1 - LOSSLESS)


def test_many_cheap_values_are_worth_more_than_a_dear_one():
    modules = {"cheap": Module([10, 3, 3, 3, 3], 1), "dear": Module([10, 4], 4)}
    assert choose_ranks(modules, RankRequest(params=1), 9) == {"cheap": 5, "dear": 1}
    assert choose_ranks(modules, RankRequest(error=(4 / 36) ** 0.5)) == {"cheap": 5, "dear": 1}


def test_what_a_dear_value_makes_superfluous_is_given_back():
    modules = {"small": Module([100, 1], 1), "large": Module([100, 5], 10)}
    ranks = choose_ranks(modules, RankRequest(error=(4.5 / 206) ** 0.5))
    assert ranks == {"small": 1, "large": 2}


def test_an_error_out_of_reach_is_refused_with_what_can_be_reached():
    modules = {"a": module(4, 3)}
    with pytest.raises(UsageError, match=r"leave 0\.6"):
        choose_ranks(modules, RankRequest(error=0.5, max_rank=1))
    assert choose_ranks(modules, RankRequest(error=0.6, max_rank=1)) == {"a": 1}


def test_an_important_module_is_served_first():
    modules = {"a": module(5, 3), "b": module(5, 2)}
    assert choose_ranks(modules, RankRequest(params=1), 30) == {"a": 2, "b": 1}
    modules["b"] = module(5, 2, importance=10.0)
    assert choose_ranks(modules, RankRequest(params=1), 30) == {"a": 1, "b": 2}


def test_what_is_left_is_spent_by_exchange():
    # by density the small one's second value comes first, and then the large one's does not fit
    modules = {"small": Module([1.0, 0.66], 3), "large": Module([1.0, 1.0], 5)}
    assert choose_ranks(modules, RankRequest(params=1), 13) == {"small": 1, "large": 2}


@settings(max_examples=60, deadline=None)
@given(modules=few)
def test_the_curve_is_what_the_budgets_give(modules):
    bounds = RankRequest(params=1).bounds(modules)
    points = error_curve(modules, bounds)
    assert len(points) <= CURVE_POINTS
    assert [p for p, _ in points] == sorted({p for p, _ in points})
    assert [e for _, e in points] == sorted((e for _, e in points), reverse=True)
    for spent, error in points:
        ranks = choose_ranks(modules, RankRequest(params=1), spent)
        assert relative_error(modules, ranks) == pytest.approx(error, rel=1e-6, abs=1e-7)


def test_a_long_curve_is_thinned():
    modules = {i: module(*(1 / (1 + i + k) for k in range(64)), cost=100 + i) for i in range(30)}
    points = error_curve(modules, RankRequest(params=1).bounds(modules))
    assert len(points) == CURVE_POINTS
    assert points[0][0] == sum(m.cost for m in modules.values())
    assert points[-1] == (sum(64 * m.cost for m in modules.values()), 0.0)


# -- requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "found none"),
        ({"rank": 4, "energy": 0.5}, "rank and energy"),
        ({"rank": 0}, "at least 1"),
        ({"energy": 0.0}, "share"),
        ({"energy": 1.01}, "share"),
        ({"energy": float("nan")}, "share"),
        ({"error": 1.0}, "share"),
        ({"error": -0.1}, "share"),
        ({"size": 0}, "at least 1"),
        ({"params": -1}, "at least 1"),
        ({"rank": 4, "min_rank": 5, "max_rank": 2}, "max_rank only 2"),
        ({"criterion": ("sv_max", 0.5)}, "unknown criterion"),
        ({"criterion": ("sv_ratio", 0.5)}, "at least 1"),
        ({"criterion": ("sv_fro", 1.5)}, "share"),
        ({"criterion": ("sv_cumulative", 0.0)}, "share"),
        ({"criterion": ("sv_ratio", float("inf"))}, "at least 1"),
    ],
)
def test_senseless_requests_are_refused(wrong, says):
    with pytest.raises(UsageError, match=says):
        RankRequest(**wrong)


def test_a_request_reads_as_it_was_meant():
    assert str(RankRequest(energy=0.95, min_rank=2)) == "energy 0.95, min_rank 2"
    assert str(RankRequest(criterion=("sv_fro", 0.9))) == "criterion sv_fro=0.9"
