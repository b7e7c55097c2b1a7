"""PSOFT: a rotation within the weight's strongest directions (openreview FSHrinMArK).

With W's singular value decomposition cut after r values, W_r = U S V':
W' = W + U S (diag(b) R diag(a) - I) V', or with "pissa_init" sqrt(S) on both sides of the bracket.
R is orthogonal: (I + Q) (I - Q)^-1 of a skew matrix Q, or a series of it.

The bracket is no multiple of I, so the signs of the singular vectors matter: the file does not
hold them, and they are found by the same decomposition by which PEFT finds them when it loads the
adapter (float32, on a CPU).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import Update, Window
from adaptool.canonical.verbs import Span
from adaptool.tuners._forms import Change, Transform
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

if TYPE_CHECKING:
    import torch

_R, _A, _B = suffixes = ("psoft_R.weight", "psoft_R.vector_a", "psoft_R.vector_b")
shared = ()


_DRAWING = Lock()
"""`torch.svd_lowrank` draws from torch's one generator, which the workers of a merge share."""


@dataclass(frozen=True)
class Decomposition:
    """How the singular vectors are found.

    Attributes:
        sketched: by `torch.svd_lowrank` from a seed; else in full.
        rounds: power iterations of the sketch.
        seed: of the sketch.
    """

    sketched: bool
    rounds: int
    seed: int

    def find(
        self, weight: torch.Tensor, rank: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """U [out, rank], S [rank], V' [rank, in] in float32 on the CPU."""
        import torch

        matrix = weight.float().cpu()
        if not self.sketched:
            u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
            return u[:, :rank], s[:rank], vt[:rank]
        with _DRAWING, torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            u, s, v = torch.svd_lowrank(matrix, q=rank, niter=self.rounds)
        return u, s, v.T


@dataclass(frozen=True, kw_only=True)
class Turned(Transform):
    """W + U S^p (G - I) S^(1 - p) V', G = diag(b) R diag(a).

    Attributes:
        rank: r.
        orthogonal: the file holds the upper triangle of Q, row by row; else R itself.
        terms: of the series (0: exactly).
        most: Q is shrunk to at most this norm before the series, None: not.
        shared_out: p is 1/2; else 1.
        found: how the singular vectors are found.
    """

    kind: ClassVar[str] = "subspace-rotation"
    peft_type: ClassVar[str] = "PSOFT"
    span: ClassVar[Span] = Span.ALL

    rank: int
    orthogonal: bool
    terms: int
    most: float | None
    shared_out: bool
    found: Decomposition

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix has so many singular values."""
        return len(shape) == 2 and min(shape) >= self.rank

    @property
    def most_rank(self) -> int:
        """Directions that are turned."""
        return self.rank

    def bracket(self, dtype: torch.dtype) -> torch.Tensor:
        """G - I, [r, r]."""
        import torch

        r = self._rotation(self.tensors[_R].values().to(dtype))
        if _B in self.tensors:
            r = self.tensors[_B].values().to(dtype)[:, None] * r
        if _A in self.tensors:
            r = r * self.tensors[_A].values().to(dtype)
        return r - torch.eye(self.rank, dtype=dtype)

    def _rotation(self, stored: torch.Tensor) -> torch.Tensor:
        import torch

        if not self.orthogonal:
            return stored
        one = torch.eye(self.rank, dtype=stored.dtype)
        q = torch.zeros_like(one)
        q[tuple(torch.triu_indices(self.rank, self.rank, 1))] = stored
        q = q - q.T
        if not self.terms:
            exact: torch.Tensor = torch.linalg.solve(one - q, one + q, left=False)
            return exact
        if self.most is not None and q.norm() > self.most:
            q = q * (self.most / (q.norm() + 1e-12))
        if self.terms == 1:
            return one
        series, power = one + 2 * q, q
        if self.terms == 2:
            return series
        power = power @ q
        series = series + 2 * power
        for _ in range(3, self.terms - 1):
            power = power @ q
            series = series + 2 * power
        return series + power @ q  # the last term once, as PEFT has it

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Needs the whole weight's singular vectors."""
        bracket = self.bracket(dtype).to(device)

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:  # noqa: ARG001
            u, s, vt = (x.to(device, dtype) for x in self.found.find(weight, self.rank))
            if self.shared_out:
                u, vt = u * s.sqrt(), s.sqrt()[:, None] * vt
            else:
                u = u * s
            return weight.addmm(u @ bracket, vt)

        return change


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`psoft_R.weight` [r (r - 1) / 2] or [r, r]; vectors a, b [r]."""
    rank = options.whole("r", 32, least=1)
    orthogonal = options.flag("psoft_orth", default=True)
    stored = parts.need(_R, *((rank * (rank - 1) // 2,) if orthogonal else (rank, rank)))
    tensors = {_R: stored}
    for name in (_A, _B):
        vector = parts.take(name, rank)
        if vector is not None:
            tensors[name] = vector
    series = options.flag("use_cayley_neumann")
    terms = options.whole("num_cayley_neumann_terms", 5, least=1) if series else 0
    if terms > 1000:  # each is a product of matrices
        raise options.refusal("num_cayley_neumann_terms", "at most 1000")
    limit = options.raw.get("cayley_neumann_eps")
    return {
        "weight": Turned(
            tensors=tensors, rank=rank, orthogonal=orthogonal, terms=terms,
            most=None if limit is None else options.number("cayley_neumann_eps", 0),
            shared_out=options.choice("ab_svd_init", ("psoft_init", "pissa_init")) == "pissa_init",
            found=Decomposition(
                options.choice("psoft_svd", ("full", "lowrank")) == "lowrank",
                options.whole("psoft_svd_lowrank_niter", 10), options.whole("random_seed", 0),
            ),
        )
    }  # fmt: skip
