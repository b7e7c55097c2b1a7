"""Files of PEFT's other types: keys grouped by module, meaning left to the tuner's own plug-in."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

from adaptool.canonical import LazyTensor, Rebased, Replacement, Site, Update
from adaptool.canonical.tensors import same_bytes
from adaptool.errors import CorruptInputError, IncompatibleError
from adaptool.formats.peft.files import Files
from adaptool.formats.peft.keys import NAME, Key, Role, bare, parse_key
from adaptool.formats.peft.settings import Settings
from adaptool.storage import shown
from adaptool.tuners import Options, Parts, Tuned, Tuner, tuner_of

_IGNORED = (Role.TRAINING, Role.ORIGINAL)
"""Optimiser state, and copies of the base."""


@dataclass(frozen=True)
class Tuning:
    """What a file of a plug-in's type holds.

    Attributes:
        updates: by site.
        shared: tensors that belong to no module alone, by their own names; none where every
            update has become a plain one, which holds its own part of them.
    """

    updates: dict[Site, Update]
    shared: dict[str, LazyTensor]


@dataclass
class _Sorted:
    """A file's tensors by what they are."""

    modules: dict[str, dict[str, LazyTensor]] = field(default_factory=lambda: defaultdict(dict))
    shared: dict[str, LazyTensor] = field(default_factory=dict)
    originals: dict[str, LazyTensor] = field(default_factory=dict)
    plain: list[tuple[str, Key, LazyTensor]] = field(default_factory=list)


def tuner_for(settings: Settings) -> Tuner:
    """The plug-in for the type that a configuration states.

    Raises IncompatibleError if there is none.
    """
    tuner = tuner_of(settings.peft_type)
    if tuner is None:
        raise IncompatibleError(
            f"{shown(settings.path.parent)}: type {shown(settings.peft_type[:40])} is not read",
            hint="merge it with PEFT",
            code="UNSUPPORTED_METHOD",
        )
    return tuner


def read_tuned(files: Files, settings: Settings, tuner: Tuner) -> Tuning:
    """Hand each module's tensors to the tuner; whatever else the file holds is a replacement.

    Raises:
        CorruptInputError: a tensor is missing, left over or given twice.
        IncompatibleError: a variant that the tuner does not know.
    """
    found = _sort(files, tuner)
    options = Options(settings.raw, shown(settings.path), settings.pattern, settings.targets)
    updates: dict[Site, Update] = {}
    for module, tensors in found.modules.items():
        where = f"{shown(files.folder)}: {shown(module)}"
        parts = Parts(module, where, dict(tensors), found.shared, tuple(found.modules))
        for parameter, update in tuner.read(parts, options).items():
            updates[Site(module, parameter)] = update
        if parts.tensors:
            raise CorruptInputError(f"{where}: {', '.join(sorted(parts.tensors))} stands alone")
    if found.shared and not found.modules:
        raise IncompatibleError(
            f"{shown(files.folder)}: the file holds only {', '.join(sorted(found.shared))}, which "
            "modules share; what each makes of it follows from the order of the model's own code",
            hint="save it with all it needs (UniLoraConfig: save_indices=True), or merge with PEFT",
            code="UNSUPPORTED_VARIANT",
        )
    for name, key, tensor in found.plain:
        _add_plain(updates, files, name, key, tensor)
    own = [u.update if isinstance(u, Rebased) else u for u in updates.values()]
    shared = found.originals if any(isinstance(u, Tuned) for u in own) else {}
    return Tuning(dict(sorted(updates.items())), shared)


def _add_plain(
    updates: dict[Site, Update], files: Files, name: str, key: Key, tensor: LazyTensor
) -> None:
    """A trained copy of a parameter, or the copy of the base that an update was trained on."""
    where = f"{shown(files.folder)}: {shown(name)}"
    if key.role in _IGNORED:
        return
    if key.role not in (Role.SAVED, Role.BASE) or not key.module:
        raise IncompatibleError(
            f"{where} is no tensor of this type of adapter",
            hint="update adaptool, or merge it with the PEFT version that made it",
            code="UNSUPPORTED_VARIANT",
        )
    site = Site(key.module, key.parameter)
    there = updates.get(site)
    if there is None:
        updates[site] = Replacement(tensor)
    elif key.role is Role.BASE and not isinstance(there, Rebased | Replacement):
        updates[site] = Rebased(tensor, there)
    elif not (isinstance(there, Replacement) and same_bytes(there.value, tensor)):
        raise CorruptInputError(f"{where}: {shown(str(site))} is given twice")


def _sort(files: Files, tuner: Tuner) -> _Sorted:
    own, common = _own_patterns(tuner.suffixes), _shared_patterns(tuner.shared)
    found = _Sorted()
    for name, tensor in files.tensors.items():
        if tensor.count == 0 and len(tensor.shape) < 2:  # [0, in] is what AdaLoRA prunes to
            raise CorruptInputError(
                f"{shown(files.folder)}: tensor {shown(name)} is empty, shape {list(tensor.shape)}",
                hint="a ZeRO-3 run saved it without gathering: consolidate global_step*/ first",
            )
        path = bare(name)
        if match := _first(common, path):
            suffix, _ = match
            found.originals[name] = _once(files, found.shared, suffix, name, tensor)
        elif match := _first(own, path):
            suffix, module = match
            _once(files, found.modules[module.replace(".base_layer.", ".")], suffix, name, tensor)
        else:
            found.plain.append((name, parse_key(name), tensor))
    return found


def _once(
    files: Files, table: dict[str, LazyTensor], suffix: str, name: str, tensor: LazyTensor
) -> LazyTensor:
    """The tensor of that suffix, which may be stored several times but has one value."""
    first = table.setdefault(suffix, tensor)
    if first is not tensor and not same_bytes(first, tensor):
        raise CorruptInputError(f"{shown(files.folder)}: {shown(name)} is given twice")
    return first


_Patterns = list[re.Pattern[str]]


def _own_patterns(suffixes: tuple[str, ...]) -> _Patterns:
    return [re.compile(rf"^(?P<module>.+)\.{_named(s)}$") for s in suffixes]


def _shared_patterns(names: tuple[str, ...]) -> _Patterns:
    return [re.compile(rf"^(?:(?P<module>.+)\.)?{_named(n)}$") for n in names]


def _named(suffix: str) -> str:
    """An expression for a suffix; an adapter's name stands at its end, or before `.weight`."""
    steps = [r"[\w-]+" if step == "*" else re.escape(step) for step in suffix.split(".")]
    last = f"(?P<last>\\.{steps.pop()})" if steps[-1] in ("weight", "bias") else "(?P<last>)"
    first = r"\.".join(steps)
    return f"(?P<first>{first}){NAME}{last}"


def _first(patterns: _Patterns, path: str) -> tuple[str, str] | None:
    """The suffix and the module that a tensor's name consists of."""
    for pattern in patterns:
        match = pattern.match(path)
        if match is not None:
            return match["first"] + match["last"], match["module"] or ""
    return None
