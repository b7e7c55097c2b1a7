"""What the attention of a model may see, such that padding does no harm."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def seeing_masks() -> Iterator[None]:
    """Let rows of a mask that hide everything hide nothing, while this lasts.

    Padding on the left makes such rows. The eager mask adds the most negative number to all their
    scores; in float16 that overflows to minus infinity, the softmax of which is no number, and
    the next layer carries it into every row. What a row of padding sees is of no consequence.
    """
    import torch
    from transformers.masking_utils import (
        ALL_MASK_ATTENTION_FUNCTIONS,
        sdpa_mask,
    )

    def mask(
        *,
        dtype: torch.dtype = torch.float32,
        **options: Any,  # noqa: ANN401
    ) -> torch.Tensor | None:
        seen = sdpa_mask(**{**options, "allow_is_causal_skip": False})
        if seen is None:
            return None
        seen = seen | ~seen.any(dim=-1, keepdim=True)
        zero = torch.zeros((), dtype=dtype, device=seen.device)
        return torch.where(seen, zero, torch.finfo(dtype).min)

    before = ALL_MASK_ATTENTION_FUNCTIONS["eager"]
    ALL_MASK_ATTENTION_FUNCTIONS["eager"] = mask
    try:
        yield
    finally:
        ALL_MASK_ATTENTION_FUNCTIONS["eager"] = before
