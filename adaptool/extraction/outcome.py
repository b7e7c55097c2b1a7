"""What an extraction found, as values and as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import hypot

from adaptool.canonical import Adapter, Site
from adaptool.errors import JSON


@dataclass(frozen=True)
class Row:
    """What became of one parameter that differs.

    Attributes:
        site: which one.
        kind: of its update.
        shape: of its weight, as stored.
        rank: of a low-rank update; None for a replacement.
        norm: |dW|_F; None where the sizes differ, so that there is no difference.
        lost: |dW - extracted|_F, the rounding of the factors included.
    """

    site: Site
    kind: str
    shape: tuple[int, ...]
    rank: int | None
    norm: float | None
    lost: float

    @property
    def kept(self) -> float:
        """Share of the energy |dW|_F^2 that is kept."""
        return 1.0 - (self.lost / self.norm) ** 2 if self.norm else 1.0


@dataclass(frozen=True)
class Extraction:
    """An adapter and how far it is from the fine-tuned model.

    Attributes:
        adapter: the result.
        rows: one for each update.
        same: number of tensors that are equal in both models.
        left_out: parameters that differ and that the user excludes, with |dW|_F of each; None
            where there is none (another size, quantised weights).
        notes: what a reader of the result should know.
    """

    adapter: Adapter
    rows: tuple[Row, ...]
    same: int
    left_out: tuple[tuple[Site, float | None], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def norm(self) -> float:
        """|dW|_F over all that was extracted."""
        return _norm(row.norm or 0.0 for row in self.rows)

    @property
    def error(self) -> float:
        """|dW - extracted|_F / |dW|_F over all that was extracted; what is left out not counted."""
        return _norm(row.lost for row in self.rows) / (self.norm or 1.0)

    @property
    def left_out_norm(self) -> float:
        """|dW|_F over all that was left out."""
        return _norm(norm or 0.0 for _, norm in self.left_out)

    def as_json(self) -> dict[str, JSON]:
        """Plain data."""
        return {
            "error": self.error, "norm": self.norm, "parameters": self.adapter.parameters,
            "same": self.same, "left_out_norm": self.left_out_norm,
            "left_out": {str(site): norm for site, norm in self.left_out},
            "modules": {
                str(row.site): {
                    "kind": row.kind, "shape": [*row.shape], "rank": row.rank,
                    "energy_kept": row.kept, "norm": row.norm,
                }
                for row in self.rows
            },
        }  # fmt: skip


def _norm(values: Iterable[float]) -> float:
    return hypot(*values)
