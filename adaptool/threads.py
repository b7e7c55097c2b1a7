"""How many workers, and one compute thread in each.

A merge runs many small matrix products. Splitting each of them over threads makes threads wait for
one another, at ten times the cost; so each worker computes alone and the workers run in parallel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

MOST_WORKERS = 8


def worker_count(asked: int | None) -> int:
    """The number of workers: as asked, else one per usable processor, at most 8."""
    if asked:
        return asked
    return max(1, min(len(os.sched_getaffinity(0)), MOST_WORKERS))


@contextmanager
def one_compute_thread() -> Iterator[None]:
    """Let torch compute with one thread per caller meanwhile."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
