"""compressed-tensors, as llm-compressor and vLLM write it: what a module stores says its format.

    weight_packed int32     integers of 1 to 8 bits, dense in words along a row ("pack-quantized")
    weight_packed uint8     4-bit floats: with a global scale, 16 to a scale of 8 bits
                            ("nvfp4-pack-quantized"); without, 32 to a power of two ("mxfp4-...")
    weight int8 or 8-bit floats     "int-quantized", "float-quantized", "naive-quantized"

value = (code - zero point) * weight_scale of its tensor, row, group or block. Source:
compressed-tensors' own compressors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch

from adaptool.canonical import DType, LazyTensor
from adaptool.canonical.tensors import gather
from adaptool.encodings.checkpoints.e2m1 import power_of_two, unpack_e2m1
from adaptool.encodings.checkpoints.grids import (
    Grid,
    Rounding,
    Rows,
    encode_grid,
    grid_of,
    plain_rows,
    scaled,
    spread_rows,
)
from adaptool.encodings.checkpoints.schemes.fp8 import FLOAT8
from adaptool.encodings.checkpoints.stock import FLOATS, Stock
from adaptool.encodings.checkpoints.weights import Observe, StoredWeight
from adaptool.encodings.checkpoints.words import unpack_words, words_for
from adaptool.errors import JSON, IncompatibleError

SIDES = (
    ".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape",
    ".weight_global_scale", ".weight_g_idx", ".compressed", ".bitmask", ".row_offsets",
)  # fmt: skip
_OF_ACTIVATIONS = (
    ".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale",
    ".output_zero_point",
)  # fmt: skip
_OF_CACHE = (
    ".k_scale", ".v_scale", ".q_scale", ".k_zero_point", ".v_zero_point", ".q_zero_point",
)  # fmt: skip
_SPARSE = ("marlin-24", "sparse-24-bitmask", "sparse-bitmask")
_ZEROS = (DType.INT8, DType.INT32, DType.INT64, *FLOATS, *FLOAT8)


def find(stock: Stock) -> Iterator[StoredWeight]:
    """Every module with a weight_packed or a weight_scale."""
    _refuse_sparse(stock)
    for module in stock.ending(".weight_packed"):
        packed = stock.tensors[f"{module}.weight_packed"]
        yield (_integers if packed.dtype is DType.INT32 else _floats)(stock, module)
    for module in stock.ending(".weight_scale"):
        yield _plain(stock, module)
    stock.drop(n for n in stock.tensors if n.endswith(_OF_CACHE))


def _refuse_sparse(stock: Stock) -> None:
    sparsity = stock.settings.get("sparsity_config")
    formats = {str(stock.settings.get("format"))}
    if isinstance(sparsity, dict):
        formats.add(str(sparsity.get("format")))
    for name in sorted(formats.intersection(_SPARSE)):
        raise IncompatibleError(
            f"{stock.where}: compressed-tensors in the format {name!r}, sparse weights are not "
            "read here",
            hint="merge into the model that it was made from",
            code="UNKNOWN_QUANTISATION",
        )


def _parts(stock: Stock, module: str, *sides: str) -> tuple[str, ...]:
    """Names of a module's tensors that were taken, and of those of its activations."""
    found = tuple(f"{module}{side}" for side in sides if f"{module}{side}" in stock.tensors)
    return found + stock.drop(f"{module}{side}" for side in _OF_ACTIVATIONS)


def _grid(stock: Stock, module: str, shape: tuple[int, ...], scale: LazyTensor,
          block: tuple[int, int] | None = None) -> Grid:  # fmt: skip
    grid = grid_of(shape, scale.shape, block)
    if grid is None:
        raise stock.broken(
            f"{module}.weight_scale", f"{list(scale.shape)} scales for a weight of {list(shape)}"
        )
    return grid


# -- weights of one byte --------------------------------------------------------------------------


