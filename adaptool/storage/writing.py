"""Planned files written by a few threads at the speed of the disk.

Threads are enough: the copying is done by the kernel, the computing by libraries, and
both let go of the interpreter's lock. Work is cut so that the largest pieces start
first, that no piece takes long to cancel, and that a run of small tensors is one copy.
"""

import errno
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from adaptool.errors import AdaptoolError
from adaptool.storage import syscalls
from adaptool.storage.extents import Bytes, Chunk, Copy, Extent, FilePlan
from adaptool.storage.failures import blaming
from adaptool.storage.staging import Staging

_PIECE = 64 << 20  # bytes copied by one task
_BUFFER = 1 << 20  # bytes read and written at a time where the kernel cannot copy
_NO_FALLOCATE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV)
_NO_KERNEL_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)

Progress = Callable[[int], None]
_Task = TypeVar("_Task")


@dataclass(frozen=True, slots=True)
class _Piece:
    """What one worker writes in one go: `content` at `offset` of the open file `fd`."""

    path: Path
    fd: int
    offset: int
    content: Bytes | Copy | Chunk


def write_files(
    staging: Staging,
    plans: Sequence[FilePlan],
    *,
    workers: int,
    progress: Progress | None = None,
) -> None:
    """Create every planned file in the staging folder, fill it, flush it to the device.

    Args:
        staging: entered, not yet committed.
        plans: the files; all are created and reserved in full before the first is filled.
        workers: threads, at least one; each runs one chunk or piece of a copy at a time.
        progress: called from these threads with the bytes written since the last call;
            the sum is the size of all extents.

    Raises:
        StorageError: no space, or another refusal of the system.
        CorruptInputError: a copied file was changed meanwhile.
        Whatever a chunk's `produce` raises. The first error stops all workers.
    """
    stop = threading.Event()
    with blaming(staging.folder), ExitStack() as opened:
        files: list[tuple[Path, int]] = []
        pieces: list[_Piece] = []
        for plan in plans:
            fd = staging.create(plan.name)
            opened.callback(syscalls.close, fd)
            path = staging.folder / plan.name
            with blaming(path):
                _allocate(fd, plan.size)
            files.append((path, fd))
            pieces += [_Piece(path, fd, at, content) for at, content in _cut(plan.extents)]
        pieces.sort(key=lambda piece: piece.content.size, reverse=True)

        def write(piece: _Piece) -> None:
            with blaming(piece.path):
                for size in _write_piece(piece, stop):
                    if progress is not None:
                        progress(size)
                syscalls.start_writeback(piece.fd, piece.offset, piece.content.size)

        def flush(file: tuple[Path, int]) -> None:
            path, fd = file
            with blaming(path):
                syscalls.fsync(fd)

        _run(write, pieces, workers, stop)
        _run(flush, files, workers, stop)
    for source in {piece.content.source for piece in pieces if isinstance(piece.content, Copy)}:
        source.verify_unchanged()


def _allocate(fd: int, size: int) -> None:
    if not size:
        return
    try:
        syscalls.fallocate(fd, size)
    except OSError as error:
        if error.errno not in _NO_FALLOCATE:
            raise
        syscalls.ftruncate(fd, size)


def _cut(extents: Iterable[Extent]) -> Iterator[tuple[int, Bytes | Copy | Chunk]]:
    """Extents as pieces of work with their offsets in the file; neighbours copied as one."""
    for extent in _join(extents):
        content = extent.content
        if isinstance(content, Bytes):
            yield extent.offset, content
        elif isinstance(content, Copy):
            for start in range(0, content.size, _PIECE):
                size = min(_PIECE, content.size - start)
                yield extent.offset + start, Copy(content.source, content.offset + start, size)
        else:
            for chunk in content.chunks:
                yield extent.offset + chunk.offset, chunk


def _join(extents: Iterable[Extent]) -> Iterator[Extent]:
    last: Extent | None = None
    for extent in extents:
        if last is not None:
            one, two = last.content, extent.content
            if (
                isinstance(one, Copy)
                and isinstance(two, Copy)
                and one.source is two.source
                and one.offset + one.size == two.offset
                and last.end == extent.offset
            ):
                last = Extent(last.offset, Copy(one.source, one.offset, one.size + two.size))
                continue
            yield last
        last = extent
    if last is not None:
        yield last


def _run(
    do: Callable[[_Task], None], tasks: Iterable[_Task], workers: int, stop: threading.Event
) -> None:
    """`do` every task, in order of start, in up to `workers` threads; re-raise the first error."""
    waiting = deque(tasks)

    def work() -> None:
        while not stop.is_set():
            try:
                task = waiting.popleft()
            except IndexError:
                return
            try:
                do(task)
            except BaseException:
                stop.set()
                raise

    threads = max(1, min(workers, len(waiting)))
    with ThreadPoolExecutor(threads, thread_name_prefix="adaptool-write") as pool:
        try:
            with _stopping(stop), _stopping(stop):  # a second Ctrl-C can cut the first one short
                for done in as_completed([pool.submit(work) for _ in range(threads)]):
                    done.result()
        except RuntimeError as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None  # it came while CPython started a thread
            raise


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """Tell the workers to stop when anything is raised, Ctrl-C in the main thread too."""
    try:
        yield
    except BaseException:
        stop.set()
        raise


def _write_piece(piece: _Piece, stop: threading.Event) -> Iterator[int]:
    """Write step by step, yielding the bytes of each; ends early once `stop` is set."""
    content = piece.content
    if isinstance(content, Bytes):
        syscalls.pwrite(piece.fd, content.data, piece.offset)
        yield content.size
    elif isinstance(content, Copy):
        yield from _copy(content, piece.fd, piece.offset, stop)
    else:
        yield from _compute(content, piece.fd, piece.offset, stop)


def _compute(chunk: Chunk, fd: int, offset: int, stop: threading.Event) -> Iterator[int]:
    done = 0
    for buffer in chunk.produce():
        if stop.is_set():
            return
        size = buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
        if done + size > chunk.size:  # it would run over its neighbour
            raise AdaptoolError(f"a chunk of {chunk.size} bytes at {offset} produced more")
        syscalls.pwrite(fd, buffer, offset + done)
        done += size
        yield size
    if done != chunk.size:
        raise AdaptoolError(f"a chunk of {chunk.size} bytes at {offset} produced only {done}")


def _copy(copy: Copy, fd: int, offset: int, stop: threading.Event) -> Iterator[int]:
    done = 0
    source = copy.source.fd
    while done < copy.size and not stop.is_set():
        try:
            size = syscalls.copy_file_range(
                source, fd, copy.size - done, copy.offset + done, offset + done
            )
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
            size = 0
        if not size:  # not possible here, or the source ended: reading will tell
            break
        done += size
        yield size
    buffer = memoryview(bytearray(_BUFFER if done < copy.size else 0))
    while done < copy.size and not stop.is_set():
        part = buffer[: copy.size - done]
        copy.source.read_into(copy.offset + done, part)
        syscalls.pwrite(fd, part, offset + done)
        done += part.nbytes
        yield part.nbytes
