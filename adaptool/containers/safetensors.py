"""safetensors checkpoints: one file, or a folder of shards with an index.

Opening reads headers; saving streams: what a merge did not touch is copied by the kernel, the rest
is computed row block by row block.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from adaptool.canonical import Checkpoint, LazyTensor, Provenance
from adaptool.canonical.provenance import origin
from adaptool.containers import Saved, SaveOptions
from adaptool.containers._content import content_of, fill_files, verify_sources
from adaptool.containers._header import read_header, write_header
from adaptool.containers._output import Output, side_files
from adaptool.errors import JSON, AdaptoolError, CorruptInputError, IncompatibleError
from adaptool.storage import (
    Bytes,
    Extent,
    FilePlan,
    SourceFile,
    inside,
    read_json,
    read_object,
    shown,
)

suffixes = (".safetensors",)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
INDEX_LIMIT = 64 << 20
_CARD_HEAD = 65536
_LEFT_BEHIND = (
    ".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf",
    ".onnx", ".onnx_data", ".npz", ".tmp", ".lock",
)  # fmt: skip
_OWN_RECORDS = frozenset({"README.md", "adaptool.json"})


def recognises(path: Path) -> bool:
    """A .safetensors file, or a folder with model weights in that format."""
    if path.is_dir():
        return any(path.glob("*.safetensors.index.json")) or bool(_weight_files(path))
    return path.suffix == ".safetensors"


def open(path: Path) -> Checkpoint:  # noqa: A001 - the container protocol's verb
    """A checkpoint of lazy tensors; only headers and small JSON files are read.

    Raises:
        CorruptInputError: a header, the index or config.json is broken or contradicts another.
        StorageError: not found, not readable.
    """
    folder = path if path.is_dir() else path.parent
    files = _files(path)
    tensors: dict[str, LazyTensor] = {}
    shards: dict[str, str] = {}
    metadata: dict[str, str] = {}
    facts: dict[str, JSON] = {}
    for file in files:
        source = SourceFile.open(file)
        header = read_header(source)
        metadata |= header.metadata
        facts[file.name] = {"bytes": source.size, "header_sha256": header.sha256}
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise CorruptInputError(
                    f"{file}: tensor {shown(name)} stands in {shards[name]} as well"
                )
            tensors[name] = tensor
            shards[name] = file.name
    if path.is_dir():
        _check_index(path, shards)
    config = _config(folder)
    return Checkpoint(
        tensors=tensors,
        container="safetensors",
        provenance=Provenance(origin(folder), "safetensors", facts, license=_license(folder)),
        config=config,
        metadata=metadata,
        shards=shards,
        side_files=_side_files(folder) if path.is_dir() else {},
    )


def _weight_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.safetensors"))
    return [f for f in found if not f.name.startswith("adapter")]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    index = _index(path)
    if index is not None:
        names = dict.fromkeys(index[1].values())
        return [inside(path, name) for name in names]
    files = _weight_files(path)
    if (path / SINGLE) in files:
        return [path / SINGLE]
    if len(files) == 1:
        return files
    if not files:
        raise IncompatibleError(
            f"{shown(path)}: no .safetensors weights here",
            hint="convert a .bin checkpoint with transformers' save_pretrained first",
            code="UNKNOWN_FORMAT",
        )
    raise CorruptInputError(
        f"{shown(path)}: {len(files)} weight files but no {INDEX} that says what belongs together",
        hint="download the index as well",
    )


def _index(folder: Path) -> tuple[Path, dict[str, str]] | None:
    found = sorted(folder.glob("*.safetensors.index.json"))
    found.sort(key=lambda file: file.name != INDEX)
    if not found:
        return None
    content = read_json(found[0], INDEX_LIMIT)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptInputError(f"{found[0]}: no weight_map in the index")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors"):
            raise CorruptInputError(
                f"{found[0]}: {shown(name)} is said to lie in {shown(str(file)[:200])}"
            )
    return found[0], weight_map


def _check_index(folder: Path, shards: Mapping[str, str]) -> None:
    index = _index(folder)
    if index is None:
        return
    for name, file in index[1].items():
        actual = shards.get(name)
        if actual != Path(file).name:
            where = f"lies in {actual}" if actual else "is in no shard"
            raise CorruptInputError(
                f"{index[0]}: tensor {shown(name)} should lie in {shown(file)} but {where}"
            )


def _config(folder: Path) -> dict[str, JSON]:
    file = folder / "config.json"
    if not os.path.lexists(file):
        return {}
    return read_object(file)


def _license(folder: Path) -> str | None:
    """The `license:` line in the front matter of a model card."""
    try:
        with SourceFile.open(folder / "README.md") as source:
            head = source.read(0, min(source.size, _CARD_HEAD))
    except AdaptoolError:
        return None
    lines = head.decode("utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        if line.strip() == "---":
            break
        if line.startswith("license:"):
            return line.removeprefix("license:").strip().strip("'\"")[:100] or None
    return None


def _side_files(folder: Path) -> dict[str, Path | bytes]:
    """Everything else in the folder's top level: config, tokenizer, templates, licence."""
    kept: dict[str, Path | bytes] = {}
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.name in _OWN_RECORDS:
            continue
        if file.is_file() and not file.name.endswith(_LEFT_BEHIND):
            kept[file.name] = inside(folder, file.name)
    return kept


