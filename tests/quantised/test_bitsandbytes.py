"""bitsandbytes: what its own functions make of a weight is what is read, and written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch

from adaptool.canonical import LazyTensor
from adaptool.encodings.checkpoints import Opened, open_quantised
from tests.quantised.storing import Tensors, check_slices, encoded, only_weight, opened

KINDS = ("nf4", "fp4")


def weight(rows: int, cols: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)) * 0.05


def stored_4bit(values: torch.Tensor, kind: str, block: int, *,
                nested: bool) -> tuple[Tensors, torch.Tensor]:  # fmt: skip
    """The tensors of a weight as transformers stores them, and what the library reads."""
    codes, state = bnb.quantize_4bit(
        values, blocksize=block, quant_type=kind, compress_statistics=nested
    )
    tensors = {"m.weight": codes}
    tensors |= {f"m.weight.{key}": part for key, part in state.as_dict(packed=True).items()}
    return tensors, bnb.dequantize_4bit(codes, state)


def stored_8bit(values: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    codes, scales, _ = bnb.int8_vectorwise_quant(values.half())
    layout = torch.tensor(0, dtype=torch.uint8)
    tensors = {"m.weight": codes, "m.SCB": scales, "m.weight_format": layout}
    return tensors, bnb.int8_vectorwise_dequant(codes, scales)


def opened_bnb(tensors: Tensors, **config: Any) -> Opened:
    return opened(tensors, "bitsandbytes", **config)


def reread_4bit(tensors: Tensors) -> torch.Tensor:
    parts = {n.removeprefix("m.weight."): t for n, t in tensors.items() if n != "m.weight"}
    state = bnb.QuantState.from_dict(parts, device=torch.device("cpu"))
    return bnb.dequantize_4bit(tensors["m.weight"], state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("block", [64, 128, 4096])
@pytest.mark.parametrize("kind", KINDS)
def test_reads_what_the_library_reads(kind: str, block: int, nested: bool,
                                      dtype: torch.dtype) -> None:  # fmt: skip
    tensors, expected = stored_4bit(weight(96, 256).to(dtype), kind, block, nested=nested)
    found = only_weight(opened_bnb(tensors))
    assert (found.name, found.kind) == ("m.weight", kind)
    assert set(found.parts) == set(tensors)
    assert found.decoded.dtype.torch == dtype
    assert torch.equal(found.decoded.values(), expected)
    check_slices(found.decoded, expected)


@pytest.mark.parametrize(("rows", "cols"), [(37, 50), (96, 224), (3, 5)])
def test_rows_may_end_within_a_block(rows: int, cols: int) -> None:
    """The library's own kernel for CPUs misreads some such weights; the definition is plain."""
    tensors, _ = stored_4bit(weight(rows, cols), "nf4", 64, nested=False)
    packed = tensors["m.weight"].flatten().tolist()
    codes = [code for octet in packed for code in (octet >> 4, octet & 15)][: rows * cols]
    levels = tensors["m.weight.quant_map"][torch.tensor(codes)]
    expected = levels * tensors["m.weight.absmax"].repeat_interleave(64)[: rows * cols]
    found = only_weight(opened_bnb(tensors))
    assert torch.equal(found.decoded.values(), expected.view(rows, cols))
    check_slices(found.decoded, expected.view(rows, cols))
    made, seen = encoded(opened_bnb(tensors), weight(rows, cols))
    assert torch.equal(seen, found.value.values())
    assert all(torch.equal(made[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("block", [64, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_writes_at_least_as_well_as_the_library(kind: str, block: int, nested: bool) -> None:
    tensors, _ = stored_4bit(weight(160, 256), kind, block, nested=nested)
    wanted = weight(160, 256) + weight(160, 256, seed=2) * 0.1
    made, seen = encoded(opened_bnb(tensors), wanted)
    assert torch.equal(reread_4bit(made), seen)
    theirs, read = stored_4bit(wanted, kind, block, nested=nested)
    assert (seen - wanted).norm() <= (read - wanted).norm() * 1.0005
    if not nested:  # without the second rounding nothing is left to choose
        assert torch.equal(made["m.weight.absmax"], theirs["m.weight.absmax"])
        assert (made["m.weight"] != theirs["m.weight"]).float().mean() < 1e-3


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_values_that_did_not_change_keep_their_codes(kind: str, nested: bool) -> None:
    tensors, _ = stored_4bit(weight(96, 256), kind, 64, nested=nested)
    found = opened_bnb(tensors)
    same = only_weight(found).value.values()
    made, seen = encoded(found, same)
    if nested:
        assert torch.allclose(seen, same, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(seen, same)
        assert torch.equal(made["m.weight.absmax"], tensors["m.weight.absmax"])


def test_a_block_of_zeros_stays_zero() -> None:
    values = weight(4, 128)
    tensors, _ = stored_4bit(values, "nf4", 64, nested=False)
    values[1] = 0
    _, seen = encoded(opened_bnb(tensors), values)
    assert not seen[1].any()
    tensors, _ = stored_8bit(values)
    _, seen = encoded(opened_bnb(tensors), values)
    assert not seen[1].any()


def test_codes_may_be_declared_in_a_wider_type(tmp_path: Any) -> None:
    from adaptool.containers import open_checkpoint
    from tests.quantised.models import write_settings

    tensors, expected = stored_4bit(weight(64, 64), "nf4", 64, nested=False)
    tensors["m.weight"] = tensors["m.weight"].view(-1).view(torch.bfloat16).unsqueeze(1)
    folder = write_settings(tmp_path / "m", tensors, {"load_in_4bit": True})
    found = only_weight(open_quantised(open_checkpoint(folder)))
    assert torch.equal(found.decoded.values(), expected)
    assert found.encode is None


def test_eight_bits() -> None:
    tensors, expected = stored_8bit(weight(48, 96))
    found = only_weight(opened_bnb(tensors, dtype="float16"))
    assert torch.equal(found.value.values(), expected)
    assert torch.equal(found.decoded.values(), expected.half())
    check_slices(found.value, expected)


def test_eight_bits_are_written_back() -> None:
    tensors, _ = stored_8bit(weight(48, 96))
    wanted = (weight(48, 96) * 1.1).half().float()
    made, seen = encoded(opened_bnb(tensors), wanted)
    theirs, read = stored_8bit(wanted)
    assert torch.allclose(made["m.SCB"], theirs["m.SCB"], rtol=3e-7)
    assert torch.equal(bnb.int8_vectorwise_dequant(made["m.weight"], made["m.SCB"]), seen)
    assert (seen - wanted).norm() <= (read - wanted).norm() * 1.0005


def test_only_the_rows_at_hand_are_read() -> None:
    tensors, _ = stored_4bit(weight(512, 256), "nf4", 64, nested=True)
    asked: dict[str, int] = {}

    def watched(name: str, tensor: LazyTensor) -> LazyTensor:
        def pieces(start: int, stop: int, block: int) -> Iterator[torch.Tensor]:
            asked[name] = asked.get(name, 0) + stop - start
            yield from tensor.pieces(start, stop, block)

        return replace(tensor, pieces=pieces)

    stored = opened_bnb(tensors).stored
    stored = replace(stored, tensors={n: watched(n, t) for n, t in stored.tensors.items()})
    found = only_weight(open_quantised(stored))
    asked.clear()
    row = 256
    assert len(list(found.value.pieces(100 * row, 102 * row, row))) == 2
    assert asked["m.weight"] == row  # two rows, two codes in a byte
    assert asked["m.weight.absmax"] == 2 * row // 64
