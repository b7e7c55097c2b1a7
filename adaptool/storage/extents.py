"""A file before it is written: what stands where, and where it comes from.

FilePlan      one file: its name, its size, its extents in order; gaps are zeros
  Extent      content at an offset of the file
    Bytes     content in memory: a header
    Copy      content of another file, copied by the kernel
    Computed  content made while writing, chunk by chunk
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from adaptool.errors import AdaptoolError
from adaptool.storage.reading import SourceFile


@dataclass(frozen=True)
class Bytes:
    """Content that is in memory already."""

    data: bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)


@dataclass(frozen=True)
class Copy:
    """`size` bytes of `source` from `offset`, as they are."""

    source: SourceFile
    offset: int
    size: int


@dataclass(frozen=True)
class Chunk:
    """A part of a Computed extent that one worker produces from start to end.

    Attributes:
        offset: bytes, from the start of the extent.
        size: bytes.
        produce: called once, in a worker's thread; yields buffers that follow each other
            and are together exactly `size` bytes. A buffer is written before the next is
            asked for, so the producer may fill the same memory again.
    """

    offset: int
    size: int
    produce: Callable[[], Iterator[memoryview | bytes]]


@dataclass(frozen=True)
class Computed:
    """Content made while writing; its chunks run in parallel and cover `size` without a gap."""

    size: int
    chunks: Sequence[Chunk]


Content = Bytes | Copy | Computed


@dataclass(frozen=True)
class Extent:
    """`content` at byte `offset` of the file."""

    offset: int
    content: Content

    @property
    def end(self) -> int:
        """The byte after the last."""
        return self.offset + self.content.size


@dataclass(frozen=True)
class FilePlan:
    """One file of the output; `name` is its path in the output folder, steps parted by "/".

    Raises AdaptoolError on a plan that contradicts itself: that is a mistake in this
    program, and better found before anything is written.
    """

    name: str
    size: int
    extents: tuple[Extent, ...]

    def __post_init__(self) -> None:
        check_name(self.name)
        for extent in self.extents:
            if extent.offset < 0 or extent.content.size < 0 or extent.end > self.size:
                raise self._contradiction(f"{extent.offset} to {extent.end} is not in the file")
            if isinstance(extent.content, Computed):
                self._check_chunks(extent.content)
        for before, after in pairwise(self.extents):
            if after.offset < before.end:
                raise self._contradiction(f"extents overlap or are unsorted at {after.offset}")

    def _check_chunks(self, content: Computed) -> None:
        end = 0
        for chunk in content.chunks:
            if chunk.offset != end or chunk.size < 0:
                raise self._contradiction(f"chunk at {chunk.offset}, expected {end}")
            end += chunk.size
        if end != content.size:
            raise self._contradiction(f"chunks of {end} bytes for a content of {content.size}")

    def _contradiction(self, what: str) -> AdaptoolError:
        return AdaptoolError(f"{self.name}: plan of {self.size} bytes: {what}", code="PLAN")


def check_name(name: str) -> None:
    """Refuse, as AdaptoolError, a name that is not a path of plain steps inside the output."""
    if any(step in ("", ".", "..") for step in name.split("/")) or any(c in name for c in "\\\0"):
        raise AdaptoolError(f"{name!r} is not the plain name of an output file", code="PLAN")
