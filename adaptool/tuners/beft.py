"""BEFT: only biases are trained (arXiv:2509.15974): b' = b + `beft_bias`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import Update
from adaptool.tuners._forms import Delta
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

if TYPE_CHECKING:
    import torch

suffixes = ("beft_bias",)
shared = ()


@dataclass(frozen=True, kw_only=True)
class Shift(Delta):
    """b plus `beft_bias` [1, out]."""

    kind: ClassVar[str] = "bias-difference"
    peft_type: ClassVar[str] = "BEFT"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it has as many outputs."""
        return shape == self.tensors["beft_bias"].shape[1:]

    def dense(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """[out, 1], as a bias is seen in a merge."""
        return self.tensors["beft_bias"].values().to(device, dtype).T


def read(parts: Parts, options: Options) -> Mapping[str, Update]:  # noqa: ARG001
    """`beft_bias` [1, out]."""
    return {"bias": Shift(tensors={"beft_bias": parts.need("beft_bias", 1, None)})}
