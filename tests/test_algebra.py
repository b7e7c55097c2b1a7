"""The algebra of low-rank updates against dense float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptool.canonical import LowRank
from adaptool.canonical.algebra import add, decompose, singular_values, truncate, truncation_error
from adaptool.canonical.tensors import from_values


def update(out: int, inputs: int, rank: int, seed: int, strength: float = 0.5) -> LowRank:
    draw = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, inputs, generator=draw), torch.randn(out, rank, generator=draw)
    return LowRank(from_values(a), from_values(b), strength)


def dense(low: LowRank) -> torch.Tensor:
    a = low.a.values().double().reshape(low.rank, -1)
    return low.scaling * low.b.values().double() @ a


cases = given(out=st.integers(1, 20), inputs=st.integers(1, 20), one=st.integers(1, 6),
              two=st.integers(1, 6), seed=st.integers(0, 99))  # fmt: skip


@settings(max_examples=60, deadline=None)
@cases
def test_the_sum_is_exact(out, inputs, one, two, seed) -> None:
    first, second = update(out, inputs, one, seed), update(out, inputs, two, seed + 1, 3.0)
    total = add([(first, 0.7), (second, -1.5)])
    wanted = 0.7 * dense(first) - 1.5 * dense(second)
    assert total.rank == one + two
    assert float((dense(total) - wanted).abs().max()) <= 1e-6 * float(wanted.abs().max() + 1e-3)


@settings(max_examples=60, deadline=None)
@cases
def test_truncation_is_the_optimum(out, inputs, one, two, seed) -> None:
    low = update(out, inputs, one + two, seed)
    whole = dense(low)
    values = torch.linalg.svdvals(whole)
    found = singular_values(low)
    padded = torch.zeros(max(len(values), len(found)), dtype=torch.float64)
    padded[: len(values)] = values
    assert torch.allclose(found, padded[: len(found)], atol=1e-9 * float(values[0]) + 1e-12)
    for rank in (1, one, one + two):
        error = float((dense(truncate(low, rank)) - whole).norm())
        optimum = float(padded[rank:].norm())
        assert error <= optimum + 1e-5 * float(values[0])
        assert truncation_error(found, rank) == pytest.approx(optimum, abs=1e-9 * float(values[0]))


def test_nearly_cancelling_updates_keep_their_precision() -> None:
    one = update(64, 48, 8, 1)
    nudge = update(64, 48, 2, 2, 1e-5)
    other = add([(one, 1.0), (nudge, 1.0)])
    rest = add([(other, 1.0), (one, -1.0)])
    wanted = dense(other) - dense(one)
    kept = truncate(rest, 2)
    assert float((dense(kept) - wanted).norm()) <= 1e-3 * float(wanted.norm())


def test_decomposition_is_orthonormal_and_balanced() -> None:
    low = update(30, 20, 5, 3)
    spectrum = decompose(low)
    eye = torch.eye(5, dtype=torch.float64)
    assert torch.allclose(spectrum.u.T @ spectrum.u, eye, atol=1e-12)
    assert torch.allclose(spectrum.vt @ spectrum.vt.T, eye, atol=1e-12)
    cut = truncate(low, 3)
    a, b = cut.a.values(), cut.b.values()
    assert torch.allclose(a.norm(dim=1), b.norm(dim=0), rtol=1e-5)


def test_convolution_factors_keep_their_kernel() -> None:
    a, b = torch.randn(4, 3, 3, 3), torch.randn(8, 4)
    low = LowRank(from_values(a), from_values(b), 2.0)
    cut = truncate(low, 4)
    assert cut.shape == (8, 3, 3, 3)
    assert torch.allclose(dense(cut), dense(low), atol=1e-5)


def test_updates_of_different_weights_do_not_add() -> None:
    with pytest.raises(ValueError, match="one shape"):
        add([(update(4, 4, 1, 0), 1.0), (update(4, 5, 1, 0), 1.0)])
    with pytest.raises(ValueError, match="at least 1"):
        truncate(update(4, 4, 1, 0), 0)
