"""Where a merge computes: on which device, with how many workers, one compute thread in each.

A merge runs many small matrix products. Splitting each of them over threads makes threads wait for
one another, at ten times the cost; so each worker computes alone and the workers run in parallel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from adaptool.errors import UsageError

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


def choose_device(name: str) -> str:
    """The device to compute on; "auto" takes a GPU if there is one.

    Raises UsageError for a device that is not there.
    """
    if name == "cpu":
        return name
    if name != "auto" and not name.startswith("cuda"):
        raise UsageError(f"unknown device {name!r}", hint="auto, cpu, cuda or cuda:n")
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    index = name.partition(":")[2] or "0"
    if not index.isdigit() or int(index) >= torch.cuda.device_count():
        raise UsageError(f"{name}: torch sees {torch.cuda.device_count()} CUDA devices")
    return name
