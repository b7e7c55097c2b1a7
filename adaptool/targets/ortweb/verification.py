"""Whether a folder is what its manifest says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from adaptool.canonical import Checkpoint
from adaptool.canonical.graph import Graph
from adaptool.containers import open_checkpoint
from adaptool.errors import JSON, AdaptoolError, CorruptInputError
from adaptool.storage import inside, read_object, shown
from adaptool.targets import Finding
from adaptool.targets._limits import FILE
from adaptool.targets._onnx import data_of
from adaptool.targets.ortweb.manifest import MANIFEST

_TABLES = {"files": dict, "adapters": dict, "tokenizer": dict, "inputs": list, "outputs": list,
           "data": list, "model": str}  # fmt: skip


def findings(folder: Path) -> Sequence[Finding]:
    """What manifest.json states, against the files that are there.

    Raises CorruptInputError for a manifest that cannot be read, or states things of other kinds.
    """
    manifest = _manifest(folder)
    return [*_files(folder, manifest), *_graph(folder, manifest), *_adapters(folder, manifest)]


def _manifest(folder: Path) -> dict[str, JSON]:
    content = read_object(inside(folder, MANIFEST))
    for key, kind in _TABLES.items():
        if not isinstance(content.get(key), kind):
            raise CorruptInputError(f"{shown(folder / MANIFEST)}: no {kind.__name__} as {key!r}")
    return content


def _table(manifest: Mapping[str, JSON], key: str) -> Mapping[str, JSON]:
    value = manifest[key]
    return value if isinstance(value, dict) else {}


def _size(folder: Path, name: str) -> int:
    """Bytes of a file, -1 if there is none in the folder."""
    try:
        path = inside(folder, name)
    except AdaptoolError:
        return -1
    return path.stat().st_size if path.is_file() else -1


def _files(folder: Path, manifest: Mapping[str, JSON]) -> Iterator[Finding]:
    for name, stated in _table(manifest, "files").items():
        size = _size(folder, name)
        yield Finding(f"{name}: {stated} bytes", size == stated and size < FILE,
                      f"it has {size}, and browsers take less than {FILE}")  # fmt: skip
    for file in map(str, _table(manifest, "tokenizer").values()):
        yield Finding(file, _size(folder, file) > 0, "missing or empty")


def _graph(folder: Path, manifest: Mapping[str, JSON]) -> Iterator[Finding]:
    name = str(manifest["model"])
    try:
        checkpoint = open_checkpoint(inside(folder, name))
    except AdaptoolError as error:
        yield Finding(name, right=False, detail=error.message)
        return
    graph = checkpoint.graph or Graph(())
    for key, values in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        stated, found = _stated(manifest[key]), dict(values)
        differing = [one for one in {**stated, **found} if stated.get(one) != found.get(one)]
        yield Finding(f"{name}: {key}", not differing,
                      f"manifest and graph differ in {', '.join(differing[:4])}")  # fmt: skip
    used, data = data_of(checkpoint), manifest["data"]
    yield Finding(f"{name}: data files", isinstance(data, list) and used == set(map(str, data)),
                  f"the manifest names {data}, the graph {sorted(used)}")  # fmt: skip


def _stated(values: JSON) -> dict[str, tuple[str, tuple[JSON, ...]]]:
    found: dict[str, tuple[str, tuple[JSON, ...]]] = {}
    for one in values if isinstance(values, list) else []:
        dims = one.get("dims") if isinstance(one, dict) else None
        if isinstance(one, dict) and isinstance(dims, list):
            found[str(one.get("name"))] = str(one.get("type")), tuple(dims)
    return found


def _adapters(folder: Path, manifest: Mapping[str, JSON]) -> Iterator[Finding]:
    factors = _stated(_factors(manifest))
    for name, facts in _table(manifest, "adapters").items():
        file = str(facts.get("file")) if isinstance(facts, dict) else ""
        size = _size(folder, file)
        if not isinstance(facts, dict) or facts.get("bytes") != size:
            yield Finding(f"adapter {name}", right=False, detail=f"{file} has {size} bytes")
            continue
        try:
            opened = open_checkpoint(inside(folder, file))
        except AdaptoolError as error:
            yield Finding(file, right=False, detail=error.message)
            continue
        misfits = [*_misfits(opened, factors)]
        yield Finding(f"{file}: {len(factors)} factors", not misfits,
                      f"they do not fit the graph's inputs: {', '.join(misfits[:4])}")  # fmt: skip


def _factors(manifest: Mapping[str, JSON]) -> list[JSON]:
    values = manifest["inputs"]
    return [one for one in (values if isinstance(values, list) else [])
            if isinstance(one, dict) and one.get("role") == "factor"]  # fmt: skip


def _misfits(
    adapter: Checkpoint, factors: Mapping[str, tuple[str, tuple[JSON, ...]]]
) -> Iterator[str]:
    """Inputs without a tensor, tensors without an input, and pairs of other types or sizes."""
    yield from set(factors) ^ set(adapter.tensors)
    for name in set(factors) & set(adapter.tensors):
        kind, dims = factors[name]
        tensor = adapter.tensors[name]
        same = len(dims) == len(tensor.shape) and all(
            isinstance(one, str) or one == size
            for one, size in zip(dims, tensor.shape, strict=True)
        )
        if tensor.dtype != kind or not same:
            yield name
