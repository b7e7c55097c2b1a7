"""TinyLoRA: a vector of a few values, shared by modules, between fixed factors (arXiv:2602.04118).

W' = W + B (sum_i v_i P_i) A: A [r, in] and B [out, r] are the base's strongest singular vectors
and stand in the file, P [u, r, r] is random.  It is a plain low-rank update.

Which of the vectors is a module's follows from its number in the model's own order, which a file
does not hold.  The seed of its P is that number plus a constant, so a P in the file tells the
number; without one it is told where it does not matter, or where modules differ by layer alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.canonical import LazyTensor, Update
from adaptool.errors import IncompatibleError
from adaptool.tuners._factored import double, factored
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

if TYPE_CHECKING:
    import torch

_A, _B, _P, _V = "tinylora_A", "tinylora_B", "tinylora_P", "tinylora_v"

suffixes = (_A, _B, _P)
shared = (f"{_V}.*",)


@dataclass(frozen=True)
class _Source:
    """What a module's factors are made of.

    Attributes:
        a, b: [r, in], [out, r].
        p: [u, r, r], or None.
        vectors: each [u].
        seed: of the first module's P.
        number: of the module in the model's order, or None.
        count: of modules.
        where: file and module, for messages.
    """

    a: LazyTensor
    b: LazyTensor
    p: LazyTensor | None
    vectors: tuple[LazyTensor, ...]
    seed: int
    number: int | None
    count: int
    where: str

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A, and B times the mixture of the P_i."""
        import torch

        if self.p is None and self.number is not None:
            projection = self._draw(self.number)
        elif self.p is not None:
            projection = self.p.values()
        group = 0
        if len(self.vectors) > 1:
            number = self._find(projection) if self.number is None else self.number
            size = max(1, self.count // len(self.vectors))
            group = min(number // size, len(self.vectors) - 1)
        mixture = torch.einsum("u,ujk->jk", double(self.vectors[group]), projection.double())
        return double(self.a), double(self.b) @ mixture

    def _draw(self, number: int) -> torch.Tensor:
        import torch

        rank, length = self.a.shape[0], self.vectors[0].count
        generator = torch.Generator().manual_seed(self.seed + number)
        size = (length, rank, rank)
        return torch.normal(mean=0.0, std=1.0 / rank**0.5, size=size, generator=generator)

    def _find(self, projection: torch.Tensor) -> int:
        """The module's number, by its own random numbers."""
        for number in range(self.count):
            if bool((self._draw(number).to(projection.dtype) == projection).all()):
                return number
        raise IncompatibleError(
            f"{self.where}: its {_P} is none that the seed {self.seed} gives, so that its "
            f"{_V} is not known",
            hint="merge it with PEFT",
            code="UNSUPPORTED_VARIANT",
        )


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`tinylora_A` [r, in], `tinylora_B` [out, r], `tinylora_P` [u, r, r]; the shared vectors."""
    vectors = tuple(_vectors(parts))
    length = vectors[0].count
    a = parts.need(_A, None, None)
    rank, into = a.shape
    b = parts.need(_B, None, rank)
    p = parts.take(_P, length, rank, rank)
    number = _number(parts.module, parts.modules)
    if number is None and p is None:
        raise parts.unsupported(f"a {_P} that is not in the file, for modules of several kinds,")
    source = _Source(a, b, p, vectors, options.whole("projection_seed", 42), number,
                     len(parts.modules), parts.where)  # fmt: skip
    size = (b.shape[0], into)
    return {"weight": factored((a, b, *vectors), size, rank, source.factors)}


def _vectors(parts: Parts) -> list[LazyTensor]:
    found: list[LazyTensor] = []
    while (vector := parts.common(f"{_V}.{len(found)}", None)) is not None:
        found.append(vector)
    if not found or len({vector.count for vector in found}) > 1 or len(found) > len(parts.modules):
        raise parts.corrupt(f"the file holds {len(found)} vectors {_V} for "
                            f"{len(parts.modules)} modules")  # fmt: skip
    return found


def _number(module: str, modules: tuple[str, ...]) -> int | None:
    """The module's place in the model, if all differ by one number in their paths alone."""
    steps = [re.split(r"\d+", name) for name in modules]
    numbers = {name: [int(n) for n in re.findall(r"\d+", name)] for name in modules}
    varied = [len(set(column)) > 1 for column in zip(*numbers.values(), strict=False)]
    if any(step != steps[0] for step in steps) or sum(varied) > 1:
        return None
    return sorted(modules, key=numbers.__getitem__).index(module)
