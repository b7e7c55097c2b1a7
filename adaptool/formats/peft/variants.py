"""Variants of LoRA whose factors, or whose base, are not the plain ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.canonical import LazyTensor, LowRank
from adaptool.canonical.tensors import from_recipe
from adaptool.errors import JSON, CorruptInputError
from adaptool.formats.peft.settings import Settings
from adaptool.tuners._residual import Residual, Taken

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Factors:
    """What a file holds for one module.

    Attributes:
        a: [rank, in], or a stack of its blocks.
        b: [out, rank], or a stack of its blocks.
        diagonal: [rank], between the two, or None.
        where: file and module, for messages.
    """

    a: LazyTensor
    b: LazyTensor
    diagonal: LazyTensor | None
    where: str


def unstacked(found: Factors, module: str, settings: Settings) -> tuple[LazyTensor, LazyTensor]:
    """A and B of BD-LoRA, of which one is stored as its diagonal blocks, one below another.

    Raises CorruptInputError for blocks that do not fit.
    """
    stated = settings.raw.get("use_bdlora")
    if not isinstance(stated, dict):
        return found.a, found.b
    name = module.rpartition(".")[2]
    count = stated.get("nblocks", 1)
    in_a, in_b = (_matches(stated.get(f"target_modules_bd_{side}"), name) for side in "ab")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1 or (in_a and in_b):
        raise CorruptInputError(f"{found.where}: use_bdlora contradicts itself")
    a = _block_diagonal(found.a, count, found.where) if in_a else found.a
    b = _block_diagonal(found.b, count, found.where) if in_b else found.b
    return a, b


def _matches(patterns: JSON, name: str) -> bool:
    return isinstance(patterns, list) and any(isinstance(p, str) and p in name for p in patterns)


def _block_diagonal(stack: LazyTensor, count: int, where: str) -> LazyTensor:
    if len(stack.shape) != 2 or stack.shape[0] % count:
        raise CorruptInputError(f"{where}: {list(stack.shape)} is no stack of {count} blocks")
    rows, width = stack.shape

    def spread() -> torch.Tensor:
        import torch

        blocks = stack.values().chunk(count)
        whole = torch.zeros(rows, width * count, dtype=stack.dtype.torch)
        for position, block in enumerate(blocks):
            height = rows // count
            whole[position * height : (position + 1) * height,
                  position * width : (position + 1) * width] = block  # fmt: skip
        return whole

    return from_recipe((rows, width * count), stack.dtype, spread)


def settled(update: LowRank, found: Factors, settings: Settings) -> LowRank | Residual:
    """The update as it is, or of a base that was changed before training began.

    Raises CorruptInputError for tensors that contradict the variant.
    """
    taken = settings.taken
    if (found.diagonal is None) == (taken is Taken.WEAKEST):
        raise CorruptInputError(f"{found.where}: lora_diag and kasa_config go together")
    if taken is None:
        return update
    if len(update.shape) != 2 or update.rank >= min(update.shape):
        raise CorruptInputError(
            f"{found.where}: {taken} factors of rank {update.rank} for {list(update.shape)}"
        )
    stored = {"lora_A.weight": found.a, "lora_B.weight": found.b}
    if found.diagonal is not None:
        if found.diagonal.shape != (update.rank,):
            raise CorruptInputError(
                f"{found.where}: lora_diag is {list(found.diagonal.shape)} for rank {update.rank}"
            )
        stored["lora_diag"] = found.diagonal
        b = from_recipe(update.b.shape, update.b.dtype, _times(update.b, found.diagonal))
        update = LowRank(update.a, b, update.scaling)
    return Residual(update, taken, stored)


def _times(b: LazyTensor, diagonal: LazyTensor) -> Callable[[], torch.Tensor]:
    return lambda: (b.values().double() * diagonal.values().double()).to(b.dtype.torch)
