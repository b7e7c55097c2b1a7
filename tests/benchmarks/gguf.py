"""How long a merge into a GGUF model takes, beside copying the file.

    python tests/benchmarks/gguf.py
    python tests/benchmarks/gguf.py --kinds q4_k_m --rounds 1 --layers 4
    python tests/benchmarks/gguf.py --keep          # leaves the models for the next run

Builds, once for each kind, the Llama of 1.2 billion parameters of merge.py as one GGUF file with a
vocabulary of 64,000 tokens, in F16, Q8_0 and llama.cpp's mixture Q4_K_M, and r=16 adapters on the
attention's and on all linear layers. Then runs in turn `cp`, `cp && sync`, `adaptool merge` with
each adapter and with one and two workers, and `adaptool convert` of an adapter to GGUF. The clock
is merge.py's: every command is a process of its own, and wall time, processor time and peak memory
are the kernel's.

The packed weights are normal values packed once by adaptool itself: a few million of them, tiled.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from merge import (
    COPY,
    COPY_SYNC,
    HEADS,
    HIDDEN,
    INNER,
    KV_ROWS,
    LINEARS,
    TORCH,
    VOCABULARY,
    Runs,
    measure,
    report,
    warm,
    write_adapter,
)

KINDS = ("f16", "q8_0", "q4_k_m")
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144),
         "Q6_K": (14, 256, 210)}  # fmt: skip
"""ggml's number, values of a block, bytes of a block."""
FILE_TYPES = {"f16": 1, "q8_0": 7, "q4_k_m": 15}
ALIGNMENT = 32
TILE = 1 << 21
"""Values that are packed once and repeated."""

Tensors = dict[str, tuple[tuple[int, ...], str]]


# -- the model ------------------------------------------------------------------------------------


def tensors_of(kind: str, layers: int) -> Tensors:
    """Name -> shape and ggml type of every tensor, in the order of the file."""

    def larger(layer: int) -> bool:  # the layers to which Q4_K_M gives more bits
        eighth = layers // 8
        return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2

    plain = {"f16": "F16", "q8_0": "Q8_0", "q4_k_m": "Q4_K"}[kind]
    better = "Q6_K" if kind == "q4_k_m" else plain
    found: Tensors = {"token_embd.weight": ((VOCABULARY, HIDDEN), plain)}
    for layer in range(layers):
        at = f"blk.{layer}"
        found[f"{at}.attn_norm.weight"] = ((HIDDEN,), "F32")
        for module, shape in LINEARS.items():
            name = NAMES[module]
            grown = name in {"attn_v", "ffn_down"} and larger(layer)
            found[f"{at}.{name}.weight"] = (shape, better if grown else plain)
        found[f"{at}.ffn_norm.weight"] = ((HIDDEN,), "F32")
    found["output_norm.weight"] = ((HIDDEN,), "F32")
    found["output.weight"] = ((VOCABULARY, HIDDEN), better)
    return found


def nbytes(shape: tuple[int, ...], kind: str) -> int:
    """Bytes of a tensor."""
    _, block, size = TYPES[kind]
    return math.prod(shape) // block * size


def text(value: str) -> bytes:
    """A GGUF string."""
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def key_values(kind: str, layers: int) -> Iterator[bytes]:
    """What llama.cpp's converter writes for a Llama."""
    head = HIDDEN // HEADS
    strings = {"general.architecture": "llama", "general.type": "model",
               "tokenizer.ggml.model": "llama"}  # fmt: skip
    numbers = {
        "general.file_type": FILE_TYPES[kind], "general.quantization_version": 2,
        "llama.block_count": layers, "llama.context_length": 4096,
        "llama.embedding_length": HIDDEN, "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS, "llama.attention.head_count_kv": KV_ROWS // head,
        "llama.rope.dimension_count": head, "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    }  # fmt: skip
    for key, value in strings.items():
        yield text(key) + struct.pack("<I", 8) + text(value)
    for key, number in numbers.items():
        yield text(key) + struct.pack("<II", 4, number)
    yield text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5)
    tokens = b"".join(text(f"token{i}") for i in range(VOCABULARY))
    scores = struct.pack(f"<{VOCABULARY}f", *(-float(i) for i in range(VOCABULARY)))
    kinds = struct.pack(f"<{VOCABULARY}i", *([1] * VOCABULARY))
    for name, element, items in (("tokens", 8, tokens), ("scores", 6, scores),
                                 ("token_type", 5, kinds)):  # fmt: skip
        head_of_array = struct.pack("<IIQ", 9, element, VOCABULARY)
        yield text(f"tokenizer.ggml.{name}") + head_of_array + items


