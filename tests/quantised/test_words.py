"""GPTQ and AWQ, whose values are made here one integer at a time as their papers' code does."""

from __future__ import annotations

import pytest
import torch

from adaptool.encodings.checkpoints.words import unpack_words, words_for
from adaptool.errors import CorruptInputError, IncompatibleError
from tests.quantised.storing import Tensors, check_slices, only_weight, opened

IN, OUT, GROUP = 96, 40, 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack(column: list[int], bits: int) -> list[int]:
    """A stream of bits, cut into signed words of 32."""
    stream = sum(value << (bits * i) for i, value in enumerate(column))
    words = [(stream >> (32 * i)) & 0xFFFFFFFF for i in range(words_for(len(column), bits))]
    return [word - (1 << 32) if word >= 1 << 31 else word for word in words]


def random(low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(high))


def gptq(bits: int, layout: str, order: torch.Tensor | None) -> tuple[Tensors, torch.Tensor]:
    groups = IN // GROUP
    codes, zeros = random(0, 1 << bits, IN, OUT), random(1, 1 << bits, groups, OUT)
    scales = (torch.rand(groups, OUT) * 0.1).half()
    shift = 1 if layout == "gptq" else 0
    tensors = {
        "m.qweight": torch.tensor([pack(column, bits) for column in codes.T.tolist()]).int().T,
        "m.qzeros": torch.tensor([pack(row, bits) for row in (zeros - shift).tolist()]).int(),
        "m.scales": scales,
    }
    if order is not None:
        tensors["m.g_idx"] = order.int()
    group = torch.arange(IN) // GROUP if order is None else order
    expected = scales[group] * (codes - zeros[group]).half()
    return {n: t.contiguous() for n, t in tensors.items()}, expected.T.contiguous()


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(bits: int, layout: str, ordered: bool) -> None:
    order = torch.arange(IN)[torch.randperm(IN)] // GROUP if ordered else None
    tensors, expected = gptq(bits, layout, order)
    found = only_weight(
        opened(tensors, "gptq", bits=bits, group_size=GROUP, checkpoint_format=layout)
    )
    assert found.name == "m.weight"
    assert set(found.parts) == set(tensors)
    assert torch.equal(found.decoded.values(), expected)
    check_slices(found.decoded, expected)


def test_one_literal_block_of_gptq() -> None:
    """Eight inputs, eight outputs: output o has the code (i + o) % 16 for input i."""
    word = [sum(((i + o) % 16) << (4 * i) for i in range(8)) for o in range(8)]
    tensors = {
        "m.qweight": torch.tensor([word], dtype=torch.int64).to(torch.int32),
        "m.qzeros": torch.tensor([[0x77777777]], dtype=torch.int32),  # the middle, 8, less one
        "m.scales": torch.full((1, 8), 0.5, dtype=torch.float16),
    }
    found = only_weight(opened(tensors, "gptq", bits=4, group_size=-1))
    assert found.decoded.values()[0].tolist() == [-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5]
    assert found.decoded.values()[3].tolist() == [-2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1]


def test_awq() -> None:
    groups = IN // GROUP
    codes, zeros = random(0, 16, IN, OUT), random(0, 15, groups, OUT)
    scales = (torch.rand(groups, OUT) * 0.1).half()

    def packed(matrix: torch.Tensor) -> torch.Tensor:
        rows = [
            [row[8 * w + AWQ_ORDER[n]] for w in range(OUT // 8) for n in range(8)]
            for row in matrix.tolist()
        ]
        return torch.tensor([pack(row, 4) for row in rows]).int()

    tensors = {"m.qweight": packed(codes), "m.qzeros": packed(zeros), "m.scales": scales}
    group = torch.arange(IN) // GROUP
    expected = (scales[group] * (codes - zeros[group]).half()).T.contiguous()
    found = only_weight(opened(tensors, "awq", bits=4, group_size=GROUP, version="gemm"))
    assert torch.equal(found.decoded.values(), expected)
    check_slices(found.decoded, expected)


def test_one_literal_word_of_awq() -> None:
    """The word 0x76543210 holds the outputs 0, 4, 1, 5, 2, 6, 3, 7."""
    tensors = {
        "m.qweight": torch.tensor([[0x76543210]], dtype=torch.int32),
        "m.qzeros": torch.zeros(1, 1, dtype=torch.int32),
        "m.scales": torch.ones(1, 8, dtype=torch.float16),
    }
    found = only_weight(opened(tensors, "awq", bits=4, group_size=-1))
    assert found.decoded.values()[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize("bits", range(1, 9))
def test_words(bits: int) -> None:
    values = random(0, 1 << bits, 5, 77)
    words = torch.tensor([pack(row, bits) for row in values.tolist()]).int()
    assert torch.equal(unpack_words(words, bits, 77).long(), values)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("gptq", {"checkpoint_format": "marlin"}),
        ("awq", {"version": "gemv"}),
        ("awq", {"bits": 3}),
    ],
)
def test_other_layouts_are_refused_by_name(method: str, settings: dict[str, object]) -> None:
    with pytest.raises(IncompatibleError) as caught:
        opened({}, method, **settings)
    assert caught.value.code == "UNKNOWN_QUANTISATION"


def test_groups_that_are_not_there() -> None:
    for bad in (-1, 3):
        order = torch.zeros(IN, dtype=torch.int64)
        tensors, _ = gptq(4, "gptq", order)
        tensors["m.g_idx"][5] = bad
        found = only_weight(opened(tensors, "gptq", bits=4, group_size=GROUP))
        with pytest.raises(CorruptInputError, match=r"m\.g_idx"):
            found.value.values()
