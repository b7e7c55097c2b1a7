"""What blocks are written: ggml's bytes or better ones."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from adaptool.encodings.ggml import ENCODABLE, TYPES, blocks, can_encode, encoding
from adaptool.encodings.ggml.affine import AffineProblem
from adaptool.errors import IncompatibleError

from . import ggml_library
from .distributions import DISTRIBUTIONS, ROWS, WIDTH, importance, rms_error

SAME_BYTES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "TQ1_0", "TQ2_0")
SEARCHED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
WITH_IMPORTANCE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", *SEARCHED)
TOLERANCE = 1.001


def test_these_are_all_types_that_can_be_written():
    assert frozenset(SAME_BYTES + SEARCHED) == ENCODABLE
    assert all(can_encode(name) for name in ENCODABLE)
    assert not can_encode("IQ2_XS")
    assert not can_encode("F16")


# -- beside ggml ----------------------------------------------------------------------------------


def by_ggml(name: str, values: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    weighted = None if weights is None else weights.numpy()
    return torch.from_numpy(ggml_library.quantize(encoding(name).type.id, values.numpy(), weighted))


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("name", SAME_BYTES)
def test_bytes_are_those_of_ggml(name, kind):
    values = DISTRIBUTIONS[kind]()
    assert torch.equal(encoding(name).encode(values), by_ggml(name, values))


@pytest.mark.parametrize("name", SAME_BYTES)
def test_ties_are_broken_as_in_ggml(name):
    """Values on a grid of few steps lie half way between levels, and extremes come in pairs."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-8, 9, (64, 256), generator=generator) / 8.0
    values[1::2] /= 127 * 2
    assert torch.equal(encoding(name).encode(values), by_ggml(name, values))


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("name", SEARCHED)
def test_the_error_is_no_larger_than_that_of_ggml(name, kind):
    values, scheme = DISTRIBUTIONS[kind](), encoding(name)
    ours = rms_error(scheme.decode(scheme.encode(values)), values)
    theirs = rms_error(scheme.decode(by_ggml(name, values)), values)
    assert ours <= theirs * TOLERANCE


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("name", WITH_IMPORTANCE)
def test_the_weighted_error_is_no_larger_than_that_of_ggml(name, kind):
    values, scheme, weights = DISTRIBUTIONS[kind](), encoding(name), importance()
    ours = rms_error(scheme.decode(scheme.encode(values, weights)), values, weights)
    theirs = rms_error(scheme.decode(by_ggml(name, values, weights)), values, weights)
    assert ours <= theirs * TOLERANCE


@pytest.mark.parametrize("name", WITH_IMPORTANCE)
def test_importance_lowers_the_error_that_it_weighs(name):
    values, scheme, weights = DISTRIBUTIONS["normal"](), encoding(name), importance()
    guided = rms_error(scheme.decode(scheme.encode(values, weights)), values, weights)
    plain = rms_error(scheme.decode(scheme.encode(values)), values, weights)
    assert guided < plain * 0.99


@pytest.mark.parametrize("name", ["Q8_0", "MXFP4", "TQ1_0", "TQ2_0"])
def test_types_without_a_search_ignore_importance(name):
    values, scheme = DISTRIBUTIONS["normal"](), encoding(name)
    assert torch.equal(scheme.encode(values, importance()), scheme.encode(values))


@pytest.mark.parametrize("name", WITH_IMPORTANCE)
def test_columns_of_no_importance_are_encoded_all_the_same(name):
    values, scheme = DISTRIBUTIONS["normal"](), encoding(name)
    bound = 1.5 * rms_error(scheme.decode(scheme.encode(values)), values)
    for weights in (torch.zeros(WIDTH), torch.cat((torch.zeros(512), torch.ones(512)))):
        assert rms_error(scheme.decode(scheme.encode(values, weights)), values) < bound


