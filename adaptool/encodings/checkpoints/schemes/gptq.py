"""GPTQ: integers of 2, 3, 4 or 8 bits, packed down the columns of the transposed weight.

`qweight` int32 [in * bits / 32, out], `scales` [groups, out], `qzeros` int32
[groups, out * bits / 32], and `g_idx` [in], the group of each input: activation order scatters
them. value = scale * (code - zero); the first format stores zero - 1, "gptq_v2" stores it as it
is. Source: GPTQ (Frantar et al. 2022); the layout is AutoGPTQ's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from adaptool.canonical import DType, LazyTensor
from adaptool.canonical.tensors import gather
from adaptool.encodings.checkpoints.stock import FLOATS, Stock
from adaptool.encodings.checkpoints.weights import Make, StoredWeight, computed
from adaptool.encodings.checkpoints.words import unpack_words, words_for
from adaptool.errors import IncompatibleError

SIDES = (".qweight", ".qzeros", ".scales", ".g_idx")

_BITS = (2, 3, 4, 8)
_FORMATS = {"gptq": 1, "gptq_v2": 0}
"""What is added to a stored zero point."""


def find(stock: Stock) -> Iterator[StoredWeight]:
    """Every module that has a qweight."""
    layout = stock.settings.get("checkpoint_format") or "gptq"
    if layout not in _FORMATS:
        raise IncompatibleError(
            f"{stock.where}: GPTQ weights in the layout {layout!r}, read here are "
            f"{' and '.join(_FORMATS)}",
            hint="convert it with the library that wrote it, or merge into the original model",
            code="UNKNOWN_QUANTISATION",
        )
    bits = stock.number("bits", 4)
    if bits not in _BITS:
        raise stock.broken("quantization_config", f"bits is {bits}, GPTQ has 2, 3, 4 and 8")
    for module in stock.ending(".qweight"):
        yield _weight(stock, module, bits, _FORMATS[str(layout)])


def _weight(stock: Stock, module: str, bits: int, shift: int) -> StoredWeight:
    name = f"{module}.weight"
    codes = stock.take(f"{module}.qweight", (DType.INT32,), (None, None))
    words, out = codes.shape
    if words * 32 % bits or not words or not out:
        raise stock.broken(f"{module}.qweight", f"{list(codes.shape)} words of {bits} bits")
    inputs = words * 32 // bits
    length = group_length(stock, module, inputs)
    groups = -(-inputs // length)
    found = _Columns(
        stock, module, bits, shift, length, inputs, codes,
        stock.take(f"{module}.scales", FLOATS, (groups, out)),
        stock.take(f"{module}.qzeros", (DType.INT32,), (groups, words_for(out, bits))),
        stock.take_if_there(f"{module}.g_idx", (DType.INT32, DType.INT64), (inputs,)),
    )  # fmt: skip
    value = computed((out, inputs), DType.FLOAT32, inputs, found.begin)
    parts = [f"{module}{side}" for side in SIDES if f"{module}{side}" in stock.tensors]
    return StoredWeight(name, f"gptq {bits} bits", value, found.scales.dtype, tuple(parts))


def group_length(stock: Stock, module: str, inputs: int) -> int:
    """Inputs that share a scale. Raises CorruptInputError for a length that cannot be."""
    length = stock.number("group_size", stock.number("q_group_size", 128))
    if length != -1 and length < 1:
        raise stock.broken(module, f"quantization_config: group_size is {length}")
    return inputs if length == -1 else length


@dataclass(frozen=True)
class _Columns:
    stock: Stock
    module: str
    bits: int
    shift: int
    length: int
    inputs: int
    codes: LazyTensor
    scales: LazyTensor
    zeros: LazyTensor
    order: LazyTensor | None

    def begin(self) -> Make:
        """What makes rows of the weight: they are columns here, so all codes are held, packed."""
        words = gather(self.codes).view(self.codes.shape)
        scales = gather(self.scales).float().view(self.scales.shape)
        packed = gather(self.zeros).view(self.zeros.shape)
        zeros = unpack_words(packed, self.bits, scales.shape[1]) + self.shift
        zeros = (zeros & ((1 << self.bits) - 1)).float()
        groups = self._groups(scales.shape[0])

        def make(start: int, stop: int) -> torch.Tensor:
            rows = slice(start // self.inputs, stop // self.inputs)
            codes = unpack_words(words[:, rows].T.contiguous(), self.bits, self.inputs).float()
            codes -= zeros[:, rows].T[:, groups]
            return (codes * scales[:, rows].T[:, groups]).view(-1)

        return make

    def _groups(self, count: int) -> torch.Tensor:
        if self.order is None:
            return torch.arange(self.inputs) // self.length
        groups = gather(self.order).long()
        if int(groups.min()) < 0 or int(groups.max()) >= count:
            raise self.stock.broken(
                f"{self.module}.g_idx",
                f"groups {int(groups.min())} to {int(groups.max())} of {count}",
            )
        return groups
