"""The leading singular values and vectors of a matrix M that streams by in blocks of rows.

M is never held and M'M never formed. One pass over the blocks applies M'M to a few vectors,
random ones at first; all that was seen spans a Krylov space, in which Rayleigh and Ritz find the
leading vectors (Halko, Martinsson and Tropp 2011, algorithms 4.4 and 5.1, with the Krylov space
of Musco and Musco 2015 in place of its last block alone: where the spectrum is flat it needs the
square root of the passes). Every block is orthogonalised twice against all others; a space of
four blocks is cut back to its best two (thick restart, Wu and Simon 2000).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import TYPE_CHECKING

from adaptool.canonical.algebra import Spectrum

if TYPE_CHECKING:
    import torch

Blocks = Callable[[], Iterator["torch.Tensor"]]
"""Consecutive blocks of rows, [rows, in], float32 or float64; each call starts anew. A block is
valid until the next one is asked for."""

TOLERANCE = 1e-3
"""Both the energy that is kept and that which is lost are the best possible up to this part."""

LEAST_RATIO = 0.25
"""The least ratio of two gains that is believed: where one large value was found first, the gains
of the others are only beginning."""

MOST_BLOCKS = 4
"""Blocks of vectors in the space when it is cut back to half of it."""


@dataclass(frozen=True)
class Approximation:
    """The leading singular values and vectors of a matrix M, and what is beside them.

    Attributes:
        spectrum: U, s, V', all float64; as many values as were asked for and exist.
        norm: |M|_F.
        rest: |M - U S V'|_F, measured: no difference of two large numbers.
    """

    spectrum: Spectrum
    norm: float
    rest: float

    def error(self, rank: int) -> float:
        """|M - M_rank|_F when the leading `rank` of the values are kept."""
        return sqrt(self.rest**2 + float(self.spectrum.s[rank:].square().sum()))


def approximate(
    blocks: Blocks, shape: tuple[int, int], rank: int, *, seed: int = 0, exact: bool = False
) -> Approximation:
    """The `rank` leading singular values and vectors of M [out, in].

    Energy is the sum of squares. What is kept and what is lost differ from the best possible by at
    most TOLERANCE of themselves (or by what M's type does not resolve): passes are added until
    the last two gains of energy, continued as a geometric series, promise no more than a quarter
    of that (a quarter, since gains may shrink more slowly), or nothing is left to gain. Energy
    only grows and is bounded: it ends.

    Memory: 8 width (in) + 2 rank (out) values, width being rank + max(8, rank / 4), and a block;
    (out) (in) values if `exact`, or if the smaller side is at most 4 width.

    Args:
        blocks: the matrix; read at least four times.
        shape: (out, in).
        rank: values to find; no more than min(shape) exist.
        seed: of the random start; the same seed gives the same result.
        exact: hold the matrix and decompose it whole.

    Raises:
        ValueError: a rank or a side below 1.
        FloatingPointError: a value that is not finite.
    """
    if rank < 1 or min(shape) < 1:
        raise ValueError(f"no {rank} singular values of a matrix {list(shape)}")
    rank = min(rank, *shape)
    width = rank + max(8, rank // 4)
    if exact or min(shape) <= MOST_BLOCKS * width:
        return _decomposed(blocks, shape, rank)
    return _searched(blocks, shape, rank, width, seed)


def _decomposed(blocks: Blocks, shape: tuple[int, int], rank: int) -> Approximation:
    import torch

    whole = torch.empty(shape, dtype=next(blocks()).dtype)
    row = 0
    for block in blocks():
        whole[row : row + len(block)] = block
        row += len(block)
    norm = _finite(_squares(whole))
    u, s, vt = (part.double() for part in torch.linalg.svd(whole, full_matrices=False))
    spectrum = Spectrum(u[:, :rank], s[:rank], vt[:rank])
    return Approximation(spectrum, sqrt(norm), float(s[rank:].norm()))


def _searched(
    blocks: Blocks, shape: tuple[int, int], rank: int, width: int, seed: int
) -> Approximation:
    import torch

    dtype = next(blocks()).dtype
    draw = torch.Generator().manual_seed(seed)
    start = torch.randn(shape[1], width, generator=draw, dtype=torch.float64)
    fresh = torch.linalg.qr(start).Q.to(dtype)
    space = _Space(shape[1], width, dtype)
    image, norm, unit = _survey(blocks, fresh)
    energies: list[float] = []
    while True:
        space.add(fresh, image)
        values, vectors = space.ritz()
        energies.append(unit * float(values[:rank].sum()))
        if _settled(energies, norm, 2 * torch.finfo(dtype).eps):
            return _projected(blocks, shape, space.combined(vectors[:, :rank]), sqrt(norm))
        fresh = space.next(values, vectors)
        image = _image(blocks, fresh, unit)


def _settled(energies: list[float], norm: float, rounding: float) -> bool:
    """Whether what is still to gain is small beside both what is kept and what is lost.

    That is at most |M|_F^2 less what is kept, and about the geometric series of the last gains.
    `rounding` is the part of |M|_F^2 that M's type does not resolve.
    """
    kept = energies[-1]
    enough = max(TOLERANCE / 4 * min(kept, norm - kept), rounding * norm)
    if norm - kept <= enough:
        return True
    if len(energies) < 3:
        return False
    before, last = energies[-2] - energies[-3], kept - energies[-2]
    ratio = max(last / before if before > 0 else 0.0, LEAST_RATIO)
    return last <= 0 or (ratio < 1 and last * ratio / (1 - ratio) <= enough)


class _Space:
    """An orthonormal basis V, with M'M V and the table V'M'M V; all M'M divided by one unit."""

    def __init__(self, size: int, width: int, dtype: torch.dtype) -> None:
        import torch

        self._width = width
        self._count = 0
        self._basis = torch.empty(size, MOST_BLOCKS * width, dtype=dtype)
        self._images = torch.empty_like(self._basis)
        self._table = torch.empty(0, 0, dtype=torch.float64)

    def add(self, fresh: torch.Tensor, image: torch.Tensor) -> None:
        """One more block of basis vectors [in, width], orthogonal to all others, and its image."""
        import torch

        old, new = self._count, self._count + self._width
        self._basis[:, old:new] = fresh
        self._images[:, old:new] = image
        cross = self._basis[:, :new].T.double() @ image.double()
        table = torch.empty(new, new, dtype=torch.float64)
        table[:old, :old] = self._table
        table[:old, old:] = cross[:old]
        table[old:, :old] = cross[:old].T
        table[old:, old:] = (cross[old:] + cross[old:].T) / 2
        self._count, self._table = new, table

    def ritz(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ritz values [count], descending, and their vectors as columns in terms of the basis."""
        import torch

        values, vectors = torch.linalg.eigh(self._table)
        return values.flip(0), vectors.flip(1)

    def combined(self, vectors: torch.Tensor) -> torch.Tensor:
        """Columns in terms of the basis as vectors [in, columns]."""
        return self._basis[:, : self._count] @ vectors.to(self._basis.dtype)

    def next(self, values: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """The block that leads on: residuals of the leading Ritz vectors, orthonormal to all."""
        import torch

        lead = vectors[:, : self._width].to(self._basis.dtype)
        strength = values[: self._width].to(lead.dtype)
        fresh = self._images[:, : self._count] @ lead - self.combined(lead * strength)
        if self._count == self._basis.shape[1]:
            self._cut(values, vectors)
        basis = self._basis[:, : self._count]
        for _ in range(2):  # once leaves what rounding put in, where residuals are small
            fresh = torch.linalg.qr(fresh - basis @ (basis.T @ fresh)).Q
        return fresh

    def _cut(self, values: torch.Tensor, vectors: torch.Tensor) -> None:
        import torch

        keep = self._count // 2
        best = vectors[:, :keep].to(self._basis.dtype)
        for held in (self._basis, self._images):
            held[:, :keep] = held[:, : self._count] @ best
        self._count, self._table = keep, torch.diag(values[:keep])


def _survey(blocks: Blocks, vectors: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    """M'M X divided by a unit; |M|_F^2; and the unit, so that squares of tiny values are not 0."""
    import torch

    image, norm, unit = torch.zeros_like(vectors), 0.0, 0.0
    for block in blocks():
        moved = block @ vectors
        unit = unit or float(moved.abs().max())
        norm += _squares(block)
        if unit:
            image.addmm_(block.T, moved.div_(unit))
    return image, _finite(norm), unit


def _image(blocks: Blocks, vectors: torch.Tensor, unit: float) -> torch.Tensor:
    """M'M X divided by the unit."""
    import torch

    image = torch.zeros_like(vectors)
    for block in blocks():
        image.addmm_(block.T, (block @ vectors).div_(unit))
    return image


def _projected(
    blocks: Blocks, shape: tuple[int, int], vectors: torch.Tensor, norm: float
) -> Approximation:
    """The decomposition of M X X' for orthonormal X [in, rank], and how far it is from M."""
    import torch

    moved = torch.empty(shape[0], vectors.shape[1], dtype=vectors.dtype)
    row, rest = 0, 0.0
    for block in blocks():
        part = torch.matmul(block, vectors, out=moved[row : row + len(block)])
        rest += _squares(torch.addmm(block, part, vectors.T, alpha=-1))
        row += len(block)
    u, s, vt = torch.linalg.svd(moved, full_matrices=False)
    spectrum = Spectrum(u.double(), s.double(), vt.double() @ vectors.double().T)
    return Approximation(spectrum, norm, sqrt(rest))


def _squares(block: torch.Tensor) -> float:
    """|block|_F^2, to about 1e-7 of itself however large or small its values are."""
    import torch

    total = float(torch.linalg.vector_norm(block, dim=1).double().square().sum())
    if 1e-30 < total < 1e30:  # no row of weight has left the range of float32: four times faster
        return total
    return float(block.double().square().sum())


def _finite(norm: float) -> float:
    if not isfinite(norm):
        raise FloatingPointError("a value of the matrix is not finite")
    return norm
