"""The files of a PEFT adapter: where they are, and their tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adaptool.canonical import LazyTensor
from adaptool.containers._header import read_header
from adaptool.errors import JSON, CorruptInputError, StorageError
from adaptool.formats.peft.pickles import load_pickle
from adaptool.storage import SourceFile, read_object, shown

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"


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
        found = [path / n for n in (WEIGHTS, PICKLE) if os.path.lexists(path / n)]
        return found[0] if found else None
    return (
        path if path.name in (WEIGHTS, PICKLE) or path.suffix in (".safetensors", ".bin") else None
    )


def read_config(folder: Path) -> dict[str, JSON]:
    """What the folder's adapter_config.json says; empty if there is none.

    Raises CorruptInputError if it is no JSON object.
    """
    if not os.path.lexists(folder / CONFIG):
        return {}
    return read_object(folder / CONFIG)


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
    config = read_config(folder)
    if not os.path.lexists(folder / CONFIG):
        notes.append(f"no {CONFIG}: strength is taken from PEFT's default alpha")
    source = SourceFile.open(weights)
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
        folder, config, load_pickle(weights, source.size), facts, tuple(notes), weights, {}
    )
