"""A stored tensor with updates laid onto it: the arithmetic of a merge, block by block.

Each worker streams a run of rows through a few small buffers that are used again for every block,
so that memory does not depend on the model and all passes over a block find it in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite, prod
from threading import Lock
from typing import TYPE_CHECKING

from adaptool.canonical import (
    Applicable,
    Dora,
    DType,
    ExpertLowRank,
    LazyTensor,
    Placement,
    Update,
    Window,
)
from adaptool.canonical.updates import Applier
from adaptool.errors import CorruptInputError, IncompatibleError
from adaptool.merging.metering import Meter
from adaptool.merging.survival import Tally

if TYPE_CHECKING:
    import torch

CUDA_BLOCK = 16 << 20
"""Elements of a block on a GPU: large enough to hide the latency of copies and launches."""


@dataclass(frozen=True)
class Patch:
    """An update, how strong, and where it lies on a stored tensor."""

    update: Update
    scale: float
    placement: Placement


@dataclass(frozen=True)
class Arithmetic:
    """How a merge computes.

    Attributes:
        device: "cpu", "cuda" or "cuda:n".
        allow_nonfinite: let infinities and NaNs pass.
        tally: where the survival of updates is collected.
    """

    device: str = "cpu"
    allow_nonfinite: bool = False
    tally: Tally = field(default_factory=Tally)


def patch_tensor(
    name: str, base: LazyTensor, patches: Sequence[Patch], dtype: DType, how: Arithmetic
) -> LazyTensor:
    """The tensor `base` with `patches` applied, rounded once to `dtype` while it is streamed."""
    banded = any(patch.placement.rows is not None for patch in patches)
    rows, width = _matrix(base.shape, banded=banded)
    patched = _Patched(name, base, tuple(patches), dtype, how, rows, width)
    block = CUDA_BLOCK if how.device.startswith("cuda") else base.block
    return LazyTensor(base.shape, dtype, patched.pieces, block=block)


def _matrix(shape: tuple[int, ...], *, banded: bool) -> tuple[int, int]:
    """Rows and row length under which a stored tensor is patched."""
    if banded:
        return prod(shape[:-1]), shape[-1]
    return (shape[0], prod(shape[1:])) if shape else (1, 1)


@dataclass
class _Band:
    """A patch that is ready to run: stored rows [first, last) and the update's own geometry."""

    update: Applicable
    scale: float
    first: int
    last: int
    transposed: bool
    part: tuple[int, int]
    shape: tuple[int, int]

    def window(self, start: int, stop: int) -> Window:
        """The part of the update that lies on stored rows [start, stop)."""
        along = slice(start - self.first, stop - self.first)
        if self.transposed:
            return Window(slice(*self.part), along, self.shape)
        offset = self.part[0]
        rows = slice(along.start + offset, along.stop + offset)
        return Window(rows, slice(0, self.shape[1]), self.shape)


