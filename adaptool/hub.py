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
from logging import ERROR
from pathlib import Path

from adaptool.errors import HubError, StorageError
from adaptool.storage import shown

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

    try:
        with _quiet():
            folder = snapshot_download(
                repo,
                revision=revision or None,
                allow_patterns=list(patterns),
                ignore_patterns=list(NEVER),
                max_workers=4,
            )
    except Exception as error:  # its errors, and those of the HTTP library below, have no root
        reason = _redacted(str(error).strip().splitlines()[0] if str(error).strip() else "")
        raise HubError(
            f"{shown(name)}: no such path, and the hub says: {reason or type(error).__name__}",
            hint="check the name, your network, and HF_TOKEN for private models",
            code="HUB_REFUSED",
        ) from error
    return Path(folder)


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
