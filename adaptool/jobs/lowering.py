"""`convert --to lora`: an adapter of any type as a plain LoRA."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from adaptool import containers
from adaptool.canonical import Adapter
from adaptool.containers import open_checkpoint
from adaptool.errors import IncompatibleError
from adaptool.formats import Written
from adaptool.hub import fetch_checkpoint
from adaptool.lowering import Lowering, is_plain, lower, needs_base
from adaptool.ranks import RankRequest

LORA = "lora"
"""What `--to` calls it; in which format it is written the suffix says."""


@dataclass(frozen=True)
class Lowered(Written):
    """What was written, and what became of each update.

    Attributes:
        lowering: ranks and errors.
    """

    lowering: Lowering = field(kw_only=True)


def lower_adapter(
    adapter: Adapter,
    base: str | os.PathLike[str] | None,
    request: RankRequest | None,
    threads: int | None = None,
) -> Lowering:
    """`lowering.lower` with a base by its path or hub name, opened only if it can matter.

    Raises AdaptoolError: see `lower`; and IncompatibleError if no update becomes low-rank.
    """
    path = None if base is None else _model(adapter, os.fspath(base))
    model = None if path is None else open_checkpoint(path)
    done = lower(adapter, request, base=model, threads=threads)
    if all(row.rank is None for row in done.rows):
        raise IncompatibleError(
            f"{adapter.provenance.name}: nothing in it changes a weight in a way that factors "
            "could hold",
            hint="merge it into the model instead: adaptool merge",
            code="NOTHING_TO_LOWER",
        )
    return done


def _model(adapter: Adapter, base: str) -> Path | None:
    """The base with its weights; None where its config is all that is named, and all it takes."""
    updates = adapter.updates.values()
    if any(needs_base(update) for update in updates):
        return fetch_checkpoint(base)
    is_model = Path(base).exists() and containers.find(Path(base)) is not None
    return Path(base) if is_model and not all(map(is_plain, updates)) else None
