"""PEANuT: a small network looks at the weight and says what to add (arXiv:2410.01870, eq. 3 to 5).

With f the activation, for every column w of W:  h_0 = f(A w), h_i = f(E_i h_(i-1)); then
g = h_d, g <- f(D_i g) + h_(d-i) for i = 1 .. d; w' = w + scaling B g.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import Update, Window
from adaptool.canonical.verbs import Span
from adaptool.tuners._forms import Change, Transform
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

if TYPE_CHECKING:
    import torch

_A, _B = "peanut_A.weight", "peanut_B.weight"
_ENCODER, _DECODER = "peanut_encoders.{}.weight", "peanut_decoders.{}.weight"

suffixes = (_A, _B, _ENCODER.format("*"), _DECODER.format("*"))
shared = ()

ACTIVATIONS = ("relu", "gelu", "silu", "swish", "tanh", "sigmoid", "leaky_relu", "mish", "linear")
"""Names as transformers has them."""


def _activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    from torch.nn import functional as f

    if name == "linear":
        return lambda x: x
    found: Callable[[torch.Tensor], torch.Tensor] = getattr(f, {"swish": "silu"}.get(name, name))
    return found


@dataclass(frozen=True, kw_only=True)
class Networked(Transform):
    """W + strength B g(W).

    Attributes:
        depth: layers of encoder and decoder.
        activation: one of `ACTIVATIONS`.
        strength: of what is added.
    """

    kind: ClassVar[str] = "network"
    peft_type: ClassVar[str] = "PEANUT"
    span: ClassVar[Span] = Span.COLUMNS

    depth: int
    activation: str
    strength: float

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix has as many outputs."""
        return len(shape) == 2 and shape[0] == self.tensors[_B].shape[0]

    @property
    def most_rank(self) -> int:
        """Columns of B."""
        return self.tensors[_B].shape[1]

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Each column of the weight by itself."""
        f = _activation(self.activation)
        layers = {name: t.values().to(device, dtype) for name, t in self.tensors.items()}

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:  # noqa: ARG001
            state = f(layers[_A] @ weight)
            passed = []
            for layer in range(self.depth):
                passed.append(state)
                state = f(layers[_ENCODER.format(layer)] @ state)
            for layer in range(self.depth):
                state = f(layers[_DECODER.format(layer)] @ state) + passed.pop()
            return weight.addmm(layers[_B], state, alpha=self.strength)

        return change


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`peanut_A.weight` [r, out], `peanut_B.weight` [out, r], layers [r, r]."""
    a = parts.need(_A, None, None)
    rank, outputs = a.shape
    tensors = {_A: a, _B: parts.need(_B, outputs, rank)}
    depth = 0
    while parts.has(_ENCODER.format(depth)):
        for name in (_ENCODER.format(depth), _DECODER.format(depth)):
            tensors[name] = parts.need(name, rank, rank)
        depth += 1
    if depth != options.whole("depth", 0):
        raise parts.corrupt(f"{depth} layers, where the configuration states another depth")
    return {
        "weight": Networked(
            tensors=tensors, depth=depth, activation=options.choice("act_fn", ACTIVATIONS),
            strength=options.number("scaling", 1.0),
        )
    }  # fmt: skip
