"""The files of a PEFT adapter: where they are, and their tensors."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adaptool.canonical import LazyTensor
from adaptool.canonical.tensors import from_values
from adaptool.containers._header import read_header
from adaptool.errors import JSON, CorruptInputError, StorageError
from adaptool.storage import SourceFile, read_json, shown

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
_LFS = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Files:
    """What was found on disk.

    Attributes:
        folder: where the adapter lies.
        config: adapter_config.json, or empty if there is none.
        tensors: by the file's own names.
        facts: file name -> size.
        weights: path of the file with the tensors.
        notes: what was decided.
    """

    folder: Path
    config: Mapping[str, JSON]
    tensors: Mapping[str, LazyTensor]
    facts: dict[str, JSON]
    notes: tuple[str, ...]
    weights: Path
    metadata: Mapping[str, str]


def weights_at(path: Path) -> Path | None:
    """The weights of the adapter at `path` (a folder, or the file itself), if there are any."""
    if path.is_dir():
        found = [path / n for n in (WEIGHTS, PICKLE) if (path / n).exists()]
        return found[0] if found else None
    return (
        path if path.name in (WEIGHTS, PICKLE) or path.suffix in (".safetensors", ".bin") else None
    )


def open_files(path: Path, *, allow_pickle: bool) -> Files:
    """Find and open config and weights; safetensors is preferred to .bin.

    Raises:
        StorageError: not there.
        CorruptInputError: broken, or a git-LFS pointer, or a pickle that is not allowed.
    """
    weights = weights_at(path)
    folder = path if path.is_dir() else path.parent
    if weights is None:
        what = "has no config either" if not (folder / CONFIG).exists() else "has only a config"
        raise StorageError(
            f"{shown(path)}: no {WEIGHTS} here; the folder {what}",
            hint="name the folder that save_pretrained wrote",
            code="NOT_FOUND",
        )
    notes: list[str] = []
    if path.is_dir() and weights.name == WEIGHTS and (path / PICKLE).exists():
        notes.append(f"{PICKLE} stands beside {WEIGHTS} and was not read")
    config: dict[str, JSON] = {}
    if os.path.lexists(folder / CONFIG):
        content = read_json(folder / CONFIG)
        if not isinstance(content, dict):
            raise CorruptInputError(f"{folder / CONFIG}: not a JSON object")
        config = content
    else:
        notes.append(f"no {CONFIG}: strength is taken from PEFT's default alpha")
    source = SourceFile.open(weights)
    if source.size >= len(_LFS) and source.read(0, len(_LFS)) == _LFS:
        raise CorruptInputError(
            f"{shown(weights)}: a git-LFS pointer, not the file itself",
            hint="run `git lfs pull` in that folder",
        )
    facts: dict[str, JSON] = {
        weights.name: {"bytes": source.size},
    }
    if weights.suffix == ".safetensors":
        header = read_header(source)
        return Files(folder, config, header.tensors, facts, tuple(notes), weights, header.metadata)
    if not allow_pickle:
        raise CorruptInputError(
            f"{shown(weights)}: a pickle, which can hold code, is not read",
            hint="pass --allow-pickle to load tensors only, or save it as safetensors",
            code="PICKLE_REFUSED",
        )
    return Files(
        folder, config, _load_pickle(weights, source.size), facts, tuple(notes), weights, {}
    )


def _starts_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _load_pickle(path: Path, size: int) -> dict[str, LazyTensor]:
    """Tensors of a torch zip file, without running its code and within the file's own size."""
    entries: list[zipfile.ZipInfo] = []
    if _starts_as_zip(path) or zipfile.is_zipfile(
        path
    ):  # torch before 1.6 wrote no zip: those are only pickle and bytes
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise CorruptInputError(f"{shown(path)}: a damaged torch file: {error}") from None
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
        raise CorruptInputError(f"{shown(path)}: compressed entries in a torch file")
    if sum(e.file_size for e in entries) > size:
        raise CorruptInputError(f"{shown(path)}: entries larger than the file")
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises whatever a broken file provokes
        raise CorruptInputError(
            f"{shown(path)}: damaged, or holds more than plain tensors ({type(error).__name__})",
            hint="never load it with an older torch: a pickle can run code",
        ) from None
    if not isinstance(content, dict):
        raise CorruptInputError(f"{shown(path)}: holds no table of tensors")
    tensors: dict[str, LazyTensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CorruptInputError(f"{shown(path)}: {shown(str(name))} is not a tensor")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise CorruptInputError(f"{shown(path)}: {shown(name)} is no plain tensor")
        if not value.is_contiguous():
            raise CorruptInputError(f"{shown(path)}: {shown(name)} is not stored contiguously")
        try:
            tensors[name] = from_values(value)
        except ValueError:
            raise CorruptInputError(
                f"{shown(path)}: {shown(name)} is of the unknown type {value.dtype}"
            ) from None
    return tensors
