"""The largest values of a matrix that streams by in blocks, and what keeps only those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import TYPE_CHECKING

from adaptool.canonical import Window
from adaptool.canonical.blending import Blend, Operand
from adaptool.errors import CorruptInputError
from adaptool.methods._election import Election, weighted_sum

if TYPE_CHECKING:
    import torch

SAMPLE = 1 << 16
"""Values of the sample that brackets the answer; a smaller matrix is its own sample."""
CAUTION = 6
"""Standard deviations of the sample's quantile that the bracket leaves on either side."""
SLACK = 1 - 2.0**-21
"""Values are computed anew when they are used, and the last bits depend on the block's shape."""


def threshold(operand: Operand, density: float) -> float:
    """The size t such that |x| >= t holds for the int(density * count) largest values |x|.

    Exact, from two readings of the matrix: a sample brackets the answer, then values inside the
    bracket are collected and those above it counted (Floyd and Rivest 1975). Equal values at the
    threshold are all kept. With nothing to keep it is infinite, with all to keep 0.

    Raises CorruptInputError for infinities and NaNs.
    """
    count = operand.shape[0] * operand.shape[1]
    keep = int(density * count)
    if keep <= 0:
        return inf
    if keep >= count:
        return 0.0
    low, high = _bracket(operand, keep / count, count)
    for _ in range(2):  # where the sample misled, the answer is on one side of the bracket
        above, inside = _collect(operand, low, high)
        if above < keep <= above + inside.numel():
            place = inside.numel() - (keep - above) + 1
            return float(inside.kthvalue(place).values) * SLACK
        low, high = (0.0, low) if keep > above else (high, inf)
    raise CorruptInputError("an update has values that are not finite",
                            hint="find them with `adaptool inspect --stats`",
                            code="NOT_FINITE")  # fmt: skip


def trimmed(values: Sequence[torch.Tensor], limits: Sequence[float]) -> list[torch.Tensor]:
    """The values with zeros in place of those smaller than their operand's limit."""
    return [v * (v.abs() >= limit) for v, limit in zip(values, limits, strict=True)]


@dataclass(frozen=True)
class Trimming:
    """Of each operand only the largest values; then a sum or an election.

    Attributes:
        density: the share of values that is kept.
        election: how the operands are merged; None sums them up.
    """

    density: float
    election: Election | None = None
    whole_rows: bool = False

    def prepare(self, operands: Sequence[Operand]) -> Blend:
        """See Rule."""
        limits = [threshold(operand, self.density) for operand in operands]
        weights = [operand.weight for operand in operands]

        def blend(values: Sequence[torch.Tensor], window: Window) -> torch.Tensor:
            del window
            kept = trimmed(values, limits)
            if self.election is None:
                return weighted_sum(kept, weights)
            return self.election.outcome(kept, weights)

        return blend


def _bracket(operand: Operand, share: float, count: int) -> tuple[float, float]:
    """Sizes [low, high) between which the value at `share` from the top lies, very likely."""
    import torch

    if count <= SAMPLE:
        return 0.0, inf
    stride = count // SAMPLE | 1
    parts, offset = [], 0
    for block in operand.blocks():
        flat = block.reshape(-1)
        parts.append(flat[offset % stride :: stride].abs())
        offset = (offset - flat.numel()) % stride
    sample = torch.cat(parts).sort(descending=True).values
    size = sample.numel()
    margin = CAUTION * sqrt(share * (1 - share) / size) + 2 / size
    first, last = int((share - margin) * size), int((share + margin) * size)
    high = inf if first < 0 else float(sample[first])
    low = 0.0 if last >= size else float(sample[last])
    return low, high


def _collect(operand: Operand, low: float, high: float) -> tuple[int, torch.Tensor]:
    """How many values lie at or above `high`, and those in [low, high)."""
    import torch

    above, inside = 0, []
    for block in operand.blocks():
        sizes = block.abs()
        upper = sizes >= low
        if high < inf:
            above += int((sizes >= high).sum())
            upper &= sizes < high
        inside.append(sizes[upper])
    return above, torch.cat(inside)
