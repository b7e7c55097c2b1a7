"""Weights as GGUF lays them out, streamed: bands of rows put together, halves interleaved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from adaptool.architectures.gguf import Layout
from adaptool.canonical import DType, LazyTensor, Placement, Stored
from adaptool.canonical.arrangement import arranged
from adaptool.canonical.forms import Form, importance_for
from adaptool.canonical.narrowing import narrowed
from adaptool.canonical.tensors import from_storage
from adaptool.encodings import ggml
from adaptool.encodings.ggml.types import PLAIN
from adaptool.errors import IncompatibleError

if TYPE_CHECKING:
    import torch

_LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class _Part:
    """A parameter, or a band of it, ready to lie in a stored tensor."""

    parameter: str
    placement: Placement
    tensor: LazyTensor

    @property
    def position(self) -> tuple[int, int]:
        """Where it begins: slot and row."""
        rows = self.placement.rows
        return self.placement.slot or 0, rows[0] if rows else 0


def lay_out(parameters: Mapping[str, LazyTensor], layout: Layout) -> dict[str, LazyTensor]:
    """Stored tensors by GGUF name, from parameters by Hugging Face name.

    Raises:
        IncompatibleError: a parameter has no place, or a stored tensor is not filled exactly.
    """
    parts: dict[str, list[_Part]] = defaultdict(list)
    homeless = []
    for name, stored in parameters.items():
        placements = layout.place(name)
        if not placements or layout.decays(name):
            homeless.append(name)
            continue
        tensor = _straight(stored) if layout.stored_transposed(name) else stored
        for placement in placements:
            parts[placement.tensor].append(_Part(name, placement, _cut(name, tensor, placement)))
    if homeless:
        raise IncompatibleError(
            f"GGUF has no place for {len(homeless)} tensors of this model, "
            f"among them {', '.join(homeless[:3])}",
            code="UNPLACED",
        )
    return {name: _join(name, found) for name, found in parts.items()}


def _cut(name: str, tensor: LazyTensor, placement: Placement) -> LazyTensor:
    """What of a parameter lies at one placement, in its order there."""
    if placement.unit != 1:
        raise IncompatibleError(
            f"{name}: is stored in a unit of its own, which a model file does not have",
            code="UNSUPPORTED_LAYOUT",
        )
    if placement.expert is not None:
        experts, height = tensor.shape[0], tensor.shape[1]
        rows = tensor.reshaped(experts * height, *tensor.shape[2:])
        tensor = band(rows, placement.expert * height, (placement.expert + 1) * height)
    if placement.part is not None:
        tensor = band(tensor, *placement.part)
    turned = replace(placement, transposed=False)
    tensor = arranged(tensor, turned.row_order, turned.col_order, shift=turned.shift)
    return _transposed(tensor) if placement.transposed else tensor


def _join(name: str, parts: Sequence[_Part]) -> LazyTensor:
    """One stored tensor from what lies in it: bands below one another, slots behind one another."""
    ordered = sorted(parts, key=lambda part: part.position)
    bands: dict[int, list[_Part]] = defaultdict(list)
    for part in ordered:
        bands[part.position[0]].append(part)
    heights = []
    for slot, (number, found) in enumerate(bands.items()):
        filled = 0
        for part in found:
            rows = part.placement.rows
            height = part.tensor.shape[0]
            if (
                number != slot
                or part.position[1] != filled
                or (rows and rows[1] - rows[0] != height)
            ):
                raise _gap(name, parts, part.parameter)
            filled += height
        heights.append(filled)
    first = ordered[0].tensor
    rest = first.shape[1:]
    if len(set(heights)) != 1 or any(part.tensor.shape[1:] != rest for part in ordered):
        raise _gap(name, parts, ordered[-1].parameter)
    shape = (heights[0], *rest)
    if ordered[0].placement.slot is not None:
        shape = (len(heights), *shape)
    if len(ordered) == 1:
        return first if first.shape == shape else first.reshaped(*shape)
    return concatenated([part.tensor for part in ordered], shape)


def _gap(name: str, parts: Sequence[_Part], where: str) -> IncompatibleError:
    return IncompatibleError(
        f"{name} would not be filled exactly by the {len(parts)} tensors that belong there "
        f"(at {where})",
        hint="a shard may be missing, or config.json belongs to another model",
        code="INCOMPLETE_MODEL",
    )


def band(tensor: LazyTensor, start: int, stop: int) -> LazyTensor:
    """Rows [start, stop) of a tensor.

    Raises IncompatibleError if it does not have them.
    """
    if not 0 <= start <= stop <= tensor.shape[0]:
        raise IncompatibleError(
            f"rows {start} to {stop} are wanted of a tensor of {list(tensor.shape)}",
            code="SHAPE_MISMATCH",
        )
    shape, offset = (stop - start, *tensor.shape[1:]), start * tensor.row
    if tensor.stored is not None and tensor.encoding is None:
        item = tensor.dtype.bits // 8
        count = (stop - start) * tensor.row
        stored = Stored(tensor.stored.source, tensor.stored.offset + offset * item, count * item)
        return from_storage(stored, shape, tensor.dtype)
    return LazyTensor(shape, tensor.dtype, partial(_shifted, tensor, offset), block=tensor.block)


def _shifted(tensor: LazyTensor, offset: int, start: int, stop: int,
             block: int) -> Iterator[torch.Tensor]:  # fmt: skip
    return tensor.pieces(start + offset, stop + offset, block)


def concatenated(tensors: Sequence[LazyTensor], shape: tuple[int, ...]) -> LazyTensor:
    """Tensors one after another, seen in a shape; of several types, as float32."""
    types = {tensor.dtype for tensor in tensors}
    dtype = types.pop() if len(types) == 1 else DType.FLOAT32
    parts = tuple(tensor.cast(dtype) for tensor in tensors)
    return LazyTensor(shape, dtype, partial(_chained, parts), block=tensors[0].block)


def _chained(tensors: Sequence[LazyTensor], start: int, stop: int,
             block: int) -> Iterator[torch.Tensor]:  # fmt: skip
    first = 0
    for tensor in tensors:
        begin, end = max(start - first, 0), min(stop - first, tensor.count)
        if begin < end:
            yield from tensor.pieces(begin, end, block)
        first += tensor.count


def _straight(tensor: LazyTensor) -> LazyTensor:
    """A weight stored as [in, out] or [experts, in, out], as [out, in]."""
    if len(tensor.shape) < 3:
        return _transposed(tensor) if len(tensor.shape) == 2 else tensor
    experts, height, width = tensor.shape
    rows = tensor.reshaped(experts * height, width)
    turned = [_transposed(band(rows, e * height, (e + 1) * height)) for e in range(experts)]
    return concatenated(turned, (experts, width, height))


def _transposed(tensor: LazyTensor) -> LazyTensor:
    """The transpose, computed anew whenever it is streamed: no second copy of it stays."""
    out, inputs = tensor.shape
    return LazyTensor((inputs, out), tensor.dtype, partial(_turned, tensor), block=tensor.block)


def _turned(tensor: LazyTensor, start: int, stop: int, block: int) -> Iterator[torch.Tensor]:
    flat = tensor.values().T.reshape(-1)
    for first in range(start, stop, block):
        yield flat[first : min(first + block, stop)]


def write_as(
    tensors: Mapping[str, LazyTensor],
    types: Mapping[str, str],
    importance: Mapping[str, torch.Tensor] | None,
) -> dict[str, LazyTensor]:
    """The tensors in ggml's types.

    Raises IncompatibleError for a type that cannot be written; while float16 is streamed, also for
    a value that it cannot hold.
    """
    weighed = importance or {}
    found = {}
    for name, tensor in tensors.items():
        kind = types[name]
        if kind in PLAIN:
            refusal = partial(_beyond, name)
            found[name] = (narrowed(tensor, DType.FLOAT16, refusal) if kind == "F16"
                           else tensor.cast(PLAIN[kind]))  # fmt: skip
            continue
        if not ggml.can_encode(kind):
            raise IncompatibleError(f"{name}: {kind} cannot be written", code="UNSUPPORTED_TYPE")
        measured = weighed.get(name)
        weights = None if measured is None else importance_for(name, measured, tensor.shape)
        form = Form(DType.FLOAT32, ggml.encoding(kind), weights)
        found[name] = tensor.written(form)
    return found


def _beyond(name: str) -> IncompatibleError:
    return IncompatibleError(
        f"{name}: has a value beyond {_LARGEST_HALF:g}, the largest of float16",
        hint="--outtype bf16 or f32 holds it",
        code="OVERFLOW",
    )


def in_order(names: Iterable[str]) -> list[str]:
    """GGUF names in the order in which a model computes: embedding, blocks, head."""

    def key(name: str) -> tuple[int, int]:
        parts = name.split(".")
        if parts[0] == "blk" and parts[1].isdecimal():
            return 1, int(parts[1])
        return (2, 0) if name.startswith("output") else (0, 0)

    return sorted(names, key=key)
