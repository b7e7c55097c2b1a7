"""What two updates of one weight have in common, and what happens when both are merged.

For D1 and D2, from their thin singular value decompositions D = U diag(s) V' (of the factors; the
dense matrix is never formed):

    cosine        <D1, D2> / (|D1| |D2|)
    columns       |U1' U2|_F^2 / min(rank): mean squared cosine of the principal angles between
                  the spaces that the updates write to (Bjorck and Golub 1973)
    rows          |V1' V2|_F^2 / min(rank): the same for the spaces that they read from
    shared        |U2 U2' D1 V2 V2'|_F^2 / |D1|_F^2: share of D1's energy inside D2's spaces, and
                  the same of D2; where it is small the two do not meet
    cancellation  1 - |D1 + D2|_F^2 / (|D1|_F^2 + |D2|_F^2) = -2 <D1, D2> / (|D1|^2 + |D2|^2):
                  the share of energy that merging both at strength 1 loses; negative where they
                  reinforce each other

All but the cancellation and the ratio of the norms stay what they are when an update is made
stronger; only a negative strength turns the cosine's sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from adaptool.canonical import LazyTensor, LowRank
from adaptool.canonical.algebra import decompose
from adaptool.errors import JSON

if TYPE_CHECKING:
    import torch

NOISE = 1e-9
"""Singular values below this share of the largest span no direction of an update."""


@dataclass(frozen=True)
class Meeting:
    """Sums over the weights of a module, or over modules, from which all measures follow.

    Attributes:
        inner: <D1, D2>.
        first, second: |D1|^2 and |D2|^2.
        columns, rows: |U1' U2|_F^2 and |V1' V2|_F^2.
        common: min(rank of D1, rank of D2); ranks without values that are zero.
        first_shared, second_shared: energy of each inside the other's spaces.
    """

    inner: float = 0.0
    first: float = 0.0
    second: float = 0.0
    columns: float = 0.0
    rows: float = 0.0
    common: int = 0
    first_shared: float = 0.0
    second_shared: float = 0.0

    def __add__(self, other: Meeting) -> Meeting:
        mine, theirs = vars(self), vars(other)
        return Meeting(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def cosine(self) -> float | None:
        """In [-1, 1]; None if one update is zero."""
        size = sqrt(self.first * self.second)
        return max(-1.0, min(1.0, self.inner / size)) if size else None

    @property
    def ratio(self) -> float | None:
        """|D2| / |D1|; None if D1 is zero."""
        return sqrt(self.second / self.first) if self.first else None

    @property
    def cancellation(self) -> float | None:
        """In [-1, 1]; None if both are zero."""
        total = self.first + self.second
        return max(-1.0, min(1.0, -2 * self.inner / total)) if total else None

    @property
    def overlaps(self) -> tuple[float | None, float | None]:
        """Of the columns and of the rows, in [0, 1]; None if an update is zero."""
        return _share(self.columns, self.common), _share(self.rows, self.common)

    @property
    def shared(self) -> tuple[float | None, float | None]:
        """Of each update, the share of its energy inside the other's spaces; None if it is zero."""
        return _share(self.first_shared, self.first), _share(self.second_shared, self.second)

    def as_json(self) -> dict[str, JSON]:
        """The measures as plain data; null where a norm is zero."""
        columns, rows = self.overlaps
        return {
            "cosine": self.cosine, "columns": columns, "rows": rows,
            "norms": [sqrt(self.first), sqrt(self.second)], "ratio": self.ratio,
            "shared": list(self.shared), "cancellation": self.cancellation,
        }  # fmt: skip


def _share(part: float, whole: float) -> float | None:
    return max(0.0, min(1.0, part / whole)) if whole else None


def meet(one: LowRank, two: LowRank) -> Meeting:
    """Everything about two low-rank updates of one weight."""
    (u1, s1, v1), (u2, s2, v2) = _directions(one), _directions(two)
    left, right = u1.T @ u2, v1 @ v2.T
    return Meeting(
        inner=float((s1[:, None] * left * s2 * right).sum()),
        first=_energy(s1),
        second=_energy(s2),
        columns=_energy(left),
        rows=_energy(right),
        common=min(len(s1), len(s2)),
        first_shared=_energy(left.T * s1 @ right),
        second_shared=_energy(left * s2 @ right.T),
    )


def meet_values(one: LazyTensor, two: LazyTensor, strengths: tuple[float, float]) -> Meeting:
    """Inner product and norms of two dense updates, streamed."""
    inner = first = second = 0.0
    for a, b in zip(one.stream(), two.stream(), strict=True):
        x, y = a.double() * strengths[0], b.double() * strengths[1]
        inner += float(x @ y)
        first += _energy(x)
        second += _energy(y)
    return Meeting(inner, first, second)


def _directions(low: LowRank) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """u, s, vt without the values that are rounding."""
    found = decompose(low)
    count = int((found.s > NOISE * found.s[0]).sum())
    return found.u[:, :count], found.s[:count], found.vt[:count]


def _energy(values: torch.Tensor) -> float:
    return float(values.square().sum())
