"""Where a value came from: carried along by every noun, written into every output."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from adaptool.errors import JSON


@dataclass(frozen=True)
class Provenance:
    """The origin of an adapter or a checkpoint.

    Attributes:
        name: what a person would call it: a hub name, else a folder or file name.
        format: name of the format or container it was read from.
        files: name -> facts (bytes; of a checkpoint's file also the sha256 of its header).
        sources: paths of an adapter's files, small enough to be hashed for a record.
        license: as the model card or config states it, or None.
        notes: what was decided while reading that a reader of the result should know.
    """

    name: str
    format: str
    files: dict[str, JSON] = field(default_factory=dict)
    sources: tuple[Path, ...] = ()
    license: str | None = None
    revision: str | None = None
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, JSON]:
        """Plain data for the record that outputs carry."""
        facts: dict[str, JSON] = {"name": self.name, "format": self.format, "files": self.files}
        if self.license:
            facts["license"] = self.license
        if self.revision:
            facts["revision"] = self.revision
        if self.notes:
            facts["notes"] = list(self.notes)
        return facts


def origin(folder: Path) -> str:
    """What to call the content of a folder: its hub name if it lies in a hub cache, else its own.

    A hub cache keeps `models--org--name/snapshots/<revision>/`.
    """
    real = folder.resolve()
    cache = real.parent.parent.name
    if real.parent.name == "snapshots" and cache.startswith("models--"):
        return cache.removeprefix("models--").replace("--", "/")
    return real.name
