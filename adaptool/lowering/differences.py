"""U(W) - W of one weight, in blocks of rows as the weight is stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from adaptool.canonical import Applicable, Dora, LazyTensor, Window
from adaptool.canonical.sketching import Blocks
from adaptool.canonical.tensors import BLOCK
from adaptool.canonical.verbs import Applier, Span, Spanning

if TYPE_CHECKING:
    import torch

HELD = 1 << 26
"""Values of a difference that is held in memory (256 MB) while its factors are sought; a larger one
is computed again for each of the passes over it, unless it can only be computed as a whole."""


@dataclass(frozen=True)
class Difference:
    """U(W) - W, computed in float64 and rounded to float32 after the subtraction.

    Attributes:
        update: of a weight [out, in, *kernel].
        weight: as stored; None where the difference does not depend on it.
        transposed: the weight is stored as [in, out].
    """

    update: Applicable
    weight: LazyTensor | None
    transposed: bool = False

    @property
    def matrix(self) -> tuple[int, int]:
        """(out, in * kernel)."""
        shape = self.update.shape
        return (shape[0] if shape else 1), prod(shape[1:])

    @property
    def stored(self) -> tuple[int, int]:
        """Rows and columns of the blocks."""
        return self.matrix[::-1] if self.transposed else self.matrix

    def blocks(self) -> Blocks:
        """What yields float32 blocks [rows, columns] of `stored`, any number of times."""
        if not self._is_whole and prod(self.matrix) > HELD:
            return self._computed
        whole = self.values()
        return lambda: iter((whole,))

    def values(self) -> torch.Tensor:
        """All of it, [rows, columns] of `stored`, float32."""
        import torch

        whole = torch.empty(self.stored)
        row = 0
        for block in self._computed():
            whole[row : row + len(block)] = block
            row += len(block)
        return whole

    @property
    def _is_whole(self) -> bool:
        """Whether the update must see all of the weight, which no block holds."""
        held = Span.COLUMNS if self.transposed else Span.ROWS
        return isinstance(self.update, Spanning) and self.update.span is not held

    def _computed(self) -> Iterator[torch.Tensor]:
        import torch

        apply = self._applier()
        for seen, window in self._windows(BLOCK if not self._is_whole else prod(self.matrix)):
            moved = apply(seen.clone(), window, 1.0).sub_(seen)  # appliers may work in place
            yield (moved.T if self.transposed else moved).to(torch.float32).contiguous()

    def _applier(self) -> Applier:
        import torch

        wide = torch.float64, torch.device("cpu")
        if isinstance(self.update, Dora) and self.transposed:  # no block holds whole rows
            return self.update.measured(self._windows(BLOCK), *wide).applier(*wide)
        return self.update.applier(*wide)

    def _windows(self, block: int) -> Iterator[tuple[torch.Tensor, Window]]:
        """The weight in the update's orientation, in about `block` values at a time."""
        row, (_, width) = 0, self.stored
        for grid in self._grids(block):
            along, across = slice(row, row + len(grid)), slice(0, width)
            row += len(grid)
            if self.transposed:
                yield grid.T, Window(across, along, self.matrix)
            else:
                yield grid, Window(along, across, self.matrix)

    def _grids(self, block: int) -> Iterator[torch.Tensor]:
        """Stored rows in float64; zeros where the weight does not matter."""
        import torch

        rows, width = self.stored
        if self.weight is not None:
            for piece in self.weight.stream(align=width, block=block):
                yield piece.to(torch.float64, copy=True).view(-1, width)
            return
        step = max(block // width, 1)
        for first in range(0, rows, step):
            yield torch.zeros(min(step, rows - first), width, dtype=torch.float64)
