"""How the tensors of an ONNX model are written: as they are, or plain where they were quantised."""

from __future__ import annotations

from dataclasses import dataclass

from adaptool.canonical import Checkpoint, DType, LazyTensor
from adaptool.canonical.forms import Form
from adaptool.canonical.noise import seed_of
from adaptool.errors import UsageError


@dataclass(frozen=True)
class Rounding:
    """The choice of forms for one ONNX model.

    Attributes:
        base: the model.
        dtype: plain type of touched weights that were quantised; None keeps their own encodings.
        seed: round touched weights stochastically; None rounds to the nearest.
    """

    base: Checkpoint
    dtype: DType | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        others = {t.dtype for t in self.base.tensors.values() if t.encoding is None}
        packed = any(t.encoding is not None for t in self.base.tensors.values())
        if self.dtype is not None and not packed and self.dtype not in others:
            raise UsageError(
                f"--dtype {self.dtype} is for quantised weights of an ONNX model, and "
                f"{self.base.provenance.name} has none: its graph computes in its own types",
                hint="export the model in that type, and merge into that",
            )

    def form_of(self, name: str, tensor: LazyTensor, touched: bool) -> Form:
        """What is not touched keeps its bytes."""
        if not touched or tensor.encoding is None:
            return tensor.form
        if self.dtype is not None:
            return Form(self.dtype)
        seed = None if self.seed is None else seed_of(self.seed, name)
        return Form(tensor.dtype, tensor.encoding, None, seed)
