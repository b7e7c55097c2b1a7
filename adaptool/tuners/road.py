"""RoAd: pairs of outputs are rotated and stretched (arXiv:2409.00119, eq. 3 and 4).

Outputs stand in groups; x1 and x2 are a group's halves.  y = c o x + s o (-x2, x1), with
c = alpha cos(theta) and s = alpha sin(theta) for every output.  "road_1" has one angle for each
pair, "road_2" one for each output, "road_4" one for c and another for s.  As y is the module's
result, weight and bias are changed alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import LazyTensor, Update, Window
from adaptool.canonical.verbs import Applier, Span
from adaptool.tuners._forms import Change, Transform
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

if TYPE_CHECKING:
    import torch

suffixes = ("road_theta", "road_alpha")
shared = ()

_VALUES = {"road_1": 0.5, "road_2": 1.0, "road_4": 2.0}
"""Angles for each output."""


@dataclass(frozen=True, kw_only=True)
class Rotated(Transform):
    """c o W + s o (-W2, W1), rows as outputs.

    Attributes:
        variant: "road_1", "road_2" or "road_4".
        group: outputs of a group, even.
        outputs: rows of the weight.
    """

    kind: ClassVar[str] = "rotation"
    peft_type: ClassVar[str] = "ROAD"
    span: ClassVar[Span] = Span.COLUMNS

    variant: str
    group: int
    outputs: int

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it has as many outputs."""
        return len(shape) == 2 and shape[0] == self.outputs

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Each column of the weight by itself."""
        names = ("road_theta", "road_alpha")
        theta, alpha = (self.tensors[name].values().to(device, dtype) for name in names)
        straight, turned = alpha * theta.cos(), alpha * theta.sin()
        half = self.group // 2
        if self.variant == "road_1":
            straight, turned = (
                x.reshape(-1, half).repeat_interleave(2, dim=0) for x in (straight, turned)
            )
        elif self.variant == "road_4":
            straight = straight.reshape(-1, 2, self.group)[:, 0]
            turned = turned.reshape(-1, 2, self.group)[:, 1]
        c, s = (x.reshape(-1, 2, half, 1) for x in (straight, turned))

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:  # noqa: ARG001
            halves = weight.reshape(-1, 2, half, weight.shape[1])
            moved = c * halves
            moved[:, 0] -= s[:, 0] * halves[:, 1]
            moved[:, 1] += s[:, 1] * halves[:, 0]
            return moved.reshape(weight.shape)

        return change


@dataclass(frozen=True)
class RotatedBias:
    """The same of the module's bias [out], if it has one; the tensors are the weight's."""

    kind: ClassVar[str] = "rotation"
    additive: ClassVar[bool] = False
    companion: ClassVar[bool] = True
    span: ClassVar[Span] = Span.COLUMNS

    weight: Rotated

    @property
    def shape(self) -> tuple[int, ...]:
        """[out]."""
        return (self.weight.outputs,)

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """Nothing of its own."""
        return {}

    def applier(self, dtype: torch.dtype, device: torch.device) -> Applier:
        """The bias is seen as one column."""
        return self.weight.applier(dtype, device)


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`road_theta` and `road_alpha`, each of out / 2, out, or 2 * out values."""
    variant = options.choice("variant", tuple(_VALUES))
    group = options.whole("group_size", 64, least=2)
    theta = parts.need("road_theta", None)
    tensors = {"road_theta": theta, "road_alpha": parts.need("road_alpha", theta.count)}
    outputs = int(theta.count / _VALUES[variant])
    if group % 2 or outputs % group or outputs * _VALUES[variant] != theta.count:
        raise parts.corrupt(f"{theta.count} angles of {variant} are no whole groups of {group}")
    weight = Rotated(tensors=tensors, variant=variant, group=group, outputs=outputs)
    return {"weight": weight, "bias": RotatedBias(weight)}
