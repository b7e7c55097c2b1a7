"""LyCORIS: one .safetensors file, as LyCORIS and kohya's sd-scripts write it (read only).

A tensor is called MODULE.ROLE.  MODULE is a prefix (`lycoris_`, `lora_unet_`, `lora_te1_` ...) and
the module's path with its dots made underscores, which only the names of a base undo
(`architectures.underscored`).  ROLE tells the algorithm: `lora_up.weight`, `hada_w1_a`, `lokr_w1`,
`oft_blocks`, `diff` ...  A scalar `alpha` beside them states the strength; without it, it is 1.

Formulas: those of LyCORIS 4.1 (`lycoris/modules`) when its modules run at a multiplier of one.  Its
`merge` and `get_merged_weight` apply alpha / rank twice for LoHa and LoKr, which nothing here does.
"""

from __future__ import annotations

from pathlib import Path

from adaptool.architectures.underscored import UNDERSCORED
from adaptool.canonical import Adapter
from adaptool.errors import IncompatibleError
from adaptool.formats import WriteOptions, Written
from adaptool.formats.lycoris.reading import read, recognises

suffixes: tuple[str, ...] = ()
naming = UNDERSCORED

__all__ = ["naming", "plan", "read", "recognises", "suffixes", "write"]


def plan(adapter: Adapter, path: Path, options: WriteOptions) -> Written:
    """These files are not written. Raises IncompatibleError."""
    del adapter, options
    raise IncompatibleError(
        f"{path}: LyCORIS files are read here, not written",
        hint="name a folder for a PEFT adapter, or a file ending in .gguf",
        code="NOT_WRITABLE",
    )


write = plan