@dataclass
class _Patched:
    name: str
    base: LazyTensor
    patches: tuple[Patch, ...]
    dtype: DType
    how: Arithmetic
    rows: int
    width: int
    _bands: list[_Band] | None = None
    _lock: Lock = field(default_factory=Lock)

    def pieces(self, start: int, stop: int, block: int) -> Iterator[torch.Tensor]:
        """Stream the merged elements start..stop; start and stop stand at row ends."""
        import torch

        width = self.width
        block = max(block // width, 1) * width
        device = torch.device(self.how.device)
        compute = torch.float64 if self.base.dtype is DType.FLOAT64 else torch.float32
        bands = self._prepared(compute, device)
        first, last = start // width, stop // width
        active = [b for b in bands if b.first < last and first < b.last]
        appliers = [b.update.applier(compute, device) for b in active]
        desk = _desk(device, compute, self.base.dtype, self.dtype, min(block, stop - start))
        meter = Meter(active)
        row = first
        for piece in self.base.pieces(start, stop, block):
            before, total = desk.take(piece)
            grid = total.view(-1, width)
            self._apply(grid, row, active, appliers)
            after = desk.put(total)
            end = row + grid.shape[0]
            if meter.compares_next():
                stored = probe = desk.distance(after, before)
                meant = desk.moved(total, before) if meter.needs_meant else 0.0
                meter.add(row, end, stored=stored, meant=meant)
            else:
                probe = desk.probe(after)
            if not isfinite(probe):
                self._refuse_nonfinite(total, after, row * width)
            row = end
            yield desk.give(after)
        if self.patches:
            meter.record(self.how.tally, self.name, start, first, last)

    def _apply(self, grid: torch.Tensor, row: int, bands: list[_Band],
               appliers: list[Applier]) -> None:  # fmt: skip
        """Apply to stored rows row, row + 1, ...; several updates see the same base."""
        end = row + grid.shape[0]
        here = [
            (band, apply, max(band.first, row), min(band.last, end))
            for band, apply in zip(bands, appliers, strict=True)
            if band.first < end and row < band.last
        ]
        plain = all(band.update.additive for band, *_ in here) or len(here) == 1
        base = None if plain or self._disjoint(here) else grid.clone()
        for band, apply, first, last in here:
            view = grid[first - row : last - row]
            seen = view if base is None else base[first - row : last - row].clone()
            seen = seen.T if band.transposed else seen
            result = apply(seen, band.window(first, last), band.scale)
            result = result.T if band.transposed else result
            if base is not None:
                view += result - base[first - row : last - row]
            elif result.data_ptr() != view.data_ptr():
                view.copy_(result)

    @staticmethod
    def _disjoint(here: list[tuple[_Band, Applier, int, int]]) -> bool:
        spans = sorted((first, last) for _, _, first, last in here)
        return all(one[1] <= two[0] for one, two in pairwise(spans))

    def _prepared(self, compute: torch.dtype, device: torch.device) -> list[_Band]:
        """Bands with all that must be known of the whole tensor before its first block."""
        with self._lock:
            if self._bands is None:
                self._bands = [self._band(patch) for patch in self.patches]
                for band in self._bands:
                    if isinstance(band.update, Dora) and band.transposed:
                        windows = self._survey(band, compute, device)
                        band.update = band.update.measured(windows, compute, device)
            return self._bands

    def _survey(self, band: _Band, compute: torch.dtype,
                device: torch.device) -> Iterator[tuple[torch.Tensor, Window]]:  # fmt: skip
        row = band.first
        block = max(self.base.block // self.width, 1) * self.width
        start, stop = band.first * self.width, band.last * self.width
        for piece in self.base.pieces(start, stop, block):
            grid = piece.to(device, compute, copy=True).view(-1, self.width)
            yield grid.T, band.window(row, row + grid.shape[0])
            row += grid.shape[0]

    def _band(self, patch: Patch) -> _Band:
        place, update = patch.placement, patch.update
        if isinstance(update, ExpertLowRank):
            update = update.expert(place.expert or 0)
        if not isinstance(update, Applicable):
            raise TypeError(f"a {update.kind} update is no patch")
        first, last = place.rows or (0, self.rows)
        shape = update.shape
        outputs = shape[0] if shape else 1
        inputs = prod(shape[1:])
        return _Band(
            update, patch.scale, first, last, place.transposed, place.part or (0, outputs),
            (outputs, inputs),
        )  # fmt: skip

    def _refuse_nonfinite(self, total: torch.Tensor, after: torch.Tensor, position: int) -> None:
        if self.how.allow_nonfinite or bool(after.isfinite().all()):
            return
        bad = int((~after.isfinite()).nonzero()[0])
        file = f"{self.base.stored.source.path}: " if self.base.stored else ""
        where = f"{file}{self.name}, element {position + bad}"
        if bool(total.isfinite().all()):
            raise IncompatibleError(
                f"{where}: {float(total[bad]):.6g} is beyond the range of {self.dtype}",
                hint="write another type: --dtype bfloat16 or float32",
                code="OVERFLOW",
            )
        raise CorruptInputError(
            f"{where}: the merged value is not finite",
            hint="look for NaNs with `adaptool inspect --stats`, or pass --allow-nonfinite",
            code="NOT_FINITE",
        )


class _Desk:
    """One worker's buffers on the CPU."""

    def __init__(self, compute: torch.dtype, stored: DType, out: DType, size: int) -> None:
        import torch

        self._total = torch.empty(size, dtype=compute)
        self._out = torch.empty(size, dtype=out.torch)
        self._difference = torch.empty(size, dtype=compute)
        self._same = out == stored and out in (DType.BFLOAT16, DType.FLOAT16)
        self._small = torch.empty(size if self._same else 0, dtype=out.torch)

    def take(self, piece: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The block as stored, and a copy of it to compute in."""
        total = self._total[: piece.numel()]
        return piece, total.copy_(piece)

    def put(self, total: torch.Tensor) -> torch.Tensor:
        """The result, rounded once."""
        return self._out[: total.numel()].copy_(total)

    def give(self, after: torch.Tensor) -> torch.Tensor:
        """The result as a CPU tensor."""
        return after

    def distance(self, after: torch.Tensor, before: torch.Tensor) -> float:
        """|after - before|; not finite if any element is not."""
        import torch

        if self._same:  # nearly always exact: two neighbours subtract without rounding
            small = torch.sub(after, before, out=self._small[: after.numel()])
            return float(torch.linalg.vector_norm(small, dtype=torch.float32))
        difference = self._difference[: after.numel()].copy_(after)
        return float(difference.sub_(before.to(difference.dtype)).norm())

    def moved(self, total: torch.Tensor, before: torch.Tensor) -> float:
        """|total - before|, before rounding."""
        difference = self._difference[: total.numel()].copy_(before)
        return float(difference.sub_(total).norm())

    def probe(self, after: torch.Tensor) -> float:
        """A number that is not finite if any element is not; the converse need not hold."""
        narrow = after.dtype.itemsize < 4 and after.dtype.is_floating_point
        wide = after if str(after.dtype) == "torch.bfloat16" or not narrow else after.float()
        return float(wide.sum())


class _CudaDesk(_Desk):
    """One worker's buffers on a GPU, with pinned staging and a stream of its own.

    Several workers make copies in, arithmetic and copies out overlap.
    """

    def __init__(self, device: torch.device, compute: torch.dtype, stored: DType, out: DType,
                 size: int) -> None:  # fmt: skip
        import torch

        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._inward = torch.empty(size, dtype=stored.torch, pin_memory=True)
        self._outward = torch.empty(size, dtype=out.torch, pin_memory=True)
        with torch.cuda.stream(self._stream):
            self._before = torch.empty(size, dtype=stored.torch, device=device)
            self._total = torch.empty(size, dtype=compute, device=device)
            self._out = torch.empty(size, dtype=out.torch, device=device)
            self._difference = torch.empty(size, dtype=compute, device=device)
        self._same = False
        torch.cuda.set_stream(self._stream)

    def take(self, piece: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count = piece.numel()
        self._inward[:count].copy_(piece)
        before = self._before[:count].copy_(self._inward[:count], non_blocking=True)
        return before, self._total[:count].copy_(before)

    def give(self, after: torch.Tensor) -> torch.Tensor:
        outward = self._outward[: after.numel()]
        outward.copy_(after, non_blocking=True)
        self._stream.synchronize()
        return outward


def _desk(device: torch.device, compute: torch.dtype, stored: DType, out: DType,
          size: int) -> _Desk:  # fmt: skip
    if device.type == "cuda":
        return _CudaDesk(device, compute, stored, out, size)
    return _Desk(compute, stored, out, size)
