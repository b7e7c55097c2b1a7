"""The difference of two tensors as matrices that stream by in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod, sqrt
from typing import TYPE_CHECKING

from adaptool.canonical import DType, LazyTensor, Site
from adaptool.canonical.sketching import Blocks
from adaptool.errors import IncompatibleError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Difference:
    """tuned - base, of two tensors of one shape.

    float32 is exact for two bf16 or fp16 weights, and rounds a difference of two fp32 weights
    once; with a float64 weight it is float64.

    Attributes:
        site: for messages.
        base, tuned: the tensors.
        stacked: the first dimension counts experts, each a matrix of its own.
    """

    site: Site
    base: LazyTensor
    tuned: LazyTensor
    stacked: bool = False

    def __post_init__(self) -> None:
        for tensor in (self.base, self.tuned):
            if not tensor.dtype.is_floating or tensor.dtype.bits < 16:
                raise IncompatibleError(
                    f"{self.site} differs and is stored as {tensor.kind}, not as real numbers of "
                    "16 bits or more",
                    hint="name models that are not quantised, or leave it out with --skip",
                    code="QUANTISED_WEIGHT",
                )

    @property
    def slots(self) -> int:
        """Matrices in the tensor, one behind the other."""
        return self.tuned.shape[0] if self.stacked else 1

    @property
    def matrix(self) -> tuple[int, int]:
        """[rows, columns] of one slot, as stored; a convolution's kernel is in its columns."""
        shape = self.tuned.shape[1:] if self.stacked else self.tuned.shape
        return (shape[0], prod(shape[1:])) if shape else (1, 1)

    def blocks(self, slot: int) -> Blocks:
        """One slot's matrix, in blocks of rows."""
        return partial(self._stream, slot)

    def norm(self) -> float:
        """|tuned - base|_F over all slots."""
        squares = (block.double().square().sum() for s in range(self.slots) for block in
                   self._stream(s))  # fmt: skip
        return sqrt(sum(float(square) for square in squares))

    def _stream(self, slot: int) -> Iterator[torch.Tensor]:
        import torch

        rows, cols = self.matrix
        wide = DType.FLOAT64 in (self.base.dtype, self.tuned.dtype)
        start, stop = slot * rows * cols, (slot + 1) * rows * cols
        size = min(self.base.block, self.tuned.block)
        one, two = (t.stream(start, stop, align=cols, block=size) for t in (self.tuned, self.base))
        most = min(max(size // cols, 1), rows) * cols
        held = torch.empty(most, dtype=torch.float64 if wide else torch.float32)
        for after, before in zip(one, two, strict=True):
            block = held[: after.numel()].copy_(after).sub_(before)
            yield block.view(-1, cols)
