"""Full-precision weights as an ONNX model shows its own: packed and transposed as there."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from adaptool.architectures.naming import normal
from adaptool.architectures.onnx.placing import OnnxPlan
from adaptool.canonical import Checkpoint, LazyTensor, Placement, Site
from adaptool.canonical.arrangement import Run, arranged
from adaptool.errors import IncompatibleError

if TYPE_CHECKING:
    import torch


class Originals(Mapping[str, LazyTensor]):
    """The weights of the checkpoint that a model was exported from, by the model's names.

    A tensor that holds several modules' weights is put together; one that is shown transposed is
    transposed as a whole whenever it is streamed.
    """

    def __init__(self, checkpoint: Checkpoint, original: Checkpoint) -> None:
        self._tensors = checkpoint.tensors
        self._held: dict[str, list[tuple[Placement, LazyTensor]]] = defaultdict(list)
        plan = OnnxPlan(checkpoint, {})
        for name, tensor in original.tensors.items():
            if not tensor.dtype.is_floating:
                continue
            for place in _places(plan, name):
                part = tensor if place.part is None else arranged(tensor, Run(*place.part))
                self._held[place.tensor].append((place, part))

    def __getitem__(self, name: str) -> LazyTensor:
        held = self._held.get(name, [])
        shape = self._tensors[name].shape if held else ()
        for place, tensor in held:
            if place.rows is None and place.cols is None:
                return self._laid([tensor], place)
        ordered = sorted(held, key=lambda one: one[0].rows or one[0].cols or (0, 0))
        bands = [place.rows or place.cols or (0, 0) for place, _ in ordered]
        edges = [0, *(end for _, end in bands)]
        side = -1 if held and held[0][0].cols is not None else 0
        if not held or [start for start, _ in bands] != edges[:-1] or edges[-1] != shape[side]:
            raise KeyError(name)
        return self._laid([tensor for _, tensor in ordered], ordered[0][0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    @staticmethod
    def _laid(parts: Sequence[LazyTensor], place: Placement) -> LazyTensor:
        whole = parts[0] if len(parts) == 1 else _stacked(parts)
        if place.shift:
            whole = arranged(whole, None, shift=place.shift)
        return _turned(whole) if place.transposed else whole


def _places(plan: OnnxPlan, name: str) -> tuple[Placement, ...]:
    known = plan.checkpoint.placements.get(normal(name))
    if known is not None:
        return (known,)
    module, _, parameter = name.rpartition(".")
    with contextlib.suppress(IncompatibleError):  # nobody may ask for this one
        return plan.located(Site(module, parameter))
    return ()


def _stacked(parts: Sequence[LazyTensor]) -> LazyTensor:
    """Matrices of one width below one another, streamed."""
    height = sum(part.shape[0] for part in parts)
    shape = (height, *parts[0].shape[1:])
    return LazyTensor(shape, parts[0].dtype, partial(_stream_parts, parts), block=parts[0].block)


def _stream_parts(parts: Sequence[LazyTensor], start: int, stop: int,
                  block: int) -> Iterator[torch.Tensor]:  # fmt: skip
    position = 0
    for part in parts:
        first, last = max(start - position, 0), min(stop - position, part.count)
        if first < last:
            for piece in part.pieces(first, last, block):
                yield piece.to(parts[0].dtype.torch)
        position += part.count


def _turned(tensor: LazyTensor) -> LazyTensor:
    """The transpose; unlike `canonical.tensors.transposed` it is not kept once it is streamed."""
    rows, cols = tensor.shape
    return LazyTensor((cols, rows), tensor.dtype, partial(_stream_turned, tensor))


def _stream_turned(tensor: LazyTensor, start: int, stop: int,
                   block: int) -> Iterator[torch.Tensor]:  # fmt: skip
    width = tensor.shape[0]
    first, last = start // width, -(-stop // width)
    part = tensor.values()[:, first:last].T.reshape(-1)
    flat = part[start - first * width : stop - first * width]
    for position in range(0, flat.numel(), block):
        yield flat[position : position + block]
