"""A tensor whose shape and type are known and whose values are read when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from adaptool.canonical.dtypes import DType
from adaptool.canonical.forms import Encoding, Form

if TYPE_CHECKING:
    import torch

BLOCK = 256 * 1024
"""Elements of one streamed block: small enough that all its copies stay in a core's L2 cache."""


ENCODED_BLOCK = 512 * 1024
"""The same for block encodings: so many that threads seldom wait for the interpreter."""

_COMPARED = 1 << 20
"""Bytes compared at a time."""


class ByteSource(Protocol):
    """An open file, as far as the nouns need to know it."""

    @property
    def path(self) -> Path:
        """Where it is, for messages."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; raise if the file ends before."""
        ...


@dataclass(frozen=True, slots=True)
class Stored:
    """Contiguous bytes of a file: row-major and little-endian, or in the tensor's encoding."""

    source: ByteSource
    offset: int
    size: int


Stream = Callable[[int, int, int], "Iterator[torch.Tensor]"]


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor of known shape whose values are streamed.

    Attributes:
        shape: sizes, slowest dimension first.
        dtype: type of the values that `stream` yields.
        pieces: `pieces(start, stop, block)` yields the flattened elements `start..stop` in
            consecutive one-dimensional pieces of at most `block` elements each. A piece is
            valid until the next one is asked for: its buffer is used again.
        stored: where the bytes lie, when they can be copied as they are; else None.
        block: elements per piece that this tensor streams best.
        encoding: how the bytes that are written are packed; None: as `dtype` lies in memory.
        packed: like `pieces`, but yields the bytes (uint8) of an encoded tensor.
    """

    shape: tuple[int, ...]
    dtype: DType
    pieces: Stream
    stored: Stored | None = None
    block: int = BLOCK
    encoding: Encoding | None = None
    packed: Stream | None = None

    @property
    def count(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as it is written."""
        return self.nbytes_of(self.count)

    def nbytes_of(self, count: int) -> int:
        """Bytes of `count` elements (whole blocks of them) as they are written."""
        if self.encoding is not None:
            return count // self.encoding.block * self.encoding.size
        return self.dtype.nbytes(count)

    @property
    def kind(self) -> str:
        """What the written values are: the encoding's name, else the dtype's."""
        return self.encoding.name if self.encoding is not None else self.dtype.value

    @property
    def row(self) -> int:
        """Elements per index of the first dimension (1 for a scalar or a vector)."""
        return prod(self.shape[1:]) if len(self.shape) > 1 else 1

    def stream(self, start: int = 0, stop: int | None = None, *, align: int = 1,
               block: int | None = None) -> Iterator[torch.Tensor]:  # fmt: skip
        """Yield flattened elements in pieces that are multiples of `align` elements."""
        size = self.block if block is None else block
        stop = self.count if stop is None else stop
        return self.pieces(start, stop, max(size // align, 1) * align)

    def bytes(self, start: int = 0, stop: int | None = None) -> Iterator[memoryview]:
        """Yield the bytes of the elements start..stop as they are written.

        A buffer is valid until the next one is asked for.
        """
        stop = self.count if stop is None else stop
        for piece in (self.packed or self.pieces)(start, stop, self.block):
            yield byte_view(piece)

    def values(self) -> torch.Tensor:
        """The whole tensor in memory, in its own dtype and shape."""
        import torch

        whole = torch.empty(self.count, dtype=self.dtype.torch)
        position = 0
        for piece in self.stream():
            whole[position : position + piece.numel()] = piece
            position += piece.numel()
        return whole.reshape(self.shape)

    def reshaped(self, *shape: int) -> LazyTensor:
        """The same elements in another shape."""
        if prod(shape) != self.count:
            raise ValueError(f"{self.shape} does not reshape to {shape}")
        return replace(self, shape=shape)

    @property
    def form(self) -> Form:
        """How the values are written."""
        return Form(self.dtype, self.encoding)

    def written(self, form: Form) -> LazyTensor:
        """The same values in another form, rounded when they are streamed; whole rows at a time.

        Raises ValueError if rows do not consist of whole blocks of the form's encoding.
        """
        encoding = form.encoding
        if encoding is None:
            return self.cast(form.dtype)
        if encoding == self.encoding and form.seed is None:
            return self
        if not self.shape or self.shape[-1] % encoding.block:
            raise ValueError(f"rows of {self.shape} are no blocks of {encoding.block}")
        form = form.fitted(self)
        encoding = form.encoding or encoding
        packed = partial(_encode, self, form)
        return replace(self, dtype=form.dtype, stored=None, block=ENCODED_BLOCK,
                       encoding=encoding, packed=packed,
                       pieces=partial(_decode, packed, encoding))  # fmt: skip

    def cast(self, dtype: DType) -> LazyTensor:
        """The same values, rounded to `dtype` when they are streamed."""
        if dtype == self.dtype and self.encoding is None:
            return self
        return replace(self, dtype=dtype, stored=None, pieces=partial(_cast, self, dtype),
                       encoding=None, packed=None)  # fmt: skip


def _cast(tensor: LazyTensor, dtype: DType, start: int, stop: int,
          block: int) -> Iterator[torch.Tensor]:  # fmt: skip
    for piece in tensor.pieces(start, stop, block):
        yield piece.to(dtype.torch)


def from_storage(stored: Stored, shape: tuple[int, ...], dtype: DType) -> LazyTensor:
    """A tensor whose values are the bytes at `stored`."""
    return LazyTensor(shape, dtype, partial(_read_stored, stored, dtype), stored)


def _read_stored(stored: Stored, dtype: DType, start: int, stop: int,
                 block: int) -> Iterator[torch.Tensor]:  # fmt: skip
    import torch

    item = dtype.bits // 8
    buffer = torch.empty(min(block, stop - start) * item, dtype=torch.uint8)
    window = byte_view(buffer)
    values = buffer.view(dtype.torch)
    for first in range(start, stop, block):
        count = min(block, stop - first)
        stored.source.read_into(stored.offset + first * item, window[: count * item])
        yield values[:count]


def from_packed(stored: Stored, shape: tuple[int, ...], encoding: Encoding) -> LazyTensor:
    """A tensor whose values are what the bytes at `stored` decode to."""
    packed = partial(_read_packed, stored, encoding)
    return LazyTensor(
        shape, DType.FLOAT32, partial(_decode, packed, encoding), stored, ENCODED_BLOCK,
        encoding, packed,
    )  # fmt: skip


def _read_packed(stored: Stored, encoding: Encoding, start: int, stop: int,
                 block: int) -> Iterator[torch.Tensor]:  # fmt: skip
    first, last = (p // encoding.block * encoding.size for p in (start, stop))
    step = max(block // encoding.block, 1) * encoding.size
    yield from _read_stored(replace(stored, offset=stored.offset + first), DType.UINT8,
                            0, last - first, step)  # fmt: skip


def _decode(packed: Stream, encoding: Encoding, start: int, stop: int,
            block: int) -> Iterator[torch.Tensor]:  # fmt: skip
    for piece in packed(start, stop, block):
        yield encoding.decode(piece)


def _encode(tensor: LazyTensor, form: Form, start: int, stop: int,
            block: int) -> Iterator[torch.Tensor]:  # fmt: skip
    width = tensor.shape[-1]
    height = tensor.shape[-2] if len(tensor.shape) > 1 else 1
    position = start
    for piece in tensor.pieces(start, stop, max(block // width, 1) * width):
        yield form.pack(piece.float().view(-1, width), position, height)
        position += piece.numel()


def from_values(values: torch.Tensor) -> LazyTensor:
    """A tensor that is already in memory."""
    flat = values.detach().contiguous().reshape(-1)
    dtype = DType(str(values.dtype).removeprefix("torch."))
    return LazyTensor(tuple(values.shape), dtype, partial(_slice_values, flat))


def from_recipe(
    shape: tuple[int, ...], dtype: DType, make: Callable[[], torch.Tensor]
) -> LazyTensor:
    """A tensor that `make` computes as a whole, once, when its values are first asked for."""
    made = cache(lambda: make().reshape(-1))

    def pieces(start: int, stop: int, block: int) -> Iterator[torch.Tensor]:
        yield from _slice_values(made(), start, stop, block)

    return LazyTensor(shape, dtype, pieces)


def transposed(tensor: LazyTensor) -> LazyTensor:
    """The last two dimensions exchanged; computed as a whole, so for small tensors."""
    *before, rows, cols = tensor.shape
    make = partial(_transpose, tensor)
    return from_recipe((*before, cols, rows), tensor.dtype, make)


def _transpose(tensor: LazyTensor) -> torch.Tensor:
    return tensor.values().mT.contiguous()


def _slice_values(flat: torch.Tensor, start: int, stop: int,
                  block: int) -> Iterator[torch.Tensor]:  # fmt: skip
    for first in range(start, stop, block):
        yield flat[first : min(first + block, stop)]


def byte_view(values: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without copying."""
    import torch

    return values.view(torch.uint8).numpy().data


def same_bytes(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether two tensors have the same type, shape and stored bytes; False for computed ones."""
    if one.stored is None or other.stored is None or one.stored.size != other.stored.size:
        return False
    if (one.shape, one.kind) != (other.shape, other.kind):
        return False
    buffers = bytearray(_COMPARED), bytearray(_COMPARED)
    for start in range(0, one.stored.size, _COMPARED):
        size = min(_COMPARED, one.stored.size - start)
        views = [memoryview(buffer)[:size] for buffer in buffers]
        for stored, view in zip((one.stored, other.stored), views, strict=True):
            stored.source.read_into(stored.offset + start, view)
        if views[0] != views[1]:
            return False
    return True


def same_values(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether two tensors have the same shape and values, read side by side by rows."""
    if one.shape != other.shape:
        return False
    if same_bytes(one, other):
        return True
    step = max(BLOCK // one.row, 1) * one.row
    windows = ((at, min(at + step, one.count)) for at in range(0, one.count, step))
    return all(bool((gather(one, *w) == gather(other, *w)).all()) for w in windows)


def gather(tensor: LazyTensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
    """Elements start..stop in memory, flat, in the tensor's own type.

    Of a tensor that is computed, rows are read whole, since it is made by rows.
    """
    import torch

    stop = tensor.count if stop is None else stop
    row = tensor.row if tensor.stored is None else 1
    first, last = start // row * row, min(-(-stop // row) * row, tensor.count)
    found = torch.empty(last - first, dtype=tensor.dtype.torch)
    position = 0
    for piece in tensor.pieces(first, last, tensor.block):
        found[position : position + piece.numel()] = piece
        position += piece.numel()
    return found[start - first : stop - first]
