"""A quantised weight's tensors: how they lie in a graph, and how rows become them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING

from adaptool.canonical import DType, LazyTensor
from adaptool.canonical.forms import Values
from adaptool.canonical.tensors import ENCODED_BLOCK, byte_view
from adaptool.containers.onnx import elements
from adaptool.encodings.onnx.affine import Affine
from adaptool.encodings.onnx.blockwise import Blockwise
from adaptool.encodings.onnx.bnb4 import Bnb4
from adaptool.encodings.onnx.levels import pack, unpack
from adaptool.errors import IncompatibleError
from adaptool.storage import Chunk, Computed, Content

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Part:
    """One of a weight's tensors as it is written.

    Attributes:
        shape: its dims.
        type: TensorProto.DataType.
    """

    shape: tuple[int, ...]
    type: int

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return elements.nbytes(self.type, prod(self.shape)) or 0


Parts = tuple[Part | None, Part | None, Part | None]
"""Packed levels, scales, zero points."""


@dataclass(frozen=True, slots=True)
class Housed:
    """An encoding, and the tensors that its bytes are kept in; an Encoding itself.

    Attributes:
        encoding: of whole rows.
        parts: the tensors.
        turned: the tensors are kept transposed: the rows of the weight are their columns.
        dense: a row does not start at a byte of its own.
    """

    encoding: Blockwise | Affine | Bnb4
    parts: Parts
    turned: bool = False
    dense: bool = False

    @property
    def name(self) -> str:
        """The encoding's."""
        return self.encoding.name

    @property
    def block(self) -> int:
        """Values of one block: a row."""
        return self.encoding.block

    @property
    def size(self) -> int:
        """Bytes of one block."""
        return self.encoding.size

    def decode(self, packed: torch.Tensor) -> torch.Tensor:
        """See Encoding."""
        return self.encoding.decode(packed)

    def encode(self, values: torch.Tensor, importance: torch.Tensor | None = None,
               noise: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
        """See Encoding."""
        return self.encoding.encode(values, importance, noise)

    def fitted(self, values: Values) -> Housed:
        """The encoding with the scales that suit these values, where they are not a row's own."""
        if not isinstance(self.encoding, Affine):
            return self
        return replace(self, encoding=self.encoding.fitted(values))

    def taken_apart(self, tensor: LazyTensor) -> Iterator[tuple[int, memoryview]]:
        """The bytes of the parts of a tensor in this encoding, as (number of the part, bytes)."""
        if tensor.packed is None:
            raise ValueError("a plain tensor has no parts")
        pieces = tensor.packed(0, tensor.count, tensor.block)
        if isinstance(self.encoding, Affine):
            yield from ((0, byte_view(piece)) for piece in pieces)
            grid, encoding = self.encoding.grid, self.encoding
            yield 1, byte_view(grid.scales.to(encoding.scale.torch))
            yield 2, byte_view(grid.zeros.to(encoding.levels.torch))
        elif self.turned or self.dense:
            rows = _joined(self.encoding.split(piece.clone()) for piece in pieces)
            for number, data in enumerate(rows):
                yield number, byte_view(self._stored(number, data))
        else:
            rest = []
            for piece in pieces:
                levels, *others = self.encoding.split(piece)
                yield 0, byte_view(levels.contiguous())
                rest.append(tuple(other.clone() for other in others))
            for number, data in enumerate(_joined(rest), 1):
                yield number, byte_view(data)

    def rows(self, parts: tuple[LazyTensor | None, ...], start: int, stop: int,
             block: int) -> Iterator[torch.Tensor]:  # fmt: skip
        """The bytes of rows, out of the parts' bytes; see LazyTensor.packed."""
        import torch

        width = self.encoding.width
        first, last, step = start // width, stop // width, max(block // width, 1)
        if isinstance(self.encoding, Affine):
            if parts[0] is not None:
                yield from parts[0].pieces(first * width, last * width, step * width)
            return
        sizes = self.encoding.parts
        if self.turned or self.dense:
            held = [None if part is None else self._laid(number, part.values())
                    for number, part in enumerate(parts)]  # fmt: skip
            for row in range(first, last, step):
                end = min(row + step, last)
                yield torch.cat([one[row:end] for one in held if one is not None], 1).view(-1)
            return
        for row in range(first, last, step):
            count = min(step, last - row)
            read = [
                _read(part, row * size, count * size).view(count, size)
                for part, size in zip(parts, sizes, strict=True)
                if part is not None and size
            ]
            yield torch.cat(read, 1).view(-1)

    def _laid(self, number: int, stored: torch.Tensor) -> torch.Tensor:
        """A part's bytes as those of rows, uint8 [rows, bytes of a row]."""
        part = self.parts[number]
        if part is None or isinstance(self.encoding, Affine):
            raise ValueError("no such part")
        bits = self._bits(number)
        if bits < 8:
            levels = unpack(stored.view(1, -1), bits).view(-1)[: prod(part.shape)]
            grid = levels.view(*part.shape, 1)
        else:
            grid = stored.view(*part.shape, bits // 8)
        grid = grid.transpose(0, 1) if self.turned else grid
        rows = grid.reshape(grid.shape[0], -1)
        return pack(rows, bits) if bits < 8 else rows.contiguous()

    def _stored(self, number: int, rows: torch.Tensor) -> torch.Tensor:
        """The opposite of `_laid`."""
        part = self.parts[number]
        if part is None:
            return rows.new_empty(0)
        bits = self._bits(number)
        shape = part.shape[::-1] if self.turned else part.shape
        if bits < 8:
            grid = unpack(rows, bits)[:, : shape[1]].unsqueeze(-1)
        else:
            grid = rows.reshape(*shape, bits // 8)
        grid = grid.transpose(0, 1) if self.turned else grid
        flat = grid.reshape(1, -1)
        return (pack(flat, bits) if bits < 8 else flat.contiguous()).view(-1)

    def _bits(self, number: int) -> int:
        """Bits of one element of a part."""
        part = self.parts[number]
        kind = part.type if part else 0
        narrow = elements.NARROW.get(kind)
        return narrow[1] if narrow else elements.DTYPES[kind].bits


def _joined(pieces: Iterable[tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
    import torch

    return [torch.cat(part) for part in zip(*pieces, strict=True)]


def _read(part: LazyTensor, start: int, count: int) -> torch.Tensor:
    import torch

    whole = torch.empty(count, dtype=torch.uint8)
    position = 0
    for piece in part.pieces(start, start + count, count or 1):
        whole[position : position + piece.numel()] = piece
        position += piece.numel()
    return whole


def housed_tensor(
    housed: Housed, shape: tuple[int, int], parts: tuple[LazyTensor | None, ...]
) -> LazyTensor:
    """A weight as the decoded values of its parts.

    Args:
        housed: how they are kept.
        shape: of the weight.
        parts: their bytes, uint8 in one dimension each.
    """
    packed = partial(housed.rows, parts)
    return LazyTensor(shape, DType.FLOAT32, partial(_decode, housed, packed), None, ENCODED_BLOCK,
                      housed, packed)  # fmt: skip


def _decode(housed: Housed, packed: Callable[[int, int, int], Iterator[torch.Tensor]], start: int,
            stop: int, block: int) -> Iterator[torch.Tensor]:  # fmt: skip
    for piece in packed(start, stop, block):
        yield housed.decode(piece)


@dataclass(frozen=True, eq=False)
class QuantisedWeight:
    """A weight that is stored packed.

    Attributes:
        tensor: its values, decoded when they are streamed.
        parts: the keys of its packed tensor, scales and zero points, in this order; "" for none.
    """

    tensor: LazyTensor
    parts: tuple[str, str, str]


def part_names(name: str) -> tuple[str, str, str]:
    """What the parts of a new quantised weight are called."""
    return name, f"{name}_scales", f"{name}_zero_points"


@dataclass(frozen=True)
class Repacked:
    """A packed weight as it is written: its tensors, and their bytes with gaps between them."""

    parts: Parts
    content: Callable[[tuple[bytes, ...]], Content]


def repacked(tensor: LazyTensor) -> Repacked:
    """How a tensor in one of ONNX's encodings is written: in one go, from its first row.

    Raises IncompatibleError for another encoding.
    """
    if not isinstance(tensor.encoding, Housed):
        raise IncompatibleError(
            f"{tensor.kind} is no encoding of ONNX Runtime's", code="NOT_EXPRESSIBLE"
        )
    housed = tensor.encoding

    def content(gaps: tuple[bytes, ...]) -> Content:
        sizes = [part.nbytes for part in housed.parts if part is not None]
        total = sum(sizes) + sum(map(len, gaps))
        return Computed(total, [Chunk(0, total, partial(_produce, housed, tensor, gaps))])

    return Repacked(housed.parts, content)


def _produce(
    housed: Housed, tensor: LazyTensor, gaps: tuple[bytes, ...]
) -> Iterator[memoryview | bytes]:
    """The parts' bytes in their order, and a gap before each but the first."""
    present = [number for number, part in enumerate(housed.parts) if part is not None]
    reached = 0
    for number, data in housed.taken_apart(tensor):
        if number not in present:
            continue
        while present[reached] < number:
            yield gaps[reached]
            reached += 1
        yield data
