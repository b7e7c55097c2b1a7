"""A stored tensor with updates laid onto it: the arithmetic of a merge, block by block.

Each worker streams a run of rows through a few small buffers that are used again for every block,
so that memory does not depend on the model and all passes over a block find it in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
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
from adaptool.canonical.arrangement import rearranged
from adaptool.canonical.forms import Fitting, Form
from adaptool.canonical.verbs import Applier, Span, Spanning
from adaptool.errors import CorruptInputError, IncompatibleError
from adaptool.merging.desks import Desk, desk_for
from adaptool.merging.desks import Shape as DeskShape
from adaptool.merging.metering import Meter, disjoint
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
    name: str, base: LazyTensor, patches: Sequence[Patch], form: Form, how: Arithmetic
) -> LazyTensor:
    """The tensor `base` with `patches` applied, rounded once to `form` while it is streamed.

    Args:
        name: for messages and for the tally.
        base: what the patches are applied to.
        patches: updates and where they lie on it.
        form: how the result is written.
        how: the device, and where survival is collected.
    """
    banded = form.encoding is not None or any(
        p.placement.rows or p.placement.cols or p.placement.slot is not None for p in patches
    )
    if isinstance(form.encoding, Fitting):
        apart = replace(how, tally=Tally())
        form = form.fitted(patch_tensor(name, base, patches, Form(DType.FLOAT32), apart))
    rows, width = _matrix(base.shape, banded=banded)
    patched = _Patched(name, base, tuple(patches), form, how, rows, width)
    block = CUDA_BLOCK if how.device.startswith("cuda") else base.block
    if form.encoding is None:
        return LazyTensor(base.shape, form.dtype, patched.pieces, block=block)
    return LazyTensor(base.shape, form.dtype, patched.decoded, None, min(block, base.block),
                      form.encoding, patched.pieces)  # fmt: skip


def _matrix(shape: tuple[int, ...], *, banded: bool) -> tuple[int, int]:
    """Rows and row length under which a stored tensor is patched."""
    if banded and len(shape) > 1:
        return prod(shape[:-1]), shape[-1]
    return (shape[0], prod(shape[1:])) if shape else (1, 1)


@dataclass(frozen=True)
class _Work:
    """What one worker uses while it streams a run of rows."""

    bands: list[_Band]
    appliers: list[Applier]
    meter: Meter
    desk: Desk


@dataclass
class _Band:
    """A patch that is ready to run: stored rows [first, last) and the update's own geometry.

    Of these rows it lies in the columns `cols`.
    """

    update: Applicable
    scale: float
    first: int
    last: int
    cols: tuple[int, int]
    transposed: bool
    part: tuple[int, int]
    shape: tuple[int, int]
    _applier: Applier | None = None
    _done: int = 0
    _lock: Lock = field(default_factory=Lock)

    @property
    def whole(self) -> bool:
        """Whether the update must see the weight as a whole, which no window of this layout is."""
        if not isinstance(self.update, Spanning):
            return False
        held = Span.COLUMNS if self.transposed else Span.ROWS
        return self.update.span is not held

    @property
    def is_complete(self) -> bool:
        """Whether all of the update's weight lies here."""
        stored = self.last - self.first
        return self.part == (0, self.shape[0]) and stored == self.shape[self.transposed]

    def prepared(self, make: Callable[[_Band], Applier]) -> Applier:
        """What applies the update: made by the first worker that comes, for all of them."""
        with self._lock:
            if self._applier is None:
                self._applier = make(self)
            return self._applier

    def finish(self, start: int, stop: int) -> None:
        """Stored rows [start, stop) are through; after the last of the band its values go."""
        with self._lock:
            self._done += min(stop, self.last) - max(start, self.first)
            if self._done >= self.last - self.first:
                self._applier, self._done = None, 0

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
    form: Form
    how: Arithmetic
    rows: int
    width: int
    _bands: list[_Band] | None = None
    _lock: Lock = field(default_factory=Lock)

    def decoded(self, start: int, stop: int, block: int) -> Iterator[torch.Tensor]:
        """The values of an encoded result."""
        encoding = self.form.encoding
        for piece in self.pieces(start, stop, block):
            yield piece if encoding is None else encoding.decode(piece)

    def pieces(self, start: int, stop: int, block: int) -> Iterator[torch.Tensor]:
        """Stream the merged elements start..stop as they are written, values or bytes.

        `start` and `stop` stand at row ends. Encoded rows that no patch touches keep their bytes.
        """
        import torch

        device = torch.device(self.how.device)
        compute = torch.float64 if self.base.dtype is DType.FLOAT64 else torch.float32
        bands = self._prepared(compute, device)
        first, last = start // self.width, stop // self.width
        active = [b for b in bands if b.scale and b.first < last and first < b.last]
        work = _Work(
            active, [b.prepared(partial(self._applier, compute, device)) for b in active],
            Meter(active), self._desk(compute, device, min(block, stop - start)),
        )  # fmt: skip
        for here, there, touched in self._runs(active, first, last):
            positions = here * self.width, there * self.width
            if not touched and self.base.packed is not None:
                yield from self.base.packed(*positions, block)
            else:
                yield from self._merged(work, *positions, block)
        for band in active:
            band.finish(first, last)
        if self.patches:
            work.meter.record(self.how.tally, self.name, start, first, last)

    def _desk(self, compute: torch.dtype, device: torch.device, size: int) -> Desk:
        height = self.base.shape[-2] if len(self.base.shape) > 1 else self.rows
        shape = DeskShape(self.width, height, max(size, self.width))
        return desk_for(device, compute, self.base.dtype, self.form, shape)

    def _runs(self, bands: list[_Band], first: int, last: int) -> Iterator[tuple[int, int, bool]]:
        """Runs of rows that patches touch, or do not; one run where bytes cannot be kept."""
        keeps = self.form.encoding is not None and self.form.encoding == self.base.encoding
        if not keeps or not self.patches:
            yield first, last, True
            return
        edges = {first, last}
        edges |= {e for b in bands for e in (b.first, b.last) if first < e < last}
        for here, there in pairwise(sorted(edges)):
            yield here, there, any(b.first <= here < b.last for b in bands)

    def _merged(self, work: _Work, start: int, stop: int, block: int) -> Iterator[torch.Tensor]:
        width, desk, meter = self.width, work.desk, work.meter
        fresh = self.base.encoding is not None  # decoded for us alone
        block = max(block // width, 1) * width
        row = start // width
        for piece in self.base.pieces(start, stop, block):
            compares = meter.compares_next()
            before, total = desk.take(piece, keep=compares or not fresh)
            self._apply(total.view(-1, width), row, work.bands, work.appliers)
            after = desk.put(total, row * width)
            probe = desk.probe(total, after)
            if compares:
                meter.add(*desk.compare(before, total, after))
            if not isfinite(probe):
                self._refuse_nonfinite(total, desk.values(after), row * width)
            row += piece.numel() // width
            yield desk.give(after)

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
            where = slice(first - row, last - row), slice(*band.cols)
            view = grid[where]
            seen = view if base is None else base[where].clone()
            seen = seen.T if band.transposed else seen
            result = apply(seen, band.window(first, last), band.scale)
            result = result.T if band.transposed else result
            if base is not None:
                view += result - base[where]
            elif result.data_ptr() != view.data_ptr():
                view.copy_(result)

    @staticmethod
    def _disjoint(here: list[tuple[_Band, Applier, int, int]]) -> bool:
        return disjoint([(first, last, *band.cols) for band, _, first, last in here])

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

    def _applier(self, compute: torch.dtype, device: torch.device, band: _Band) -> Applier:
        import torch

        if not band.whole:
            apply = band.update.applier(compute, device)
        elif band.is_complete:
            apply = self._applier_of_whole(compute, device, band)
        else:
            raise IncompatibleError(
                f"{self.name}: a {band.update.kind} update mixes rows of which only a part lies "
                "here",
                hint="merge into the Hugging Face checkpoint, and convert that",
                code="UNSUPPORTED_LAYOUT",
            )
        if device.type == "cuda":  # workers share it, each with a stream of its own
            torch.cuda.current_stream(device).synchronize()
        return apply

    def _applier_of_whole(self, compute: torch.dtype, device: torch.device,
                          band: _Band) -> Applier:  # fmt: skip
        """U(W) of the whole weight, of which each window then takes its part."""
        import torch

        rows, cols = band.shape
        weight = torch.empty(rows, cols, dtype=compute, device=device)
        for piece, window in self._survey(band, compute, device):
            weight[window.rows, window.cols] = piece
        window = Window(slice(0, rows), slice(0, cols), band.shape)
        moved = band.update.applier(compute, device)(weight, window, 1.0)

        def apply(weight: torch.Tensor, window: Window, scale: float) -> torch.Tensor:
            part = moved[window.rows, window.cols]
            return part if scale == 1.0 else weight.lerp_(part, scale)

        return apply

    def _survey(self, band: _Band, compute: torch.dtype,
                device: torch.device) -> Iterator[tuple[torch.Tensor, Window]]:  # fmt: skip
        row = band.first
        block = max(self.base.block // self.width, 1) * self.width
        start, stop = band.first * self.width, band.last * self.width
        for piece in self.base.pieces(start, stop, block):
            grid = piece.to(device, compute, copy=True).view(-1, self.width)
            grid = grid[:, slice(*band.cols)]
            seen = grid.T if band.transposed else grid
            yield seen, band.window(row, row + grid.shape[0])
            row += grid.shape[0]

    def _band(self, patch: Patch) -> _Band:
        place, update = patch.placement, patch.update
        if isinstance(update, ExpertLowRank):
            update = update.expert(place.expert or 0)
        part = place.part
        if place.row_order is not None or place.col_order is not None or place.shift:
            update = rearranged(update, place.taken, place.col_order, shift=place.shift)
            part = None
        if not isinstance(update, Applicable):
            raise TypeError(f"a {update.kind} update is no patch")
        if place.unit != 1.0 and not update.additive:
            raise IncompatibleError(
                f"{self.name}: a {update.kind} update does not fit a weight stored with a scale",
                hint="merge into the full-precision model, and quantise that",
                code="UNSUPPORTED_LAYOUT",
            )
        first, last = place.rows or (0, self.rows)
        if place.slot is not None:
            height = self.base.shape[-2]
            first, last = place.rows or (0, height)
            first, last = first + place.slot * height, last + place.slot * height
        shape = update.shape
        outputs = shape[0] if shape else 1
        inputs = prod(shape[1:])
        return _Band(
            update, patch.scale / place.unit, first, last, place.cols or (0, self.width),
            place.transposed, part or (0, outputs), (outputs, inputs),
        )  # fmt: skip

    def _refuse_nonfinite(self, total: torch.Tensor, after: torch.Tensor, position: int) -> None:
        if self.how.allow_nonfinite or bool(after.isfinite().all()):
            return
        bad = int((~after.isfinite()).nonzero()[0])
        file = f"{self.base.stored.source.path}: " if self.base.stored else ""
        where = f"{file}{self.name}, element {position + bad}"
        if bool(total.isfinite().all()):
            raise IncompatibleError(
                f"{where}: {float(total[bad]):.6g} is beyond the range of {self.form.name}",
                hint="write another type: --dtype bfloat16 or float32",
                code="OVERFLOW",
            )
        raise CorruptInputError(
            f"{where}: the merged value is not finite",
            hint="look for NaNs with `adaptool inspect --stats`, or pass --allow-nonfinite",
            code="NOT_FINITE",
        )
