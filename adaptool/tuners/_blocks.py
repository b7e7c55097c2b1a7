"""Weights whose columns are rotated block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def rotate_columns(weight: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """W R' with R block-diagonal, of which no more than its blocks is formed.

    Args:
        weight: [rows, n * size].
        blocks: [n, size, size], R's; or [1, size, size] for n equal ones.
    """
    import torch

    size = blocks.shape[-1]
    pieces = weight.reshape(weight.shape[0], -1, size)
    equation = "rnj,ij->rni" if blocks.shape[0] == 1 else "rnj,nij->rni"
    operand = blocks[0] if blocks.shape[0] == 1 else blocks
    return torch.einsum(equation, pieces, operand).flatten(1)


def cayley(skew: torch.Tensor) -> torch.Tensor:
    """(I - Q)(I + Q)^-1 of skew-symmetric matrices [n, size, size]."""
    import torch

    eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    rotations: torch.Tensor = torch.linalg.solve(eye + skew, eye - skew, left=False)
    return rotations
