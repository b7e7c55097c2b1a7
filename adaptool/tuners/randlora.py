"""RandLoRA: a sum of random bases of full rank, weighted (arXiv:2502.00987, eq. 4 and 5).

A [r, 1, min] and B [max, n, r] are random, the same for all modules, `lambda` [r, n] and `gamma`
[n, min] trained; m and M are the smaller and the larger side of the module's weight:

    D [M, m] = B[:M, :n] as [M, n r]  times  (A[:, :, :m] o lambda o gamma) as [r n, m]

The two do not list (n, r) in the same order: that is how PEFT trains, so it is kept.  D is
transposed where out is the smaller side; W' = W + alpha / r D.  Unless the file holds A and B they
are drawn again: their sizes are the largest of all modules, so the base's shapes are needed.
PEFT draws in bfloat16, which has to be kept too (on old GPUs it drew in float16: such adapters
can be told from no file).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import ceil, sqrt
from typing import TYPE_CHECKING, ClassVar, Self

from adaptool.canonical import LazyTensor, Site, Update
from adaptool.errors import ResourceLimitError
from adaptool.tuners._drawing import kaiming
from adaptool.tuners._forms import Delta
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

if TYPE_CHECKING:
    import torch

_BASES = ("randlora_A", "randlora_B")

suffixes = ("randlora_lambda", "randlora_gamma")
shared = _BASES

_LARGEST = 1 << 31
"""Values of a random basis."""


@dataclass(frozen=True)
class Draw:
    """How the bases are drawn.

    Attributes:
        seed: of torch's generator.
        rank: r.
        sparse, very_sparse: a few -1 and 1 instead of uniform values.
        sides: the smaller and the larger of out and in, each the largest of all modules.
    """

    seed: int
    rank: int
    sparse: bool
    very_sparse: bool
    sides: tuple[int, int] = (0, 0)


@lru_cache(maxsize=1)
def _drawn(how: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """A [r, 1, min] and B [max, n, r] as PEFT draws them; the same for all modules."""
    import torch

    low, high = how.sides
    count = ceil(low / how.rank)
    generator = torch.Generator().manual_seed(how.seed)
    if how.sparse or how.very_sparse:
        edge = 1 / (2 * (sqrt(low) if how.very_sparse else 3))
        drawn = [torch.rand(how.rank, 1, low, generator=generator),
                 torch.rand(high, count, how.rank, generator=generator)]  # fmt: skip
        a, b = ((p > 1 - edge).float() - (p < edge).float() for p in drawn)
    else:
        draw = partial(kaiming, generator, slope=sqrt(5), dtype=torch.bfloat16)
        a = draw(how.rank, 1, low)
        b = torch.cat([draw(high, 1, how.rank) for _ in range(count)], dim=1)
    return a / a.std(), b / b.std()


@dataclass(frozen=True, kw_only=True)
class Weighted(Delta):
    """W + alpha / r D.

    Attributes:
        bases: A and B from the file, or None.
        draw: how they are drawn if the file lacks them.
        modules: those that share them.
    """

    kind: ClassVar[str] = "random-bases"
    peft_type: ClassVar[str] = "RANDLORA"

    bases: tuple[LazyTensor, LazyTensor] | None
    draw: Draw
    modules: tuple[str, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the smaller side is gamma's, and the bases are as many and as large."""
        if len(shape) != 2 or min(shape) != self.tensors["randlora_gamma"].shape[1]:
            return False
        rank, count = self.tensors["randlora_lambda"].shape
        if rank > max(shape) or count != ceil(min(shape) / rank):
            return False
        return self.bases is None or max(shape) <= self.bases[1].shape[0]

    def fitted(self, shape: tuple[int, ...], shapes: Mapping[Site, tuple[int, ...]]) -> Self:
        """With the sizes of the bases, which are those of the largest module.

        Raises ResourceLimitError if they would be unreasonably large.
        """
        of_all = [shapes[Site(m)] for m in self.modules if len(shapes.get(Site(m), ())) == 2]
        out, into = (max(s[axis] for s in (shape, *of_all)) for axis in (0, 1))
        sides = min(out, into), max(out, into)
        if self.bases is None and sides[1] * (sides[0] + self.draw.rank) > _LARGEST:
            raise ResourceLimitError(f"RandLoRA bases for weights of {out} x {into}")
        return replace(self, shape=shape, draw=replace(self.draw, sides=sides))

    def dense(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """[out, in]."""
        if self.bases is None:
            a, b = _drawn(self.draw)
        else:
            a, b = (base.values() for base in self.bases)
        names = ("randlora_lambda", "randlora_gamma")
        weights, gamma = (self.tensors[name].values().to(device, dtype) for name in names)
        (out, into), count = self.shape, weights.shape[1]
        a = a.to(device, dtype)[:, :, : min(out, into)] * weights[:, :, None] * gamma
        b = b[: max(out, into), :count].to(device, dtype)
        whole = b.flatten(1) @ a.flatten(0, 1)
        return whole if into <= out else whole.T


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`randlora_lambda` [r, n] and `randlora_gamma` [n, min]; A and B, or the seed."""
    weights = parts.need("randlora_lambda", None, None)
    rank, count = weights.shape
    gamma = parts.need("randlora_gamma", count, None)
    a = parts.common(_BASES[0], rank, 1, None)
    b = parts.common(_BASES[1], None, None, rank)
    if (a is None) != (b is None):
        raise parts.corrupt(f"the file holds only one of {' and '.join(_BASES)}")
    if a is not None and b is not None and (a.shape[2] < gamma.shape[1] or b.shape[1] < count):
        raise parts.corrupt(f"the bases {list(a.shape)} and {list(b.shape)} are too small")
    draw = Draw(options.whole("projection_prng_key", 0), rank, options.flag("sparse"),
                options.flag("very_sparse"))  # fmt: skip
    return {
        "weight": Weighted(
            tensors={"randlora_lambda": weights, "randlora_gamma": gamma},
            bases=None if a is None or b is None else (a, b), draw=draw, modules=parts.modules,
            scaling=options.number("randlora_alpha", 640) / rank,
        )
    }  # fmt: skip
