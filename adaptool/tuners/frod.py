"""FRoD: the weight in coordinates that layers share, with new values on and off the diagonal.

V [in, in] is common to all modules of one kind.  W V^-T = U diag(l), the columns of U of unit
length, gives U; the file holds trained values for the diagonal and for a few places beside it:
W' = U (diag(lambda) + S) V'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import LazyTensor, Update, Window
from adaptool.canonical.verbs import Span
from adaptool.tuners._forms import Change, Transform
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts
from adaptool.tuners._positions import read_positions

if TYPE_CHECKING:
    import torch

_DIAGONAL, _BESIDE = "frod_lambda_l", "frod_lambda_s_values"
_V, _PLACES, _SIZE = "frod_V", "frod_s_indices", "frod_s_size"

suffixes = (_DIAGONAL, _BESIDE)
shared = tuple(f"{name}.*" for name in (_V, _PLACES, _SIZE))

_SHORT = 1e-12
"""Columns that are shorter count as zero."""


@dataclass(frozen=True, kw_only=True)
class Reweighted(Transform):
    """U (diag(lambda) + S) V'.

    Attributes:
        v: [in, in].
        places: [2, n], where the values of S stand.
        where: file and module, for messages.
    """

    kind: ClassVar[str] = "shared-coordinates"
    peft_type: ClassVar[str] = "FROD"
    span: ClassVar[Span] = Span.ALL

    v: LazyTensor
    places: LazyTensor
    where: str

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix has as many inputs."""
        return len(shape) == 2 and shape[1] == self.v.shape[0]

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Needs the whole weight's coordinates, which are found in float64."""
        import torch

        v = self.v.values().to(device, torch.float64)
        middle = self.tensors[_DIAGONAL].values().to(device, torch.float64).diag()
        rows, cols = read_positions(self.places, len(v), f"{self.where}: {_PLACES}").to(device)
        beside = self.tensors[_BESIDE].values().to(device, torch.float64)
        middle = middle.index_put((rows, cols), beside, accumulate=True)

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:  # noqa: ARG001
            coordinates = _coordinates(weight.double(), v)
            lengths = coordinates.norm(dim=0)
            u = torch.where(lengths > _SHORT, coordinates / lengths, 0.0)
            return (u @ middle @ v.T).to(dtype)

        return change


def _coordinates(weight: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """W V^-T, by the pseudo-inverse of a V that has none."""
    import torch

    try:
        found: torch.Tensor = torch.linalg.solve(v, weight.T).T
    except RuntimeError:
        found = weight @ torch.linalg.pinv(v, rtol=1e-6).T
    return found


def read(parts: Parts, options: Options) -> Mapping[str, Update]:  # noqa: ARG001
    """`frod_lambda_l` [in], `frod_lambda_s_values` [n]; the shared V and places of its kind."""
    kind = _kind(parts.module)
    v = parts.common(f"{_V}.{kind}")
    places = parts.shared.get(f"{_PLACES}.{kind}")
    if v is None or places is None:
        raise parts.unsupported(
            f"FRoD saved without its {_V}, which comes from all layers at once,"
        )
    diagonal = parts.need(_DIAGONAL, None)
    parts.checked(f"{_V}.{kind}", v, diagonal.count, diagonal.count)
    beside = parts.tensors.pop(_BESIDE, None)
    if beside is None or places.shape != (2, beside.count) or len(beside.shape) != 1:
        raise parts.corrupt(f"{_BESIDE} does not fit {_PLACES}.{kind} {list(places.shape)}")
    tensors = {_DIAGONAL: diagonal, _BESIDE: parts.checked(_BESIDE, beside)}
    return {"weight": Reweighted(tensors=tensors, v=v, places=places, where=parts.where)}


def _kind(module: str) -> str:
    """What modules that share a V have in common: the last steps of their paths."""
    steps = module.split(".")
    if len(steps) == 1 or steps[-2].isdecimal():
        return steps[-1]
    if steps[-3:] == ["attention", "output", "dense"]:
        return "attention_output"
    return "_".join(steps[-2:])
