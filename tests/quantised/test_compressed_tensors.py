"""compressed-tensors: every format is read as its own library reads it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from adaptool.errors import CorruptInputError, IncompatibleError
from tests.quantised.storing import check_slices, encoded, only_weight, opened

ROWS, COLS = 96, 160


def weight(rows: int = ROWS, cols: int = COLS) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(1)) * 0.1


def scheme(**args: Any) -> QuantizationScheme:
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))


def stored(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"m.{name}": tensor for name, tensor in state.items() if tensor is not None}


def settings(args: dict[str, Any], name: str) -> dict[str, Any]:
    return {"format": name, "config_groups": {"group_0": {"weights": args, "targets": ["Linear"]}}}


def read(state: dict[str, torch.Tensor], args: dict[str, Any], name: str) -> Any:
    return opened(stored(state), "compressed-tensors", **settings(args, name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_packed_integers(bits: int, symmetric: bool, dtype: torch.dtype) -> None:
    args = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group",
            "group_size": 32}  # fmt: skip
    groups = COLS // 32
    scale = (torch.rand(ROWS, groups) * 0.02 + 0.01).to(dtype)
    zero = torch.zeros(ROWS, groups, dtype=torch.int8)
    if not symmetric:
        zero = torch.randint(-(1 << bits) // 2, (1 << bits) // 2, zero.shape, dtype=torch.int8)
    state = {"weight": weight().to(dtype), "weight_scale": scale, "weight_zero_point": zero}
    packed = PackedQuantizationCompressor.compress(state, scheme(**args))
    expected = PackedQuantizationCompressor.decompress(packed, scheme(**args))["weight"]
    found = only_weight(read(packed, args, "pack-quantized"))
    assert found.name == "m.weight"
    assert set(found.parts) == set(stored(packed))
    assert found.decoded.dtype.torch == expected.dtype == dtype
    assert torch.equal(found.decoded.values(), expected)
    check_slices(found.decoded, expected)
    assert found.encode is None


@pytest.mark.parametrize("strategy", ["channel", "tensor"])
def test_packed_integers_with_few_scales(strategy: str) -> None:
    args = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": strategy}
    scale = torch.full((ROWS, 1) if strategy == "channel" else (1,), 0.03)
    state = {"weight": weight(cols=150), "weight_scale": scale}
    packed = PackedQuantizationCompressor.compress(state, scheme(**args))
    expected = PackedQuantizationCompressor.decompress(packed, scheme(**args))["weight"]
    found = only_weight(read(packed, args, "pack-quantized"))
    assert torch.equal(found.decoded.values(), expected)


def test_activation_order_scatters_the_groups() -> None:
    args = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    state = {"weight": weight(), "weight_scale": torch.rand(ROWS, 5) * 0.02 + 0.01}
    packed = PackedQuantizationCompressor.compress(state, scheme(**args))
    order = torch.arange(COLS)[torch.randperm(COLS)] // 32
    packed["weight_g_idx"] = order.to(torch.int32)
    codes = PackedQuantizationCompressor.decompress(
        {**packed, "weight_scale": torch.ones(ROWS, 5)}, scheme(**args)
    )["weight"]
    found = only_weight(read(packed, args, "pack-quantized"))
    assert torch.equal(found.value.values(), codes * state["weight_scale"][:, order])


CODES = [
    pytest.param({"num_bits": 8, "type": "int"}, "int-quantized", id="int8"),
    pytest.param({"num_bits": 8, "type": "float"}, "float-quantized", id="fp8"),
    pytest.param({"num_bits": 4, "type": "int"}, "naive-quantized", id="int4"),
]
SHAPES = [
    pytest.param({"strategy": "tensor"}, (1,), id="tensor"),
    pytest.param({"strategy": "channel"}, (ROWS, 1), id="channel"),
    pytest.param({"strategy": "group", "group_size": 32}, (ROWS, COLS // 32), id="group"),
    pytest.param(
        {"strategy": "block", "block_structure": [32, 32]}, (ROWS // 32, COLS // 32), id="block"
    ),
]


@pytest.mark.parametrize(("what", "name"), CODES)
@pytest.mark.parametrize(("how", "shape"), SHAPES)
def test_bytes_with_scales(what: dict[str, Any], name: str, how: dict[str, Any],
                           shape: tuple[int, ...]) -> None:  # fmt: skip
    args = {**what, **how, "symmetric": True}
    top = 448 if what["type"] == "float" else (1 << what["num_bits"] - 1) - 1
    scale = (torch.rand(shape) + 1) * 0.5 / top
    state = {"weight": weight(), "weight_scale": scale.bfloat16()}
    state["weight"] = state["weight"].bfloat16()
    packed = NaiveQuantizationCompressor.compress(state, scheme(**args))
    expected = NaiveQuantizationCompressor.decompress(packed, scheme(**args))["weight"]
    packed["input_scale"] = torch.ones(1)
    opening = read(packed, args, name)
    found = only_weight(opening)
    assert set(found.parts) == set(stored(packed))
    assert torch.equal(found.decoded.values(), expected)
    check_slices(found.decoded, expected)
    assert list(opening.checkpoint.tensors) == ["m.weight"]


@pytest.mark.parametrize(("what", "name"), CODES)
@pytest.mark.parametrize(("how", "shape"), SHAPES)
def test_bytes_are_written_back(what: dict[str, Any], name: str, how: dict[str, Any],
                                shape: tuple[int, ...]) -> None:  # fmt: skip
    args = {**what, **how, "symmetric": True}
    top = 448 if what["type"] == "float" else (1 << what["num_bits"] - 1) - 1
    state = {"weight": weight(), "weight_scale": (torch.rand(shape) + 1) * 0.5 / top}
    packed = NaiveQuantizationCompressor.compress(state, scheme(**args))
    opening = read(packed, args, name)
    wanted = weight() * 1.5 + 0.01
    tensors, seen = encoded(opening, wanted)
    again = NaiveQuantizationCompressor.decompress(
        {name.removeprefix("m."): tensor for name, tensor in tensors.items()}, scheme(**args)
    )["weight"]
    assert torch.equal(again.float(), seen)
    # the same values, coded by the library with the scales that these values ask for
    their = NaiveQuantizationCompressor.compress(
        {"weight": wanted, "weight_scale": tensors["m.weight_scale"]}, scheme(**args)
    )
    theirs = NaiveQuantizationCompressor.decompress(their, scheme(**args))["weight"]
    assert (seen - wanted).norm() <= (theirs - wanted).norm() * 1.001


def test_nvfp4() -> None:
    args = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group",
            "group_size": 16}  # fmt: skip
    wide = torch.tensor([2000.0])
    scale = (torch.rand(ROWS, COLS // 16) * 100 + 20).to(torch.float8_e4m3fn).float()
    state = {"weight": weight(), "weight_scale": scale, "weight_global_scale": wide}
    packed = NVFP4PackedCompressor.compress(state, scheme(**args))
    assert packed["weight_scale"].dtype == torch.float8_e4m3fn
    expected = NVFP4PackedCompressor.decompress(packed, scheme(**args))["weight"].detach()
    found = only_weight(read(packed, args, "nvfp4-pack-quantized"))
    codes = only_weight(  # with scales of one: what the library reads of the codes, exactly
        read({**packed, "weight_scale": torch.ones_like(scale).to(torch.float8_e4m3fn),
              "weight_global_scale": torch.ones(1)}, args, "nvfp4-pack-quantized")
    ).value.values()  # fmt: skip
    oracle = codes.double() * (scale.double() / 2000.0).repeat_interleave(16, 1)
    assert torch.allclose(found.value.values().double(), oracle, rtol=3e-7, atol=0)
    assert torch.allclose(found.value.values(), expected.float(), rtol=1.6e-2, atol=0)
    check_slices(found.value, found.value.values())


def test_mxfp4() -> None:
    args = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "group",
            "group_size": 32}  # fmt: skip
    scale = torch.exp2(torch.randint(-9, -3, (ROWS, COLS // 32)).float())
    state = {"weight": weight(), "weight_scale": scale}
    packed = MXFP4PackedCompressor.compress(state, scheme(**args))
    expected = MXFP4PackedCompressor.decompress(packed, scheme(**args))["weight"].detach()
    found = only_weight(read(packed, args, "mxfp4-pack-quantized"))
    assert torch.equal(found.decoded.values(), expected.bfloat16())


def test_sparse_weights_are_refused_by_name() -> None:
    with pytest.raises(IncompatibleError, match="sparse-24-bitmask"):
        opened({}, "compressed-tensors", format="dense",
               sparsity_config={"format": "sparse-24-bitmask"})  # fmt: skip


def test_scales_of_the_cache_go_and_other_leftovers_are_refused() -> None:
    good = {"m.weight": torch.zeros(4, 8, dtype=torch.int8), "m.weight_scale": torch.ones(4, 1)}
    found = opened({**good, "a.self_attn.k_scale": torch.ones(1)}, "compressed-tensors")
    assert list(found.checkpoint.tensors) == ["m.weight"]
    with pytest.raises(CorruptInputError, match=r"n\.weight_zero_point.*no quantised weight"):
        opened({**good, "n.weight_zero_point": torch.ones(4, 1)}, "compressed-tensors")
