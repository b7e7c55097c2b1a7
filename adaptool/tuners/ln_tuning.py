"""LN tuning: trained copies of normalisation layers (arXiv:2312.11420)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from adaptool.canonical import LazyTensor, Replacement, Update
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

_LAYER = "ln_tuning_layers"

suffixes = (f"{_LAYER}.weight", f"{_LAYER}.bias")
shared = ()


@dataclass(frozen=True)
class TunedLayer(Replacement):
    """A replacement that knows its name in the file.

    Attributes:
        parameter: "weight" or "bias".
    """

    peft_type: ClassVar[str] = "LN_TUNING"

    parameter: str = "weight"

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The trained copy."""
        return {f"{_LAYER}.{self.parameter}": self.value}


def read(parts: Parts, options: Options) -> Mapping[str, Update]:  # noqa: ARG001
    """A copy of each parameter that the layer has."""
    taken = {name: parts.take(f"{_LAYER}.{name}") for name in ("weight", "bias")}
    return {n: TunedLayer(value, n) for n, value in taken.items() if value is not None}
