"""GLoRA: weight and bias, each scaled and shifted (arXiv:2306.07967, eq. 10).

W' = W + W o A + B;  b' = b + b o D + E + W C, of the base's W.  A and B are low-rank matrices, one
value for each output, or one value; D and E one value for each output, or one; C [in, 1] is a
column, or a product.  A path that is switched off is saved as zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

from adaptool.canonical import LazyTensor, Update, Window
from adaptool.errors import CorruptInputError
from adaptool.tuners._forms import Change, Transform
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

if TYPE_CHECKING:
    import torch

_ONE, _LEFT, _RIGHT, _OFF = ".X", ".Xd", ".Xu", ".zeros"
_FACTOR, _SHIFT, _COLUMN, _BIAS_FACTOR, _BIAS_SHIFT = _PATHS = tuple(f"glora_{p}" for p in "ABCDE")

_HEIGHTS = (_COLUMN + _LEFT, _COLUMN + _ONE)
"""Tensors with a row for each input."""

suffixes = tuple(path + part for path in _PATHS for part in (_ONE, _LEFT, _RIGHT, _OFF))
shared = ()

Piece = Callable[[Window], "torch.Tensor | float"]
"""A path's values in a window, or one value for all of it."""


@dataclass(frozen=True, kw_only=True)
class Affine(Transform):
    """W + W o factor + shift.

    Attributes:
        factor, shift: names of the two paths.
        where: file and module, for messages.
    """

    kind: ClassVar[str] = "affine"
    peft_type: ClassVar[str] = "GLORA"

    factor: str = _FACTOR
    shift: str = _SHIFT
    where: str

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether both paths say something of a parameter of this shape."""
        return all(self._path_fits(path, shape) for path in (self.factor, self.shift))

    def _path_fits(self, path: str, shape: tuple[int, ...]) -> bool:
        if path + _LEFT in self.tensors:
            left, right = self.tensors[path + _LEFT], self.tensors[path + _RIGHT]
            return shape == (left.shape[0], right.shape[1])
        one = self.tensors.get(path + _ONE)
        return one is None or one.count in (1, shape[0])

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Each value by itself."""
        self._check_zeros()
        factor, shift = (self.piece(path, dtype, device) for path in (self.factor, self.shift))

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:
            return weight + weight * factor(window) + shift(window)

        return change

    def _check_zeros(self) -> None:
        for name, tensor in self.tensors.items():
            if name.endswith(_OFF) and any(bool(piece.any()) for piece in tensor.stream()):
                raise CorruptInputError(f"{self.where}: {name} holds other values than zeros")

    def piece(self, path: str, dtype: torch.dtype, device: torch.device) -> Piece:
        """What a path says."""
        if path + _LEFT in self.tensors:
            left, right = (
                self.tensors[path + side].values().to(device, dtype) for side in (_LEFT, _RIGHT)
            )
            return lambda window: left[window.rows] @ right[:, window.cols]
        if path + _ONE not in self.tensors:
            return lambda _: 0.0
        one = self.tensors[path + _ONE].values().to(device, dtype).reshape(-1, 1)
        return (lambda _: one) if len(one) == 1 else (lambda window: one[window.rows])


@dataclass(frozen=True, kw_only=True)
class AffineBias(Affine):
    """b + b o factor + shift + W C.

    Attributes:
        weight: the base's W, as soon as a base is there.
    """

    factor: str = _BIAS_FACTOR
    shift: str = _BIAS_SHIFT
    weight: LazyTensor | None = None

    @property
    def sees_weight(self) -> bool:
        """Whether there is a C."""
        return any(name.startswith(_COLUMN) for name in self.tensors)

    def coupled(self, weight: LazyTensor) -> Self:
        """With the base's W [out, in].

        Raises CorruptInputError if C is not for so many inputs.
        """
        heights = [self.tensors[n].shape[0] for n in _HEIGHTS if n in self.tensors]
        if heights != [weight.shape[1]]:
            raise CorruptInputError(f"{self.where}: {_COLUMN} is not for {weight.shape[1]} inputs")
        return replace(self, weight=weight)

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Each value by itself; W is streamed once."""
        alone = super().change(dtype, device)
        if not self.sees_weight:
            return alone
        if self.weight is None:
            raise ValueError("the bias waits for its weight")
        shift = self._product(self.weight, dtype, device)

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:
            return alone(weight, window) + shift[window.rows]

        return change

    def _product(
        self, weight: LazyTensor, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """W C, [out, 1]."""
        import torch

        width = weight.shape[1]
        whole = Window(slice(0, width), slice(0, 1), (width, 1))
        column = self.piece(_COLUMN, dtype, device)(whole)
        rows = weight.stream(align=width)
        return torch.cat([r.view(-1, width).to(device, dtype) @ column for r in rows])


def read(parts: Parts, options: Options) -> Mapping[str, Update]:  # noqa: ARG001
    """`.Xd` [out, r] and `.Xu` [r, in], `.X` [out, 1], [out] or [1], or `.zeros`, for each path."""
    off = {name: parts.need(name) for name in suffixes if name.endswith(_OFF) and parts.has(name)}
    weight = {**off, **_path(parts, _FACTOR), **_path(parts, _SHIFT)}
    for path in (_FACTOR, _SHIFT):
        if not any(name.startswith(path) for name in weight):
            raise parts.corrupt(f"lacks its {path}")
    column = _path(parts, _COLUMN)
    if any(t.shape[-1] != 1 for name, t in column.items() if not name.endswith(_LEFT)):
        raise parts.corrupt(f"{_COLUMN} is no column")
    bias = {**column, **_path(parts, _BIAS_FACTOR), **_path(parts, _BIAS_SHIFT)}
    found: dict[str, Update] = {"weight": Affine(tensors=weight, where=parts.where)}
    if bias:
        found["bias"] = AffineBias(tensors=bias, where=parts.where)
    return found


def _path(parts: Parts, path: str) -> dict[str, LazyTensor]:
    if parts.has(path + _LEFT):
        left = parts.need(path + _LEFT, None, None)
        return {path + _LEFT: left, path + _RIGHT: parts.need(path + _RIGHT, left.shape[1], None)}
    if not parts.has(path + _ONE):
        return {}
    one = parts.need(path + _ONE)
    if not one.shape or one.count != one.shape[0]:
        raise parts.corrupt(f"{path}{_ONE} is {list(one.shape)}, no column")
    return {path + _ONE: one}
