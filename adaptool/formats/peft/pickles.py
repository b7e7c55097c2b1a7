"""Adapters in torch's own file format, for those who allow it.

A torch file is a pickle beside raw bytes. It is loaded with `weights_only`, which runs no code
from the file, and only when what it claims fits into the file's own size.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from adaptool.canonical import LazyTensor
from adaptool.canonical.tensors import from_values
from adaptool.errors import CorruptInputError
from adaptool.storage import shown

if TYPE_CHECKING:
    import torch


def load_pickle(path: Path, size: int) -> dict[str, LazyTensor]:
    """Tensors by name of the torch file at `path`, which has `size` bytes.

    Raises CorruptInputError for anything but a table of plain, contiguous tensors.
    """
    _check_archive(path, size)
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
        tensors[name] = _plain(path, name, value)
    return tensors


def _check_archive(path: Path, size: int) -> None:
    """A zip must store its entries uncompressed; torch before 1.6 wrote no zip."""
    with path.open("rb") as file:
        begins = file.read(4)
    if begins != b"PK\x03\x04" and not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CorruptInputError(f"{shown(path)}: a damaged torch file: {error}") from None
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CorruptInputError(f"{shown(path)}: compressed entries in a torch file")
    if sum(entry.file_size for entry in entries) > size:
        raise CorruptInputError(f"{shown(path)}: entries larger than the file")


def _plain(path: Path, name: str, value: torch.Tensor) -> LazyTensor:
    import torch

    where = f"{shown(path)}: {shown(name)}"
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        raise CorruptInputError(f"{where} is no plain tensor")
    if not value.is_contiguous():
        raise CorruptInputError(f"{where} is not stored contiguously")
    try:
        return from_values(value)
    except ValueError:
        raise CorruptInputError(f"{where} is of the unknown type {value.dtype}") from None
