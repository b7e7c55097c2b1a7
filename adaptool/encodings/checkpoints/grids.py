"""Weights whose codes share a scale by blocks of rows and columns: value = (code - zero) * scale.

One block may be the whole tensor, a row, a group in a row, or 128 rows by 128 columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from threading import Lock
from typing import TYPE_CHECKING

from adaptool.canonical import DType, LazyTensor
from adaptool.canonical.tensors import gather
from adaptool.encodings.checkpoints.weights import Observe, alike, computed

if TYPE_CHECKING:
    import torch

Rows = Callable[[int, int], "torch.Tensor"]
"""`rows(first, last)`: float32 [last - first, ...] of a weight's rows, counted through a stack."""


@dataclass(frozen=True)
class Grid:
    """Where the blocks of a weight [..., height, width] lie.

    Attributes:
        shape: of the weight.
        tall, wide: rows and columns of a block; those at the end may be smaller.
        down, across: blocks in a column and in a row of one matrix.
    """

    shape: tuple[int, ...]
    tall: int
    wide: int

    @property
    def height(self) -> int:
        """Rows of one matrix."""
        return self.shape[-2]

    @property
    def width(self) -> int:
        """Columns."""
        return self.shape[-1]

    @property
    def down(self) -> int:
        """Blocks in a column of one matrix."""
        return -(-self.height // self.tall)

    @property
    def across(self) -> int:
        """Blocks in a row."""
        return -(-self.width // self.wide)

    @property
    def blocks(self) -> int:
        """Rows of blocks, through a stack."""
        return prod(self.shape[:-2]) * self.down

    def rows_of(self, first: int, last: int) -> torch.Tensor:
        """For rows first..last of the weight, counted through a stack, the rows of blocks."""
        import torch

        rows = torch.arange(first, last)
        return rows // self.height * self.down + rows % self.height // self.tall

    def spread(self, blocks: torch.Tensor) -> torch.Tensor:
        """[rows, across] -> [rows, width], or [rows, 1] if that is the same."""
        if self.across == 1:
            return blocks
        return blocks.repeat_interleave(self.wide, dim=1)[:, : self.width]


def grid_of(shape: tuple[int, ...], scale: tuple[int, ...],
            block: tuple[int, int] | None = None) -> Grid | None:  # fmt: skip
    """The grid of a weight's scales, from their shape; None if they fit no grid.

    Args:
        shape: of the weight, two dimensions or a stack of such.
        scale: of the scales; () and (1,) are one scale for all.
        block: rows and columns of a block, where they are stated.
    """
    if len(shape) < 2 or not prod(shape):
        return None
    height, width = shape[-2:]
    if prod(scale) == prod(shape[:-2]) == 1 and len(scale) <= len(shape):
        return Grid(shape, height, width)
    if scale == shape[:-1]:
        scale = (*scale, 1)
    if scale == shape[:-2]:  # one for each matrix of a stack
        scale = (*scale, 1, 1)
    if len(scale) != len(shape) or scale[:-2] != shape[:-2] or not prod(scale):
        return None
    down, across = scale[-2:]
    if block is not None:
        stated = Grid(shape, *block)
        if (stated.down, stated.across) == (down, across):
            return stated
    if height % down or width % across:
        return None
    return Grid(shape, height // down, width // across)


def scaled(grid: Grid, codes: Rows, scales: Rows, zeros: Rows | None = None,
           unit: float = 1.0) -> LazyTensor:  # fmt: skip
    """The weight, float32.

    Args:
        grid: where its blocks lie.
        codes: its rows, [n, width].
        scales: what the rows are multiplied by, [n, width] or [n, 1].
        zeros: what is taken from the codes before, in the same shapes; None for nothing.
        unit: a factor of all values.
    """
    width = grid.width

    def make(start: int, stop: int) -> torch.Tensor:
        first, last = start // width, stop // width
        values = codes(first, last)
        if zeros is not None:
            values = values - zeros(first, last)
        values = values * scales(first, last)
        return (values if unit == 1.0 else values * unit).reshape(-1)

    return computed(grid.shape, DType.FLOAT32, width, lambda: make)


def plain_rows(tensor: LazyTensor) -> Rows:
    """Rows of a stored tensor."""
    width = tensor.shape[-1]

    def rows(first: int, last: int) -> torch.Tensor:
        return gather(tensor, first * width, last * width).float().view(-1, width)

    return rows


def spread_rows(grid: Grid, tensor: LazyTensor,
                read: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Rows:  # fmt: skip
    """What a tensor of one value for each block gives the rows of the weight.

    `read` makes float32 of the stored values, where that is more than a change of type.
    """
    across = grid.across

    def rows(first: int, last: int) -> torch.Tensor:
        index = grid.rows_of(first, last)
        low, high = int(index[0]), int(index[-1]) + 1
        stored = gather(tensor, low * across, high * across)
        blocks = stored.float() if read is None else read(stored)
        return grid.spread(blocks.view(-1, across)[index - low])

    return rows


@dataclass
class _Peaks:
    """The largest magnitude in each block of a weight.

    Where blocks are more than a row tall, all are found once, by the first who asks: they are
    few. Others are found with the rows that they lie in.
    """

    grid: Grid
    values: LazyTensor
    _found: torch.Tensor | None = None
    _lock: Lock = field(default_factory=Lock)

    def of_rows(self, first: int, last: int, values: torch.Tensor | None = None) -> torch.Tensor:
        """float32 [last - first, across] for rows of the weight, whose values may be at hand."""
        if self.grid.tall > 1:
            return self.of_blocks()[self.grid.rows_of(first, last)]
        width = self.grid.width
        if values is None:
            values = gather(self.values, first * width, last * width).float()
        return self._largest(values)

    def of_blocks(self) -> torch.Tensor:
        """float32 [blocks, across]."""
        with self._lock:
            if self._found is None:
                self._found = self._survey()
            return self._found

    def _survey(self) -> torch.Tensor:
        import torch

        found = torch.zeros(self.grid.blocks, self.grid.across)
        row = 0
        for piece in self.values.stream(align=self.grid.width):
            largest = self._largest(piece.float())
            index = self.grid.rows_of(row, row + largest.shape[0])
            found.scatter_reduce_(0, index.unsqueeze(1).expand_as(largest), largest, "amax")
            row += largest.shape[0]
        return found

    def _largest(self, values: torch.Tensor) -> torch.Tensor:
        """In each block's part of each row."""
        import torch

        grid = self.grid
        missing = grid.across * grid.wide - grid.width
        sizes = torch.nn.functional.pad(values.view(-1, grid.width).abs(), (0, missing))
        return sizes.view(-1, grid.across, grid.wide).amax(2)


@dataclass(frozen=True)
class Rounding:
    """How values become codes and scales.

    Attributes:
        largest: the largest code.
        unit: what codes times scales are multiplied by.
        codes: float32 -> the codes' own type, rounded.
        scales: float32 -> the values that the stored scales will have.
    """

    largest: float
    unit: float
    codes: Callable[[torch.Tensor], torch.Tensor]
    scales: Callable[[torch.Tensor], torch.Tensor]


def encode_grid(
    grid: Grid,
    parts: tuple[LazyTensor, LazyTensor],
    rounding: Rounding,
    values: LazyTensor,
    observe: Observe,
) -> tuple[LazyTensor, LazyTensor]:
    """Codes and scales of other values, in place of the stored `parts`."""
    codes, scales = parts
    peaks = _Peaks(grid, values)
    width, across = grid.width, grid.across

    def choose(found: torch.Tensor) -> torch.Tensor:
        import torch

        found = found / (rounding.largest * rounding.unit)
        return rounding.scales(torch.where(found > 0, found, torch.ones_like(found)))

    def make_codes(start: int, stop: int) -> torch.Tensor:
        first, last = start // width, stop // width
        wanted = gather(values, start, stop).float()
        step = grid.spread(choose(peaks.of_rows(first, last, wanted)))
        limit = rounding.largest
        made = rounding.codes((wanted.view(-1, width) / step / rounding.unit).clamp_(-limit, limit))
        stored = made.float() * step
        stored = stored if rounding.unit == 1.0 else stored * rounding.unit
        observe(start, wanted, stored.view(-1))
        return made.view(-1)

    def make_scales(first: int, last: int) -> torch.Tensor:
        if grid.tall > 1:
            found = peaks.of_blocks().view(-1)[first:last]
        else:
            found = peaks.of_rows(first // across, last // across).view(-1)
        return choose(found).to(scales.dtype.torch)

    rows = values.row // width  # those of a stack are made together
    return (
        alike(codes, values.row, lambda: make_codes, values.block),
        alike(scales, rows * across, lambda: make_scales, max(values.block // width, 1) * across),
    )
