"""LoKr: a Kronecker product (LyCORIS, arXiv:2309.14859, section 3.2).

W + alpha / r * kron(w1, w2).  Each of the two is stored whole or as a product a b; w2 of a
convolution is [.., .., k, l], and may be in CP form with a core t2 [r, r, k, l].  The kernel
is the fastest dimension on both sides, so the product is taken of w2 as a matrix.

A w2 [c, d, k] of a one-dimensional convolution is no such case: PEFT trains and merges
kron(w1, w2) with w1 taken for a [1, a, b], whose values it then deals out in the weight's shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import LazyTensor, LowRank, Update, Window
from adaptool.canonical.tensors import from_values
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts
from adaptool.tuners._windowed import Part, Windowed

if TYPE_CHECKING:
    import torch

_ONE, _TWO, _CORE = "lokr_w1", "lokr_w2", "lokr_t2"

suffixes = (*(n + end for n in (_ONE, _TWO) for end in ("", "_a", "_b")), _CORE)
shared = ()

_NOISE = 1e-12
"""Singular values below this share of the largest are rounding of float64."""


@dataclass(frozen=True, kw_only=True)
class Kronecker(Windowed):
    """W + scaling * kron(w1, w2).

    Attributes:
        one, two: rows and columns of w1, and of w2 as a matrix [rows, columns * kernel].
    """

    kind: ClassVar[str] = "kronecker"
    peft_type: ClassVar[str] = "LOKR"
    tells_shape: ClassVar[bool] = True

    one: tuple[int, int]
    two: tuple[int, int]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether out and in * kernel are the products of both sizes."""
        rows, cols = (a * b for a, b in zip(self.one, self.two, strict=True))
        return len(shape) > 1 and (rows, cols) == (shape[0], prod(shape[1:]))

    def part(self, dtype: torch.dtype, device: torch.device) -> Part:
        """The product of the rows and of the columns that a window's are made of."""
        import torch

        one = self._whole(_ONE, dtype, device)
        two = self._whole(_TWO, dtype, device)
        if two.dim() == 3:
            whole = torch.kron(one[None], two).reshape(self.size)
            return lambda window: whole[window.rows, window.cols]
        two = two.flatten(1)

        def part(window: Window) -> torch.Tensor:
            rows = torch.arange(window.rows.start, window.rows.stop, device=device)
            cols = torch.arange(window.cols.start, window.cols.stop, device=device)
            height, width = self.two
            left = one[rows // height][:, cols // width]
            return left.mul_(two[rows % height][:, cols % width])

        return part

    def low_rank(self) -> LowRank | None:
        """Factors from the singular values of w1 and w2, whose products are those of the whole.

        kron(U S V', X T Y') = kron(U, X) kron(S, T) kron(V, Y)'.  The largest come first, so that
        the leading ones are the best approximation.  None for a one-dimensional convolution.
        """
        import torch

        if _TWO in self.tensors and len(self.tensors[_TWO].shape) == 3:
            return None
        wide = torch.float64, torch.device("cpu")
        u, s, v = torch.linalg.svd(self._whole(_ONE, *wide), full_matrices=False)
        x, t, y = torch.linalg.svd(self._whole(_TWO, *wide).flatten(1), full_matrices=False)
        values, order = torch.outer(s, t).flatten().sort(descending=True)
        rank = max(1, int((values > _NOISE * values[0]).sum()))
        one, two = order[:rank] // len(t), order[:rank] % len(t)
        root = values[:rank].sqrt()
        left = torch.einsum("ar,br->abr", u[:, one], x[:, two]).flatten(0, 1) * root
        right = torch.einsum("ra,rb->rab", v[one], y[two]).flatten(1) * root[:, None]
        shape = self.shape or (left.shape[0], right.shape[1])
        a, b = right.reshape(rank, *shape[1:]).float(), left.float()
        return LowRank(from_values(a), from_values(b), self.scaling)

    def _whole(self, name: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        import torch

        found = {n: t.values().to(device, dtype) for n, t in self.tensors.items() if name in n}
        if name in found:
            return found[name]
        a, b = found[f"{name}_a"], found[f"{name}_b"]
        if name == _TWO and _CORE in self.tensors:
            core = self.tensors[_CORE].values().to(device, dtype)
            return torch.einsum("ijkl,ip,jr->prkl", core, a, b).flatten(1)
        return a @ b


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`w*` [rows, columns(, kernel)], or `w*_a` [rows, r] and `w*_b` [r, columns * kernel].

    With `t2` [r, r, k, l]: `w2_a` [r, rows], `w2_b` [r, columns].
    """
    tensors: dict[str, LazyTensor] = {}
    one = _side(parts, _ONE, tensors)
    two = _cored(parts, tensors) if parts.has(_CORE) else _side(parts, _TWO, tensors)
    stated = options.pattern("rank_pattern", parts.module)
    rank = options.whole("r", 8, least=1) if stated is None else int(stated)
    ranks = [t.shape[0] for n, t in tensors.items() if n.endswith("_b")]
    if rank < 1 or any(found != rank for found in ranks):
        raise parts.corrupt(f"factors of rank {ranks or '?'}, the configuration states {rank}")
    scaling = options.strength("alpha", parts.module, rank)
    return {"weight": Kronecker(tensors=tensors, scaling=scaling, one=one, two=two)}


def _side(parts: Parts, name: str, tensors: dict[str, LazyTensor]) -> tuple[int, int]:
    if parts.has(name):
        whole = tensors[name] = parts.need(name)
        if len(whole.shape) < 2 or (name == _ONE and len(whole.shape) > 2):
            raise parts.corrupt(f"{name} is {list(whole.shape)}, no matrix")
        return whole.shape[0], prod(whole.shape[1:])
    a = tensors[f"{name}_a"] = parts.need(f"{name}_a", None, None)
    b = tensors[f"{name}_b"] = parts.need(f"{name}_b", a.shape[1], None)
    return a.shape[0], b.shape[1]


def _cored(parts: Parts, tensors: dict[str, LazyTensor]) -> tuple[int, int]:
    core = tensors[_CORE] = parts.need(_CORE, None, None, None, None)
    a = tensors[f"{_TWO}_a"] = parts.need(f"{_TWO}_a", core.shape[0], None)
    b = tensors[f"{_TWO}_b"] = parts.need(f"{_TWO}_b", core.shape[1], None)
    return a.shape[1], b.shape[1] * prod(core.shape[2:])
