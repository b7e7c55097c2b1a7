"""A small sound model with a small sound adapter, to be damaged; written without any library."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

MERGE = ("merge", "base", "adapter", "-o", "out", "--device", "cpu")
INSPECT = ("inspect", "adapter")
Q = "model.layers.0.self_attn.q_proj"
A = f"base_model.model.{Q}.lora_A.weight"
B = f"base_model.model.{Q}.lora_B.weight"
WIDTHS = {"F64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        name: says what is wrong.
        exit_code: wanted.
        damage: changes the folder that holds `base/` and `adapter/`.
        mentions: what the message has to name.
        command: arguments, run in that folder.
        inside: run in the test's own process: the same `main`, but no limits and no new start.
    """

    name: str
    exit_code: int
    damage: Callable[[Path], object] = lambda folder: None
    mentions: tuple[str, ...] = ()
    command: tuple[str, ...] = MERGE
    inside: bool = False


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file: all its values are the same unless `data` says otherwise."""

    shape: tuple[int, ...]
    value: float = 0.5
    dtype: str = "F32"
    data: bytes | None = None

    @property
    def bytes(self) -> bytes:
        if self.data is not None:
            return self.data
        count = prod(self.shape)
        if self.dtype == "F32":
            return struct.pack(f"<{count}f", *[self.value] * count)
        if self.dtype == "F16":
            return struct.pack(f"<{count}e", *[self.value] * count)
        return bytes([1]) * (count * WIDTHS[self.dtype])


Tensors = dict[str, Tensor]

BASE: Tensors = {
    "model.embed_tokens.weight": Tensor((8, 4)),
    f"{Q}.weight": Tensor((6, 4)),
    "model.norm.weight": Tensor((4,)),
    "lm_head.weight": Tensor((8, 4)),
}
MODEL = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "tie_word_embeddings": False,
    "vocab_size": 8,
    "hidden_size": 4,
    "num_hidden_layers": 1,
}
ADAPTER: Tensors = {A: Tensor((2, 4)), B: Tensor((6, 2))}
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
}


def framed(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file from the text of its header."""
    size = len(header) if length is None else length
    return size.to_bytes(8, "little") + header + data


def packed(tensors: Tensors, metadata: Any = None) -> bytes:
    """A sound file."""
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, tensor in tensors.items():
        start = len(data)
        data += tensor.bytes
        entries[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [start, len(data)],
        }
    return framed(json.dumps(entries).encode(), data)


def lay_out(folder: Path) -> None:
    """`base/` and `adapter/`, both sound."""
    (folder / "base").mkdir()
    (folder / "adapter").mkdir()
    (folder / "base" / "model.safetensors").write_bytes(packed(BASE))
    (folder / "base" / "config.json").write_text(json.dumps(MODEL))
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(packed(ADAPTER))
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(CONFIG))


def put(path: str, content: bytes | str) -> Callable[[Path], object]:
    """Damage: another content of a file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / path).write_bytes(data)


def config(**changes: Any) -> Callable[[Path], object]:
    """Damage: other settings in adapter_config.json."""
    return put("adapter/adapter_config.json", json.dumps(CONFIG | changes))


def config_text(text: str) -> Callable[[Path], object]:
    """Damage: settings as JSON text, after the usual ones."""
    return put("adapter/adapter_config.json", json.dumps(CONFIG)[:-1] + f", {text}}}")


def adapter(tensors: Tensors, **changes: Any) -> Callable[[Path], object]:
    """Damage: other tensors in the adapter, and other settings."""

    def damage(folder: Path) -> None:
        put("adapter/adapter_model.safetensors", packed(tensors))(folder)
        config(**changes)(folder)

    return damage


def base(tensors: Tensors, **changes: Any) -> Callable[[Path], object]:
    """Damage: other tensors in the model, and another config.json."""

    def damage(folder: Path) -> None:
        put("base/model.safetensors", packed(tensors))(folder)
        put("base/config.json", json.dumps(MODEL | changes))(folder)

    return damage


def together(*steps: Callable[[Path], object]) -> Callable[[Path], object]:
    """Several damages, one after the other."""
    return lambda folder: [step(folder) for step in steps]


def thinned(cases: list[Case], every: int) -> list[Case]:
    """Give a process of its own to every n-th case, and to what may be too large."""
    return [
        replace(case, inside=bool(number % every) and case.exit_code != 8)
        for number, case in enumerate(cases)
    ]
