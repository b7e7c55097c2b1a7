"""bitsandbytes: nf4 and fp4 (QLoRA) and int8 (LLM.int8), as transformers stores them.

4 bits: `weight` has two codes in a byte, the first in the high nibble; each `blocksize` of the
flattened weight share one `absmax`. Doubly quantised, absmax is itself 8-bit codes of the table
`nested_quant_map` times `nested_absmax`, plus an offset. What is no tensor stands as JSON in
`quant_state.bitsandbytes__nf4`. Source: QLoRA (Dettmers et al. 2023), section 3 and appendix E.

8 bits: int8 rows, `SCB` the largest magnitude of each row, standing for 127. Source: LLM.int8()
(Dettmers et al. 2022), section 2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from math import isfinite, prod

import torch

from adaptool.canonical import DType, LazyTensor
from adaptool.canonical.tensors import from_storage
from adaptool.encodings.checkpoints.fourbits import TABLES, FourBits, Nested, table_of
from adaptool.encodings.checkpoints.grids import (
    Grid,
    Rounding,
    encode_grid,
    plain_rows,
    scaled,
    spread_rows,
)
from adaptool.encodings.checkpoints.stock import FLOATS, Stock
from adaptool.encodings.checkpoints.weights import (
    Observe,
    StoredWeight,
    computed,
)

_STATE = ".quant_state.bitsandbytes__"
SIDES = (
    ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".SCB", ".weight_format",
    f"{_STATE}nf4", f"{_STATE}fp4",
)  # fmt: skip

_STATE_LIMIT = 4096
_LONGEST_BLOCK = 1 << 16
_MAP_TOLERANCE = 1e-3
_PER_127 = 7.874015718698502e-3
"""1 / 127, as the library writes it."""


def find(stock: Stock) -> Iterator[StoredWeight]:
    """Weights of 4 and of 8 bits; both may stand in one checkpoint."""
    for kind in TABLES:
        for name in stock.ending(f"{_STATE}{kind}"):
            yield _four_bits(stock, name, kind)
    for module in stock.ending(".SCB"):
        yield _eight_bits(stock, module)


# -- 4 bits ---------------------------------------------------------------------------------------


def _four_bits(stock: Stock, name: str, kind: str) -> StoredWeight:
    state_name = f"{name}{_STATE}{kind}"
    state = _State(stock, state_name, kind)
    count, block = prod(state.shape), state.size("blocksize")
    blocks = -(-count // block)
    stored = stock.take(name, (DType.UINT8, *FLOATS))
    if stored.nbytes != -(-count // 2) or len(stored.shape) > 2:
        raise stock.broken(
            name, f"{stored.nbytes} bytes hold no weight of {list(state.shape)} in 4 bits"
        )
    parts = {"codes": name, "absmax": f"{name}.absmax", "quant_map": f"{name}.quant_map"}
    table = stock.take(parts["quant_map"], (DType.FLOAT32,), (16,))
    if not torch.allclose(table.values(), table_of(kind), atol=_MAP_TOLERANCE, rtol=0):
        raise stock.broken(parts["quant_map"], f"this is not the table of {kind}")
    nested = None
    if f"{name}.nested_absmax" in stock.tensors:
        parts |= {key: f"{name}.{key}" for key in ("nested_absmax", "nested_quant_map")}
        length = state.size("nested_blocksize")
        nested = Nested(
            length, state.offset(),
            stock.take(parts["nested_quant_map"], (DType.FLOAT32,), (256,)),
            stock.take(parts["nested_absmax"], (DType.FLOAT32,), (-(-blocks // length),)),
        )  # fmt: skip
        absmax = stock.take(parts["absmax"], (DType.UINT8,), (blocks,))
    else:
        absmax = stock.take(parts["absmax"], FLOATS, (blocks,))
    found = FourBits(kind, state.shape, block, _octets(stock, name, stored), absmax, nested)
    return StoredWeight(
        name, kind,
        computed(state.shape, DType.FLOAT32, block, lambda: found.make), state.dtype,
        (*parts.values(), state_name),
        partial(found.encode, parts) if stored.dtype is DType.UINT8 else None,
    )  # fmt: skip


def _octets(stock: Stock, name: str, stored: LazyTensor) -> LazyTensor:
    """The bytes of the codes, which may be declared to be numbers of a wider type."""
    if stored.dtype is DType.UINT8:
        return stored
    if stored.stored is None:
        raise stock.broken(name, f"codes of {stored.dtype} that are in no file")
    return from_storage(stored.stored, (stored.nbytes,), DType.UINT8)


class _State:
    """The JSON of a weight's quant_state, read with suspicion."""

    def __init__(self, stock: Stock, name: str, kind: str) -> None:
        self._stock, self._name = stock, name
        stored = stock.take(name, (DType.UINT8,), (None,))
        if stored.count > _STATE_LIMIT:
            raise stock.broken(name, f"{stored.count} bytes of JSON")
        try:
            content = json.loads(bytes(stored.values().tolist()))
        except (ValueError, RecursionError) as error:
            raise stock.broken(name, "not JSON") from error
        self._content = content if isinstance(content, dict) else {}
        if self._content.get("quant_type") != kind:
            raise self._wrong("quant_type")
        self.shape = self._shape()
        self.dtype = self._dtype()

    def size(self, key: str) -> int:
        """A block's length."""
        value = self._content.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(key)
        if not 2 <= value <= _LONGEST_BLOCK or value & (value - 1):
            raise self._wrong(key)
        return value

    def offset(self) -> float:
        """What is added to scales that are quantised again."""
        value = self._content.get("nested_offset")
        if not isinstance(value, float | int) or not isfinite(value):
            raise self._wrong("nested_offset")
        return float(value)

    def _shape(self) -> tuple[int, ...]:
        value = self._content.get("shape")
        if not isinstance(value, list) or not value or len(value) > 8:
            raise self._wrong("shape")
        if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in value):
            raise self._wrong("shape")
        return tuple(value)

    def _dtype(self) -> DType:
        value = self._content.get("dtype")
        found = next((dtype for dtype in FLOATS if dtype.value == value), None)
        if found is None:
            raise self._wrong("dtype")
        return found

    def _wrong(self, key: str) -> Exception:
        shown = repr(self._content.get(key))[:80]
        return self._stock.broken(self._name, f"{key} is {shown}")


# -- 8 bits ---------------------------------------------------------------------------------------


def _eight_bits(stock: Stock, module: str) -> StoredWeight:
    name = f"{module}.weight"
    codes = stock.take(name, (DType.INT8,), (None, None))
    scales = stock.take(f"{module}.SCB", FLOATS, codes.shape[:1])
    layout = stock.take_if_there(f"{module}.weight_format", (DType.UINT8,), (), (1,))
    if layout is not None and int(layout.values()):
        raise stock.broken(f"{module}.weight_format", "only rows as they are, 0, are read here")
    grid = Grid(codes.shape, 1, codes.shape[1])
    rounding = Rounding(
        127.0, _PER_127, lambda v: v.round_().to(torch.int8),
        lambda v: v.to(scales.dtype.torch).float(),
    )  # fmt: skip

    def encode(values: LazyTensor, observe: Observe) -> Mapping[str, LazyTensor]:
        made = encode_grid(grid, (codes, scales), rounding, values, observe)
        return dict(zip((name, f"{module}.SCB"), made, strict=True))

    value = scaled(grid, plain_rows(codes), spread_rows(grid, scales), unit=_PER_127)
    sides = [f"{module}.SCB", *([f"{module}.weight_format"] if layout is not None else [])]
    return StoredWeight(name, "int8", value, stock.dtype, (name, *sides), encode)
