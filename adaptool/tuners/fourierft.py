"""FourierFT: a few trained coefficients of a spectrum (arXiv:2405.03003, eq. 2 to 4).

W + scaling * Re(ifft2(S)).  The positions of the coefficients in S [out, in] are the first n of a
random order that torch's generator gives for a seed and the number of positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import Update
from adaptool.tuners._drawing import positions
from adaptool.tuners._forms import Delta
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

if TYPE_CHECKING:
    import torch

suffixes = ("fourierft_spectrum",)
shared = ()


@dataclass(frozen=True, kw_only=True)
class Spectral(Delta):
    """W + scaling * Re(ifft2(S)).

    Attributes:
        seed: of the positions.
    """

    kind: ClassVar[str] = "spectral"
    peft_type: ClassVar[str] = "FOURIERFT"

    seed: int

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix has as many positions."""
        return len(shape) == 2 and self.tensors["fourierft_spectrum"].count <= shape[0] * shape[1]

    def dense(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Re(ifft2(S))."""
        import torch

        rows, cols = self.size
        coefficients = self.tensors["fourierft_spectrum"].values().to(device, dtype)
        row, col = positions(coefficients.numel(), rows, cols, self.seed).to(device)
        spectrum = torch.zeros(rows, cols, dtype=dtype, device=device)
        spectrum[row, col] = coefficients
        difference: torch.Tensor = torch.fft.ifft2(spectrum).real
        return difference


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`fourierft_spectrum` [n]."""
    spectrum = parts.need("fourierft_spectrum", None)
    scaling = options.number("scaling", 150.0)
    seed = options.whole("random_loc_seed", 777)
    tensors = {"fourierft_spectrum": spectrum}
    return {"weight": Spectral(tensors=tensors, scaling=scaling, seed=seed)}
