"""Randomised singular values against full decompositions in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adaptool.canonical.algebra import from_spectrum
from adaptool.canonical.sketching import TOLERANCE, Blocks, approximate

SPECTRA: dict[str, Callable[[int], float]] = {
    "flat": lambda i: 1.0,
    "flat to the edge": lambda i: 1.0 if i < 34 else 0.97,
    "slow": lambda i: (i + 1) ** -0.5,
    "linear": lambda i: max(1 - i / 400, 0.0),
    "logarithmic": lambda i: max(1 - 0.15 * math.log(i + 1), 0.0),
    "harmonic": lambda i: 1 / (i + 1),
    "steep": lambda i: 0.5**i,
    "steeper": lambda i: 0.1**i,
    "low rank": lambda i: float(i < 20),
    "low rank in noise": lambda i: 1.0 if i < 20 else 0.05,
    "one large, then slow": lambda i: 1e3 if i == 0 else max(1 - i / 400, 0.0),
    "zero": lambda i: 0.0,
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def matrix(shape: tuple[int, int], values: Callable[[int], float], seed: int = 0) -> torch.Tensor:
    """A float64 matrix with these singular values and random vectors."""
    draw = torch.Generator().manual_seed(seed)
    least = min(shape)
    u, v = (torch.linalg.qr(torch.randn(side, least, generator=draw, dtype=torch.float64)).Q
            for side in shape)  # fmt: skip
    return (u * torch.tensor([values(i) for i in range(least)], dtype=torch.float64)) @ v.T


def blocks(whole: torch.Tensor, rows: int = 37) -> Blocks:
    """Its rows through one buffer that is used again."""

    def stream() -> Iterator[torch.Tensor]:
        buffer = torch.empty(rows, whole.shape[1], dtype=whole.dtype)
        for start in range(0, len(whole), rows):
            part = whole[start : start + rows]
            yield buffer[: len(part)].copy_(part)

    return stream


def check(whole: torch.Tensor, rank: int, tolerance: float = TOLERANCE, **options) -> None:
    """Energy kept and lost against the optimum, and all that is claimed against the matrix."""
    found = approximate(blocks(whole), tuple(whole.shape), rank, **options)
    u, s, vt = found.spectrum.u, found.spectrum.s, found.spectrum.vt
    wanted = torch.linalg.svdvals(whole.double())
    kept, lost = (float(part.square().sum()) for part in (wanted[:rank], wanted[rank:]))
    norm = kept + lost
    noise = 1e-6 * norm  # what float32 does not resolve
    assert len(s) == min(rank, *whole.shape)
    assert list(s) == sorted(s, reverse=True)
    assert abs(float(s.square().sum()) - kept) <= tolerance * kept + noise
    assert abs(found.rest**2 - lost) <= tolerance * lost + noise
    assert found.norm == pytest.approx(math.sqrt(norm), rel=1e-6)
    distance = float((whole.double() - (u * s) @ vt).norm())
    assert found.rest == pytest.approx(distance, rel=1e-4, abs=3e-6 * math.sqrt(norm))
    eye = torch.eye(len(s), dtype=torch.float64)
    for product in (u.T @ u, vt @ vt.T):
        assert float((product - eye).abs().max()) < 1e-5
    few = max(1, rank // 2)
    cut = float((whole.double() - (u[:, :few] * s[:few]) @ vt[:few]).norm())
    assert found.error(few) == pytest.approx(cut, rel=1e-4, abs=3e-6 * math.sqrt(norm))


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("rank", [1, 8, 32])
@pytest.mark.parametrize("shape", [(300, 400), (420, 290)], ids=["wide", "tall"])
def test_energy_is_the_best_possible(shape, rank, name):
    check(matrix(shape, SPECTRA[name]).float(), rank)


def test_noise_has_no_steps_to_hold_on_to():
    draw = torch.Generator().manual_seed(1)
    check(torch.randn(500, 450, generator=draw), 16)


def test_an_exact_rank_is_found_exactly():
    whole = matrix((300, 400), SPECTRA["low rank"]).float()
    found = approximate(blocks(whole), (300, 400), 24)
    assert found.rest < 1e-5 * found.norm
    assert float(found.spectrum.s[20:].max()) < 1e-5 * float(found.spectrum.s[0])


@settings(max_examples=40, deadline=None)
@given(out=st.integers(1, 12), inputs=st.integers(1, 12), rank=st.integers(1, 20),
       rows=st.integers(1, 13), seed=st.integers(0, 9))  # fmt: skip
@example(out=1, inputs=1, rank=1, rows=1, seed=0)
def test_small_matrices_are_decomposed(out, inputs, rank, rows, seed):
    draw = torch.Generator().manual_seed(seed)
    whole = torch.randn(out, inputs, generator=draw, dtype=torch.float64)
    found = approximate(blocks(whole, rows), (out, inputs), rank)
    wanted = torch.linalg.svdvals(whole)
    least = min(rank, out, inputs)
    assert torch.allclose(found.spectrum.s, wanted[:least], rtol=1e-12, atol=1e-12)
    assert found.rest == pytest.approx(float(wanted[least:].norm()), abs=1e-12)


@pytest.mark.parametrize("rank", [8, 500])
def test_exact_is_exact(rank):
    check(matrix((290, 300), SPECTRA["linear"]), rank, tolerance=1e-9, exact=True)


@pytest.mark.parametrize("factor", [1e-25, 1e-12, 1e12])
@pytest.mark.parametrize("name", ["slow", "low rank in noise"])
def test_scale_does_not_matter(name, factor):
    whole = matrix((300, 400), SPECTRA[name])
    one = approximate(blocks(whole.float()), (300, 400), 8)
    two = approximate(blocks((whole * factor).float()), (300, 400), 8)
    assert torch.allclose(two.spectrum.s / factor, one.spectrum.s, rtol=1e-4)
    assert two.norm == pytest.approx(one.norm * factor, rel=1e-5)
    assert two.rest == pytest.approx(one.rest * factor, rel=1e-3)


def test_rows_of_zeros_come_first():
    whole = matrix((300, 400), SPECTRA["slow"]).float()
    whole[:100] = 0
    check(whole, 8)


def test_float64_keeps_what_float32_rounds_away():
    values = [1.0, 1e-4, 1e-6]
    whole = matrix((300, 400), lambda i: values[i] if i < 3 else 0.0)
    found = approximate(blocks(whole), (300, 400), 3)
    assert found.spectrum.s.tolist() == pytest.approx(values, rel=1e-6)


def test_a_seed_decides_all():
    whole = matrix((300, 400), SPECTRA["slow"]).float()
    one, two, other = (approximate(blocks(whole), (300, 400), 8, seed=s) for s in (3, 3, 4))
    assert torch.equal(one.spectrum.u, two.spectrum.u)
    assert torch.equal(one.spectrum.s, two.spectrum.s)
    assert not torch.equal(one.spectrum.u, other.spectrum.u)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("shape", [(300, 400), (5, 4)])
def test_what_is_not_finite_is_refused(shape, bad):
    whole = torch.randn(shape)
    whole[-1, -1] = bad
    with pytest.raises(FloatingPointError, match="not finite"):
        approximate(blocks(whole), shape, 2)


@pytest.mark.parametrize(("shape", "rank"), [((4, 5), 0), ((0, 5), 1), ((5, 0), 1)])
def test_nothing_is_not_approximated(shape, rank):
    with pytest.raises(ValueError, match="singular values"):
        approximate(blocks(torch.zeros(shape)), shape, rank)


def test_a_spectrum_becomes_balanced_factors():
    whole = matrix((30, 24), SPECTRA["harmonic"])
    spectrum = approximate(blocks(whole), (30, 24), 24).spectrum
    low = from_spectrum(spectrum, 5)
    assert (low.a.shape, low.b.shape, low.scaling) == ((5, 24), (30, 5), 1.0)
    a, b = low.a.values(), low.b.values()
    assert torch.allclose(a.norm(dim=1), b.norm(dim=0), rtol=1e-5)
    wanted = (spectrum.u[:, :5] * spectrum.s[:5]) @ spectrum.vt[:5]
    assert torch.allclose((b @ a).double(), wanted, atol=1e-6)


def test_a_spectrum_takes_a_kernel_or_an_embedding():
    spectrum = approximate(blocks(matrix((30, 24), SPECTRA["harmonic"])), (30, 24), 4).spectrum
    convolution = from_spectrum(spectrum, 4, kernel=(3, 2))
    assert convolution.shape == (30, 4, 3, 2)
    assert from_spectrum(spectrum, 4, embedding=True).embedding
    assert from_spectrum(spectrum, 9).rank == 4
    with pytest.raises(ValueError, match="at least 1"):
        from_spectrum(spectrum, 0)
