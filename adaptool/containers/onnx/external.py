"""External data: tensors in files beside the model, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adaptool.canonical import Stored
from adaptool.errors import CorruptInputError
from adaptool.storage import SourceFile, blaming, inside, shown, syscalls

_DIGITS = 19


@dataclass
class Files:
    """The data files of one model, each opened once, when the first tensor asks for it."""

    model: Path
    opened: dict[Path, SourceFile] = field(default_factory=dict)

    def locate(self, name: str, entries: Mapping[str, str], size: int) -> Stored:
        """Where the bytes of a tensor lie that `entries` (location, offset, length) describe.

        Args:
            name: of the tensor, for messages.
            entries: its external_data.
            size: bytes that its type and dims make.

        Raises:
            CorruptInputError: no location, one outside the model's folder (through links and
                hard links too), numbers that are none, or bytes beyond the file.
            StorageError: the file is missing or not readable.
        """
        location = entries.get("location")
        if not location:
            raise self._broken(name, "has external data but no location of it")
        offset = self._number(name, "offset", entries.get("offset", "0"))
        stated = entries.get("length")
        length = size if stated is None else self._number(name, "length", stated)
        if length != size:
            raise self._broken(name, f"has {length} bytes of external data, its dims make {size}")
        source = self._open(location)
        if offset + length > source.size:
            raise self._broken(
                name,
                f"lies at bytes {offset} to {offset + length} of {shown(location)}, "
                f"which has {source.size}",
            )
        return Stored(source, offset, length)

    def _open(self, location: str) -> SourceFile:
        path = inside(self.model.parent, location)
        if path not in self.opened:
            source = SourceFile.open(path)
            with blaming(path):
                links = syscalls.fstat(source.fd).st_nlink
            if links > 1:
                raise CorruptInputError(
                    f"{shown(path)}: external data with {links} names (hard links), of which one "
                    "may lie outside the model's folder",
                    hint="make a copy of the file in its place",
                    code="PATH_ESCAPE",
                )
            self.opened[path] = source
        return self.opened[path]

    def _number(self, name: str, what: str, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
            raise self._broken(name, f"has external data whose {what} is {ascii(text)[:60]}")
        return int(text)

    def _broken(self, name: str, what: str) -> CorruptInputError:
        return CorruptInputError(f"{shown(self.model)}: tensor {shown(name)[:200]} {what}")
