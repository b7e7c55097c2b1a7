"""Families of models, one file for those that are told in one breath.

Each file offers `FAMILIES`. Dropping a file into this folder adds its families.
"""

from __future__ import annotations

import sys
from functools import cache

from adaptool import plugins
from adaptool.architectures.gguf.table import Family


@cache
def catalogue() -> tuple[Family, ...]:
    """Every family, those of one file in the order in which it tells them."""
    modules = plugins.load_all(sys.modules[__name__])
    return tuple(family for module in modules.values() for family in module.FAMILIES)
