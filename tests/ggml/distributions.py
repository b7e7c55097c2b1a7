"""Values to encode: what weights look like, and what they should not look like."""

from __future__ import annotations

from collections.abc import Callable

import torch

ROWS, WIDTH = 24, 1024


def _normal(seed: int) -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))


def _heavy_tail() -> torch.Tensor:
    return 0.02 * _normal(1) / _normal(2).square().add(_normal(3).square()).sqrt().clamp(min=0.3)


def _zero_blocks() -> torch.Tensor:
    values = 0.02 * _normal(4)
    values[:, 256:512] = 0
    values[3] = 0
    values[5, 32:64] = 0
    return values


def _constant_rows() -> torch.Tensor:
    values = 0.02 * _normal(5)
    values[0], values[1], values[2, :512] = 0.125, -0.37, 3e-4
    return values


def _one_outlier() -> torch.Tensor:
    values = 0.02 * _normal(6)
    values[:, 77] = 0.6 * _normal(7)[:, 0]
    return values


def _like_weights() -> torch.Tensor:
    """Low rank and columns of different size, in bf16 as models are published."""
    columns = torch.rand(WIDTH, generator=torch.Generator().manual_seed(8)) + 0.2
    matrix = _normal(9)[:, :48] @ _normal(10)[:16].repeat(3, 1) / 7 + 0.5 * _normal(11)
    return (0.02 * matrix * columns).to(torch.bfloat16).to(torch.float32)


DISTRIBUTIONS: dict[str, Callable[[], torch.Tensor]] = {
    "normal": lambda: 0.02 * _normal(0),
    "heavy tail": _heavy_tail,
    "uniform": lambda: _normal(12).remainder(1) - 0.5,
    "positive": lambda: 0.02 * _normal(13).abs(),
    "large": lambda: 300 * _normal(14),
    "tiny": lambda: 1e-3 * _normal(15),
    "zero blocks": _zero_blocks,
    "constant rows": _constant_rows,
    "one outlier": _one_outlier,
    "like weights": _like_weights,
}


def importance() -> torch.Tensor:
    """Log-normal over columns, as mean squares of activations are."""
    return torch.exp(1.5 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(16)))


def rms_error(decoded: torch.Tensor, values: torch.Tensor,
              weights: torch.Tensor | None = None) -> float:  # fmt: skip
    """Root of the mean squared error, in float64; weights by column."""
    squares = (decoded.view_as(values).double() - values.double()).square()
    if weights is not None:
        squares = squares * weights.double() / weights.double().mean()
    return float(squares.mean().sqrt())
