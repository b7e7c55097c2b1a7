"""What became of an adapter, as values and as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot

from adaptool.canonical import Adapter, Site
from adaptool.errors import JSON


@dataclass(frozen=True)
class Row:
    """What became of one update.

    Attributes:
        site: which one.
        kind: of the update as it was.
        rank: of the factors; None where a trained copy stays, or a bias became one.
        norm: |U(W) - W|_F; None without a rank.
        lost: |U(W) - W - factors|_F.
        exact: the factors hold all of it, up to rounding.
    """

    site: Site
    kind: str
    rank: int | None
    norm: float | None = None
    lost: float = 0.0
    exact: bool = True

    @property
    def error(self) -> float:
        """Lost over norm."""
        return self.lost / self.norm if self.norm else 0.0


@dataclass(frozen=True)
class Lowering:
    """An adapter of plain factors.

    Attributes:
        adapter: the result.
        rows: one for each update.
        notes: what a reader of the result should know.
    """

    adapter: Adapter
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def error(self) -> float | None:
        """|dW - factors|_F / |dW|_F over all factors; None where all of them are exact."""
        if all(row.exact for row in self.rows):
            return None
        norm = hypot(*(row.norm or 0.0 for row in self.rows))
        return hypot(*(row.lost for row in self.rows)) / (norm or 1.0)

    def as_json(self) -> dict[str, JSON]:
        """Plain data."""
        return {
            "error": self.error,
            "parameters": self.adapter.parameters,
            "modules": {
                str(row.site): {
                    "kind": row.kind, "rank": row.rank, "norm": row.norm, "error": row.error,
                    "exact": row.exact,
                }
                for row in self.rows
            },
        }  # fmt: skip