def _plain(stock: Stock, module: str) -> StoredWeight:
    name, beside = f"{module}.weight", f"{module}.weight_scale"
    codes = stock.take(name, (DType.INT8, *FLOAT8))
    scale = stock.take(beside, FLOATS)
    grid = _grid(stock, module, codes.shape, scale, _block_structure(stock))
    zero = stock.take_if_there(f"{module}.weight_zero_point", _ZEROS, scale.shape)
    scales, order = _ordered(stock, module, grid, spread_rows(grid, scale))
    zeros = None if zero is None else _ordered_by(order, spread_rows(grid, zero), grid)
    integer = codes.dtype is DType.INT8
    parts = _parts(stock, module, ".weight", ".weight_scale", ".weight_zero_point", ".weight_g_idx")
    rounding = _rounding(codes.dtype, scale.dtype, _bits(stock, codes.dtype))

    def encode(values: LazyTensor, observe: Observe) -> Mapping[str, LazyTensor]:
        made = encode_grid(grid, (codes, scale), rounding, values, observe)
        return dict(zip((name, beside), made, strict=True))

    writable = zero is None and order is None
    return StoredWeight(
        name, "int8" if integer else "fp8", scaled(grid, plain_rows(codes), scales, zeros),
        scale.dtype, parts, encode if writable else None,
    )  # fmt: skip


def _rounding(codes: DType, scale: DType, bits: int) -> Rounding:
    element = codes.torch
    if codes is DType.INT8:
        largest = float((1 << (bits - 1)) - 1)

        def round_codes(values: torch.Tensor) -> torch.Tensor:
            return values.round_().to(element)
    else:
        largest = torch.finfo(element).max

        def round_codes(values: torch.Tensor) -> torch.Tensor:
            return values.to(element)

    return Rounding(largest, 1.0, round_codes, lambda v: v.to(scale.torch).float())


def _groups(stock: Stock) -> list[Mapping[str, JSON]]:
    """What the settings say of weights, by group of modules."""
    groups = stock.settings.get("config_groups")
    found: list[Mapping[str, JSON]] = []
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            found.append(weights)
    return found


def _bits(stock: Stock, dtype: DType) -> int:
    """The fewest bits that integer codes of one byte may have."""
    stated = [g.get("num_bits") for g in _groups(stock)] if dtype is DType.INT8 else []
    return min((b for b in stated if isinstance(b, int) and 2 <= b <= 8), default=8)


def _block_structure(stock: Stock) -> tuple[int, int] | None:
    for group in _groups(stock):
        match group.get("block_structure"):
            case [int(tall), int(wide)] if tall > 0 and wide > 0:
                return tall, wide
    return None


def _ordered(stock: Stock, module: str, grid: Grid, rows: Rows) -> tuple[Rows, torch.Tensor | None]:
    """Scales by the group of each column, where activation order scattered the groups."""
    index = stock.take_if_there(f"{module}.weight_g_idx", (DType.INT32, DType.INT64), (grid.width,))
    if index is None:
        return rows, None
    groups = index.values().long()
    if bool((groups == -1).all()):  # stored, and not used
        return rows, None
    if int(groups.min()) < 0 or int(groups.max()) >= grid.across:
        raise stock.broken(f"{module}.weight_g_idx", f"groups of which there are {grid.across}")
    order = groups * grid.wide
    return _ordered_by(order, rows, grid), order


def _ordered_by(order: torch.Tensor | None, rows: Rows, grid: Grid) -> Rows:
    if order is None or grid.across == 1:
        return rows
    return lambda first, last: rows(first, last)[:, order]


# -- packed weights -------------------------------------------------------------------------------


