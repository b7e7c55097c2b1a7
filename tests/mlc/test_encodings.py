"""MLC's group quantisation: the literal formulas bit for bit, and a search that is never worse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptool.canonical import DType, LazyTensor
from adaptool.canonical.tensors import from_values
from adaptool.encodings.mlc import SCHEMES, Ledger, Scheme, decoded, plain, quantised
from adaptool.errors import CorruptInputError, IncompatibleError

from . import literal

QUANTISED = [name for name, scheme in SCHEMES.items() if scheme.bits]
HALVES = [name for name, scheme in SCHEMES.items() if scheme.dtype is DType.FLOAT16]
SHAPES = [(3, 32), (2, 40), (4, 7), (3, 100), (2, 321), (5, 1)]
SOURCES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small tensors, and several test processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def numbers(*shape: int, scale: float = 1.0) -> np.ndarray:
    """Normal numbers, and a group of zeros at the end of each row of the first half."""
    found = np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32) * scale
    found[: shape[0] // 2, -32:] = 0
    return found.astype(np.float32)


def lazy(values: np.ndarray, dtype: torch.dtype = torch.float32) -> LazyTensor:
    return from_values(torch.from_numpy(values).to(dtype))


def bits(tensor: LazyTensor) -> np.ndarray:
    """A tensor as it is stored; bfloat16 as uint16."""
    values = tensor.values()
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()


def compare(name: str, values: np.ndarray, dtype: torch.dtype = torch.float32) -> None:
    """Codes, scales and decoded values against the formulas."""
    source, width = lazy(values, dtype), values.shape[1]
    words, scales = literal.quantised(name, source.values().float().numpy())
    pair = quantised(SCHEMES[name], source, name="w")
    np.testing.assert_array_equal(bits(pair[0]), words)
    np.testing.assert_array_equal(bits(pair[1]), scales)
    found = decoded(SCHEMES[name], *pair, width).values().numpy()
    np.testing.assert_array_equal(found, literal.decoded(name, words, scales, width))


# -- MLC's rule -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", SOURCES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", QUANTISED)
def test_formulas(name: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    compare(name, numbers(*shape), dtype)


@pytest.mark.parametrize("scale", [1e-3, 3e-5, 1e-6, 1e-7, 1e-9, 1e4])
@pytest.mark.parametrize("name", QUANTISED)
def test_formulas_at_the_edges(name: str, scale: float) -> None:
    """Subnormal scales, scales that vanish, sums that float16 rounds."""
    compare(name, numbers(3, 100, scale=scale))


@pytest.mark.parametrize("scale", [1e-42, 1e-38, 1e30, 3e37])
def test_formulas_at_the_edges_of_float32(scale: float) -> None:
    compare("q4f32_1", numbers(3, 100, scale=scale))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_formulas_of_anything(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(QUANTISED))
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 90)))
    value = st.floats(-1000, 1000, width=16) | st.sampled_from([0.0, 0.5, 1.5, 2.5, 7.0, -7.0])
    count = shape[0] * shape[1]
    values = data.draw(st.lists(value, min_size=count, max_size=count))
    compare(name, np.array(values, np.float32).reshape(shape))


def test_by_hand() -> None:
    """A scale of 1, so that codes are values + 7; halves go to the even code; 15 is never used."""
    row = [7.0, -7, 0.5, 1.5, -0.5, -1.5, 0, 1] + [0.0] * 24
    for name in ("q4f16_1", "q4f32_1"):
        words, scales = quantised(SCHEMES[name], from_values(torch.tensor([row])))
        codes = [14, 0, 8, 8, 6, 6, 7, 8]
        first = sum(code << 4 * index for index, code in enumerate(codes))
        assert words.values().tolist() == [[first, *[0x77777777] * 3]]
        assert scales.values().tolist() == [[1.0]]
    row = [3.0, -3, 0.5, 1.5, -0.5, 0, 0, 0, 0, 1]
    words, scales = quantised(SCHEMES["q3f16_1"], from_values(torch.tensor([row])))
    codes = [6, 0, 4, 4, 2, 3, 3, 3, 3, 4]
    first = sum(code << 3 * index for index, code in enumerate(codes))
    assert words.values().tolist() == [[first, 0, 0, 0]]  # what the row does not have is 0
    assert scales.values().tolist() == [[1.0]]


@pytest.mark.parametrize("name", QUANTISED)
def test_stacks(name: str) -> None:
    """Experts are rows like others."""
    values = numbers(6, 50)
    flat = quantised(SCHEMES[name], lazy(values))
    stack = quantised(SCHEMES[name], lazy(values.reshape(2, 3, 50)))
    for one, other in zip(flat, stack, strict=True):
        assert other.shape == (2, 3, one.shape[-1])
        np.testing.assert_array_equal(bits(one), bits(other).reshape(one.shape))
    both = decoded(SCHEMES[name], *flat, 50), decoded(SCHEMES[name], *stack, 50)
    assert both[1].shape == (2, 3, 50)
    assert torch.equal(both[0].values(), both[1].values().view(6, 50))


@pytest.mark.parametrize("name", QUANTISED)
def test_streams_begin_and_end_anywhere(name: str) -> None:
    pair = quantised(SCHEMES[name], lazy(numbers(7, 100)))
    tensors = [*pair, decoded(SCHEMES[name], *pair, 100)]
    for tensor in tensors:
        whole = tensor.values().flatten().view(torch.uint8)
        for start, stop, block in ((0, 5, 2), (3, tensor.count, 7), (11, 20, 100), (4, 4, 1)):
            pieces = [p.clone() for p in tensor.pieces(start, stop, block)]
            assert all(p.numel() <= block for p in pieces)
            found = torch.cat([p.view(torch.uint8) for p in pieces] or [whole[:0]])
            size = tensor.dtype.bits // 8
            assert torch.equal(found, whole[start * size : stop * size])


def test_shapes_that_have_no_groups() -> None:
    with pytest.raises(ValueError, match="q0f16"):
        quantised(SCHEMES["q0f16"], lazy(numbers(2, 32)))
    with pytest.raises(ValueError, match="shape"):
        quantised(SCHEMES["q4f16_1"], from_values(torch.zeros(32)))
    words, scales = quantised(SCHEMES["q4f16_1"], lazy(numbers(2, 32)))
    with pytest.raises(ValueError, match="rows of 33"):
        decoded(SCHEMES["q4f16_1"], words, scales, 33)


# -- what cannot be held --------------------------------------------------------------------------


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("name", ["q4f16_1", "q3f16_1"])
def test_too_large_for_float16(name: str, part: int, optimize: bool) -> None:
    """In codes and in scales; also where the scale fits but 7 times the scale does not."""
    for value in (1e5, 65504.0):
        values = numbers(2, 64)
        values[1, 40] = value
        source = lazy(values, torch.bfloat16)
        tensor = quantised(SCHEMES[name], source, optimize, name="a.weight")[part]
        with pytest.raises(IncompatibleError, match=r"a\.weight.*65504") as caught:
            tensor.values()
        assert caught.value.code == "OUT_OF_RANGE"
    compare("q4f32_1", values * np.float32(1e3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("name", QUANTISED)
def test_not_finite(name: str, part: int, value: float) -> None:
    values = numbers(2, 64)
    values[1, 40] = value
    with pytest.raises(CorruptInputError, match=r"a\.weight.*not finite"):
        quantised(SCHEMES[name], lazy(values), name="a.weight")[part].values()


def test_faint_groups_are_counted() -> None:
    values = numbers(4, 64)
    values[2:, :32] *= np.float32(1e-9)
    ledger = Ledger()
    words, scales = quantised(SCHEMES["q4f16_1"], lazy(values), name="a", ledger=ledger)
    other = quantised(SCHEMES["q4f32_1"], lazy(values), name="b", ledger=ledger)
    assert ledger.faint == {}
    for tensor in (words, scales, words, *other):
        tensor.values()
    assert ledger.faint == {"a": 2}
    assert scales.values()[2:, 0].tolist() == [0, 0]


# -- plain weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", SOURCES, ids=str)
@pytest.mark.parametrize("name", ["q0f16", "q0f32", "q4f16_1", "q4f32_1"])
def test_plain(name: str, dtype: torch.dtype) -> None:
    source = lazy(numbers(3, 50, scale=30.0), dtype)
    found = plain(SCHEMES[name], source)
    np.testing.assert_array_equal(
        bits(found), literal.stored(name, source.values().float().numpy())
    )


@pytest.mark.parametrize("name", ["q0f16", "q0f32"])
def test_plain_of_that_type_is_left_alone(name: str) -> None:
    source = lazy(numbers(3, 50), SCHEMES[name].stored.torch)
    assert plain(SCHEMES[name], source) is source


def test_plain_bfloat16_of_every_kind() -> None:
    """Halfway cases, what is beyond the largest, infinities, NaNs with any payload."""
    patterns = [
        *(0x3F808000, 0x3F818000, 0x3F808001, 0x80000000, 1, 0x007FFFFF),
        *(0x7F7F0000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000),
        *(0x7FC00000, 0xFFC12345, 0x7FFFFFFF),
    ]
    values = np.array(patterns, np.uint32).view(np.float32)
    for count in (len(patterns), 3, 64):  # with and without vector instructions
        some = np.resize(values, count)
        found = bits(plain(SCHEMES["q0f32"], lazy(some)))
        np.testing.assert_array_equal(found, literal.bfloat16(some))
    clipped = plain(SCHEMES["q0f32"], lazy(np.array([3.4e38], np.float32))).values()
    assert float(clipped) == torch.finfo(torch.bfloat16).max


def test_plain_float16_refuses_what_it_cannot_hold() -> None:
    infinite = np.array([np.inf, -np.inf, 65504.0], np.float32)
    assert plain(SCHEMES["q0f16"], lazy(infinite)).values().tolist() == infinite.tolist()
    assert float(plain(SCHEMES["q0f16"], lazy(np.array([65519.0], np.float32))).values()) == 65504
    for value in (65520.0, -1e6):
        with pytest.raises(IncompatibleError, match=r"norm.*65504") as caught:
            plain(SCHEMES["q0f16"], lazy(np.array([value], np.float32)), name="norm").values()
        assert caught.value.code == "OUT_OF_RANGE"
    double = from_values(torch.tensor([1e300], dtype=torch.float64))
    with pytest.raises(IncompatibleError, match="float32"):
        plain(SCHEMES["q0f32"], double).values()


# -- the search -----------------------------------------------------------------------------------

DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, width: rng.standard_normal((64, width)),
    "heavy tails": lambda rng, width: rng.standard_t(2.5, (64, width)),
    "uniform": lambda rng, width: rng.uniform(-1, 1, (64, width)),
    "two values": lambda rng, width: rng.choice([-1.0, 1.0], (64, width)),
    "on MLC's grid": lambda rng, width: rng.integers(-7, 8, (64, width)) * 0.25,
    "one-sided": lambda rng, width: rng.exponential(1, (64, width)),
    "mostly zero": lambda rng, width: (
        rng.standard_normal((64, width)) * (rng.random((64, width)) < 0.1)
    ),
    "faint": lambda rng, width: rng.standard_normal((64, width)) * 1e-7,
    "huge": lambda rng, width: rng.uniform(-6e4, 6e4, (64, width)),
}


@pytest.mark.parametrize("width", [128, 100, 5])
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("name", QUANTISED)
def test_search_is_never_worse_in_any_group(name: str, kind: str, width: int) -> None:
    values = DISTRIBUTIONS[kind](np.random.default_rng(width), width).astype(np.float32)
    scheme, source = SCHEMES[name], lazy(values)
    rule = decoded(scheme, *quantised(scheme, source), width).values().numpy()
    pair = quantised(scheme, source, optimize=True)
    found = literal.decoded(name, bits(pair[0]), bits(pair[1]), width)
    before = literal.squared_errors(name, rule, values)
    after = literal.squared_errors(name, found, values)
    assert (after <= before).all()
    np.testing.assert_array_equal(decoded(scheme, *pair, width).values().numpy(), found)


@pytest.mark.parametrize(
    ("name", "gain"), [("q4f16_1", 0.16), ("q4f32_1", 0.16), ("q3f16_1", 0.28)]
)
def test_search_gains(name: str, gain: float) -> None:
    """Less root mean square error by a sixth, and more than a quarter for three bits."""
    scheme = SCHEMES[name]
    values = numbers(160, 320, scale=0.02)
    errors = [
        literal.squared_errors(
            name,
            decoded(scheme, *quantised(scheme, lazy(values), optimize), 320).values().numpy(),
            values,
        )
        for optimize in (False, True)
    ]
    assert np.sqrt(errors[1].sum() / errors[0].sum()) < 1 - gain
    words, scales = quantised(scheme, lazy(values), optimize=True)
    assert bool((scales.values() < 0).any())
    top = (1 << scheme.bits) - 1
    assert bool(((words.values().to(torch.int64) & top) == top).any())


def test_search_is_near_the_best() -> None:
    """A dense search in float64, by the definition, over both signs."""
    values = np.random.default_rng(5).standard_normal((40, 32))
    scheme = SCHEMES["q4f32_1"]
    pair = quantised(scheme, lazy(values.astype(np.float32)), optimize=True)
    found = literal.squared_errors("q4f32_1", decoded(scheme, *pair, 32).values().numpy(), values)
    best = np.full(len(values), np.inf)
    extreme = np.abs(values).max(1, keepdims=True)
    for place in np.linspace(5, 12, 1500):
        for scale in (extreme / place, -extreme / place):
            levels = np.clip(np.rint(values / scale), -7, 8)
            best = np.minimum(best, ((levels * scale - values) ** 2).sum(1))
    assert found.sum() < best.sum() * 1.01


# -- the source's work ----------------------------------------------------------------------------


def counted(values: np.ndarray) -> tuple[LazyTensor, list[int]]:
    """A tensor that notes how many of its elements were asked for."""
    source, asked = lazy(values), []

    def pieces(start: int, stop: int, block: int):
        asked.append(stop - start)
        return source.pieces(start, stop, block)

    return replace(source, pieces=pieces), asked


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("room", [None, 0, 9 * 2 * 2])
def test_source_is_read_once_with_a_ledger(room: int | None, optimize: bool) -> None:
    """Given room for 9 rows with 2 scales of 2 bytes."""
    ledger = None if room is None else Ledger(limit=room)
    values = numbers(9, 64)
    scheme = SCHEMES["q4f16_1"]
    wanted = [bits(tensor) for tensor in quantised(scheme, lazy(values), optimize)]
    source, asked = counted(values)
    words, scales = quantised(scheme, source, optimize, ledger=ledger)
    for kept in (room, 0):  # what was kept is given once
        asked.clear()
        halves = [[tensor.stream(0, 4 * n), tensor.stream(4 * n)] for tensor, n in
                  ((words, words.row), (scales, scales.row))]  # fmt: skip
        found = [torch.cat([p.clone() for s in parts for p in s]).numpy() for parts in halves]
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other.reshape(-1))
        assert sum(asked) == values.size * (1 if kept else 2)


def test_ledger_gives_back_its_room() -> None:
    ledger = Ledger()
    words, scales = quantised(SCHEMES["q4f16_1"], lazy(numbers(9, 64)), ledger=ledger)
    free = ledger._free
    words.values()
    assert ledger._free == free - scales.nbytes
    for _ in scales.stream(0, 4):
        pass
    assert ledger._free == free - scales.nbytes
    for _ in scales.stream(4):
        pass
    assert ledger._free == free


def test_scales_before_codes() -> None:
    """Threads come in any order: what is not known is computed."""
    ledger = Ledger()
    values = numbers(9, 64)
    words, scales = quantised(SCHEMES["q4f16_1"], lazy(values), ledger=ledger)
    wanted = literal.quantised("q4f16_1", values)
    for tensor, array in ((scales, wanted[1]), (words, wanted[0]), (scales, wanted[1])):
        np.testing.assert_array_equal(bits(tensor), array)
    assert ledger._free == Ledger()._free


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)
def test_names_say_what_they_are(scheme: Scheme) -> None:
    assert scheme.name.startswith(f"q{scheme.bits}f{scheme.dtype.bits}")
    assert (scheme.name in HALVES) == (scheme.stored is DType.FLOAT16)
    assert literal.MODEL[scheme.name] == np.dtype(scheme.dtype.value)
