"""What the tensors of one model share while they are written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

KEPT = 256 << 20
"""Bytes of scales that wait for being written, altogether: those of four thousand million values,
sixteen bits for each 32."""


@dataclass(frozen=True)
class _Scales:
    """Scales of a weight, [rows, groups], and which rows of them are known, [rows]."""

    values: torch.Tensor
    known: torch.Tensor


class Ledger:
    """Scales that were found with the codes and are still to be written, and groups that were lost.

    Codes and scales lie apart, maybe in different files, and are written at different times by
    different threads; without this a weight would be read, and merged, and searched, once for
    each. Scales beyond the limit are not kept but computed again: the limit costs time, never
    a value. Of one use only: an export makes one for all its tensors.
    """

    def __init__(self, limit: int = KEPT) -> None:
        """For at most `limit` bytes of scales."""
        self._free = limit
        self._scales: dict[Hashable, _Scales] = {}
        self._owed: dict[Hashable, int] = {}
        self._faint: dict[str, dict[int, int]] = defaultdict(dict)
        self._lock = Lock()

    @property
    def faint(self) -> Mapping[str, int]:
        """Tensor -> groups that are read as zeros, for their scale is too small for its type.

        Of what was written so far, and only tensors that have such groups.
        """
        with self._lock:
            sums = {name: sum(counts.values()) for name, counts in sorted(self._faint.items())}
        return {name: count for name, count in sums.items() if count}

    def record(self, name: str, row: int, faint: int) -> None:
        """So many groups were lost in the rows from `row` on; each start counts once."""
        with self._lock:
            self._faint[name][row] = faint

    def keep(self, weight: Hashable, height: int, row: int, scales: torch.Tensor) -> None:
        """Keep scales [n, groups] of the rows from `row` on, of a weight with `height` rows."""
        import torch

        with self._lock:
            kept = self._scales.get(weight)
            if kept is None:
                size = height * scales.shape[1] * scales.element_size()
                if size > self._free or self._owed.get(weight, height) <= 0:
                    return
                self._free -= size
                values = torch.empty(height, scales.shape[1], dtype=scales.dtype)
                kept = _Scales(values, torch.zeros(height, dtype=torch.bool))
                self._scales[weight] = kept
            kept.values[row : row + scales.shape[0]] = scales
            kept.known[row : row + scales.shape[0]] = True

    def take(self, weight: Hashable, height: int, first: int, last: int) -> torch.Tensor | None:
        """The scales of rows first..last, [n, groups], for once; None if one of them is missing.

        After all `height` rows were asked for, nothing is kept of the weight any more.
        """
        with self._lock:
            self._owed[weight] = self._owed.get(weight, height) - (last - first)
            kept = self._scales.get(weight)
            if kept is None:
                return None
            if self._owed[weight] <= 0:
                del self._scales[weight]
                self._free += kept.values.nbytes
            return kept.values[first:last] if bool(kept.known[first:last].all()) else None