def _integers(stock: Stock, module: str) -> StoredWeight:
    packed = stock.take(f"{module}.weight_packed", (DType.INT32,), (None, None))
    shape, bits = _true_shape(stock, module, packed)
    scale = stock.take(f"{module}.weight_scale", FLOATS)
    grid = _grid(stock, module, shape, scale, _group_block(stock, shape, scale.shape))
    zero = stock.take_if_there(
        f"{module}.weight_zero_point", (DType.INT32,), (words_for(shape[0], bits), grid.across)
    )
    scales, order = _ordered(stock, module, grid, spread_rows(grid, scale))
    middle = 1 << (bits - 1)
    words = packed.shape[1]

    def codes(first: int, last: int) -> torch.Tensor:
        found = gather(packed, first * words, last * words).view(-1, words)
        return unpack_words(found, bits, grid.width).float() - middle

    zeros = None
    if zero is not None:
        zeros = _ordered_by(order, partial(_packed_zeros, zero, grid, bits), grid)
    parts = _parts(
        stock, module, ".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point",
        ".weight_g_idx",
    )  # fmt: skip
    value = scaled(grid, codes, scales, zeros)
    return StoredWeight(f"{module}.weight", f"int{bits}", value, scale.dtype, parts)


def _packed_zeros(zero: LazyTensor, grid: Grid, bits: int, first: int, last: int) -> torch.Tensor:
    """Zero points of rows, packed down the columns: 32 rows are `bits` whole words."""
    start = first // 32 * 32
    low, high = start // 32 * bits, words_for(last, bits)
    across = zero.shape[1]
    words = gather(zero, low * across, high * across).view(-1, across).T.contiguous()
    found = unpack_words(words, bits, last - start)[:, first - start :].T.float()
    return grid.spread(found - (1 << (bits - 1)))


def _true_shape(stock: Stock, module: str, packed: LazyTensor) -> tuple[tuple[int, int], int]:
    """Rows and columns, and the bits of a code, which the packed width must bear out."""
    name = f"{module}.weight_shape"
    stored = stock.take(name, (DType.INT64, DType.INT32), (2,)).values().tolist()
    rows, cols = int(stored[0]), int(stored[1])
    stated = {b for g in _groups(stock) if isinstance(b := g.get("num_bits"), int)} or {4, 8}
    fitting = [b for b in sorted(stated) if 1 <= b <= 8 and words_for(cols, b) == packed.shape[1]]
    if rows != packed.shape[0] or cols < 1 or not fitting:
        raise stock.broken(
            name, f"{[rows, cols]} in {list(packed.shape)} words of {sorted(stated)} bits"
        )
    return (rows, cols), fitting[0]


def _group_block(
    stock: Stock, shape: tuple[int, int], scale: tuple[int, ...]
) -> tuple[int, int] | None:
    """Of the groups that the settings state, the one whose number the scales bear out."""
    for group in _groups(stock):
        size = group.get("group_size")
        if isinstance(size, int) and size > 0 and scale == (shape[0], -(-shape[1] // size)):
            return 1, size
    return None


def _floats(stock: Stock, module: str) -> StoredWeight:
    packed = stock.take(f"{module}.weight_packed", (DType.UINT8,), (None, None))
    out, half = packed.shape
    wide = stock.take_if_there(f"{module}.weight_global_scale", (DType.FLOAT32,), (), (1,))
    kinds = (DType.UINT8, DType.FLOAT8_E8M0) if wide is None else FLOAT8
    scale = stock.take(f"{module}.weight_scale", kinds, (out, None))
    grid = _grid(stock, module, (out, 2 * half), scale)
    divisor = 1.0 if wide is None else float(wide.values())
    if divisor == 0:
        raise stock.broken(f"{module}.weight_global_scale", "zero")

    def codes(first: int, last: int) -> torch.Tensor:
        return unpack_e2m1(gather(packed, first * half, last * half).view(-1, half))

    def read(stored: torch.Tensor) -> torch.Tensor:
        return power_of_two(stored) if wide is None else stored.float() / divisor

    value = scaled(grid, codes, spread_rows(grid, scale, read))
    parts = _parts(stock, module, ".weight_packed", ".weight_scale", ".weight_global_scale")
    kind = "mxfp4" if wide is None else "nvfp4"
    return StoredWeight(f"{module}.weight", kind, value, stock.dtype, parts)
