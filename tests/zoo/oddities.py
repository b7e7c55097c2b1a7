"""Rewrites of an adapter folder: files that mean the same, and files that mean nothing.

Every function changes a folder with PEFT's LoRA files in place.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

PREFIX = "base_model.model."
Rewrite = Callable[[Path], None]


def _weights(folder: Path) -> Path:
    return folder / "adapter_model.safetensors"


def _renamed(rename: Callable[[str], str]) -> Rewrite:
    def rewrite(folder: Path) -> None:
        tensors = load_file(_weights(folder))
        result = {rename(name): tensor for name, tensor in tensors.items()}
        assert len(result) == len(tensors)
        assert set(result) != set(tensors)
        save_file(result, _weights(folder))

    return rewrite


def _configured(change: Callable[[dict[str, Any]], None]) -> Rewrite:
    def rewrite(folder: Path) -> None:
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config, indent=2))

    return rewrite


def _adapter_name(name: str) -> str:
    return name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")


def _other_adapter_name(name: str) -> str:
    return _adapter_name(name).replace(".default.", ".my_run.")


def _sharded(name: str) -> str:
    wrapper = "_fsdp_wrapped_module."
    inner = name.removeprefix(PREFIX).replace(".self_attn.", f".{wrapper}self_attn.")
    return f"{wrapper}{PREFIX}{wrapper}{inner}"


def _pickled(folder: Path) -> None:
    torch.save(load_file(_weights(folder)), folder / "adapter_model.bin")
    _weights(folder).unlink()


def _windows_lines(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def _byte_order_mark(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def _floats(config: dict[str, Any]) -> None:
    config.update(r=float(config["r"]), lora_alpha=float(config["lora_alpha"]))


def _nulls(config: dict[str, Any]) -> None:
    for key in (
        "alpha_pattern",
        "rank_pattern",
        "use_dora",
        "use_rslora",
        "fan_in_fan_out",
        "lora_bias",
        "bias",
        "modules_to_save",
        "target_modules",
        "target_parameters",
        "task_type",
        "base_model_name_or_path",
        "peft_version",
        "layer_replication",
        "trainable_token_indices",
        "init_lora_weights",
    ):
        config[key] = None


def _sparse(config: dict[str, Any]) -> None:
    kept = {key: config[key] for key in ("peft_type", "r", "lora_alpha")}
    config.clear()
    config.update(kept)


def _unknown(config: dict[str, Any]) -> None:
    config.update(my_note="x", trainer={"epochs": 3, "list": [1, None]}, seed=1)


SAME: dict[str, Rewrite] = {
    "prefix-twice": _renamed(lambda name: PREFIX + name),
    "prefix-three-times": _renamed(lambda name: PREFIX * 2 + name),
    "prefix-missing": _renamed(lambda name: name.removeprefix(PREFIX)),
    "adapter-name-default": _renamed(_adapter_name),
    "adapter-name-other": _renamed(_other_adapter_name),
    "compiled-inside": _renamed(lambda n: n.replace(PREFIX, f"{PREFIX}_orig_mod.", 1)),
    "compiled-outside": _renamed(lambda n: f"_orig_mod.{n}"),
    "compiled-layers": _renamed(lambda n: n.replace(".self_attn.", "._orig_mod.self_attn.")),
    "sharded-wrapper": _renamed(_sharded),
    "pickled": _pickled,
    "config-without-type": _configured(lambda config: config.pop("peft_type")),
    "config-without-rank": _configured(lambda config: config.pop("r")),
    "config-floats": _configured(_floats),
    "config-nulls": _configured(_nulls),
    "config-sparse": _configured(_sparse),
    "config-unknown-keys": _configured(_unknown),
    "config-windows-lines": _windows_lines,
    "config-byte-order-mark": _byte_order_mark,
}


def _half_a_pair(folder: Path) -> None:
    tensors = load_file(_weights(folder))
    del tensors[next(name for name in sorted(tensors) if ".lora_B." in name)]
    save_file(tensors, _weights(folder))


def _no_values(folder: Path) -> None:
    save_file({n: torch.zeros(0) for n in load_file(_weights(folder))}, _weights(folder))


def _one_without_values(folder: Path) -> None:
    tensors = load_file(_weights(folder))
    name = next(name for name in sorted(tensors) if ".lora_A." in name)
    tensors[name] = torch.zeros(0, tensors[name].shape[1])
    save_file(tensors, _weights(folder))


def _no_tensors(folder: Path) -> None:
    save_file({}, _weights(folder), {"format": "pt"})


def _no_bytes(folder: Path) -> None:
    _weights(folder).write_bytes(b"")


def _cut(folder: Path) -> None:
    _weights(folder).write_bytes(_weights(folder).read_bytes()[:-100])


def _pointer(folder: Path) -> None:
    _weights(folder).write_text(
        "version https://git-lfs.github.com/spec/v1\n"
        f"oid sha256:{'0123456789abcdef' * 4}\n"
        "size 13631488\n"
    )


def _changed_shape(part: str, dimension: int) -> Rewrite:
    def rewrite(folder: Path) -> None:
        tensors = load_file(_weights(folder))
        name = next(name for name in sorted(tensors) if f".{part}." in name)
        tensors[name] = torch.cat([tensors[name]] * 2, dimension)
        save_file(tensors, _weights(folder))

    return rewrite


def _elsewhere(folder: Path) -> None:
    _renamed(lambda name: name.replace(".layers.1.", ".layers.7."))(folder)


WRONG: dict[str, Rewrite] = {
    "half-a-pair": _half_a_pair,
    "zero-sized": _no_values,
    "one-zero-sized": _one_without_values,
    "no-tensors": _no_tensors,
    "no-bytes": _no_bytes,
    "cut": _cut,
    "pointer": _pointer,
    "ranks-differ": _changed_shape("lora_B", 1),
    "input-too-wide": _changed_shape("lora_A", 1),
    "output-too-long": _changed_shape("lora_B", 0),
    "layer-not-in-base": _elsewhere,
}
