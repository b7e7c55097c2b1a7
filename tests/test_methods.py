"""Each method against its paper's formula, on small matrices worked out here in float64."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptool import methods, plugins
from adaptool.canonical import LowRank, Window
from adaptool.canonical.blending import Blended, Operand, blend_matrices
from adaptool.canonical.noise import seed_of
from adaptool.canonical.subspaces import shared_subspace
from adaptool.canonical.tensors import from_values
from adaptool.errors import CorruptInputError, UsageError
from adaptool.methods import _selection
from adaptool.methods._selection import threshold

F64 = torch.float64


def update(out: int, inputs: int, rank: int, seed: int, strength: float = 0.5) -> LowRank:
    draw = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, inputs, generator=draw), torch.randn(out, rank, generator=draw)
    return LowRank(from_values(a), from_values(b), strength)


def of_matrix(dense: torch.Tensor) -> LowRank:
    """A matrix as an update, exactly: A is the matrix, B the identity."""
    return LowRank(from_values(dense), from_values(torch.eye(dense.shape[0]).to(dense.dtype)), 1.0)


def dense(low: LowRank) -> torch.Tensor:
    a, b = low.factors(F64, torch.device("cpu"))
    return low.scaling * b @ a


def rule(name: str, **given: object):
    return methods.method_named(name).rule(methods.settings_for(name, given))


def merged(name: str, parts, **given: object) -> torch.Tensor:
    return dense(methods.method_named(name).merge(parts, methods.settings_for(name, given)))


def blended(name: str, matrices, weights, **given: object) -> torch.Tensor:
    found = [torch.tensor(m, dtype=F64) for m in matrices]
    keys = [seed_of("test", n) for n in range(len(found))]
    return blend_matrices(rule(name, **given), found, weights, keys)


# -- TIES and magnitude: by hand ------------------------------------------------------------------

ONE = [[4.0, -3.0, 1.0], [0.5, 2.0, -1.0]]
TWO = [[-1.0, -5.0, 2.0], [3.0, 0.1, -0.2]]


def test_magnitude_keeps_the_largest_half_of_each() -> None:
    found = blended("magnitude", [ONE, TWO], [1.0, -2.0], density=0.5)
    # of ONE stay 4, -3, 2; of TWO stay -5, 3, 2
    wanted = [[4.0, -3.0 + 10.0, -4.0], [-6.0, 2.0, 0.0]]
    assert found.tolist() == wanted


def test_ties_trims_elects_and_averages() -> None:
    found = blended("ties", [ONE, TWO], [1.0, 1.0], density=1.0)
    # column sums: 3 -8 3 / 3.5 2.1 -1.2; those of the elected sign are averaged
    wanted = [[4.0, (-3.0 - 5.0) / 2, (1.0 + 2.0) / 2],
              [(0.5 + 3.0) / 2, (2.0 + 0.1) / 2, (-1.0 - 0.2) / 2]]  # fmt: skip
    assert torch.allclose(found, torch.tensor(wanted, dtype=F64), atol=1e-15)
    trimmed = blended("ties", [ONE, TWO], [1.0, 1.0], density=0.5)
    assert trimmed.tolist() == [[4.0, -4.0, 2.0], [3.0, 2.0, 0.0]]


def test_a_negative_weight_votes_for_the_other_side() -> None:
    found = blended("ties", [ONE, TWO], [1.0, -1.0], density=1.0)
    # ONE - TWO: 5 2 -1 / -2.5 1.9 -0.8
    wanted = [[2.5, 5.0, -2.0], [-3.0, 2.0, -1.0]]
    assert torch.allclose(found, torch.tensor(wanted, dtype=F64), atol=1e-15)
    plain = blended("ties", [ONE, TWO], [1.0, -1.0], density=1.0, elect="plain")
    # signs are elected as if the weights were 1, then weighted values are averaged
    wanted = [[4.0, (-3.0 + 5.0) / 2, (1.0 - 2.0) / 2],
              [(0.5 - 3.0) / 2, (2.0 - 0.1) / 2, (-1.0 + 0.2) / 2]]  # fmt: skip
    assert torch.allclose(plain, torch.tensor(wanted, dtype=F64), atol=1e-15)


def test_votes_by_number_and_division_by_weights() -> None:
    matrices = [[[5.0]], [[-1.0]], [[-2.0]]]
    assert blended("ties", matrices, [1, 1, 1], density=1).item() == 5.0
    assert blended("ties", matrices, [1, 1, 1], density=1, majority="frequency").item() == -1.5
    found = blended("ties", [[[4.0]], [[1.0]]], [0.75, 0.25], density=1, divide="weights")
    assert found.item() == 0.75 * 4 + 0.25 * 1


def test_ties_of_an_adapter_with_itself_is_itself() -> None:
    found = blended("ties", [ONE, ONE], [1.0, 1.0], density=1.0)
    assert found.tolist() == ONE


# -- the threshold --------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(rows=st.integers(1, 30), cols=st.integers(1, 30), density=st.floats(0, 1),
       step=st.integers(1, 9), sample=st.sampled_from([1, 8, 1 << 16]),
       levels=st.sampled_from([2, 1000]), seed=st.integers(0, 99))  # fmt: skip
def test_the_threshold_is_exact(rows, cols, density, step, sample, levels, seed) -> None:
    matrix = torch.from_numpy(np.random.default_rng(seed).integers(-levels, levels, (rows, cols)))
    matrix = matrix.float()
    operand = Operand(lambda: iter(matrix.split(step)), (rows, cols), 1.0, 0)
    before, _selection.SAMPLE = _selection.SAMPLE, sample
    try:
        limit = threshold(operand, density)
    finally:
        _selection.SAMPLE = before
    keep = int(density * rows * cols)
    sizes = matrix.abs().flatten().sort(descending=True).values
    if keep == 0:
        assert limit == inf
    elif keep == rows * cols:
        assert limit == 0.0
    else:  # what is as large as the k-th is kept too
        assert limit == pytest.approx(float(sizes[keep - 1]), rel=1e-6)
        assert int((sizes >= limit).sum()) == int((sizes >= sizes[keep - 1]).sum())


def test_values_that_are_not_finite_have_no_threshold() -> None:
    matrix = torch.full((8, 8), float("nan"))
    with pytest.raises(CorruptInputError, match="not finite"):
        threshold(Operand(lambda: iter((matrix,)), (8, 8), 1.0, 0), 0.5)


# -- random methods -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dare", "della"])
def test_dropping_keeps_the_expectation(name: str) -> None:
    matrix = torch.linspace(-3, 3, 400, dtype=F64).reshape(1, 400).expand(500, 400)
    found = blended(name, [matrix.tolist()], [1.0], sign="none", density=0.4)
    kept = (found != 0).double().mean()
    assert float(kept) == pytest.approx(0.4, abs=0.01)
    # 500 draws: the standard error is at most 3 * sqrt(0.7 / 0.3 / 500) = 0.2
    assert float((found.mean(dim=0) - matrix[0]).abs().max()) < 1.0
    assert float((found.mean(dim=0) - matrix[0]).abs().mean()) < 0.15


def test_dare_rescales_by_the_density() -> None:
    found = blended("dare", [ONE, TWO], [2.0, 0.0], density=0.5)
    doubled = torch.tensor(ONE, dtype=F64) * 2 / 0.5
    assert bool(((found == doubled) | (found == 0)).all())


def test_della_keeps_large_values_more_often() -> None:
    matrix = torch.linspace(0.01, 1, 200, dtype=F64).expand(4000, 200)
    found = blended("della", [matrix.tolist()], [1.0], sign="none", density=0.5, epsilon=0.6)
    share = (found != 0).double().mean(dim=0)
    wanted = 0.5 + 0.6 * torch.linspace(-0.5, 0.5, 200, dtype=F64)
    assert float((share - wanted).abs().max()) < 0.05
    survivor = found[:, -1][found[:, -1] != 0][0]
    assert float(survivor) == pytest.approx(1 / 0.8)


def test_della_refuses_probabilities_beyond_one() -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        rule("della", density=0.9, epsilon=0.4)


@pytest.mark.parametrize("name", ["ties", "dare", "della", "magnitude", "linear"])
def test_windows_of_any_shape_give_one_result(name: str) -> None:
    parts = (update(40, 50, 3, 1), update(40, 50, 5, 2, 0.7))
    given = {} if name == "linear" else {"density": 0.5}
    blend = Blended(parts, (1.0, -0.5), rule(name, **given), (11, 12))
    apply = blend.applier(F64, torch.device("cpu"))
    whole = apply(torch.zeros(40, 50, dtype=F64), Window(slice(0, 40), slice(0, 50), (40, 50)), 1.0)
    again = torch.zeros(40, 50, dtype=F64)
    for row in range(0, 40, 7):
        for col in range(0, 50, 9):
            rows, cols = slice(row, min(row + 7, 40)), slice(col, min(col + 9, 50))
            window = Window(rows, cols, (40, 50))
            again[rows, cols] = apply(torch.zeros_like(again[rows, cols]), window, 1.0)
    assert torch.allclose(whole, again, atol=1e-12)
    assert float(whole.norm()) > 0
    streamed = torch.cat(list(blend.blocks()))
    assert torch.allclose(streamed.double(), whole, atol=1e-5)


def test_a_blend_scales_and_adds_to_the_weight() -> None:
    parts = (update(6, 5, 2, 1), update(6, 5, 2, 2))
    apply = Blended(parts, (1.0, 1.0), rule("ties", density=0.5), (1, 2)).applier(
        F64, torch.device("cpu")
    )
    window = Window(slice(0, 6), slice(0, 5), (6, 5))
    base = torch.randn(6, 5, dtype=F64)
    change = apply(torch.zeros(6, 5, dtype=F64), window, 1.0)
    assert torch.allclose(apply(base.clone(), window, -0.5), base - 0.5 * change)


def test_another_seed_drops_other_values() -> None:
    parts = (update(40, 50, 3, 1),)
    first, second = (
        torch.cat(list(Blended(parts, (1.0,), rule("dare"), (key,)).blocks())) for key in (1, 2)
    )
    assert 0.3 < float(((first != 0) == (second != 0)).double().mean()) < 0.7


# -- spectral methods -----------------------------------------------------------------------------

D1 = torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
D2 = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def full_svd(matrix: torch.Tensor):
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    keep = s > 1e-9 * s[0]
    return u[:, keep], s[keep], vt[keep]


def test_knots_by_its_definition() -> None:
    one, two = update(7, 5, 2, 1), update(7, 5, 3, 2, 2.0)
    u, s, vt = full_svd(torch.cat([dense(one), dense(two)], dim=1))
    v1, v2 = vt[:, :5], vt[:, 5:]
    aligned = rule("ties", density=0.6)
    wanted = u @ torch.diag(s) @ blend_matrices(aligned, [v1, v2], [1.0, 0.5], [0, 1])
    found = merged("knots", [(one, 1.0), (two, 0.5)], density=0.6)
    assert torch.allclose(found, wanted, atol=1e-5 * float(wanted.norm()))
    plain = merged("knots", [(one, 1.0), (two, 0.5)], merge="linear")
    assert torch.allclose(plain, dense(one) + 0.5 * dense(two), atol=1e-5)


def test_tsv_by_its_definition() -> None:
    """Orthogonal Procrustes on the concatenated singular vectors, on the dense matrices."""
    one, two = update(9, 8, 2, 1), update(9, 8, 3, 2, 2.0)
    parts = [full_svd(dense(low)) for low in (one, two)]
    u, v = (torch.cat([p[0] for p in parts], 1), torch.cat([p[2].T for p in parts], 1))
    s = torch.cat([0.7 * parts[0][1], 0.4 * parts[1][1]])
    (p, _, q), (r, _, t) = (torch.linalg.svd(m, full_matrices=False) for m in (u, v))
    wanted = (p @ q) @ torch.diag(s) @ (r @ t).T
    found = merged("tsv", [(one, 0.7), (two, 0.4)])
    assert torch.allclose(found, wanted, atol=1e-5 * float(wanted.norm()))
    assert torch.allclose(
        torch.linalg.svdvals(found)[:5], s.sort(descending=True).values, rtol=1e-5
    )


def test_tsv_of_orthogonal_updates_is_their_sum() -> None:
    one, two = torch.zeros(4, 4), torch.zeros(4, 4)
    one[0, 1], two[2, 3] = 3.0, 2.0
    found = merged("tsv", [(of_matrix(one), 1.0), (of_matrix(two), -1.0)])
    assert torch.allclose(found, (one - two).double(), atol=1e-6)


def test_tsv_keeps_a_share_of_the_values() -> None:
    found = merged("tsv", [(of_matrix(torch.diag(torch.tensor([5.0, 4.0, 2.0, 1.0]))), 1.0)],
                   keep=0.5)  # fmt: skip
    assert torch.allclose(found, torch.diag(torch.tensor([5.0, 4.0, 0.0, 0.0], dtype=F64)),
                          atol=1e-6)  # fmt: skip


def test_iso_c_makes_all_values_equal() -> None:
    total = D1 + 0.5 * D2
    u, s, vt = full_svd(total)
    wanted = float(s.mean()) * u @ vt
    found = merged("iso", [(of_matrix(D1), 1.0), (of_matrix(D2), 0.5)])
    assert torch.allclose(found, wanted, atol=1e-6)


def test_iso_cts_by_its_algorithm() -> None:
    """Algorithm 1 on the dense matrices, whose rank is that of the space they span."""
    one, two = update(9, 9, 3, 1), update(9, 9, 3, 2)
    rank, kept = 6, 4  # round(0.6 * 6)
    u, s, vt = full_svd(dense(one) + dense(two))
    us, ss, vs = [u[:, :kept]], [s[:kept]], [vt[:kept].T]
    for low in (one, two):
        rest = dense(low) - u[:, :kept] @ u[:, :kept].T @ dense(low)
        ut, st_, vtt = torch.linalg.svd(rest, full_matrices=False)
        count = (rank - kept) // 2
        us.append(ut[:, :count]), ss.append(st_[:count]), vs.append(vtt[:count].T)
    (p, _, q), (r, _, t) = (
        torch.linalg.svd(torch.cat(m, 1), full_matrices=False) for m in (us, vs)
    )
    wanted = torch.cat(ss).mean() * (p @ q) @ (r @ t).T
    found = merged("iso", [(one, 1.0), (two, 1.0)], common=0.6)
    assert torch.allclose(found, wanted, atol=1e-5 * float(wanted.norm()))


def test_slerp_keeps_the_norm_of_orthogonal_updates() -> None:
    one, two = torch.zeros(3, 3), torch.zeros(3, 3)
    one[0, 0], two[1, 2] = 2.0, 2.0
    found = merged("slerp", [(of_matrix(one), 1.0), (of_matrix(two), 1.0)])
    assert float(found.norm()) == pytest.approx(2.0)
    # cos 60 degrees: the arc of Shoemake's formula, at one third
    left, right = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.75**0.5]])
    found = merged("slerp", [(of_matrix(left), 2.0), (of_matrix(right), 1.0)])
    turn = torch.tensor(20.0).deg2rad()
    assert torch.allclose(found, torch.stack([turn.cos(), turn.sin()])[None].double(), atol=1e-6)


def test_slerp_of_one_direction_is_linear() -> None:
    found = merged("slerp", [(of_matrix(D1), 1.0), (of_matrix(3 * D1), 1.0)])
    assert torch.allclose(found, 2 * D1.double())
    for weights in ([1.0, -1.0], [0.0, 0.0]):
        with pytest.raises(UsageError, match="slerp takes two"):
            merged("slerp", [(of_matrix(D1), weights[0]), (of_matrix(D2), weights[1])])
    with pytest.raises(UsageError, match="slerp takes two"):
        merged("slerp", [(of_matrix(D1), 1.0)] * 3)


def test_the_shared_subspace_loses_nothing() -> None:
    lows = [update(30, 20, 3, 1), update(30, 20, 5, 2, 2.0), update(30, 20, 3, 1, 0.1)]
    space = shared_subspace(lows)
    assert space.cores[0].shape == (8, 8)  # the third spans what the first does
    eye = torch.eye(8, dtype=F64)
    assert torch.allclose(space.left.T @ space.left, eye, atol=1e-12)
    assert torch.allclose(space.right @ space.right.T, eye, atol=1e-12)
    for low, core in zip(lows, space.cores, strict=True):
        assert torch.allclose(space.left @ core @ space.right, dense(low), atol=1e-5)


def test_factors_of_very_different_sizes_lose_nothing() -> None:
    one, two = update(30, 20, 3, 1), update(30, 20, 4, 2)
    a, b = two.a.values() * 1e9, two.b.values() * 1e-9
    lopsided = LowRank(from_values(a), from_values(b), two.scaling)
    space = shared_subspace([one, lopsided])
    for low, core in zip((one, two), space.cores, strict=True):
        assert torch.allclose(space.left @ core @ space.right, dense(low), atol=1e-5)
    found = merged("tsv", [(one, 1.0), (lopsided, 1.0)])
    assert torch.allclose(found, merged("tsv", [(one, 1.0), (two, 1.0)]), atol=1e-4)


@pytest.mark.parametrize("name", ["knots", "tsv", "iso", "slerp", "linear"])
def test_untrained_updates_combine(name: str) -> None:
    nothing = LowRank(from_values(torch.randn(2, 5)), from_values(torch.zeros(4, 2)), 1.0)
    assert float(merged(name, [(nothing, 1.0), (nothing, 1.0)]).norm()) == 0.0


# -- the folder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", plugins.names(methods))
def test_every_method_says_what_it_is(name: str) -> None:
    module = methods.method_named(name)
    assert module.SUMMARY
    assert "arXiv" in module.__doc__ or "Shoemake" in module.__doc__
    assert isinstance(module, methods.Exact | methods.Elementwise)
    for parameter in module.PARAMETERS:
        assert parameter.parse(str(parameter.default)) == parameter.default
        assert parameter.text
    facts = methods.facts()[name]
    assert set(facts["parameters"]) == {p.name for p in module.PARAMETERS}


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("tie", {}, "unknown method 'tie'; known: dare, della"),
        ("ties", {"densty": 0.1}, "ties has no parameter 'densty'"),
        ("ties", {"density": 1.5}, "density=1.5 is not 0 to 1"),
        ("ties", {"density": "nan"}, "density=nan is not 0 to 1"),
        ("ties", {"majority": "loud"}, "majority=loud is not total|frequency"),
        ("linear", {"density": 1}, "linear has no parameter"),
    ],
)
def test_wrong_settings_are_refused_with_the_list(name, given, says) -> None:
    with pytest.raises(UsageError) as caught:
        methods.settings_for(name, given)
    assert says in str(caught.value)
    if name == "ties":
        assert "density=0 to 1; majority=total|frequency" in caught.value.hint