# -- by itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ENCODABLE))
def test_what_can_be_represented_comes_back(name):
    """Decoded values, encoded again, hardly move: the search finds the steps that they lie on."""
    scheme = encoding(name)
    once = scheme.decode(scheme.encode(DISTRIBUTIONS["normal"]())).view(ROWS, WIDTH)
    twice = scheme.decode(scheme.encode(once)).view(ROWS, WIDTH)
    first = rms_error(once, DISTRIBUTIONS["normal"]())
    assert rms_error(twice, once) < 0.25 * first


@pytest.mark.parametrize("name", sorted(ENCODABLE))
def test_rows_do_not_depend_on_their_neighbours(name, monkeypatch):
    monkeypatch.setattr(blocks, "CHUNK", 64 * 1024)
    scheme, weights = encoding(name), importance()
    values = torch.cat([make() for make in DISTRIBUTIONS.values()])
    assert values.numel() > 2 * blocks.CHUNK
    alone = torch.cat([scheme.encode(row[None], weights) for row in values[::7]])
    together = scheme.encode(values, weights).view(len(values), -1)[::7].reshape(-1)
    assert torch.equal(alone, together)


@pytest.mark.parametrize("name", sorted(ENCODABLE))
def test_threads_do_not_share_buffers(name):
    scheme = encoding(name)
    jobs = [make() for make in DISTRIBUTIONS.values()] * 2
    with ThreadPoolExecutor(4) as pool:
        packed = list(pool.map(scheme.encode, jobs))
    assert all(torch.equal(a, scheme.encode(b)) for a, b in zip(packed, jobs, strict=True))


@pytest.mark.parametrize("name", sorted(ENCODABLE))
def test_the_values_given_are_left_alone(name):
    values, weights = DISTRIBUTIONS["normal"](), importance()
    noise = torch.rand(values.shape)
    before = [tensor.clone() for tensor in (values, weights, noise)]
    encoding(name).encode(values, weights, noise)
    assert all(map(torch.equal, before, (values, weights, noise)))


