"""What every container does when it saves: tensors as contents of a file, files of bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

from adaptool.canonical import LazyTensor
from adaptool.storage import Chunk, Computed, Copy, SourceFile

CHUNK = 16 << 20
"""Elements that one worker computes in one go."""


def content_of(tensor: LazyTensor) -> Copy | Computed:
    """The bytes of a tensor: copied where they are stored as they are, else made in chunks.

    Chunks are whole rows, so that what is computed by rows or packed in blocks is cut nowhere.
    """
    stored = tensor.stored
    if stored is not None and isinstance(stored.source, SourceFile):
        return Copy(stored.source, stored.offset, stored.size)
    step = max(CHUNK // tensor.row, 1) * tensor.row
    chunks = [
        Chunk(
            tensor.nbytes_of(start),
            tensor.nbytes_of(min(step, tensor.count - start)),
            partial(_produce, tensor, start, min(start + step, tensor.count)),
        )
        for start in range(0, tensor.count, step)
    ]
    return Computed(tensor.nbytes, chunks)


def _produce(tensor: LazyTensor, start: int, stop: int) -> Iterator[memoryview | bytes]:
    return tensor.bytes(start, stop)


def fill_files(tensors: Mapping[str, LazyTensor], limit: int) -> list[dict[str, LazyTensor]]:
    """The tensors in their order, as groups of up to `limit` bytes; a larger one is alone."""
    groups: list[dict[str, LazyTensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if groups[-1] and filled + tensor.nbytes > limit:
            groups.append({})
            filled = 0
        groups[-1][name] = tensor
        filled += tensor.nbytes
    return groups


def verify_sources(tensors: Iterable[LazyTensor]) -> None:
    """Raise CorruptInputError if a file that tensors are read from was changed meanwhile."""
    sources = {tensor.stored.source for tensor in tensors if tensor.stored}
    for source in sources:
        if isinstance(source, SourceFile):
            source.verify_unchanged()
