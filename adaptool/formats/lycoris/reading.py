"""A LyCORIS file as canonical updates. Every tensor is consumed exactly once, or refused."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from adaptool.architectures.underscored import PREFIX, UNDERSCORED
from adaptool.canonical import Adapter, LazyTensor, Provenance, Site, Update
from adaptool.canonical.provenance import origin
from adaptool.containers._header import Header, read_header
from adaptool.errors import JSON, AdaptoolError, CorruptInputError
from adaptool.formats import ReadOptions
from adaptool.formats.lycoris.algorithms import ROLES, SIGNS, algorithm_of, update_of
from adaptool.formats.lycoris.terms import peft_terms
from adaptool.storage import SourceFile, shown
from adaptool.tuners import Parts

_BASES = ("ss_sd_model_name", "ss_base_model_version")
_SPLIT = re.compile(r'"split_qkv"\s*:\s*"?true', re.IGNORECASE)

_SPLIT_NOTE = (
    "trained with split_qkv, and saved with the alpha of the parts: as every program that reads "
    "such a file, this one takes alpha / rank of the joined factors, which is 1/3 (qkv) or 1/4 "
    "(linear1) of the strength in training"
)


def recognises(path: Path) -> bool:
    """A safetensors file with a tensor that these programs alone name so; the header is read.

    An unusual prefix is no hindrance, where the role is one that no model's parameter bears.
    """
    if not path.is_file():
        return False
    try:
        with SourceFile.open(path) as source:
            names = read_header(source).tensors
    except AdaptoolError:
        return False
    return any(_is_sign(name) for name in names)


def _is_sign(name: str) -> bool:
    module, _, role = name.partition(".")
    return role in SIGNS or (role in ROLES and PREFIX.match(module) is not None)


def read(path: Path, options: ReadOptions) -> Adapter:  # noqa: ARG001 - the format protocol
    """An adapter under underscored names; of values, only the scalars that state strengths.

    Raises:
        CorruptInputError: a broken header, half a pair, factors that do not fit each other.
        IncompatibleError: tensors of an algorithm that is not read here.
    """
    source = SourceFile.open(path)
    header = read_header(source)
    updates: dict[Site, Update] = {}
    methods: dict[str, None] = {}
    for module, tensors in sorted(_grouped(path, header.tensors).items()):
        parts = Parts(module, f"{shown(path)}: {shown(module)}", dict(tensors))
        methods[algorithm_of(parts)] = None
        for parameter, update in update_of(parts).items():
            updates[Site(module, parameter)] = update
    if not updates:
        raise CorruptInputError(f"{shown(path)}: the adapter has no tensors")
    facts: dict[str, JSON] = {path.name: {"bytes": source.size, "header_sha256": header.sha256}}
    return Adapter(
        updates=updates,
        method="+".join(sorted(methods)),
        base=next((base for key in _BASES if (base := header.metadata.get(key))), None),
        provenance=Provenance(
            origin(path), "lycoris", facts, sources=(path,), notes=_notes(header)
        ),
        config=peft_terms(updates),
        naming=UNDERSCORED,
    )


def _grouped(path: Path, tensors: Mapping[str, LazyTensor]) -> dict[str, dict[str, LazyTensor]]:
    """Module -> its tensors by role."""
    found: dict[str, dict[str, LazyTensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        module, dot, role = name.partition(".")
        if not dot or not module or not role:
            raise CorruptInputError(
                f"{shown(path)}: tensor {shown(name)} is not called MODULE.ROLE",
                code="UNKNOWN_TENSOR",
            )
        found[module][role] = tensor
    return dict(found)


def _notes(header: Header) -> tuple[str, ...]:
    """What the metadata reveals of a file whose tensors do not."""
    if not _SPLIT.search(header.metadata.get("ss_network_args", "")):
        return ()
    return (_SPLIT_NOTE,)
