"""Adapters whose names lost their dots: `lycoris_model_layers_0_self_attn_q_proj`.

LyCORIS and sd-scripts call a module by its path with every dot made an underscore, behind a prefix
that says which of several models it belongs to.  Only the names of a base undo that.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from adaptool.canonical import Adapter, Site
from adaptool.errors import JSON, IncompatibleError
from adaptool.storage import shown

UNDERSCORED = "underscored"

PREFIX = re.compile(r"^(lycoris|(?:lora|oft)_(?:unet|te\d?|prior_unet|prior_te|transformer))_+")
"""What stands before a module's path."""

_WRAPPERS = frozenset({
    "model", "language_model", "text_model", "transformer", "base_model", "diffusion_model",
    "unet", "gpt_neox", "bert", "roberta", "distilbert", "vit",
})  # fmt: skip
"""Steps that one library version, or one way of saving, puts before a module's path."""

_TABLES = ("rank_pattern", "alpha_pattern")
_LISTS = ("target_modules",)

Index = Mapping[str, frozenset[str]]


def named(adapter: Adapter, parameters: Iterable[str], base: str) -> Adapter:
    """The adapter under the names of its base.

    Args:
        adapter: with underscored names.
        parameters: full names of the base's parameters, `model.layers.0.mlp.up_proj.weight`.
        base: what to call the base in messages.

    Raises IncompatibleError for a name that means no module of the base (UNPLACED) or could mean
    several (AMBIGUOUS_NAME), and for two that mean the same one (PLACED_TWICE).
    """
    modules = sorted({name.rpartition(".")[0] for name in parameters} - {""})
    flat = [site.module for site in adapter.updates]
    meant = _meant(adapter, list(dict.fromkeys(flat)), modules, base)
    updates = {
        Site(meant[site.module], site.parameter): update for site, update in adapter.updates.items()
    }
    return replace(
        adapter,
        updates=updates,
        config=_renamed(adapter.config, meant),
        naming="huggingface",
    )


def _meant(adapter: Adapter, flat: list[str], modules: list[str], base: str) -> dict[str, str]:
    """Underscored name -> the base's module."""
    whole = _index((_flattened(module), module) for module in modules)
    body = _index((_flattened(b), module) for module in modules for b in _bodies(module, "."))
    meant: dict[str, str] = {}
    missing: list[str] = []
    owners: dict[str, str] = {}
    for name in flat:
        found = _candidates(PREFIX.sub("", name), whole, body)
        if len(found) > 1:
            raise IncompatibleError(
                f"{shown(name)} could mean {' or '.join(sorted(found)[:5])} in {base}",
                hint="dots and underscores cannot be told apart: rename the tensors of the adapter",
                code="AMBIGUOUS_NAME",
            )
        if not found:
            missing.append(name)
            continue
        (module,) = found
        if module in owners:
            raise IncompatibleError(
                f"{shown(owners[module])} and {shown(name)} both mean {module} in {base}",
                code="PLACED_TWICE",
            )
        owners[module] = name
        meant[name] = module
    if missing:
        raise _unknown(adapter, flat, missing, modules, base)
    return meant


def _candidates(path: str, whole: Index, body: Index) -> frozenset[str]:
    """Modules of that very path; else those that differ in wrappers only."""
    if path in whole:
        return whole[path]
    for shorter in (path, *_bodies(path, "_")):
        if shorter in body:
            return body[shorter]
    return frozenset()


def _index(pairs: Iterable[tuple[str, str]]) -> Index:
    found: dict[str, set[str]] = defaultdict(set)
    for flat, module in pairs:
        found[flat].add(module)
    return {flat: frozenset(modules) for flat, modules in found.items()}


def _flattened(module: str) -> str:
    return module.replace(".", "_")


def _bodies(path: str, separator: str) -> Iterator[str]:
    """The path, and what is left of it without its first wrapper, its first two ..."""
    yield path
    wrappers = tuple(wrapper + separator for wrapper in sorted(_WRAPPERS))
    while found := next((wrapper for wrapper in wrappers if path.startswith(wrapper)), None):
        path = path.removeprefix(found)
        yield path


def _unknown(
    adapter: Adapter, flat: list[str], missing: list[str], modules: list[str], base: str
) -> IncompatibleError:
    parts = Counter(match[1] for name in flat if (match := PREFIX.match(name)))
    by_flat = {_flattened(module): module for module in modules}
    close = difflib.get_close_matches(PREFIX.sub("", missing[0]), list(by_flat), n=3, cutoff=0.6)
    hint = "is this the right base?"
    if close:
        hint = f"closest in the base: {', '.join(by_flat[flat] for flat in close)}"
    elif len(parts) > 1:
        hint = (
            f"the file adapts several models ({', '.join(sorted(parts))}), and a base is one: keep "
            "the tensors of one prefix"
        )
    return IncompatibleError(
        f"{adapter.provenance.name}: {len(missing)} of {len(flat)} names mean no module of {base}, "
        f"first {shown(missing[0])}",
        hint=hint,
        code="UNPLACED",
        details={"unplaced": [*missing[:10]], "count": len(missing)},
    )


def _renamed(config: Mapping[str, JSON], meant: Mapping[str, str]) -> dict[str, JSON]:
    """The configuration with the base's names in it."""
    renamed = dict(config)
    for key in _TABLES:
        table = config.get(key)
        if isinstance(table, dict):
            renamed[key] = {_exact(meant.get(name, name)): n for name, n in table.items()}
    for key in _LISTS:
        names = config.get(key)
        if isinstance(names, list):
            renamed[key] = [meant.get(str(name), str(name)) for name in names]
    return renamed


def _exact(module: str) -> str:
    """A pattern that matches this module and no other."""
    return "^" + re.escape(module).replace("\\_", "_")
