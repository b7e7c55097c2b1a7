"""One parameter of a model, by the names that its world gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True, slots=True)
class Site:
    """One parameter of a model: `Site("model.layers.0.self_attn.q_proj", "weight")`."""

    module: str
    parameter: str = "weight"

    def __str__(self) -> str:
        return f"{self.module}.{self.parameter}" if self.module else self.parameter