@pytest.mark.parametrize("name", sorted(ENCODABLE))
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_ends_in_an_answer(name, bad):
    values = DISTRIBUTIONS["normal"]()
    values[0, 3], values[1, 300:] = bad, bad
    try:
        packed = encoding(name).encode(values)
    except IncompatibleError:
        return
    assert packed.shape == (values.numel() // encoding(name).block * encoding(name).size,)


@pytest.mark.parametrize("name", sorted(ENCODABLE - {"MXFP4"}))
def test_scales_beyond_half_precision_are_refused(name):
    values = DISTRIBUTIONS["normal"]()
    values[2, 40:60] = 1e12
    with pytest.raises(IncompatibleError, match="half precision"):
        encoding(name).encode(values)


def test_mxfp4_holds_what_halves_cannot():
    values = torch.full((1, 32), 6.0 * 2.0**100)
    assert torch.equal(encoding("MXFP4").decode(encoding("MXFP4").encode(values)), values[0])


def test_no_rows_give_no_bytes():
    assert encoding("Q4_K").encode(torch.empty(0, 256)).shape == (0,)


def test_rows_that_do_not_divide_into_blocks_are_refused():
    with pytest.raises(IncompatibleError, match="rows of 96 values do not divide"):
        encoding("Q4_K").encode(torch.zeros(2, 96))


def test_types_that_are_only_read_are_not_written():
    with pytest.raises(IncompatibleError, match="IQ2_XS can be read but not written"):
        encoding("IQ2_XS").encode(torch.zeros(1, 256))


@pytest.mark.parametrize("name", ["F16", "Q8_K", "Q9_X", 4, 99])
def test_what_is_no_encoding_is_refused(name):
    with pytest.raises(IncompatibleError, match="ggml type"):
        encoding(name)


def test_names_and_numbers_are_the_same_encoding():
    assert encoding("Q4_K") == encoding(12)
    assert hash(encoding("Q4_K")) == hash(encoding(12))
    assert {encoding(n).name for n, one in TYPES.items() if one.home} >= ENCODABLE


# -- stochastic rounding --------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ENCODABLE))
def test_noise_is_right_on_average(name):
    """Inside the range of the levels the mean of many draws is the value."""
    scheme, draws = encoding(name), 600
    generator = torch.Generator().manual_seed(17)
    values = 0.05 * torch.rand(1, 256, generator=generator) - 0.01
    values[0, ::16], values[0, 1::16] = -0.06, 0.06  # the range lies beyond what is looked at
    noise = torch.rand(draws, 256, generator=generator)
    decoded = scheme.decode(scheme.encode(values.expand(draws, -1), noise=noise)).view(draws, -1)
    spread = decoded.std(0).max()
    inner = torch.arange(256) % 16 > 1
    bias = (decoded.double().mean(0) - values[0].double()).abs()[inner].max()
    assert 0 < float(spread) < 0.07
    assert bias < 4.5 * spread / draws**0.5
    nearest = scheme.decode(scheme.encode(values))
    if name not in ("Q8_0", "Q6_K"):
        assert (nearest - values[0]).abs()[inner].max() > 2 * bias  # which rounding is not


@pytest.mark.parametrize("name", sorted(ENCODABLE))
def test_noise_moves_a_value_by_less_than_a_step(name):
    scheme, values = encoding(name), DISTRIBUTIONS["normal"]()
    down = scheme.decode(scheme.encode(values, noise=torch.zeros(values.shape)))
    up = scheme.decode(scheme.encode(values, noise=torch.full(values.shape, 0.999)))
    nearest = scheme.decode(scheme.encode(values))
    low, high = torch.minimum(down, up), torch.maximum(down, up)
    assert bool(((low <= nearest) & (nearest <= high)).float().mean() > 0.999)


# -- the search, in float64 -----------------------------------------------------------------------


def test_the_fit_of_a_group_is_near_the_best_there_is():
    """Beside all scales and offsets of a fine grid, each with its error in float64."""
    generator = torch.Generator().manual_seed(18)
    values = torch.randn(1, 32, 12, generator=generator)
    weights = torch.rand(1, 32, 12, generator=generator) + 0.1
    fit = AffineProblem(values, weights, 15).fit((-1.0, -0.4, 0.2, 0.8), 2)

    def error(scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        x, w = values[0].double(), weights[0].double()
        levels = ((x + offset) / scale).round().clamp(0, 15)
        return (w * (levels * scale - offset - x).square()).sum(0)

    span = (values.amax(1) - values.amin(1).clamp(max=0))[0].double()
    lowest = values.amin(1)[0].double().clamp(max=0)
    best = torch.full((12,), torch.inf, dtype=torch.float64)
    for steps in torch.linspace(12, 17, 100):
        for shift in torch.linspace(-0.08, 0.08, 60):
            best = torch.minimum(best, error(span / steps, -lowest + shift * span))
    found = error(fit.scale[0, 0].double(), fit.offset[0, 0].double())
    assert float((found / best).mean()) < 1.12
    assert bool((found < 1.6 * best).all())


# -- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("weights", [None, importance()], ids=["plain", "importance"])
@pytest.mark.parametrize("name", sorted(ENCODABLE))
def test_a_gpu_writes_blocks_as_good_and_reads_the_same(name, weights):
    scheme = encoding(name)
    values = torch.cat([make() for make in DISTRIBUTIONS.values()])
    there = values.cuda(), None if weights is None else weights.cuda()
    packed = scheme.encode(*there)
    assert packed.is_cuda
    assert torch.equal(scheme.decode(packed).cpu(), scheme.decode(packed.cpu()))
    here = rms_error(scheme.decode(scheme.encode(values, weights)), values, weights)
    assert rms_error(scheme.decode(packed.cpu()), values, weights) <= here * TOLERANCE
