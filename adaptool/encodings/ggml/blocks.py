"""What every type shares: how rows of values become blocks on end, and scales become halves.

Searches work on blocks that stand on end: a tensor [block, n] holds in column j the values of
block j. So all elementwise steps and all sums over the values of a block run along n, which is
long and contiguous, whatever the block's size is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from adaptool.encodings.ggml.scratch import borrow
from adaptool.errors import IncompatibleError

CHUNK = 512 * 1024
"""Values encoded at a time: so many that threads compute, and seldom wait for the interpreter."""
CUDA_CHUNK = 8 << 20
"""The same on a GPU: large enough to hide the launches."""

TINY = 1e-38
"""Added to a divisor that may be 0 with its dividend: the quotient is then 0."""

_FAINT = 1e-6
"""The least importance of a column, relative to the mean: zero would leave its values to chance."""


@dataclass(frozen=True)
class Blocks:
    """Blocks on end, to be packed.

    Attributes:
        values: float32 [block, n].
        importance: float32 [block, n], or None.
        noise: float32 [block, n] in [0, 1), or None.
        spread: float32 [n], mean square of the whole row that a block belongs to; None without
            importance.
    """

    values: torch.Tensor
    importance: torch.Tensor | None = None
    noise: torch.Tensor | None = None
    spread: torch.Tensor | None = None


Unpack = Callable[[torch.Tensor], torch.Tensor]
"""uint8 [n, size] -> float32 [n, block], contiguous."""
Pack = Callable[[Blocks], torch.Tensor]
"""Blocks on end -> uint8 [n, size]."""


PackLying = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Float32 [n, block] as they lie in rows, and noise of the same shape -> uint8 [n, size]."""


@dataclass(frozen=True)
class Scheme:
    """One type's two directions.

    Attributes:
        unpack: bytes -> values.
        pack: blocks on end -> bytes, for types that are searched; None where there is no search,
            or where the type can only be read.
        pack_lying: values as they lie -> bytes, where one pass does.
    """

    unpack: Unpack
    pack: Pack | None = None
    pack_lying: PackLying | None = None


def encode_rows(
    scheme: Scheme,
    block: int,
    values: torch.Tensor,
    importance: torch.Tensor | None,
    noise: torch.Tensor | None,
) -> torch.Tensor:
    """Pack rows [rows, width] in chunks of whole rows that fit the cache -> uint8, flat."""
    rows, width = values.shape
    step = max((CUDA_CHUNK if values.is_cuda else CHUNK) // max(width, 1), 1)
    if scheme.pack_lying is not None:
        lying = values.to(torch.float32).reshape(-1, block)
        return scheme.pack_lying(lying, noise if noise is None else noise.reshape(-1, block)).view(
            -1
        )
    if scheme.pack is None:
        raise ValueError("a type that can only be read")
    columns = None if importance is None else _normalised(importance.to(values))
    done = []
    for first in range(0, rows, step):
        piece = values[first : first + step].to(torch.float32)
        given: dict[str, torch.Tensor] = {}
        if columns is not None:
            given["importance"] = _stand("importance", columns.expand_as(piece), block)
            given["spread"] = _spread(piece, width // block)
        if noise is not None:
            given["noise"] = _stand("noise", noise[first : first + step], block)
        done.append(scheme.pack(Blocks(_stand("values", piece, block), **given)).reshape(-1))
    if not done:
        return torch.empty(0, dtype=torch.uint8, device=values.device)
    return done[0] if len(done) == 1 else torch.cat(done)


def _stand(role: str, rows: torch.Tensor, block: int) -> torch.Tensor:
    lying = rows.reshape(-1, block)
    return borrow(role, (block, lying.shape[0]), rows.device).copy_(lying.t())


def _spread(rows: torch.Tensor, blocks: int) -> torch.Tensor:
    return rows.square().mean(1).repeat_interleave(blocks)


def _normalised(importance: torch.Tensor) -> torch.Tensor:
    mean = importance.mean()
    return torch.where(mean > 0, importance / mean, 1.0).clamp_(min=_FAINT)


def round_levels(positions: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    """Round in place to the nearest integer, or up with the probability of the fraction."""
    if noise is None:
        return positions.round_()
    return positions.add_(noise.view(positions.shape)).floor_()


_BELOW_HALF = 0.5 - 2.0**-25


def truncate_from_half(positions: torch.Tensor) -> torch.Tensor:
    """Move positions, in place, so that truncating them rounds to the nearest, halves away from 0.

    So does C's roundf. The step is the float below one half: 0.49999997 + 0.5 would be 1.
    """
    half = borrow("half", (1,), positions.device).fill_(_BELOW_HALF)
    step = borrow("step", tuple(positions.shape), positions.device)
    return positions.add_(torch.copysign(half, positions, out=step))


def first_extremes(values: torch.Tensor) -> torch.Tensor:
    """The value of greatest size in each column, with its sign; of two the first. [k, n] -> [n]."""
    high, low = values.amax(0), values.amin(0)
    extremes = torch.where(high > -low, high, low)
    tied = (high == -low).nonzero().view(-1)
    if tied.numel():
        columns = values[:, tied]
        first = columns.abs().argmax(0, keepdim=True)
        extremes[tied] = columns.gather(0, first).view(-1)
    return extremes


def invert(steps: torch.Tensor) -> torch.Tensor:
    """1 / steps, and 0 where a step is 0."""
    return steps.reciprocal().masked_fill_(steps == 0, 0.0)


def half_bytes(scales: torch.Tensor) -> torch.Tensor:
    """Scales [n], rounded to half precision -> their bytes [2, n].

    Raises IncompatibleError where one is too large for it.
    """
    halves = scales.to(torch.float16)
    if bool(torch.isinf(halves).any()):
        raise IncompatibleError(
            "a block's scale would be more than the half precision in which this type stores it "
            "can hold",
            hint="Choose BF16 or F32 for this tensor.",
            code="ENCODING_RANGE",
        )
    return halves.view(torch.uint8).view(-1, 2).t()


def read_halves(packed: torch.Tensor, offset: int) -> torch.Tensor:
    """The half at a byte of every block, uint8 [n, size] -> float32 [n, 1]."""
    return packed[:, offset : offset + 2].contiguous().view(torch.float16).to(torch.float32)


def lay(standing: torch.Tensor) -> torch.Tensor:
    """Bytes of blocks on end [size, n] -> [n, size], as they are written."""
    return standing.t().contiguous()
