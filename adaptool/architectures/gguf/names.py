"""What gguf's tensor name map says."""

from __future__ import annotations

from functools import cache
from typing import Any

from adaptool.architectures.gguf.table import Row
from adaptool.errors import IncompatibleError


def stem_of(architecture: str, prefix: str, row: Row) -> str:
    """GGUF's name of a row's module, without suffix, {} standing for the block's number.

    Args:
        architecture: GGUF's name.
        prefix: of the block's names, with {}; empty outside of blocks.
        row: states its name below the prefix, and GGUF's if the map does not know it.

    Raises IncompatibleError if the installed gguf does not know the architecture or the name.
    """
    if row.to:
        return f"blk.{{}}.{row.to}" if prefix else row.to
    return _mapped(architecture, prefix.format(0) + row.name, bool(prefix))


@cache
def _mapped(architecture: str, name: str, inside: bool) -> str:
    names = _name_map(architecture)
    found = names.get_name(name) or names.get_name(name.removeprefix("transformer."))
    if found is None:
        raise IncompatibleError(
            f"the installed gguf package has no name for {name} of {architecture}",
            hint="pip install -U gguf",
            code="UNKNOWN_TENSOR",
        )
    stem = str(found)
    return stem.replace("blk.0.", "blk.{}.", 1) if inside else stem


@cache
def _name_map(architecture: str) -> Any:  # noqa: ANN401
    import gguf

    for number, name in gguf.MODEL_ARCH_NAMES.items():
        if name == architecture:
            return gguf.get_tensor_name_map(number, 1)
    raise IncompatibleError(
        f"the installed gguf package does not know the architecture {architecture}",
        hint="pip install -U gguf",
        code="UNSUPPORTED_ARCHITECTURE",
    )
