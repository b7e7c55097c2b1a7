"""Sound files, changed at random: bytes, JSON tokens, names and shapes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

from adaptool.canonical import Checkpoint
from adaptool.containers import open_checkpoint
from adaptool.containers._header import read_header
from adaptool.formats import read_adapter
from adaptool.inspection import inspect
from adaptool.merging import merge
from adaptool.storage import SourceFile

from .files import BASE, CONFIG, MODEL, WIDTHS, Q, Tensor, framed, lay_out, packed
from .folders import FIRST, INDEX, SECOND, shards

TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?|true|false|null|[\[\]{}:,]')
HOSTILE = [
    b"-1", b"0", b"1", b"2", b"3.5", b"1e400", b"-0", b"NaN", b"Infinity", b"null", b"true",
    b'""', b'"a"', b'"\\ud800"', b'"\\u0000"', b'"\\n"', b"[]", b"{}", b"[0]", b"[[1,2]]",
    b'{"q_proj": 3}', b'{"": 1}', b"9223372036854775807", b"9223372036854775808",
    b"18446744073709551616", b"1" * 320, b"1" * 5000, b"[" * 3000, b'"(a+)+$"', b'"../x"',
    b'"F4"', b'"F64"', b'"BOOL"', b'"lora_A"', b'"DORA"', b'"x.safetensors"', b"",
]  # fmt: skip
SETTINGS = CONFIG | {
    "rank_pattern": {"k_proj": 4, ".*\\.v_proj": 8},
    "alpha_pattern": {"(q|k)_proj": 16},
    "use_dora": False,
    "use_rslora": True,
    "bias": "none",
    "modules_to_save": ["lm_head"],
    "trainable_token_indices": {"embed_tokens": [1, 2]},
    "layer_replication": [[0, 1]],
    "enable_lora": None,
    "target_parameters": ["mlp.experts.gate_up_proj"],
    "init_lora_weights": True,
    "base_model_name_or_path": "org/name",
    "alora_invocation_tokens": None,
    "fan_in_fan_out": False,
    "task_type": "CAUSAL_LM",
}
MODEL_SETTINGS = MODEL | {
    "text_config": {"vocab_size": 8, "tie_word_embeddings": False, "hidden_size": 4},
    "id2label": {"0": "no", "1": "yes"},
    "label2id": {"no": 0, "yes": 1},
    "num_labels": 2,
    "layer_types": ["full_attention"],
    "quantization_config": None,
    "dtype": "float32",
}
ENDS = [
    "lora_A.weight", "lora_B.weight", "lora_A.default.weight", "lora_B.bias", "lora_embedding_A",
    "lora_embedding_B", "lora_magnitude_vector", "trainable_tokens_delta", "base_layer.weight",
    "base_layer.bias", "modules_to_save.weight", "modules_to_save.default.dense.weight",
    "original_module.weight", "lora_velora_embed.x", "weight", "bias", "base_layer.lora_A.weight",
    "base_layer.lora_B.weight", "²", "",
]  # fmt: skip
MODULES = [
    Q, "model.embed_tokens", "lm_head", "model.norm", "model.layers.0.mlp.experts", "score",
    "model.layers.0.mlp.experts.1.up_proj", "model.layers.²", "", "prompt_embeddings",
]  # fmt: skip


def damaged(data: bytes, random: Random) -> bytes:
    """The same bytes after one to three changes."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        data = random.choice((_flip, _put, _cut, _repeat, _token, _token, _token))(data, random)
    return data


def _flip(data: bytes, random: Random) -> bytes:
    if not data:
        return data
    place = random.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]


def _put(data: bytes, random: Random) -> bytes:
    place = random.randrange(len(data) + 1)
    return data[:place] + random.randbytes(random.randrange(1, 9)) + data[place:]


def _cut(data: bytes, random: Random) -> bytes:
    start = random.randrange(len(data) + 1)
    return data[:start] + data[start + random.randrange(1, 40) :]


def _repeat(data: bytes, random: Random) -> bytes:
    start = random.randrange(len(data) + 1)
    part = data[start : start + random.randrange(1, 60)]
    return data[: start + len(part)] + part + data[start + len(part) :]


def _token(data: bytes, random: Random) -> bytes:
    found = list(TOKEN.finditer(data))
    if not found:
        return data
    match, other = random.choice(found), random.choice(found)
    text = random.choice((other[0], random.choice(HOSTILE), random.choice(HOSTILE)))
    return data[: match.start()] + text + data[match.end() :]


