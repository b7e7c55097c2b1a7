"""AWQ: 4-bit integers, eight in a word along the outputs of the transposed weight.

`qweight` int32 [in, out / 8], `qzeros` int32 [in / group, out / 8], `scales` [in / group, out];
nibble n of a word is output (0, 2, 4, 6, 1, 3, 5, 7)[n] of its eight. value = scale *
(code - zero). Source: AWQ (Lin et al. 2023); the layout is AutoAWQ's "gemm".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from adaptool.canonical import DType, LazyTensor
from adaptool.canonical.tensors import gather
from adaptool.encodings.checkpoints.schemes.gptq import group_length
from adaptool.encodings.checkpoints.stock import FLOATS, Stock
from adaptool.encodings.checkpoints.weights import Make, StoredWeight, computed
from adaptool.errors import IncompatibleError

SIDES = (".qweight", ".qzeros", ".scales")

_BITS, _PER_WORD = 4, 8
_NIBBLE_OF = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which nibble of a word holds each of its eight outputs."""
_LAYOUTS = ("gemm", "exllama")


def find(stock: Stock) -> Iterator[StoredWeight]:
    """Every module that has a qweight."""
    layout = str(stock.settings.get("version") or stock.settings.get("format") or "gemm").lower()
    bits = stock.number("bits", stock.number("w_bit", _BITS))
    if layout not in _LAYOUTS or bits != _BITS:
        raise IncompatibleError(
            f"{stock.where}: AWQ weights of {bits} bits in the layout {layout!r}, read here are "
            f"{_BITS} bits, {' or '.join(_LAYOUTS)}",
            hint="merge into the model that it was made from",
            code="UNKNOWN_QUANTISATION",
        )
    for module in stock.ending(".qweight"):
        yield _weight(stock, module)


def _weight(stock: Stock, module: str) -> StoredWeight:
    codes = stock.take(f"{module}.qweight", (DType.INT32,), (None, None))
    inputs, words = codes.shape
    if not inputs or not words:
        raise stock.broken(f"{module}.qweight", f"{list(codes.shape)} words")
    out = words * _PER_WORD
    length = group_length(stock, module, inputs)
    groups = -(-inputs // length)
    zeros = stock.take(f"{module}.qzeros", (DType.INT32,), (groups, words))
    scales = stock.take(f"{module}.scales", FLOATS, (groups, out))
    columns = _Columns(codes, zeros, scales, length)
    value = computed((out, inputs), DType.FLOAT32, _PER_WORD * inputs, columns.begin)
    parts = tuple(f"{module}{side}" for side in SIDES)
    return StoredWeight(f"{module}.weight", "awq 4 bits", value, scales.dtype, parts)


@dataclass(frozen=True)
class _Columns:
    codes: LazyTensor
    zeros: LazyTensor
    scales: LazyTensor
    length: int

    def begin(self) -> Make:
        """What makes rows of the weight: they are columns here, so all codes are held, packed."""
        inputs = self.codes.shape[0]
        words = gather(self.codes).view(self.codes.shape)
        zeros = _unpack(gather(self.zeros).view(self.zeros.shape))
        scales = gather(self.scales).float().view(self.scales.shape)
        groups = torch.arange(inputs) // self.length

        def make(start: int, stop: int) -> torch.Tensor:
            first, last = start // inputs, stop // inputs
            codes = _unpack(words[:, first // _PER_WORD : last // _PER_WORD])
            codes -= zeros[:, first:last][groups]
            return (codes * scales[:, first:last][groups]).T.reshape(-1)

        return make


def _unpack(words: torch.Tensor) -> torch.Tensor:
    """int32 [n, words] -> float32 [n, 8 * words]."""
    shifts = torch.tensor(_NIBBLE_OF, dtype=torch.int32) * _BITS
    return ((words.unsqueeze(-1) >> shifts) & 15).flatten(1).float()
