"""WaveFT: a few wavelet coefficients of the difference are trained (arXiv:2505.12532, section 3).

The coefficients stand at positions drawn from a seed, in a matrix as large as the weight (padded
for longer filters), whose quarters are the sub-bands of one level.  The upper right one holds the
details from row to row, the lower left one those from column to column: that is how PEFT trains,
so it is kept.  W' = W + scaling * the inverse transform of that.

Filters are computed: Daubechies' of order N are the one factor of
    ((1 + z) / 2)^(2 N) sum_k C(N - 1 + k, k) ((1 - z) / 2)^k ((1 - 1 / z) / 2)^k
whose zeros lie within the unit circle (I. Daubechies, Ten Lectures on Wavelets, section 6.1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import comb, sqrt
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import Update
from adaptool.tuners._drawing import positions
from adaptool.tuners._forms import Delta
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

if TYPE_CHECKING:
    import torch

_LARGEST = 10
"""Order up to which the zeros are found to full precision."""

suffixes = ("waveft_spectrum",)
shared = ()


def daubechies(order: int) -> list[float]:
    """The reconstruction low-pass filter of 2 * order values, the largest first."""
    import numpy as np

    inner = np.zeros(1)
    for k in range(order):  # in y = (2 - z - 1/z) / 4, times z^(order - 1)
        term = np.array([comb(order - 1 + k, k) * 4.0**-k])
        for _ in range(k):
            term = np.convolve(term, [-1.0, 2.0, -1.0])
        term = np.pad(term, order - 1 - k)
        inner = term if k == 0 else inner + term
    zeros = np.roots(inner)
    found = np.poly(zeros[np.abs(zeros) < 1])
    for _ in range(order):
        found = np.convolve(found, [1.0, 1.0])
    values = np.real(found)
    return [float(v) for v in values * (sqrt(2) / values.sum())]


def inverse(bands: torch.Tensor, low: list[float]) -> torch.Tensor:
    """One level of the inverse transform.

    Args:
        bands: [2 m, 2 n], the sub-bands as quarters: smooth, detailed from row to row; detailed
            from column to column, and both.
        low: the reconstruction low-pass filter, f values long.

    Returns [2 m + f - 2 - 2 t, 2 n + f - 2 - 2 t], trimmed by t = (2 f - 3) // 2 on every side.
    """
    import torch

    length = len(low)
    high = [(-1) ** i * low[length - 1 - i] for i in range(length)]
    filters = bands.new_tensor([low, high])[:, None]
    trim = (2 * length - 3) // 2

    def risen(smooth: torch.Tensor, detail: torch.Tensor) -> torch.Tensor:
        """Twice as many rows, of both halves filtered and added."""
        both = torch.stack([smooth.T, detail.T], dim=1)
        return torch.nn.functional.conv_transpose1d(both, filters, stride=2)[:, 0].T

    upper, lower = (half.chunk(2, dim=1) for half in bands.chunk(2))
    left, right = risen(*upper), risen(*lower)
    whole = risen(left.T, right.T).T
    return whole[trim : whole.shape[0] - trim, trim : whole.shape[1] - trim]


@dataclass(frozen=True, kw_only=True)
class Wavelets(Delta):
    """W + scaling * the inverse transform of the spectrum.

    Attributes:
        order: of Daubechies' filter; 0: the spectrum itself is the difference.
        seed: of the positions.
    """

    kind: ClassVar[str] = "wavelet"
    peft_type: ClassVar[str] = "WAVEFT"

    order: int
    seed: int

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix has room for so many coefficients."""
        return len(shape) == 2 and self.tensors["waveft_spectrum"].count <= shape[0] * shape[1]

    def dense(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """[out, in]."""
        import torch

        spectrum = self.tensors["waveft_spectrum"].values().to(device, dtype)
        out, into = self.size
        rows, cols = positions(spectrum.numel(), out, into, self.seed).to(device)
        extra = 2 * (self.order - 1) if self.order else 0
        high, wide = (side + extra + (side % 2 if self.order else 0) for side in (out, into))
        bands = torch.zeros(high, wide, dtype=dtype, device=device)
        bands[rows + (high - out) // 2, cols + (wide - into) // 2] = spectrum
        if not self.order:
            return bands
        whole = inverse(bands, daubechies(self.order))
        row, col = (whole.shape[0] - out) // 2, (whole.shape[1] - into) // 2
        return whole[row : row + out, col : col + into]


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`waveft_spectrum` [n]."""
    order = 0
    if options.flag("use_idwt", default=True):
        family = options.raw.get("wavelet_family", "db1")
        match = re.fullmatch(r"db(\d\d?)|haar", family) if isinstance(family, str) else None
        order = int(match[1] or 1) if match else 0
        if not 1 <= order <= _LARGEST:
            raise parts.unsupported(f"wavelet_family={str(family)[:20]!r}, other than db1 to "
                                    f"db{_LARGEST},")  # fmt: skip
    return {
        "weight": Wavelets(
            tensors={"waveft_spectrum": parts.need("waveft_spectrum", None)}, order=order,
            seed=options.whole("random_loc_seed", 777), scaling=options.number("scaling", 25.0),
        )
    }  # fmt: skip
