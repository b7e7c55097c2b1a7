"""8-bit floats with scales, and MXFP4, against transformers' own code."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.finegrained_fp8 import (  # noqa: TID251
    Fp8Dequantize,
    Fp8Quantize,
)
from transformers.integrations.mxfp4 import convert_moe_packed_tensors  # noqa: TID251

from adaptool.encodings.checkpoints.e2m1 import encode_blocks, power_of_two, unpack_e2m1
from tests.quantised.storing import Tensors, check_slices, encoded, only_weight, opened


def weight(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05


def stored_fp8(values: torch.Tensor, **settings: Any) -> Tensors:
    """As transformers stores it."""
    config = SimpleNamespace(
        weight_block_size=settings.get("weight_block_size"), scale_fmt=settings.get("scale_fmt")
    )
    quantizer = SimpleNamespace(quantization_config=config)
    return dict(Fp8Quantize(quantizer).convert({"m.weight": values}))


def read_fp8(tensors: Tensors, dtype: torch.dtype) -> torch.Tensor:
    """As transformers reads it."""
    library = Fp8Dequantize(SimpleNamespace())
    return library._dequantize_one(tensors["m.weight"], tensors["m.weight_scale_inv"], dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "settings",
    [
        {"weight_block_size": [128, 128]},
        {"weight_block_size": [32, 64]},
        {"weight_block_size": None},
        {"weight_block_size": [128, 128], "scale_fmt": "ue8m0"},
    ],
    ids=["128", "oblong", "tensor", "powers"],
)
def test_fp8(settings: dict[str, Any], dtype: torch.dtype) -> None:
    tensors = stored_fp8(weight(256, 384), **settings)
    found = opened(tensors, "fp8", dtype=str(dtype).removeprefix("torch."), **settings)
    expected = read_fp8(tensors, dtype)
    assert torch.equal(only_weight(found).decoded.values(), expected)
    check_slices(only_weight(found).decoded, expected)
    wanted = weight(256, 384) + weight(256, 384, seed=2) * 0.1
    made, seen = encoded(found, wanted)
    assert torch.equal(read_fp8(made, torch.float32), seen)
    theirs = read_fp8(stored_fp8(wanted, **settings), torch.float32)
    assert (seen - wanted).norm() <= (theirs - wanted).norm() * 1.0005


def test_fp8_at_the_edge() -> None:
    """Blocks at the end are cut off: 200 rows and 300 columns in 128 x 128."""
    codes = (weight(200, 300) * 20).to(torch.float8_e4m3fn)
    scales = weight(2, 3).abs() + 0.1
    tensors = {"m.weight": codes, "m.weight_scale_inv": scales}
    found = opened(tensors, "fp8", weight_block_size=[128, 128])
    spread = scales.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300]
    expected = codes.float() * spread
    assert torch.equal(only_weight(found).value.values(), expected)
    made, seen = encoded(found, expected * 1.25)
    assert made["m.weight_scale_inv"].shape == (2, 3)
    assert torch.allclose(seen, expected * 1.25, rtol=0.07, atol=1e-3)


@pytest.mark.parametrize("scales", [(3, 2, 1), (3, 64, 1), (3,), (3, 1, 1)])
def test_fp8_stacks_of_experts(scales: tuple[int, ...]) -> None:
    codes = (weight(3, 64, 128) * 20).to(torch.float8_e4m3fn)
    scale = torch.rand(scales) + 0.1
    tensors = {"e.gate_up_proj": codes, "e.gate_up_proj_scale_inv": scale}
    found = opened(tensors, "fp8", weight_block_size=[32, 128] if scales == (3, 2, 1) else None)
    down = scales[1] if len(scales) > 1 else 1
    spread = scale.reshape(3, down, 1).repeat_interleave(64 // down, 1)
    expected = codes.float() * spread
    assert only_weight(found).name == "e.gate_up_proj"
    assert torch.equal(only_weight(found).value.values(), expected)
    _, seen = encoded(found, expected * 1.25)
    assert torch.allclose(seen, expected * 1.25, rtol=0.07, atol=1e-3)


def test_rows_of_fbgemm() -> None:
    codes, scale = (weight(8, 16) * 20).to(torch.float8_e4m3fn), torch.rand(8, 1)
    tensors = {"m.weight": codes, "m.weight_scale": scale, "m.input_scale": torch.ones(1)}
    found = only_weight(opened(tensors, "fbgemm_fp8"))
    assert torch.equal(found.value.values(), codes.float() * scale)
    assert set(found.parts) == set(tensors)


# -- MXFP4 ----------------------------------------------------------------------------------------


def stored_mxfp4(experts: int = 3, out: int = 24, inputs: int = 96) -> Tensors:
    generator = torch.Generator().manual_seed(4)
    groups = inputs // 32
    blocks = torch.randint(0, 256, (experts, out, groups, 16), generator=generator)
    scales = torch.randint(118, 124, (experts, out, groups), generator=generator)
    return {"e.gate_up_proj_blocks": blocks.to(torch.uint8),
            "e.gate_up_proj_scales": scales.to(torch.uint8)}  # fmt: skip


def test_mxfp4() -> None:
    tensors = stored_mxfp4()
    expected = convert_moe_packed_tensors(*tensors.values())
    found = only_weight(opened(tensors, "mxfp4"))
    assert found.name == "e.gate_up_proj"
    assert found.decoded.dtype.torch == expected.dtype == torch.bfloat16
    assert torch.equal(found.decoded.values(), expected)
    check_slices(found.decoded, expected)


def test_mxfp4_is_written_back() -> None:
    tensors = stored_mxfp4()
    found = opened(tensors, "mxfp4")
    same = only_weight(found).value.values()
    made, seen = encoded(found, same)
    assert torch.equal(seen, same)
    wanted = same * 1.3 + weight(*same.shape) * 0.01
    made, seen = encoded(found, wanted)
    assert torch.equal(convert_moe_packed_tensors(*made.values()).float(), seen)


def test_mxfp4_blocks_are_the_best_of_two_scales() -> None:
    """No block is worse than with the scale of the specification, OCP MX 6.3."""
    values = weight(64, 32) * 10
    codes, scales = encode_blocks(values)
    read = unpack_e2m1(codes[:, ::2] | codes[:, 1::2] << 4) * power_of_two(scales)[:, None]
    levels = unpack_e2m1(torch.arange(16, dtype=torch.uint8))[::2].double().unique()
    steps = torch.exp2(values.double().abs().amax(1).log2().floor() - 2)[:, None]
    nearest = (values.double() / steps)[..., None].sub(levels).abs().argmin(-1)
    theirs = (levels[nearest] * steps - values).norm(dim=1)
    assert ((read - values).double().norm(dim=1) <= theirs + 1e-6).all()
    assert (read - values).norm() < theirs.norm() * 0.999
