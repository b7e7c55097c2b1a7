"""4-bit codes of a table, in blocks of a flattened weight that share their largest magnitude.

Two codes in a byte, the first in the high nibble. The scales may be quantised again: 8-bit codes
of another table, times a scale of their own blocks, plus an offset. Source: QLoRA (Dettmers et
al. 2023), section 3 and appendix E.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from math import prod

import torch

from adaptool.canonical import LazyTensor
from adaptool.canonical.tensors import BLOCK, gather
from adaptool.encodings.checkpoints.weights import Make, Observe, alike

TABLES = {
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    "fp4": tuple(
        sign * twelfths / 12
        for sign in (1.0, -1.0)
        for twelfths in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
    ),
}  # fmt: skip
"""What the 16 codes stand for, in parts of absmax."""


@dataclass(frozen=True)
class FourBits:
    """A 4-bit weight: its tensors, and what its quant_state says."""

    kind: str
    shape: tuple[int, ...]
    block: int
    codes: LazyTensor
    absmax: LazyTensor
    nested: Nested | None

    @property
    def count(self) -> int:
        """Values."""
        return prod(self.shape)

    @property
    def unit(self) -> int:
        """Values that can be encoded on their own."""
        return self.block * (self.nested.block if self.nested else 1)

    def scales(self, first: int, last: int) -> torch.Tensor:
        """The absmax of the blocks first..last, float32."""
        stored = gather(self.absmax, first, last)
        return stored.float() if self.nested is None else self.nested.decode(stored, first, last)

    def make(self, start: int, stop: int) -> torch.Tensor:
        """The values start..stop: whole blocks."""
        octets = gather(self.codes, start // 2, -(-stop // 2))
        codes = torch.stack((octets >> 4, octets & 15), dim=1).view(-1)[: stop - start]
        return self._value(codes, self.scales(start // self.block, -(-stop // self.block)))

    def _value(self, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        levels = table_of(self.kind)[codes.int()]
        return _by_blocks(levels, self.block).mul_(scales.unsqueeze(1)).view(-1)[: codes.numel()]

    # -- the way back

    def encode(self, names: Mapping[str, str], values: LazyTensor,
               observe: Observe) -> Mapping[str, LazyTensor]:  # fmt: skip
        """Parts for other values: codes are the nearest under the scales as they are stored."""
        read = partial(_read_values, values, self.count)
        size = max(BLOCK, values.row)
        made = {
            names["codes"]: alike(
                self.codes, self.unit // 2, lambda: partial(self._codes, read, observe), size // 2
            ),
            names["absmax"]: alike(
                self.absmax, self.unit // self.block, lambda: partial(self._absmax, read),
                size // self.block,
            ),
        }  # fmt: skip
        nested = self.nested
        if nested is not None:
            made[names["nested_absmax"]] = alike(
                nested.absmax, 1, lambda: partial(self._nested_absmax, nested, read),
                size // self.unit,
            )  # fmt: skip
        return made

    def _peaks(self, values: torch.Tensor) -> torch.Tensor:
        return _by_blocks(values, self.block).abs().amax(1)

    def _scales(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of whole units: the scales as they will be read, and as they are stored."""
        peaks = self._peaks(values)
        if self.nested is not None:
            return self.nested.encode(peaks)[:2]
        stored = peaks.to(self.absmax.dtype.torch)
        return stored.float(), stored

    def _codes(self, read: Make, observe: Observe, first: int, last: int) -> torch.Tensor:
        start, stop = 2 * first, min(2 * last, self.count)
        wanted = read(start, stop)
        scales, _ = self._scales(wanted)
        divisors = torch.where(scales > 0, scales, torch.ones_like(scales)).unsqueeze(1)
        parts = (_by_blocks(wanted, self.block) / divisors).view(-1)[: wanted.numel()]
        middles, order = _middles(self.kind)
        parts = torch.nn.functional.pad(parts, (0, parts.numel() % 2))
        codes = order[torch.bucketize(parts, middles)]
        observe(start, wanted, self._value(codes[: wanted.numel()], scales))
        return (codes[::2] << 4) | codes[1::2]

    def _absmax(self, read: Make, first: int, last: int) -> torch.Tensor:
        wanted = read(first * self.block, min(last * self.block, self.count))
        return self._scales(wanted)[1]

    def _nested_absmax(self, nested: Nested, read: Make, first: int, last: int) -> torch.Tensor:
        wanted = read(first * self.unit, min(last * self.unit, self.count))
        return nested.encode(self._peaks(wanted))[2]


@dataclass(frozen=True)
class Nested:
    """How scales are quantised again."""

    block: int
    offset: float
    table: LazyTensor
    absmax: LazyTensor

    def decode(self, codes: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """The scales of blocks first..last."""
        peaks = gather(self.absmax, first // self.block, -(-last // self.block)).float()
        which = torch.arange(first, last) // self.block - first // self.block
        return gather(self.table).float()[codes.int()] * peaks[which] + self.offset

    def encode(self, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of whole blocks of scales: as they will be read, their codes, their own scales."""
        table = gather(self.table).float()
        rest = _by_blocks(scales - self.offset, self.block)
        peaks = rest.abs().amax(1).to(self.absmax.dtype.torch).float()
        divisors = torch.where(peaks > 0, peaks, torch.ones_like(peaks)).unsqueeze(1)
        codes = torch.bucketize(rest / divisors, (table[1:] + table[:-1]) / 2)
        read = (table[codes] * peaks.unsqueeze(1)).view(-1)[: scales.numel()] + self.offset
        return read, codes.view(-1)[: scales.numel()].to(torch.uint8), peaks


def _read_values(values: LazyTensor, count: int, start: int, stop: int) -> torch.Tensor:
    return gather(values, start, min(stop, count)).float()


def _by_blocks(values: torch.Tensor, block: int) -> torch.Tensor:
    """[n] -> [blocks, block], zeros after the end."""
    missing = -values.numel() % block
    return torch.nn.functional.pad(values, (0, missing)).view(-1, block)


@cache
def table_of(kind: str) -> torch.Tensor:
    """The 16 levels, float32."""
    return torch.tensor(TABLES[kind], dtype=torch.float32)


@cache
def _middles(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Between which parts of absmax a code is the nearest, and the codes in that order."""
    table = table_of(kind)
    order = torch.argsort(table, stable=True)
    ordered = table[order]
    return (ordered[1:] + ordered[:-1]) / 2, order.to(torch.uint8)
