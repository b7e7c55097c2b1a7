"""How much an error in each value of a block matters while its scales are searched."""

from __future__ import annotations

import torch

from adaptool.encodings.ggml.blocks import Blocks
from adaptool.encodings.ggml.scratch import borrow_like


def weigh(
    blocks: Blocks, values: torch.Tensor, *, breadth: float, evenness: float = 0.0
) -> torch.Tensor:
    """Weights like `values`, [groups, k, n], in a shared buffer.

    Without importance: |x| + evenness * rms of the group. With it:
    importance * sqrt(x * x + breadth * mean square of the block). Source: ggml-quants.c,
    quantize_row_q4_K_ref and quantize_row_q4_K_impl with their kin; where ggml weighs by x * x
    here it is |x|, which makes both the plain error and the one weighed by x * x smaller.
    """
    weights = torch.mul(values, values, out=borrow_like("weights", values))
    if blocks.importance is not None:
        weights += weights.mean((0, 1)).mul_(breadth)
        return weights.sqrt_().mul_(blocks.importance.view(values.shape))
    rms = weights.mean(1, keepdim=True).sqrt_() if evenness else None
    torch.abs(values, out=weights)
    return weights if rms is None else weights.add_(rms, alpha=evenness)


def weigh_rows(blocks: Blocks) -> torch.Tensor:
    """Importance * sqrt(x * x + mean square of the row), [block, n], in a shared buffer.

    Source: ggml-quants.c, quantize_row_q4_0_impl. Raises ValueError without importance.
    """
    if blocks.importance is None or blocks.spread is None:
        raise ValueError("blocks without importance")
    weights = torch.mul(blocks.values, blocks.values, out=borrow_like("weights", blocks.values))
    return weights.add_(blocks.spread).sqrt_().mul_(blocks.importance)