def plan(checkpoint: Checkpoint, path: Path, options: SaveOptions) -> Saved:
    """What `save` would write, without writing."""
    return lay_out(checkpoint, path, options).planned(path)


def save(checkpoint: Checkpoint, path: Path, options: SaveOptions) -> Saved:
    """Stream a checkpoint to a folder, or to one file if `path` ends in .safetensors.

    Raises:
        StorageError: see `adaptool.storage.Staging`; nothing is visible then.
        Whatever a tensor's values raise while they are computed.
    """
    return lay_out(checkpoint, path, options).write(path, options)


def size_of_file(tensors: dict[str, LazyTensor], metadata: dict[str, str]) -> int:
    """Bytes of a .safetensors file with these tensors."""
    return len(write_header(tensors, metadata)[0]) + sum(t.nbytes for t in tensors.values())


def save_file(
    folder: Path,
    name: str,
    tensors: dict[str, LazyTensor],
    metadata: dict[str, str],
    small: Mapping[str, bytes],
    options: SaveOptions,
) -> Saved:
    """Write a folder with one .safetensors file and small files with content in memory."""
    plans = (_plan_file(name, tensors, metadata),)
    check = partial(verify_sources, tensors.values())
    return Output(plans, small, is_folder=True, verify=check).write(folder, options)


def lay_out(checkpoint: Checkpoint, path: Path, options: SaveOptions) -> Output:
    """The files of a checkpoint at `path`, see `save`."""
    is_folder = path.suffix != ".safetensors"
    if is_folder:
        shards = _shards(checkpoint, options.max_shard_size)
    else:
        shards = {path.name: dict(checkpoint.tensors)}
    plans = [
        _plan_file(name, tensors, _strings(checkpoint.metadata)) for name, tensors in shards.items()
    ]
    small: dict[str, bytes] = {}
    if is_folder:
        if len(shards) > 1 or next(iter(shards)) != SINGLE:
            small[INDEX] = _index_bytes(shards)
        copied, content = side_files(checkpoint.side_files)
        plans += copied
        small |= content
    check = partial(verify_sources, checkpoint.tensors.values())
    return Output(tuple(plans), small, is_folder, verify=check)


def _strings(metadata: Mapping[str, object]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if isinstance(value, str)}


def _shards(checkpoint: Checkpoint, limit: int | None) -> dict[str, dict[str, LazyTensor]]:
    """File name -> its tensors: the input's own layout, or filled up to `limit` bytes."""
    if limit is None:
        names = dict.fromkeys(checkpoint.shards.values()) or {SINGLE: None}
        grouped: dict[str, dict[str, LazyTensor]] = {name: {} for name in names}
        last = list(names)[-1]
        for name, tensor in checkpoint.tensors.items():
            grouped[checkpoint.shards.get(name, last)][name] = tensor
        return {name: tensors for name, tensors in grouped.items() if tensors}
    groups = fill_files(checkpoint.tensors, limit)
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    count = len(groups)
    return {f"model-{i:05d}-of-{count:05d}.safetensors": g for i, g in enumerate(groups, 1)}


def _index_bytes(shards: Mapping[str, Mapping[str, LazyTensor]]) -> bytes:
    total = sum(tensor.nbytes for tensors in shards.values() for tensor in tensors.values())
    count = sum(tensor.count for tensors in shards.values() for tensor in tensors.values())
    content = {
        "metadata": {"total_parameters": count, "total_size": total},
        "weight_map": {name: file for file, tensors in shards.items() for name in sorted(tensors)},
    }
    return (json.dumps(content, indent=2) + "\n").encode()


def _plan_file(name: str, tensors: dict[str, LazyTensor], metadata: Mapping[str, str]) -> FilePlan:
    header, offsets = write_header(tensors, {"format": "pt", **metadata})
    extents = [Extent(0, Bytes(header))]
    size = len(header)
    for key, tensor in tensors.items():
        if tensor.nbytes:
            extents.append(Extent(offsets[key], content_of(tensor)))
        size = offsets[key] + tensor.nbytes
    return FilePlan(name, size, tuple(extents))
