"""How each tensor of a GGUF model is written: as it is, or in an outtype's mixture of types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from adaptool.canonical import Checkpoint, DType, LazyTensor
from adaptool.canonical.forms import Form, importance_for
from adaptool.canonical.noise import seed_of
from adaptool.containers.gguf import Value
from adaptool.encodings.ggml import can_encode, encoding
from adaptool.encodings.ggml.mixtures import OUTTYPES, choose_types, file_type
from adaptool.encodings.ggml.types import PLAIN, QUANTIZATION_VERSION
from adaptool.errors import IncompatibleError, UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Retyping:
    """The choice of forms for one GGUF model.

    Attributes:
        base: the model.
        outtype: a name out of OUTTYPES, or None to keep each tensor's own type.
        importance: tensor name -> [columns] or [slots, columns], see `Encoding.encode`.
        seed: round touched blocks stochastically; None rounds to the nearest.
    """

    base: Checkpoint
    outtype: str | None = None
    importance: Mapping[str, torch.Tensor] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.outtype is not None and self.outtype not in OUTTYPES:
            raise UsageError(
                f"unknown outtype {self.outtype!r}", hint=f"one of: {', '.join(OUTTYPES)}"
            )

    @property
    def stated(self) -> dict[str, Value]:
        """The key-values by which a model says of which types it is; none if it keeps its own."""
        if self.outtype is None:
            return {}
        return {
            "general.file_type": Value.u32(file_type(self.outtype)),
            "general.quantization_version": Value.u32(QUANTIZATION_VERSION),
        }

    def form_of(self, name: str, tensor: LazyTensor, touched: bool) -> Form:
        """What is quantised already and stays untouched keeps its bytes; the rest is chosen.

        Raises IncompatibleError for a touched tensor of a type that is only read here.
        """
        if not touched and (self.outtype is None or tensor.encoding is not None):
            return tensor.form
        kind = tensor.kind if self.outtype is None else self._types(name, tensor)
        if kind in PLAIN or (self.outtype is None and tensor.encoding is None):
            return Form(PLAIN.get(kind, tensor.dtype))
        if not can_encode(kind):
            raise IncompatibleError(
                f"{name}: {kind} is read here, not written",
                hint="write touched tensors in another type: --outtype q4_k_m, q8_0 or f16",
                code="NOT_ENCODABLE",
            )
        measured = (self.importance or {}).get(name)
        importance = None if measured is None else importance_for(name, measured, tensor.shape)
        seed = seed_of(self.seed, name) if self.seed is not None and touched else None
        return Form(DType.FLOAT32, encoding(kind), importance, seed)

    def _types(self, name: str, tensor: LazyTensor) -> str:
        known = self._mixture.get(name)
        return known if known is not None else self._choose({name: tensor.shape})[name]

    @cached_property
    def _mixture(self) -> Mapping[str, str]:
        return self._choose({name: tensor.shape for name, tensor in self.base.tensors.items()})

    def _choose(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        architecture = str(self.base.config.get("general.architecture", ""))
        heads = self._number(f"{architecture}.attention.head_count", 1)
        return choose_types(
            shapes,
            str(self.outtype),
            architecture=architecture,
            heads=heads,
            kv_heads=self._number(f"{architecture}.attention.head_count_kv", heads),
            experts=self._number(f"{architecture}.expert_count", 0),
            layers=self._number(f"{architecture}.block_count", 0),
            has_importance=bool(self.importance),
        )

    def _number(self, key: str, default: int) -> int:
        """A whole number that the model states; of one per layer, the largest."""
        value = self.base.config.get(key)
        numbers = value if isinstance(value, list) else [value]
        return max((n for n in numbers if isinstance(n, int)), default=default)
