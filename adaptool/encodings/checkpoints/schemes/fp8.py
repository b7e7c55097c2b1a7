"""8-bit floating point with scales: one for all, for each row, or for 128 x 128 (DeepSeek-V3).

`weight` times `weight_scale_inv` (or `weight_scale`) of its block; stacks of experts have theirs
beside them as `gate_up_proj_scale_inv`. A scale may be a power of two. Source: transformers'
fine-grained fp8; DeepSeek-V3 (2024), section 3.3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from adaptool.canonical import DType, LazyTensor
from adaptool.encodings.checkpoints.e2m1 import power_of_two
from adaptool.encodings.checkpoints.grids import (
    Rounding,
    encode_grid,
    grid_of,
    plain_rows,
    scaled,
    spread_rows,
)
from adaptool.encodings.checkpoints.stock import FLOATS, Stock
from adaptool.encodings.checkpoints.weights import Observe, StoredWeight

_OF_WEIGHT = ("_scale_inv", "_scale")
_OF_ACTIVATIONS = ("activation_scale", "input_scale", "output_scale")
SIDES = tuple(f"weight{side}" for side in _OF_WEIGHT)

FLOAT8 = (
    DType.FLOAT8_E4M3, DType.FLOAT8_E5M2, DType.FLOAT8_E4M3FNUZ, DType.FLOAT8_E5M2FNUZ,
)  # fmt: skip
_SCALES = (*FLOATS, DType.FLOAT8_E8M0, DType.UINT8)


def find(stock: Stock) -> Iterator[StoredWeight]:
    """Every tensor of 8-bit floats that has scales beside it."""
    block = _block(stock)
    for side in _OF_WEIGHT:
        for name in stock.ending(side):
            codes = stock.tensors.get(name)
            if codes is not None and codes.dtype in FLOAT8:
                yield take_float8(stock, name, side, block)


def _block(stock: Stock) -> tuple[int, int] | None:
    value = stock.settings.get("weight_block_size")
    if value is None:
        return None
    match value:
        case [int(tall), int(wide)] if tall > 0 and wide > 0:
            return tall, wide
    raise stock.broken("quantization_config", f"weight_block_size is {str(value)[:80]}")


def take_float8(
    stock: Stock, name: str, side: str, block: tuple[int, int] | None = None
) -> StoredWeight:
    """The weight `name`, with the scales whose name is `side` longer.

    `block` is the size of a block, where it is stated. Raises CorruptInputError if the scales
    do not fit the weight.
    """
    codes = stock.take(name, FLOAT8)
    beside = f"{name}{side}"
    scales = stock.take(beside, _SCALES)
    grid = grid_of(codes.shape, scales.shape, block)
    if grid is None:
        raise stock.broken(
            beside, f"{list(scales.shape)} scales for a weight of {list(codes.shape)}"
        )
    powers = scales.dtype in (DType.FLOAT8_E8M0, DType.UINT8)
    powers_wanted = powers or stock.settings.get("scale_fmt") == "ue8m0"
    read = power_of_two if powers else None
    module = name.removesuffix("weight")
    dropped = stock.drop(n for end in _OF_ACTIVATIONS for n in (f"{module}{end}", f"{name}_{end}"))
    element = codes.dtype.torch

    def round_scales(values: torch.Tensor) -> torch.Tensor:
        if powers_wanted:
            return values.log2().ceil_().exp2()
        return values.to(scales.dtype.torch).float()

    rounding = Rounding(torch.finfo(element).max, 1.0, lambda v: v.to(element), round_scales)

    def encode(values: LazyTensor, observe: Observe) -> Mapping[str, LazyTensor]:
        made = encode_grid(grid, (codes, scales), rounding, values, observe)
        return dict(zip((name, beside), made, strict=True))

    return StoredWeight(
        name, "fp8", scaled(grid, plain_rows(codes), spread_rows(grid, scales, read)), stock.dtype,
        (name, beside, *dropped), None if scales.dtype is DType.UINT8 else encode,
    )  # fmt: skip
