"""`org/name[@revision]` on a model hub, as a local folder. The one door to huggingface_hub.

A path that exists always wins. Only what a job needs is fetched; HF_ENDPOINT, HF_TOKEN, HF_HOME and
HF_HUB_OFFLINE mean what they mean everywhere.
"""

from __future__ import annotations

import re
from pathlib import Path

from adaptool.errors import HubError, StorageError
from adaptool.storage import shown

_NAME = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,200})?$")

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md")
CHECKPOINT_FILES = (
    "*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken", "README.md",
    "LICENSE*",
)  # fmt: skip


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
    if path.exists() or path.is_symlink():
        return path
    if not _NAME.match(name) or name.startswith(("./", "../", "/")):
        raise StorageError(
            f"{shown(name)}: not found",
            hint="name a path that exists, or a hub model as org/name[@revision]",
            code="NOT_FOUND",
        )
    repo, _, revision = name.partition("@")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repo, revision=revision or None, allow_patterns=list(patterns), max_workers=4
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = _redacted(str(error).strip().splitlines()[0] if str(error).strip() else "")
        raise HubError(
            f"{shown(name)}: no such path, and the hub says: {reason or type(error).__name__}",
            hint="check the name, your network, and HF_TOKEN for private models",
            code="HUB_REFUSED",
        ) from error
    return Path(folder)


def _redacted(text: str) -> str:
    return re.sub(r"hf_[A-Za-z0-9]{8,}", "hf_...", text)[:300]
