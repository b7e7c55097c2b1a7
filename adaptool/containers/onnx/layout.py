"""Which tensor lies where in which data file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from adaptool.containers.onnx.emission import Location
from adaptool.containers.onnx.model import Model
from adaptool.containers.onnx.stripping import LEAST
from adaptool.containers.onnx.units import Unit
from adaptool.errors import UsageError
from adaptool.storage import Copy, Extent, FilePlan, SourceFile

PAGE = 4096
"""Tensors of a page or more start on one, so that a file can be mapped."""
LINE = 64
CHUNKS = 100
"""Data files of one model that transformers.js looks for."""


@dataclass(frozen=True)
class DataFiles:
    """The files beside a model: plans, and where each tensor lies by (graph, name)."""

    plans: tuple[FilePlan, ...]
    located: Mapping[tuple[str, str], Location]

    def __add__(self, other: DataFiles) -> DataFiles:
        """The files of both."""
        return DataFiles((*self.plans, *other.plans), {**self.located, **other.located})


def data_name(model: str, index: int) -> str:
    """The data files of a model as transformers.js calls them: model.onnx_data, ..._data_1."""
    return f"{model}_data" + (f"_{index}" if index else "")


def lay_data(model: Model, units: Sequence[Unit], name: str, limit: int | None) -> DataFiles:
    """Data files for the tensors that go into some.

    What lay in data files stays there, in files of the same contents, and new tensors go behind
    the last; with a limit, or where nothing lay there before, all tensors of 1 KB and more are
    laid into files anew.

    Args:
        model: what was opened.
        units: all tensors.
        name: of the model's file.
        limit: bytes of a data file; a larger tensor is alone.

    Raises UsageError if more files are needed than anyone would load.
    """
    before = _by_file(model, units)
    if limit is None and before:
        fresh = [u for u in units if u.entries[0].holder is None and u.nbytes >= LEAST]
        groups = [*before.values()]
        groups[-1] = [*groups[-1], *fresh]
    else:
        groups = _fill([u for u in units if _may_move(model, u)], limit)
    if len(groups) > CHUNKS:
        raise UsageError(
            f"{name}: {len(groups)} data files would be needed, at most {CHUNKS} are loaded",
            hint="allow larger ones: --max-shard-size",
        )
    files = {data_name(name, index): group for index, group in enumerate(groups)}
    return lay_apart(files, keep=limit is None and bool(before))


def lay_apart(files: Mapping[str, Sequence[Unit]], *, keep: bool = False) -> DataFiles:
    """Data files of these names, with these tensors each; `keep` them where they lay."""
    plans: list[FilePlan] = []
    located: dict[tuple[str, str], Location] = {}
    for name, group in files.items():
        planned = _plan(name, group, keep=keep)
        plans.append(planned[0])
        located |= planned[1]
    return DataFiles(tuple(plans), located)


def _by_file(model: Model, units: Iterable[Unit]) -> dict[SourceFile, list[Unit]]:
    """The units that lie in data files, by file."""
    found: dict[SourceFile, list[Unit]] = {}
    for unit in units:
        source = _data_file(model, unit)
        if source is not None:
            found.setdefault(source, []).append(unit)
    return found


def _data_file(model: Model, unit: Unit) -> SourceFile | None:
    holder = unit.entries[0].holder
    stored = holder.stored if holder else None
    if stored is None or not isinstance(stored.source, SourceFile):
        return None
    return stored.source if stored.source is not model.source else None


def _may_move(model: Model, unit: Unit) -> bool:
    if unit.content is None or not unit.nbytes:
        return False
    return _data_file(model, unit) is not None or (unit.nbytes >= LEAST and not unit.constant)


def _fill(units: Iterable[Unit], limit: int | None) -> list[list[Unit]]:
    groups: list[list[Unit]] = [[]]
    filled = 0
    for unit in units:
        if limit is not None and groups[-1] and filled + _room(unit) > limit:
            groups.append([])
            filled = 0
        groups[-1].append(unit)
        filled += _room(unit)
    return [group for group in groups if group]


def _room(unit: Unit) -> int:
    return sum(_padded(entry.nbytes, _alignment(entry.nbytes)) for entry in unit.entries)


def _plan(
    name: str, group: Sequence[Unit], *, keep: bool
) -> tuple[FilePlan, dict[tuple[str, str], Location]]:
    kept = _kept_places(group) if keep else None
    old = [unit for unit in group if unit.entries[0].holder is not None]
    if kept is not None:
        source, offsets = kept
        extents = list(replaced(source, list(zip(offsets, old, strict=True))))
        located = {_key(u): (name, at) for at, u in zip(offsets, old, strict=True)}
        end, rest = source.size, [u for u in group if u.entries[0].holder is None]
    else:
        extents, located, end, rest = [], {}, 0, list(group)
    for unit in rest:
        places: list[int] = []
        gaps: list[bytes] = []
        for entry in unit.entries:
            at = _padded(end, _alignment(entry.nbytes))
            if places:
                gaps.append(bytes(at - end))
            places.append(at)
            located[unit.within, entry.name] = (name, at)
            end = at + entry.nbytes
        if unit.content is not None:
            extents.append(Extent(places[0], unit.content(tuple(gaps))))
    return FilePlan(name, end, tuple(extents)), located


def _key(unit: Unit) -> tuple[str, str]:
    return unit.within, unit.entries[0].name


def _kept_places(group: Sequence[Unit]) -> tuple[SourceFile, list[int]] | None:
    """The file and the offsets that a group's old tensors had, if they can stay there."""
    ranges: list[tuple[int, int]] = []
    source: SourceFile | None = None
    for unit in group:
        holder = unit.entries[0].holder
        if holder is None:
            continue
        stored = holder.stored
        if stored is None or not isinstance(stored.source, SourceFile) or len(unit.entries) > 1:
            return None
        if stored.size != unit.nbytes or (source is not None and source is not stored.source):
            return None
        source = stored.source
        ranges.append((stored.offset, stored.offset + stored.size))
    if source is None or any(one[1] > two[0] for one, two in pairwise(sorted(ranges))):
        return None
    return source, [start for start, _ in ranges]


def replaced(source: SourceFile, placed: Sequence[tuple[int, Unit]]) -> Iterable[Extent]:
    """The whole source but for the tensors that do not lie there as they are."""
    copied = 0
    for offset, unit in sorted(placed, key=lambda pair: pair[0]):
        if not unit.changed or not unit.nbytes or unit.content is None:
            continue
        if offset > copied:
            yield Extent(copied, Copy(source, copied, offset - copied))
        yield Extent(offset, unit.content(()))
        copied = offset + unit.nbytes
    if copied < source.size:
        yield Extent(copied, Copy(source, copied, source.size - copied))


def _alignment(nbytes: int) -> int:
    return PAGE if nbytes >= PAGE else LINE


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
