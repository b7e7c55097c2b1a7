"""Quantised weights as tensors that are computed, some rows at a time, while they are written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from adaptool.canonical import DType, LazyTensor
from adaptool.canonical.tensors import BLOCK, gather
from adaptool.encodings.checkpoints.weights import computed
from adaptool.encodings.mlc.ledger import Ledger
from adaptool.encodings.mlc.schemes import Scheme

if TYPE_CHECKING:
    import torch


def quantised(
    scheme: Scheme,
    tensor: LazyTensor,
    optimize: bool = False,
    *,
    name: str = "",
    ledger: Ledger | None = None,
) -> tuple[LazyTensor, LazyTensor]:
    """Codes and scales of a weight, computed while they are streamed.

    The source is streamed by rows, once for the codes. For the scales it is streamed again, unless
    a ledger kept them; without a search that costs about a quarter of the codes' arithmetic, and
    the source's own work.

    Args:
        scheme: one with bits.
        tensor: floating-point values [..., rows, width] of any type.
        optimize: search, for each group, for the signed scale with the least squared error, over
            all codes; no group is worse than by MLC's rule.
        name: of the weight, for messages and the ledger.
        ledger: what the weights of one export share.

    Returns:
        q_weight: uint32 [..., rows, words].
        q_scale: [..., rows, groups] in the scheme's stored type.

    Raises ValueError for a scheme without bits, or a tensor that has no rows of values. Streaming
    raises as `groups.quantise` does.
    """
    if not scheme.bits or len(tensor.shape) < 2 or not tensor.shape[-1]:
        raise ValueError(f"{scheme.name} has no codes for a tensor of shape {tensor.shape}")
    weight = _Weight(scheme, tensor, optimize, name, ledger)
    *before, width = tensor.shape
    words = LazyTensor((*before, scheme.words(width)), DType.UINT32, weight.words,
                       block=BLOCK // scheme.per_word)  # fmt: skip
    scales = LazyTensor((*before, scheme.groups(width)), scheme.stored, weight.scales,
                        block=BLOCK // scheme.group)  # fmt: skip
    return words, scales


@dataclass(frozen=True, eq=False)
class _Weight:
    """A weight whose rows are quantised when their codes or scales are asked for."""

    scheme: Scheme
    source: LazyTensor
    optimize: bool
    name: str
    ledger: Ledger | None

    @property
    def _height(self) -> int:
        return prod(self.source.shape[:-1])

    def words(self, start: int, stop: int, block: int) -> Iterator[torch.Tensor]:
        """The flattened words start..stop."""
        import torch

        unit = self.scheme.words(self.source.shape[-1])
        made = (words.view(torch.uint32) for words in self._words(start // unit, -(-stop // unit)))
        yield from _cut(made, start % unit, stop - start, block)

    def scales(self, start: int, stop: int, block: int) -> Iterator[torch.Tensor]:
        """The flattened scales start..stop."""
        unit = self.scheme.groups(self.source.shape[-1])
        first, last = start // unit, -(-stop // unit)
        kept = None if self.ledger is None else self.ledger.take(self, self._height, first, last)
        made = self._scales(first, last) if kept is None else iter([kept])
        yield from _cut(made, start % unit, stop - start, block)

    def _words(self, first: int, last: int) -> Iterator[torch.Tensor]:
        from adaptool.encodings.mlc.groups import quantise

        for row, rows in self._rows(first, last):
            packed = quantise(self.scheme, rows, optimize=self.optimize, name=self.name)
            if self.ledger is not None:
                self.ledger.keep(self, self._height, row, packed.scales)
                self.ledger.record(self.name, row, packed.faint)
            yield packed.words

    def _scales(self, first: int, last: int) -> Iterator[torch.Tensor]:
        from adaptool.encodings.mlc.groups import scales_of

        for _, rows in self._rows(first, last):
            yield scales_of(self.scheme, rows, optimize=self.optimize, name=self.name)

    def _rows(self, first: int, last: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Rows first..last of the source in blocks, float32 [n, width], each with its number."""
        width = self.source.shape[-1]
        row = first
        for piece in self.source.stream(first * width, last * width, align=width):
            rows = piece.float().view(-1, width)
            yield row, rows
            row += rows.shape[0]


def _cut(
    made: Iterable[torch.Tensor], skipped: int, wanted: int, block: int
) -> Iterator[torch.Tensor]:
    """`wanted` elements of what is made, after the first `skipped`, in pieces of up to `block`."""
    for rows in made:
        flat = rows.reshape(-1)[skipped:]
        skipped = 0
        flat = flat[:wanted]
        wanted -= flat.numel()
        for position in range(0, flat.numel(), block):
            yield flat[position : position + block]


def decoded(scheme: Scheme, q_weight: LazyTensor, q_scale: LazyTensor, width: int) -> LazyTensor:
    """What the runtime computes with, float32 [..., rows, width]; decoded when it is streamed.

    A runtime that computes in float16 rounds the products to it, and so does this.

    Args:
        scheme: one with bits.
        q_weight: uint32 [..., rows, words].
        q_scale: [..., rows, groups], in the type that the scheme stores or computes in.
        width: values of a row, which the codes do not tell where the last group is a part.

    Raises ValueError if the shapes do not fit each other.
    """
    *before, words = q_weight.shape
    if q_scale.shape != (*before, scheme.groups(width)) or words != scheme.words(width):
        raise ValueError(f"{q_weight.shape} and {q_scale.shape} do not hold rows of {width}")
    groups = scheme.groups(width)

    def make(start: int, stop: int) -> torch.Tensor:
        import torch

        from adaptool.encodings.mlc.groups import dequantise

        first, last = start // width, stop // width
        codes = gather(q_weight, first * words, last * words).view(torch.int32).view(-1, words)
        scales = gather(q_scale, first * groups, last * groups).view(-1, groups)
        return dequantise(scheme, codes, scales, width).reshape(-1)

    return computed((*before, width), DType.FLOAT32, width, lambda: make)
