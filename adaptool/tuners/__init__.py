"""Tuners: the tensors that PEFT trained for one module -> what they do to its parameters.

A module in this folder is one type of PEFT; its file name in upper case is the type's name in
adapter_config.json.  It offers what `Tuner` states: adding a type is adding one file.  LoRA itself
is no plug-in (formats/peft/reading.py), and types that change no weight are in `_unmergeable`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Protocol, cast

from adaptool import plugins
from adaptool.canonical import Update
from adaptool.tuners._forms import Tuned
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

__all__ = ["Options", "Parts", "Tuned", "Tuner", "names", "tuner_of"]


class Tuner(Protocol):
    """What a module in this folder offers."""

    suffixes: tuple[str, ...]
    """What follows a module's path in the names of the tensors that are its own: "oft_R.weight".

    A last step `*` stands for any step: "adamss_A.*".  An adapter's name, which some savers leave
    in ("oft_R.default.weight"), is not part of it.
    """

    shared: tuple[str, ...]
    """Names of tensors that all modules share: `base_model.` + "vera_A"; `*` as above.

    A copy of a shared tensor under a module's own path is the shared tensor.
    """

    def read(self, parts: Parts, options: Options) -> Mapping[str, Update]:
        """Parameter ("weight", "bias") -> its update; every tensor of `parts` is taken once.

        Called once per module that has a tensor of its own.  Reads shapes, and values only in the
        updates that it returns, when those are applied.

        Raises:
            CorruptInputError: tensors are missing, or their shapes contradict one another.
            IncompatibleError: a variant that is not known.
        """
        ...


def names() -> tuple[str, ...]:
    """PEFT's names of the types that are read here, sorted."""
    return tuple(name.upper() for name in plugins.names(sys.modules[__name__]))


def tuner_of(peft_type: str) -> Tuner | None:
    """The plug-in for a type as PEFT names it, imported now; None if there is none."""
    if peft_type not in names():
        return None
    return cast("Tuner", plugins.load(sys.modules[__name__], peft_type.lower()))
