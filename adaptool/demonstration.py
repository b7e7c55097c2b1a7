"""The demo's voice: a small Llama, read from its files and run with numpy alone.

Enough of the architecture to let the bundled demo model speak before and after a merge,
without torch or transformers. It recomputes the whole prompt for every token: simple, and
fast enough for a model of a few megabytes.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptool.errors import CorruptInputError, IncompatibleError, StorageError, UsageError

TEMPLATE = "user: {prompt}\nbot:"
"""How the demo model was taught to see a question."""

MAX_BYTES = 256 * 1024 * 1024
"""Weight files larger than this are not a demo."""

Array = npt.NDArray[np.float32]


def demo_folder() -> Path:
    """The folder with the demo's files: of the installed package, else of the checkout.

    Returns:
        A folder with `model`, `pirate`, `cowboy`, `formal` and `expected.json`.

    Raises:
        StorageError: neither exists.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "demo_data", package.parent / "fixtures" / "demo"):
        if (folder / "model" / "config.json").is_file():
            return folder
    raise StorageError(
        "the demo files are missing from this installation",
        hint="reinstall adaptool from its wheel, or run it from a checkout with fixtures/demo",
        code="DEMO_MISSING",
    )


def answer(model: Path, prompt: str, *, max_tokens: int = 40) -> str:
    """What the model in this folder answers to one line, decoded greedily.

    Args:
        model: folder with config.json, tokenizer.json and the model's safetensors file(s).
        prompt: what the user says, for example `hello ada`; the template is added here.
        max_tokens: stop after so many tokens if the model does not stop by itself.

    Raises:
        StorageError: a file is missing or unreadable.
        CorruptInputError: a file is not what its name says.
        IncompatibleError: not a plain Llama model in floating point.
        UsageError: no room for an answer, or the `tokenizers` library is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError(
            "the demo needs the tokenizers library, which is not installed",
            hint="pip install tokenizers",
        ) from error

    config = _read_config(model)
    weights = _read_weights(model)
    text = _read_bytes(model / "tokenizer.json").decode("utf-8", errors="replace")
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise CorruptInputError(f"{model / 'tokenizer.json'}: not a tokenizer: {error}") from error
    ids: list[int] = list(tokenizer.encode(TEMPLATE.format(prompt=prompt)).ids)
    room = int(config.get("max_position_embeddings", 2048)) - len(ids)
    if room < 1:
        raise UsageError(f"the prompt is too long for this model ({len(ids)} tokens)")
    ends = config.get("eos_token_id")
    stop = set(ends) if isinstance(ends, list) else {ends}
    new: list[int] = []
    while len(new) < min(max_tokens, room):
        try:
            token = int(np.argmax(logits(config, weights, ids + new)[-1]))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise CorruptInputError(
                f"{model}: config.json, tokenizer.json and the weights do not fit: {error}"
            ) from error
        if token in stop:
            break
        new.append(token)
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()


def logits(config: dict[str, Any], weights: dict[str, Array], ids: list[int]) -> Array:
    """The model's scores for every next token: one row per position of `ids`."""
    eps = float(config["rms_norm_eps"])
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    size = int(config.get("head_dim") or config["hidden_size"] // heads)
    length = len(ids)

    def norm(x: Array, name: str) -> Array:
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return np.asarray(x / np.sqrt(mean + np.float32(eps)) * weights[name], dtype=np.float32)

    def linear(x: Array, name: str) -> Array:
        y = x @ weights[f"{name}.weight"].T
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    theta = float((config.get("rope_parameters") or config).get("rope_theta", 10000.0))
    turns = theta ** -(np.arange(0, size, 2) / size)
    angles = np.outer(np.arange(length), np.concatenate([turns, turns]))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def split(x: Array, count: int, rotate: bool) -> Array:
        x = x.reshape(length, count, size).transpose(1, 0, 2)
        if rotate:
            turned = np.concatenate([-x[..., size // 2 :], x[..., : size // 2]], axis=-1)
            x = np.asarray(x * cos + turned * sin, dtype=np.float32)
        return np.repeat(x, heads // count, axis=0)

    future = np.triu(np.full((length, length), -np.inf, dtype=np.float32), k=1)
    x: Array = weights["model.embed_tokens.weight"][ids]
    for layer in range(int(config["num_hidden_layers"])):
        at = f"model.layers.{layer}"
        y = norm(x, f"{at}.input_layernorm.weight")
        q = split(linear(y, f"{at}.self_attn.q_proj"), heads, True)
        k = split(linear(y, f"{at}.self_attn.k_proj"), kv_heads, True)
        v = split(linear(y, f"{at}.self_attn.v_proj"), kv_heads, False)
        scores: Array = q @ k.transpose(0, 2, 1) / np.float32(math.sqrt(size)) + future
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed: Array = (scores / scores.sum(axis=-1, keepdims=True)) @ v
        x = x + linear(
            mixed.transpose(1, 0, 2).reshape(length, heads * size), f"{at}.self_attn.o_proj"
        )
        y = norm(x, f"{at}.post_attention_layernorm.weight")
        gate = linear(y, f"{at}.mlp.gate_proj")
        gate = np.asarray(gate / (1 + np.exp(-np.maximum(gate, -80))), dtype=np.float32)
        x = x + linear(gate * linear(y, f"{at}.mlp.up_proj"), f"{at}.mlp.down_proj")
    x = norm(x, "model.norm.weight")
    head = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"
    return np.asarray(x @ weights[head].T, dtype=np.float32)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def _read_config(model: Path) -> dict[str, Any]:
    path = model / "config.json"
    try:
        config = json.loads(_read_bytes(path))
    except ValueError as error:
        raise CorruptInputError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CorruptInputError(f"{path}: not a JSON object")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if config.get("model_type") != "llama" or kind != "default":
        raise IncompatibleError(
            f"{path}: the demo runs plain Llama models only, "
            f"found model_type {config.get('model_type')!r} with rope {kind!r}"
        )
    return config


def _read_weights(model: Path) -> dict[str, Array]:
    paths = sorted(model.glob("model*.safetensors"))
    if not paths:
        raise StorageError(f"{model}: no model.safetensors here")
    weights: dict[str, Array] = {}
    for path in paths:
        if path.stat().st_size > MAX_BYTES:
            raise IncompatibleError(f"{path}: too large for the demo (over {MAX_BYTES} bytes)")
        data = _read_bytes(path)
        try:
            start = 8 + int.from_bytes(data[:8], "little")
            header = json.loads(data[8:start])
            header.pop("__metadata__", None)
            for name, entry in header.items():
                first, last = entry["data_offsets"]
                part = data[start + first : start + last]
                weights[name] = _floats(part, entry["dtype"], f"{path}: {name}").reshape(
                    entry["shape"]
                )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptInputError(f"{path}: not a sound safetensors file: {error}") from error
    return weights


def _floats(part: bytes, dtype: str, where: str) -> Array:
    if dtype == "BF16":  # the upper half of an fp32
        return (np.frombuffer(part, "<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype in ("F16", "F32"):
        return np.frombuffer(part, "<f2" if dtype == "F16" else "<f4").astype(np.float32)
    raise IncompatibleError(f"{where}: the demo reads BF16, F16 and F32, not {dtype}")
