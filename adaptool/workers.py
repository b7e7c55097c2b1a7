"""Work on many modules at once: a few threads, one compute thread in each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from adaptool.processors import one_compute_thread, worker_count

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_each(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> list[Result]:
    """`function` of every item, in order; the first error is raised, and what waits is dropped."""
    with one_compute_thread(), ThreadPoolExecutor(worker_count(threads), "adaptool") as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
