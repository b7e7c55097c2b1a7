"""LoHa: the entrywise product of two low-rank products (FedPara, arXiv:2108.06098, eq. 1).

W + alpha / r * (A1 B1) * (A2 B2).  A convolution may be stored in CP form (prop. 3 of the paper):
each factor is then sum_ij T[i, j, kernel] A[i, out] B[j, in].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import LazyTensor, LowRank, Update, Window
from adaptool.tuners._factored import factored
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts
from adaptool.tuners._windowed import Part, Windowed

if TYPE_CHECKING:
    import torch

_SIDES = (
    ("hada_w1_a", "hada_w1_b", "hada_t1"),
    ("hada_w2_a", "hada_w2_b", "hada_t2"),
)

suffixes = tuple(suffix for side in _SIDES for suffix in side)
shared = ()


@dataclass(frozen=True, kw_only=True)
class Hadamard(Windowed):
    """W + scaling * (A1 B1) * (A2 B2)."""

    kind: ClassVar[str] = "hadamard"
    peft_type: ClassVar[str] = "LOHA"
    tells_shape: ClassVar[bool] = True

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether out and in * kernel are the factors'."""
        if len(shape) < 2:
            return False
        a, b = self.tensors["hada_w1_a"].shape, self.tensors["hada_w1_b"].shape
        core = self.tensors.get("hada_t1")
        if core is None:
            return (a[0], b[1]) == (shape[0], prod(shape[1:]))
        return (a[1], b[1]) == shape[:2] and prod(core.shape[2:]) == prod(shape[2:])

    def low_rank(self) -> LowRank:
        """Factors of rank r * r: the products of all pairs of columns, and of rows.

        (sum_p a_p b_p') * (sum_q c_q d_q') = sum_pq (a_p * c_q) (b_p * d_q)', entry by entry.
        """
        rank, shape = self._rank**2, self.shape or self._own_shape
        size = shape[0], prod(shape[1:])
        low = factored(self.tensors.values(), size, rank, self._expanded, self.scaling)
        return replace(low, a=low.a.reshaped(rank, *shape[1:]))

    def _expanded(self) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        sides = [self._factors(side, torch.float64, torch.device("cpu")) for side in _SIDES]
        (a1, b1), (a2, b2) = sides
        left = (a1[:, :, None] * a2[:, None]).flatten(1)
        right = (b1[:, None] * b2[None]).flatten(0, 1)
        return right, left

    @property
    def _rank(self) -> int:
        return self.tensors["hada_w1_b"].shape[0]

    @property
    def _own_shape(self) -> tuple[int, ...]:
        """What the tensors tell: without a core, a matrix."""
        a, b = self.tensors["hada_w1_a"].shape, self.tensors["hada_w1_b"].shape
        core = self.tensors.get("hada_t1")
        return (a[0], b[1]) if core is None else (a[1], b[1], *core.shape[2:])

    def part(self, dtype: torch.dtype, device: torch.device) -> Part:
        """The product of both sides' windows."""
        sides = [self._factors(side, dtype, device) for side in _SIDES]

        def part(window: Window) -> torch.Tensor:
            one, two = (a[window.rows] @ b[:, window.cols] for a, b in sides)
            return one.mul_(two)

        return part

    def _factors(
        self, side: tuple[str, str, str], dtype: torch.dtype, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A [out, r] and B [r, in * kernel], with the core of a CP form taken into B."""
        import torch

        a, b = (self.tensors[name].values().to(device, dtype) for name in side[:2])
        if side[2] not in self.tensors:
            return a, b
        core = self.tensors[side[2]].values().to(device, dtype)
        return a.T, torch.einsum("ijkl,jr->irkl", core, b).flatten(1)


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`w*_a` [out, r] and `w*_b` [r, in * kernel]; with `t*` [r, r, k, l]: [r, out] and [r, in]."""
    tensors, rank = _cores(parts) if parts.has("hada_t1") else _plain(parts)
    scaling = options.strength("alpha", parts.module, rank)
    return {"weight": Hadamard(tensors=tensors, scaling=scaling)}


def _plain(parts: Parts) -> tuple[dict[str, LazyTensor], int]:
    a = parts.need("hada_w1_a", None, None)
    rank = a.shape[1]
    b = parts.need("hada_w1_b", rank, None)
    tensors = {"hada_w1_a": a, "hada_w1_b": b}
    tensors["hada_w2_a"] = parts.need("hada_w2_a", *a.shape)
    tensors["hada_w2_b"] = parts.need("hada_w2_b", *b.shape)
    return tensors, rank


def _cores(parts: Parts) -> tuple[dict[str, LazyTensor], int]:
    tensors = {"hada_t1": parts.need("hada_t1", None, None, None, None)}
    rank, _, *kernel = tensors["hada_t1"].shape
    tensors["hada_t1"] = parts.checked("hada_t1", tensors["hada_t1"], rank, rank, None, None)
    tensors["hada_t2"] = parts.need("hada_t2", rank, rank, *kernel)
    for end in ("a", "b"):
        one = parts.need(f"hada_w1_{end}", rank, None)
        two = parts.need(f"hada_w2_{end}", *one.shape)
        tensors |= {f"hada_w1_{end}": one, f"hada_w2_{end}": two}
    return tensors, rank
