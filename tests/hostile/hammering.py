"""One changed file after another is opened: refused as it should be, or read, and soon."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from adaptool.canonical import Checkpoint
from adaptool.errors import AdaptoolError

SECONDS = 1.0


@dataclass
class Hammer:
    """Where changed files are laid, and what opens them; counts those that it refused."""

    path: Path
    open: Callable[[Path], Checkpoint]
    refused: int = 0

    def survivors(
        self, seed: str, count: int, mutated: Callable[[Random], bytes]
    ) -> Iterator[tuple[int, bytes, Checkpoint]]:
        """Of so many mutations, always the same ones for a seed, those that could be opened."""
        for number in range(count):
            content = mutated(Random(zlib.crc32(f"{seed} {number}".encode())))
            self.path.unlink(missing_ok=True)  # some file systems flush a file that is emptied
            self.path.write_bytes(content)
            start = time.process_time()
            try:
                checkpoint = self.open(self.path)
            except AdaptoolError as error:
                self.refused += 1
                assert error.exit_code in (3, 4, 6, 8)
                assert len(error.message) < 2_000
                continue
            except Exception as error:
                raise AssertionError(f"{seed} {number}: {error!r}") from error
            assert time.process_time() - start < SECONDS, f"{seed} {number}"
            yield number, content, checkpoint
