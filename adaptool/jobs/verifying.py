"""`verify`: an export read back, and held against what it says of itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adaptool.errors import JSON, UsageError, VerificationError
from adaptool.records import RECORD
from adaptool.storage import inside, read_object, shown
from adaptool.targets import Finding, names, target_named


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        folder: the export.
        target: whose runtime it is for.
        findings: all that was looked at.
    """

    folder: Path
    target: str
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """What is not as it should be."""
        return tuple(one for one in self.findings if not one.right)

    def as_json(self) -> dict[str, JSON]:
        """Plain data."""
        findings: list[JSON] = [
            {"what": one.what, "right": one.right, "detail": one.detail} for one in self.findings
        ]
        return {
            "folder": str(self.folder), "target": self.target, "findings": findings,
            "wrong": len(self.wrong),
        }  # fmt: skip

    def require_right(self) -> None:
        """Raise VerificationError if anything is wrong, with all of it as details."""
        if self.wrong:
            first = self.wrong[0]
            more = f", and {len(self.wrong) - 1} more" if len(self.wrong) > 1 else ""
            raise VerificationError(
                f"{shown(self.folder)}: {first.what}: {first.detail}{more}",
                details={"findings": self.as_json()["findings"]},
            )


def verify(
    folder: str | os.PathLike[str],
    *,
    library: str | os.PathLike[str] | None = None,
    target: str | None = None,
) -> Verification:
    """Read an export back: files, sizes, and what the target can tell.

    Args:
        folder: what `export` wrote.
        library: a compiled model library (WebLLM) that the parameters must fit.
        target: whose runtime, for a folder without adaptool's record.

    Raises:
        UsageError: no record, and no target named.
        CorruptInputError: a file that cannot be read at all.
    """
    path = Path(folder)
    stated = _record(path)
    name = target or stated.get("target")
    if not isinstance(name, str) or name not in names():
        raise UsageError(
            f"{shown(path)}: {RECORD} names no target", hint=f"--target {'|'.join(names())}"
        )
    sizes = stated.get("files")
    findings = [*_sizes(path, sizes if isinstance(sizes, dict) else {})]
    if all(one.right for one in findings):
        findings += target_named(name).verify(path, None if library is None else Path(library))
    return Verification(path, name, tuple(findings))


def _record(folder: Path) -> Mapping[str, JSON]:
    file = folder / RECORD
    if not os.path.lexists(file):
        return {}
    return read_object(file)


def _sizes(folder: Path, stated: Mapping[str, JSON]) -> list[Finding]:
    """Each file that the record names is there, with the size that it had."""
    findings = []
    for name, size in stated.items():
        file = inside(folder, name)
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            detail = "is missing" if found is None else f"{found} bytes, written with {size}"
            findings.append(Finding(shown(name), right=False, detail=detail))
    if not findings and stated:
        findings.append(Finding(f"{len(stated)} files have the sizes they were written with", True))
    return findings