class Target:
    """A parser and what it is fed with, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        lay_out(folder)
        self.base: Checkpoint = open_checkpoint(folder / "base")
        self.weights = folder / "adapter" / "adapter_model.safetensors"
        self.settings = folder / "adapter" / "adapter_config.json"
        self.settings.write_text(json.dumps(SETTINGS))
        self.sound = packed(_adapter_tensors(), {"format": "pt", "made": "here"})

    def header(self, random: Random) -> None:
        """The header of a safetensors file."""
        size = int.from_bytes(self.sound[:8], "little")
        text, data = self.sound[8 : 8 + size], self.sound[8 + size :]
        if random.random() < 0.2:
            content = damaged(self.sound, random)
        else:
            content = framed(damaged(text, random), data)
        self.weights.write_bytes(content)
        with SourceFile.open(self.weights) as source:
            read_header(source)

    def config(self, random: Random) -> None:
        """adapter_config.json."""
        if self.weights.stat().st_size != len(self.sound):
            self.weights.write_bytes(self.sound)
        self.settings.write_bytes(damaged(json.dumps(SETTINGS).encode(), random))
        self._use()

    def tensors(self, random: Random) -> None:
        """Names, types and shapes of an adapter's tensors, in a sound file."""
        settings = {k: v for k, v in SETTINGS.items() if random.random() < 0.7}
        if random.random() < 0.3:
            settings["enable_lora"] = [True, False, True][: random.randrange(4)]
        self.settings.write_text(json.dumps(settings))
        tensors: dict[str, Tensor] = {}
        for _ in range(random.randrange(1, 5)):
            module = random.choice(MODULES)
            for _ in range(random.randrange(1, 4)):
                prefix = random.choice(("base_model.model.", "base_model.model.", "_orig_mod.", ""))
                tensors[f"{prefix}{module}.{random.choice(ENDS)}"] = _any_tensor(random)
        self.weights.write_bytes(packed(tensors))
        self._use()

    def index(self, random: Random) -> None:
        """The index of a sharded model."""
        home = self.folder / "base"
        if not (home / FIRST).exists():
            shards(self.folder)
        names = list(BASE)
        content = {
            "metadata": {"total_size": 1},
            "weight_map": {n: FIRST if n in names[:2] else SECOND for n in names},
        }
        (home / INDEX).write_bytes(damaged(json.dumps(content).encode(), random))
        open_checkpoint(home)

    def model(self, random: Random) -> None:
        """A model's config.json, with an adapter that brings a larger head and another task."""
        if not self.weights.stat().st_size > len(self.sound):
            extra = {
                "base_model.model.lm_head.weight": Tensor((9, 4)),
                "base_model.model.score.weight": Tensor((3, 4)),
                "base_model.model.model.embed_tokens.weight": Tensor((9, 4)),
            }
            self.weights.write_bytes(packed(_adapter_tensors(rows=False) | extra))
            self.settings.write_text(json.dumps(CONFIG | {"task_type": "SEQ_CLS"}))
        settings = MODEL_SETTINGS | {"tie_word_embeddings": random.random() < 0.5}
        (self.folder / "base" / "config.json").write_bytes(
            damaged(json.dumps(settings).encode(), random)
        )
        adapter = read_adapter(self.weights.parent)
        merge(open_checkpoint(self.folder / "base"), [(adapter, 1.0)])

    def _use(self) -> None:
        json.dumps(inspect(self.weights.parent))
        merge(self.base, [(read_adapter(self.weights.parent), 1.0)])


TARGETS: dict[str, Callable[[Target, Random], None]] = {
    "header": Target.header,
    "config": Target.config,
    "tensors": Target.tensors,
    "index": Target.index,
    "model": Target.model,
}


def _adapter_tensors(*, rows: bool = True) -> dict[str, Tensor]:
    tensors = {
        f"base_model.model.{Q}.lora_A.weight": Tensor((2, 4)),
        f"base_model.model.{Q}.lora_B.weight": Tensor((6, 2)),
        f"base_model.model.{Q}.lora_magnitude_vector": Tensor((6,)),
        "base_model.model.lm_head.weight": Tensor((8, 4), dtype="F16"),
    }
    token = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    return tensors | ({token: Tensor((2, 4))} if rows else {})


def _any_tensor(random: Random) -> Tensor:
    if random.random() < 0.5:
        shape: tuple[int, ...] = random.choice(((2, 4), (6, 2), (6, 4), (8, 4), (2, 8), (4, 2)))
        return Tensor(shape)
    shape = tuple(random.choice((0, 1, 2, 4, 6, 8)) for _ in range(random.randrange(4)))
    return Tensor(shape, dtype=random.choice(list(WIDTHS)))
