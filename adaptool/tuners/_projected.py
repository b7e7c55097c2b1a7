"""Vectors around two frozen random matrices that all modules share.

W + diag(b) B diag(d) A, of which a module takes the first `out` rows of B and the first `in`
columns of A.  Matrices that were not saved follow from a seed and from the largest sizes among the
adapted weights.  Once a base has told the sizes, it is a plain low-rank update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import LazyTensor, LowRank, Site, Update
from adaptool.errors import ResourceLimitError
from adaptool.tuners._drawing import kaiming
from adaptool.tuners._factored import double, factored
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

if TYPE_CHECKING:
    import torch

_LARGEST = 1 << 30
"""Values of a random matrix."""


@dataclass(frozen=True)
class Projected:
    """diag(b) B diag(d) A, as soon as the base has told the sizes.

    A type of PEFT derives from it and says how its tensors are called.

    Attributes:
        tensors: both vectors by suffix.
        matrices: A [rows, at least in] and B [at least out, rank]; None if they were not saved.
        seed: they follow from it then.
        modules: those that share them.
    """

    kind: ClassVar[str] = "shared-projection"
    peft_type: ClassVar[str]
    prefix: ClassVar[str]
    """Of the tensors' names: "vera" for vera_lambda_b, vera_lambda_d, vera_A and vera_B."""
    stacked: ClassVar[int] = 1
    """d and A have so many times the rank's entries, of which the first `rank` count."""

    tensors: Mapping[str, LazyTensor]
    matrices: tuple[LazyTensor, LazyTensor] | None
    seed: int
    modules: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Not known without a base."""
        return ()

    @property
    def left(self) -> LazyTensor:
        """b, of out values."""
        return self.tensors[f"{self.prefix}_lambda_b"]

    @property
    def right(self) -> LazyTensor:
        """d, of `stacked` * rank values."""
        return self.tensors[f"{self.prefix}_lambda_d"]

    @property
    def rank(self) -> int:
        """Columns of B."""
        return self.right.count // self.stacked

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it is a matrix of as many rows, and A and B are large enough."""
        if len(shape) != 2 or shape[0] != self.left.count:
            return False
        if self.matrices is None:
            return True
        a, b = self.matrices
        return a.shape[1] >= shape[1] and b.shape[0] >= shape[0]

    def fitted(self, shape: tuple[int, ...], shapes: Mapping[Site, tuple[int, ...]]) -> LowRank:
        """The low-rank update.

        Raises ResourceLimitError if A or B would have to be drawn unreasonably large.
        """
        sizes = [shape, *(shapes[Site(m)] for m in self.modules if Site(m) in shapes)]
        rows, cols = (max(size[axis] for size in sizes) for axis in (0, 1))
        height = self.right.count
        if self.matrices is None and height * max(rows, cols) > _LARGEST:
            raise ResourceLimitError(
                f"{self.peft_type}: matrices of {height} x {cols} and {rows} x {self.rank} values "
                "would have to be drawn"
            )

        def factors() -> tuple[torch.Tensor, torch.Tensor]:
            if self.matrices is None:
                a, b = _drawn(self.seed, height, self.rank, rows, cols)
            else:
                a, b = (tensor.values() for tensor in self.matrices)
            d, wide = double(self.right)[: self.rank], a[: self.rank, : shape[1]].double()
            return d[:, None] * wide, double(self.left)[:, None] * b[: shape[0]].double()

        return factored(self.tensors.values(), (shape[0], shape[1]), self.rank, factors)


@lru_cache(maxsize=1)
def _drawn(
    seed: int, height: int, rank: int, rows: int, cols: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A [height, cols], then B [rows, rank], as PEFT draws them; the same for all modules."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return kaiming(generator, height, cols), kaiming(generator, rows, rank)


def read_projected(form: type[Projected], parts: Parts, options: Options) -> Mapping[str, Update]:
    """`lambda_b` [out], `lambda_d` [stacked * rank]; shared A [stacked * rank, in], B [out, rank].

    Raises CorruptInputError if they contradict one another, or the configuration.
    """
    names = [f"{form.prefix}_lambda_{side}" for side in "bd"]
    tensors = {name: parts.need(name, None) for name in names}
    height = tensors[names[1]].count
    rank, rest = divmod(height, form.stacked)
    if rest or options.whole("r", 256, least=1) != rank:
        raise options.refusal("r", f"{height // form.stacked}, from {names[1]} of {parts.module}")
    a = parts.common(f"{form.prefix}_A", height, None)
    b = parts.common(f"{form.prefix}_B", None, rank)
    if (a is None) != (b is None) or (a is None and options.flag("save_projection", default=True)):
        raise parts.corrupt(f"the file holds no {form.prefix}_A or no {form.prefix}_B")
    seed = options.whole("projection_prng_key", 0)
    matrices = None if a is None or b is None else (a, b)
    return {"weight": form(tensors, matrices, seed, parts.modules)}
