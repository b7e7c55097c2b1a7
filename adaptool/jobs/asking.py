"""What a caller hands to a job, as the layers below take it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def importance_of(path: str | os.PathLike[str] | None) -> Mapping[str, torch.Tensor] | None:
    """What llama-imatrix measured: tensor -> [columns] or [slots, columns]; None for no file."""
    if path is None:
        return None
    from adaptool.containers.gguf.imatrix import read_importance

    return {name: tensor.values() for name, tensor in read_importance(Path(path)).items()}


def with_total(
    progress: Callable[[int, int], None] | None, total: int
) -> Callable[[int], None] | None:
    """The callback with (bytes since last call, bytes in all) as one that is told the first."""
    return (lambda done: progress(done, total)) if progress else None
