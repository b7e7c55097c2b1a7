"""The low-rank part of an update, whatever it stands in, and the single weights of a stack."""

from __future__ import annotations

from dataclasses import replace

from adaptool.canonical.experts import ExpertLowRank
from adaptool.canonical.updates import Dora, LowRank, Rebased
from adaptool.canonical.verbs import Update

Low = LowRank | ExpertLowRank


def low_rank(update: Update) -> Low | None:
    """The low-rank part of an update, if it has one."""
    if isinstance(update, Rebased):
        return low_rank(update.update)
    if isinstance(update, Dora):
        return update.direction
    return update if isinstance(update, LowRank | ExpertLowRank) else None


def with_low_rank(update: Update, low: Low) -> Update:
    """The update with another low-rank part."""
    if isinstance(update, Rebased) and not isinstance(low, ExpertLowRank):
        inner = update.update
        return replace(update, update=replace(inner, direction=low) if isinstance(inner, Dora)
                       else low)  # fmt: skip
    if isinstance(update, Dora) and isinstance(low, LowRank):
        return replace(update, direction=low)
    return low


def members(low: Low) -> list[LowRank]:
    """The updates of single weights in it."""
    return [low] if isinstance(low, LowRank) else [low.expert(e) for e in range(low.experts)]


def matrix(low: Low) -> tuple[int, int]:
    """[out, in * kernel] of one weight."""
    if isinstance(low, ExpertLowRank):
        return low.shape[1], low.shape[2]
    return low.shape[0], low.a.count // low.rank


def looks_up(update: Update) -> bool:
    """Whether it is of a module that looks rows up, so that its weight is stored as [in, out]."""
    inner = update.direction if isinstance(update, Dora) else update
    return bool(getattr(inner, "embedding", False))
