"""What an output says of itself: adaptool.json, for programs, beside the card for people."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from adaptool.canonical import Provenance
from adaptool.errors import JSON
from adaptool.storage import SourceFile
from adaptool.version import VERSION

RECORD = "adaptool.json"

_READ = 1 << 20


def record(
    operation: str, inputs: Iterable[Mapping[str, JSON]], facts: Mapping[str, JSON] | None = None
) -> bytes:
    """The content of adaptool.json: what was done, with which inputs, by which version."""
    content: dict[str, JSON] = {
        "adaptool": VERSION,
        "operation": operation,
        "inputs": [dict(item) for item in inputs],
        **(facts or {}),
    }
    return (json.dumps(content, indent=2) + "\n").encode()


def described(provenance: Provenance) -> dict[str, JSON]:
    """An input as plain data, its adapter files with their sha256."""
    facts = provenance.as_json()
    files = dict(provenance.files)
    for path in provenance.sources:
        known = files.get(path.name)
        files[path.name] = {**(known if isinstance(known, dict) else {}), "sha256": _digest(path)}
    return {**facts, "files": files}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with SourceFile.open(path) as source:
        for start in range(0, source.size, _READ):
            digest.update(source.read(start, min(_READ, source.size - start)))
    return digest.hexdigest()
