"""MXFP4 as gpt-oss stores its experts: 32 values of four bits share a power of two.

`gate_up_proj_blocks` uint8 [experts, out, in / 32, 16] and `gate_up_proj_scales` uint8
[experts, out, in / 32] are the weight `gate_up_proj` [experts, in, out]: transformers holds it
transposed. Source: OCP Microscaling Formats v1.0; transformers' mxfp4 integration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from adaptool.canonical import DType, LazyTensor
from adaptool.canonical.tensors import BLOCK, gather
from adaptool.encodings.checkpoints.e2m1 import (
    encode_blocks,
    pack_e2m1,
    power_of_two,
    unpack_e2m1,
)
from adaptool.encodings.checkpoints.stock import Stock
from adaptool.encodings.checkpoints.weights import (
    Make,
    Observe,
    StoredWeight,
    alike,
    computed,
)

_BLOCKS, _SCALES = "_blocks", "_scales"
SIDES = (_BLOCKS, _SCALES)

_LENGTH = 32


def find(stock: Stock) -> Iterator[StoredWeight]:
    """Every stack of experts."""
    for name in stock.ending(_BLOCKS):
        blocks = stock.take(f"{name}{_BLOCKS}", (DType.UINT8,), (None, None, None, _LENGTH // 2))
        scales = stock.take(f"{name}{_SCALES}", (DType.UINT8,), blocks.shape[:-1])
        experts, out, groups, _ = blocks.shape
        stack = _Stack(blocks, scales, out, groups * _LENGTH)
        shape = (experts, stack.inputs, out)
        value = computed(shape, DType.FLOAT32, _LENGTH * out, stack.begin)
        parts = (f"{name}{_BLOCKS}", f"{name}{_SCALES}")
        yield StoredWeight(name, "mxfp4", value, DType.BFLOAT16, parts, _Way(stack, parts).encode)


@dataclass(frozen=True)
class _Stack:
    """Experts as they are stored, each a matrix [out, inputs] in blocks along its rows."""

    blocks: LazyTensor
    scales: LazyTensor
    out: int
    inputs: int

    @property
    def size(self) -> int:
        """Values of one expert."""
        return self.out * self.inputs

    @property
    def groups(self) -> int:
        """Blocks of one row."""
        return self.inputs // _LENGTH

    def begin(self) -> Make:
        """What reads the stack for one stream."""
        return _Reader(self).make


@dataclass
class _Reader:
    """One stream's way through a stack: it holds the expert that it reads."""

    stack: _Stack
    _expert: int = -1
    _blocks: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    _scales: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def make(self, start: int, stop: int) -> torch.Tensor:
        """Values start..stop of [experts, inputs, out]: whole groups of 32 inputs."""
        size, found = self.stack.size, []
        for expert in range(start // size, -(-stop // size)):
            self._open(expert)
            unit = _LENGTH * self.stack.out
            first = max(start - expert * size, 0) // unit
            last = min(stop - expert * size, size) // unit
            values = unpack_e2m1(self._blocks[:, first:last])
            values *= power_of_two(self._scales[:, first:last].contiguous()).unsqueeze(-1)
            found.append(values.flatten(1).T.reshape(-1))
        return torch.cat(found)

    def _open(self, expert: int) -> None:
        if expert == self._expert:
            return
        stack, groups = self.stack, self.stack.out * self.stack.groups
        start, stop = expert * groups, (expert + 1) * groups
        half = _LENGTH // 2
        shape = stack.out, stack.groups
        self._blocks = gather(stack.blocks, start * half, stop * half).view(*shape, half)
        self._scales = gather(stack.scales, start, stop).view(shape)
        self._expert = expert


@dataclass(frozen=True)
class _Way:
    """Other values of a stack as blocks and scales, an expert at a time."""

    stack: _Stack
    parts: tuple[str, str]

    def encode(self, values: LazyTensor, observe: Observe) -> Mapping[str, LazyTensor]:
        """See `weights.Encode`."""
        stack = self.stack
        groups = stack.out * stack.groups
        half = _LENGTH // 2

        def begin_blocks() -> Make:
            def make(first: int, last: int) -> torch.Tensor:
                size = groups * half
                experts = range(first // size, last // size)
                return torch.cat([self._blocks(values, e, observe) for e in experts])

            return make

        def begin_scales() -> Make:
            def make(first: int, last: int) -> torch.Tensor:
                experts = range(first // groups, last // groups)
                return torch.cat([self._encoded(values, e)[1] for e in experts])

            return make

        blocks = alike(stack.blocks, groups * half, begin_blocks, BLOCK)
        return dict(zip(self.parts, (blocks, alike(stack.scales, groups, begin_scales, BLOCK)),
                        strict=True))  # fmt: skip

    def _values(self, values: LazyTensor, expert: int) -> torch.Tensor:
        start = expert * self.stack.size
        found = gather(values, start, start + self.stack.size).float()
        return found.view(self.stack.inputs, self.stack.out).T.reshape(-1, _LENGTH)

    def _encoded(self, values: LazyTensor, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        return encode_blocks(self._values(values, expert))

    def _blocks(self, values: LazyTensor, expert: int, observe: Observe) -> torch.Tensor:
        wanted = self._values(values, expert)
        codes, scales = encode_blocks(wanted)
        packed = pack_e2m1(codes)
        stored = unpack_e2m1(packed) * power_of_two(scales).unsqueeze(1)
        back = (self.stack.out, self.stack.inputs)
        observe(
            expert * self.stack.size,
            wanted.view(back).T.reshape(-1), stored.view(back).T.reshape(-1),
        )  # fmt: skip
        return packed.view(-1)
