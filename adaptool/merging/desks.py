"""One worker's desk: the buffers in which a block is computed, rounded and compared.

A block goes `take` -> (the caller changes `total` in place) -> `put` -> `give`. What is put is the
rounded values of a plain type, or the packed bytes of an encoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from adaptool.canonical import DType
from adaptool.canonical.forms import Form

if TYPE_CHECKING:
    import torch

SAFE = 6e4
"""Values up to this fit the half-precision scale of any block encoding."""


@dataclass(frozen=True)
class Shape:
    """What a desk is made for: rows of `width` values, `height` rows in a slot, `size` at most."""

    width: int
    height: int
    size: int


class Desk:
    """Buffers on the CPU for plain types."""

    def __init__(self, compute: torch.dtype, form: Form, shape: Shape) -> None:
        import torch

        self._total = torch.empty(shape.size, dtype=compute)
        self._out = torch.empty(shape.size, dtype=form.dtype.torch)
        self._one = torch.empty(shape.size, dtype=compute)
        self._two = torch.empty(shape.size, dtype=compute)

    def take(self, piece: torch.Tensor, *, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The block as stored, and what to compute in.

        With `keep` the first stays as it is while the second is changed.
        """
        del keep  # mostly of another type, so always a copy
        return piece, self._total[: piece.numel()].copy_(piece)

    def put(self, total: torch.Tensor, position: int) -> torch.Tensor:
        """The result as it is stored, rounded once; `position` is the first value's."""
        del position
        return self._out[: total.numel()].copy_(total)

    def give(self, after: torch.Tensor) -> torch.Tensor:
        """The result as a CPU tensor."""
        return after

    def values(self, after: torch.Tensor) -> torch.Tensor:
        """What was stored, as values."""
        return after

    def compare(
        self, before: torch.Tensor, total: torch.Tensor, after: torch.Tensor
    ) -> tuple[float, float, float]:
        """|dW|^2, |D|^2 and <D, dW>: dW = total - before, D = after - before."""
        count = total.numel()
        meant, stored = self._one[:count].copy_(before), self._two[:count].copy_(after)
        stored.sub_(meant)
        meant.sub_(total).neg_()
        return float(meant.dot(meant)), float(stored.dot(stored)), float(stored.dot(meant))

    def probe(self, total: torch.Tensor, after: torch.Tensor) -> float:
        """A number that is not finite if any stored value is not; the converse need not hold."""
        del total
        narrow = after.dtype.itemsize < 4 and after.dtype.is_floating_point
        wide = after if str(after.dtype) == "torch.bfloat16" or not narrow else after.float()
        return float(wide.sum())


class EncodingDesk(Desk):
    """Buffers on the CPU for an encoding: what is put and given are packed bytes."""

    def __init__(self, form: Form, shape: Shape) -> None:
        import torch

        if form.encoding is None:
            raise ValueError("a plain form needs no encoding desk")
        self._form, self._encoding, self._shape = form, form.encoding, shape
        self._total = torch.empty(shape.size, dtype=torch.float32)
        self._one, self._two = torch.empty_like(self._total), torch.empty_like(self._total)

    def take(self, piece: torch.Tensor, *, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """As in Desk; without `keep` the piece itself is computed in."""
        return super().take(piece, keep=keep) if keep else (piece, piece)

    def put(self, total: torch.Tensor, position: int) -> torch.Tensor:
        """As in Desk."""
        return self._form.pack(total.view(-1, self._shape.width), position, self._shape.height)

    def values(self, after: torch.Tensor) -> torch.Tensor:
        """As in Desk."""
        return self._encoding.decode(after)

    def compare(
        self, before: torch.Tensor, total: torch.Tensor, after: torch.Tensor
    ) -> tuple[float, float, float]:
        """As in Desk."""
        return super().compare(before, total, self.values(after))

    def probe(self, total: torch.Tensor, after: torch.Tensor) -> float:
        """As in Desk."""
        import torch

        low, high = torch.aminmax(total)  # either is NaN if any value is
        largest = max(-float(low), float(high))
        return float(self.values(after).sum()) if SAFE <= largest < inf else largest


class CudaDesk(Desk):
    """Buffers on a GPU, with pinned staging and a stream of its own.

    Several workers make copies in, arithmetic and copies out overlap.
    """

    def __init__(self, device: torch.device, compute: torch.dtype, stored: DType, form: Form,
                 shape: Shape) -> None:  # fmt: skip
        import torch

        self._form, self._shape = form, shape
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        size = shape.size
        self._inward = torch.empty(size, dtype=stored.torch, pin_memory=True)
        out = torch.uint8 if form.encoding is not None else form.dtype.torch
        self._outward = torch.empty(size, dtype=out, pin_memory=True)
        with torch.cuda.stream(self._stream):
            self._before = torch.empty(size, dtype=stored.torch, device=device)
            self._total = torch.empty(size, dtype=compute, device=device)
            self._out = torch.empty(size, dtype=out, device=device)
            self._one = torch.empty(size, dtype=compute, device=device)
            self._two = torch.empty(size, dtype=compute, device=device)
        torch.cuda.set_stream(self._stream)

    def take(self, piece: torch.Tensor, *, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """As in Desk."""
        del keep
        count = piece.numel()
        self._inward[:count].copy_(piece)
        before = self._before[:count].copy_(self._inward[:count], non_blocking=True)
        return before, self._total[:count].copy_(before)

    def put(self, total: torch.Tensor, position: int) -> torch.Tensor:
        """As in Desk."""
        if self._form.encoding is None:
            return super().put(total, position)
        return self._form.pack(total.view(-1, self._shape.width), position, self._shape.height)

    def values(self, after: torch.Tensor) -> torch.Tensor:
        """As in Desk."""
        return after if self._form.encoding is None else self._form.encoding.decode(after)

    def compare(
        self, before: torch.Tensor, total: torch.Tensor, after: torch.Tensor
    ) -> tuple[float, float, float]:
        """As in Desk."""
        return super().compare(before, total, self.values(after))

    def probe(self, total: torch.Tensor, after: torch.Tensor) -> float:
        """As in Desk."""
        return super().probe(total, self.values(after))

    def give(self, after: torch.Tensor) -> torch.Tensor:
        """As in Desk."""
        outward = self._outward[: after.numel()]
        outward.copy_(after, non_blocking=True)
        self._stream.synchronize()
        return outward


def desk_for(
    device: torch.device, compute: torch.dtype, stored: DType, form: Form, shape: Shape
) -> Desk:
    """The desk for a device and for the form of the result."""
    if device.type == "cuda":
        return CudaDesk(device, compute, stored, form, shape)
    if form.encoding is not None:
        return EncodingDesk(form, shape)
    return Desk(compute, form, shape)
