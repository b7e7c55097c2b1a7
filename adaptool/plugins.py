"""A file in a folder is a plug-in, and its file name is its name.

A folder (formats/, containers/, methods/, targets/ ...) states in its `__init__` what a plug-in
offers; dropping a module that offers it into the folder is all it takes to add one.
"""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType


def names(folder: ModuleType) -> tuple[str, ...]:
    """Names of the plug-ins in a package, sorted; a leading underscore hides a module."""
    return tuple(sorted(m.name for m in iter_modules(folder.__path__) if m.name[0] != "_"))


def load(folder: ModuleType, name: str) -> ModuleType:
    """The plug-in module of that name, imported now.

    Raises KeyError if there is none.
    """
    if name not in names(folder):
        raise KeyError(name)
    return import_module(f"{folder.__name__}.{name}")


def load_all(folder: ModuleType) -> dict[str, ModuleType]:
    """Every plug-in of a package by name."""
    return {name: load(folder, name) for name in names(folder)}
