"""Factors that PEFT stores folded together, unfolded lazily."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptool.canonical import DType, LazyTensor
from adaptool.canonical.tensors import from_recipe
from adaptool.errors import CorruptInputError

if TYPE_CHECKING:
    import torch


def stacked_a(a: LazyTensor, experts: int) -> LazyTensor:
    """[experts * rank, in], expert slowest -> [experts, rank, in]: the same bytes."""
    return a.reshaped(experts, a.shape[0] // experts, a.shape[1])


def stacked_b(b: LazyTensor, experts: int) -> LazyTensor:
    """[out, rank * experts], expert fastest -> [experts, out, rank]."""
    out, rank = b.shape[0], b.shape[1] // experts
    return from_recipe(
        (experts, out, rank),
        b.dtype,
        lambda: b.values().reshape(out, rank, experts).permute(2, 0, 1).contiguous(),
    )


def folded_b(b: LazyTensor) -> LazyTensor:
    """[experts, out, rank] -> [out, rank * experts], expert fastest: the inverse of `stacked_b`."""
    experts, out, rank = b.shape
    return from_recipe(
        (out, rank * experts),
        b.dtype,
        lambda: b.values().permute(1, 2, 0).reshape(out, rank * experts).contiguous(),
    )


def times(tensor: LazyTensor, ratio: float) -> LazyTensor:
    """The values times a number, as float32."""
    return from_recipe(
        tensor.shape, DType.FLOAT32, lambda: tensor.values().double().mul(ratio).float()
    )


def merged_projections(
    a: LazyTensor, b: LazyTensor, enabled: list[bool], where: str
) -> tuple[LazyTensor, LazyTensor]:
    """Factors of the merged-qkv LoRA of PEFT before 0.3 (`enable_lora`) as one plain pair.

    A is [rank * n, in] for n enabled projections, B [n * width, rank(, 1)], block-diagonal; the
    result's B is [len(enabled) * width, rank * n] with zero rows for what was not enabled.
    """
    count = sum(enabled)
    if not count or b.shape[0] % count or a.shape[0] % count or b.shape[1] * count != a.shape[0]:
        raise CorruptInputError(
            f"{where}: lora_A {list(a.shape)} and lora_B {list(b.shape)} are no merged "
            f"projections for enable_lora {enabled}",
            code="RANK_MISMATCH",
        )
    width, rank = b.shape[0] // count, b.shape[1]
    shape = (width * len(enabled), a.shape[0])

    def spread() -> torch.Tensor:
        import torch

        blocks = b.values().reshape(count, width, rank)
        whole = torch.zeros(shape, dtype=b.dtype.torch)
        for position, place in enumerate(p for p, on in enumerate(enabled) if on):
            rows = slice(place * width, (place + 1) * width)
            whole[rows, position * rank : (position + 1) * rank] = blocks[position]
        return whole

    return a, from_recipe(shape, b.dtype, spread)
