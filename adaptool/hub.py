"""`org/name[@revision]` on a model hub, as a local folder. The one door to huggingface_hub.

A path that exists always wins. Only what a job needs is fetched; HF_ENDPOINT, HF_TOKEN, HF_HOME and
HF_HUB_OFFLINE mean what they mean everywhere.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from logging import ERROR
from pathlib import Path
from typing import TYPE_CHECKING

from adaptool.canonical import Checkpoint, LazyTensor, Provenance
from adaptool.containers._header import NAMES
from adaptool.errors import (
    AdaptoolError,
    CorruptInputError,
    HubError,
    IncompatibleError,
    StorageError,
)
from adaptool.storage import read_json, shown

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,200})?$")

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md")
CHECKPOINT_FILES = (
    "*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken", "README.md",
    "LICENSE*",
)  # fmt: skip
NEVER = ("*/*", "consolidated*")
"""Folders, and weights once more in another layout; a `*` of these patterns matches `/` too."""


def fetch_adapter(name: str) -> Path:
    """The local path of an adapter; fetched if `name` is a hub name.

    Raises:
        StorageError: neither a path nor a hub name.
        HubError: unknown to the hub, not allowed, or no network.
    """
    return _fetch(name, ADAPTER_FILES)


def fetch_checkpoint(name: str) -> Path:
    """The local path of a model; fetched if `name` is a hub name. Raises as `fetch_adapter`."""
    return _fetch(name, CHECKPOINT_FILES)


def fetch_config(name: str) -> Path:
    """The local path of a model or of its config; of a hub model only the config is fetched.

    Raises as `fetch_adapter`.
    """
    return _fetch(name, ("config.json",))


def _fetch(name: str, patterns: tuple[str, ...]) -> Path:
    path = Path(name)
    if os.path.lexists(path):
        return path
    if not _NAME.match(name) or name.startswith(("./", "../", "/")):
        raise StorageError(
            f"{shown(name)}: not found",
            hint="name a path that exists, or a hub model as org/name[@revision]",
            code="NOT_FOUND",
        )
    repo, _, revision = name.partition("@")
    from huggingface_hub import snapshot_download

    with _asking(name):
        folder = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=list(patterns),
            ignore_patterns=list(NEVER),
            max_workers=4,
        )
    return Path(folder)


def describe_checkpoint(name: str) -> Checkpoint:
    """A model on the hub from the headers of its files alone; its values cannot be read.

    Raises HubError as `fetch_adapter`, IncompatibleError for a model without safetensors.
    """
    from huggingface_hub import get_safetensors_metadata, hf_hub_download
    from huggingface_hub.errors import NotASafetensorsRepoError

    repo, _, revision = name.partition("@")
    with _asking(name):
        try:
            found = get_safetensors_metadata(repo, revision=revision or None)
        except NotASafetensorsRepoError:
            raise IncompatibleError(
                f"{shown(name)}: neither an adapter nor a checkpoint is recognised here",
                hint="it holds no adapter_config.json and no model.safetensors",
                code="UNKNOWN_FORMAT",
            ) from None
        config = read_json(Path(hf_hub_download(repo, "config.json", revision=revision or None)))
    tensors: dict[str, LazyTensor] = {}
    for file, metadata in found.files_metadata.items():
        for key, info in metadata.tensors.items():
            dtype = NAMES.get(info.dtype)
            if dtype is None or not all(type(n) is int and n >= 0 for n in info.shape):
                raise CorruptInputError(f"{shown(name)}: {shown(file)}: {shown(key)} is no tensor")
            tensors[key] = LazyTensor(tuple(info.shape), dtype, partial(_refuse_values, name))
    return Checkpoint(
        tensors=tensors,
        container="safetensors",
        provenance=Provenance(repo, "safetensors", {file: {} for file in found.files_metadata}),
        config=config if isinstance(config, dict) else {},
    )


def _refuse_values(name: str, _start: int, _stop: int, _block: int) -> Iterator[torch.Tensor]:
    raise HubError(f"{shown(name)}: only the headers were fetched", code="VALUES_NOT_FETCHED")


@contextmanager
def _asking(name: str) -> Iterator[None]:
    """Ask the hub library about `name`; whatever it raises becomes a HubError."""
    try:
        with _quiet():
            yield
    except AdaptoolError:
        raise
    except Exception as error:  # its errors, and those of the HTTP library below, have no root
        reason = _redacted(str(error).strip().splitlines()[0] if str(error).strip() else "")
        raise HubError(
            f"{shown(name)}: no such path, and the hub says: {reason or type(error).__name__}",
            hint="check the name, your network, and HF_TOKEN for private models",
            code="HUB_REFUSED",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the hub library's remarks to itself, and its progress bars to terminals."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    level = logging.get_verbosity()
    bars = not are_progress_bars_disabled()
    logging.set_verbosity(ERROR)
    if bars and not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            enable_progress_bars()


def _redacted(text: str) -> str:
    return re.sub(r"hf_[A-Za-z0-9]{8,}", "hf_...", text)[:300]