def write_model(path: Path, kind: str, layers: int) -> None:
    """One GGUF file."""
    tensors = tensors_of(kind, layers)
    values = list(key_values(kind, layers))
    infos, offset = b"", 0
    for name, (shape, type_) in tensors.items():
        infos += text(name) + struct.pack("<I", len(shape))
        infos += struct.pack(f"<{len(shape)}Q", *reversed(shape))
        infos += struct.pack("<IQ", TYPES[type_][0], offset)
        offset += -(-nbytes(shape, type_) // ALIGNMENT) * ALIGNMENT
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values)))
        file.write(b"".join(values) + infos)
        pools: dict[str, bytes] = {}
        for shape, type_ in tensors.values():
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            if type_ not in pools:
                pools[type_] = packed(type_)
            pool, left = pools[type_], nbytes(shape, type_)
            while left > 0:
                left -= file.write(memoryview(pool)[:left])


def packed(type_: str) -> bytes:
    """TILE values as this type stores them."""
    import numpy as np
    import torch

    from adaptool.encodings.ggml import encoding

    values = np.random.default_rng(0).standard_normal(TILE, np.float32) * np.float32(0.02)
    if type_ == "F32":
        return (1 + values).tobytes()
    if type_ == "F16":
        return values.astype(np.float16).tobytes()
    rows = torch.from_numpy(values).reshape(-1, HIDDEN)
    step = max((1 << 16) // HIDDEN, 1)
    return b"".join(encoding(type_).encode(r).numpy().tobytes() for r in rows.split(step))


def build(home: Path, kind: str, layers: int) -> None:
    """Model, adapters, and the configuration that an adapter's conversion asks for."""
    (home / "model").mkdir(parents=True)
    write_model(home / "model" / "model.gguf", kind, layers)
    write_adapter(home / "linear", layers)
    base = home / "base"
    base.mkdir(exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_ROWS * HEADS // HIDDEN, "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))
    shutil.copytree(home / "linear", home / "attention")
    keep_attention(home / "attention")


def keep_attention(adapter: Path) -> None:
    """Drop the other factors."""
    from safetensors.numpy import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    kept = {name: values for name, values in load_file(path).items() if ".self_attn." in name}
    save_file(kept, path, {"format": "pt"})
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj", "k_proj", "v_proj", "o_proj"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))


def ensure_built(folder: Path, kind: str, layers: int) -> Path:
    """The folder of this kind, built in a child if it is not there."""
    home = folder / f"{kind}-{layers}-layers"
    if not home.exists():
        print(f"building {home}", file=sys.stderr)
        part = home.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part_arguments = ["--build", str(part), "--kinds", kind, "--layers", str(layers)]
        subprocess.run([sys.executable, __file__, *part_arguments], check=True)
        part.rename(home)
    return home


# -- the table ------------------------------------------------------------------------------------


def commands(home: Path, output: Path) -> dict[str, list[str]]:
    """What is measured, in the order of the table; each makes the folder `output`."""

    def into(line: str) -> list[str]:
        return ["sh", "-c", f'mkdir "{output}" && {line}']

    tool = f'exec "{sys.executable}" -m adaptool'
    model, result = home / "model" / "model.gguf", output / "merged.gguf"
    found = {
        TORCH: [sys.executable, "-c", "import torch"],
        COPY: into(f'exec cp "{model}" "{result}"'),
        COPY_SYNC: into(f'cp "{model}" "{result}" && sync'),
    }
    for adapter in ("attention", "linear"):
        for workers in (1, 2):
            line = f'{tool} merge "{model}" "{home / adapter}" -o "{result}" -j {workers}'
            found[f"merge {adapter} -j {workers}"] = into(line)
    line = f'{tool} convert "{home / "linear"}" -o "{output / "adapter.gguf"}"'
    found["convert linear"] = into(f'{line} --base "{home / "base"}"')
    return found


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(tempfile.gettempdir()) / "adaptool-benchmark-gguf"
    parser.add_argument("--folder", type=Path, default=default,
                        help="for models and outputs (default: %(default)s)")  # fmt: skip
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--only", default="", help="run only commands whose name has this in it")
    parser.add_argument("--layers", type=int, default=16, help="layers (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--keep", action="store_true", help="leave the models in the folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.build is not None:
        build(asked.build, asked.kinds[0], asked.layers)
        return 0
    tables: dict[str, dict[str, Runs]] = {}
    for kind in asked.kinds:
        home = ensure_built(asked.folder, kind, asked.layers)
        output = asked.folder / "output"
        size = (home / "model" / "model.gguf").stat().st_size
        found = tables[f"{kind}, {size / 1e9:.2f} GB, {asked.layers} layers"] = {}
        for turn in range(asked.rounds):
            for part in ("model", "linear", "attention"):
                warm(home / part)
            for name, command in commands(home, output).items():
                if asked.only in name or name == COPY_SYNC:
                    print(f"{kind}, round {turn + 1} of {asked.rounds}: {name}", file=sys.stderr)
                    measure(command, output, found.setdefault(name, Runs()))
        if not asked.keep:
            shutil.rmtree(home)
    report(tables, as_json=asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
