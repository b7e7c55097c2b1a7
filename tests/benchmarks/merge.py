"""How long a merge takes and how much memory it needs, beside copying the model's files.

    python tests/benchmarks/merge.py
    python tests/benchmarks/merge.py --rounds 5 --no-peft --json
    python tests/benchmarks/merge.py --scale-up 4      # also a model four times as large

Builds, once, a bf16 Llama of 1.2 billion parameters and an r=16 adapter on all seven linear
layers, then runs in turn: `cp -r`, `cp -r && sync`, `adaptool merge` with one and with two
workers, and the script that PEFT's documentation gives. Each is a child process of its own; wall
time, user plus system time and peak resident memory are the kernel's (`wait4`). Sources are read
once before, so that all find them in the page cache; `sync` runs before each clock starts, so that
none pays for another's writes. Shown are medians.

This file imports nothing large and builds the model in a child: on Linux a child's peak memory
starts at its parent's, so the 33 MB or so of `cp` are this interpreter's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

HIDDEN, INNER, VOCABULARY, HEADS, KV_ROWS = 2048, 8192, 64000, 32, 512
RANK, ALPHA = 16, 32
SHARDS = 3
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV_ROWS, HIDDEN),
    "self_attn.v_proj": (KV_ROWS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
COPY, COPY_SYNC, TORCH, PEFT = "cp -r", "cp -r && sync", "python -c 'import torch'", "PEFT's script"

PEFT_SCRIPT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, output = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
model.save_pretrained(output)
"""


# -- the model ------------------------------------------------------------------------------------


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model by name."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        found |= {f"{at}.{name}.weight": shape for name, shape in LINEARS.items()}
        found[f"{at}.input_layernorm.weight"] = (HIDDEN,)
        found[f"{at}.post_attention_layernorm.weight"] = (HIDDEN,)
    found["model.norm.weight"] = (HIDDEN,)
    found["lm_head.weight"] = (VOCABULARY, HIDDEN)
    return found


def header(tensors: dict[str, tuple[int, ...]], dtype: str, size: int) -> bytes:
    """The start of a safetensors file."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        end = offset + math.prod(shape) * size
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_model(folder: Path, layers: int, *, zeros: bool) -> None:
    """A checkpoint in shards; `zeros` leaves holes, which merge like any other values."""
    folder.mkdir(parents=True)
    tensors = shapes(layers)
    total = sum(math.prod(s) for s in tensors.values()) * 2
    shards: list[dict[str, tuple[int, ...]]] = [{} for _ in range(SHARDS)]
    seen = 0
    for name, shape in tensors.items():
        shards[min(seen * SHARDS // total, SHARDS - 1)][name] = shape
        seen += math.prod(shape) * 2
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        weight_map |= dict.fromkeys(shard, file)
        write_shard(folder / file, shard, seed=number, zeros=zeros)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": layers,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_ROWS * HEADS // HIDDEN,
        "head_dim": HIDDEN // HEADS, "vocab_size": VOCABULARY, "tie_word_embeddings": False,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def write_shard(path: Path, tensors: dict[str, tuple[int, ...]], seed: int, *, zeros: bool) -> None:
    """One file, a few megabytes of values at a time."""
    import numpy as np

    values = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(header(tensors, "BF16", 2))
        if zeros:
            file.truncate(file.tell() + sum(math.prod(s) for s in tensors.values()) * 2)
            return
        for shape in tensors.values():
            left = math.prod(shape)
            while left:
                count = min(left, 1 << 21)
                block = values.standard_normal(count, np.float32) * np.float32(0.02)
                file.write((block.view(np.uint32) >> 16).astype(np.uint16).tobytes())
                left -= count


def write_adapter(folder: Path, layers: int) -> None:
    """A PEFT adapter on every linear layer, in float32."""
    import numpy as np

    folder.mkdir(parents=True)
    tensors: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        for name, (rows, columns) in LINEARS.items():
            at = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{at}.lora_A.weight"] = (RANK, columns)
            tensors[f"{at}.lora_B.weight"] = (rows, RANK)
    values = np.random.default_rng(0)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(header(tensors, "F32", 4))
        for shape in tensors.values():
            file.write((values.standard_normal(shape, np.float32) * np.float32(0.02)).tobytes())
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA,
        "bias": "none", "base_model_name_or_path": "benchmark/llama", "inference_mode": True,
        "target_modules": [name.rpartition(".")[2] for name in LINEARS],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def ensure_built(folder: Path, layers: int, *, zeros: bool) -> tuple[Path, Path]:
    """Model and adapter of this size in the folder, built in a child if they are not there."""
    name = f"{layers}-layers{'-of-zeros' if zeros else ''}"
    home = folder / name
    if not home.exists():
        print(f"building {home}", file=sys.stderr)
        code = (
            "import runpy, sys; from pathlib import Path; here = runpy.run_path(sys.argv[1]);"
            "home = Path(sys.argv[2]); layers = int(sys.argv[3]); zeros = sys.argv[4] == '1';"
            "here['write_model'](home / 'model', layers, zeros=zeros);"
            "here['write_adapter'](home / 'adapter', layers)"
        )
        part = folder / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        arguments = [__file__, str(part), str(layers), str(int(zeros))]
        subprocess.run([sys.executable, "-c", code, *arguments], check=True)
        part.rename(home)
    return home / "model", home / "adapter"


# -- the clock ------------------------------------------------------------------------------------


@dataclass
class Runs:
    """What one command took, once per round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)

    @property
    def medians(self) -> tuple[float, float, float]:
        """Seconds, seconds, bytes."""
        return tuple(statistics.median(v) for v in (self.wall, self.cpu, self.peak))


def measure(command: list[str], output: Path, runs: Runs) -> None:
    """Run once and take the kernel's numbers; the output is removed before and after."""
    remove(output)
    os.sync()
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            log.seek(0)
            text = log.read().decode(errors="replace")[-2000:]
            raise SystemExit(f"{' '.join(command)}: exit code {child.returncode}\n{text}")
    runs.wall.append(wall)
    runs.cpu.append(usage.ru_utime + usage.ru_stime)
    runs.peak.append(usage.ru_maxrss * 1024)
    remove(output)


def remove(path: Path) -> None:
    """Remove what a run left, and its blocks from the queue of the disk."""
    shutil.rmtree(path, ignore_errors=True)


def warm(folder: Path) -> None:
    """Read every file once."""
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def commands(model: Path, adapter: Path, output: Path) -> dict[str, list[str]]:
    """What is measured, in the order of the table."""
    tool = [sys.executable, "-m", "adaptool", "merge", str(model), str(adapter)]
    copy = f'cp -r "{model}" "{output}"'
    return {
        TORCH: [sys.executable, "-c", "import torch"],
        COPY: ["sh", "-c", copy],
        COPY_SYNC: ["sh", "-c", f"{copy} && sync"],
        "adaptool merge -j 1": [*tool, "-o", str(output), "-j", "1"],
        "adaptool merge -j 2": [*tool, "-o", str(output), "-j", "2"],
        PEFT: [sys.executable, "-c", PEFT_SCRIPT, str(model), str(adapter), str(output)],
    }


def benchmark(
    folder: Path, layers: int, rounds: int, *, zeros: bool = False, peft: bool = False
) -> dict[str, Runs]:
    """All commands in turn, `rounds` times; PEFT's script, the slowest by far, once.

    With `zeros` adaptool alone: to copy holes is no work.
    """
    model, adapter = ensure_built(folder, layers, zeros=zeros)
    output = folder / "output"
    found = {
        name: Runs()
        for name in commands(model, adapter, output)
        if (peft if name == PEFT else not zeros or name.startswith("adaptool"))
    }
    for turn in range(rounds):
        warm(model)
        for name, command in commands(model, adapter, output).items():
            if name in found and (name != PEFT or turn == 0):
                print(f"round {turn + 1} of {rounds}: {name}", file=sys.stderr)
                measure(command, output, found[name])
    return found


# -- the table ------------------------------------------------------------------------------------


def show(title: str, found: dict[str, Runs]) -> None:
    """A Markdown table of medians."""
    ground = found[COPY_SYNC].medians[0] if COPY_SYNC in found else math.nan
    print(f"\n{title}\n")
    print("| command                  | wall, s | CPU, s | peak, MB | wall / cp+sync | runs |")
    print("|--------------------------|--------:|-------:|---------:|---------------:|-----:|")
    for name, runs in found.items():
        wall, cpu, peak = runs.medians
        ratio = "" if math.isnan(ground) else f"{wall / ground:.2f}"
        print(f"| {name:24} | {wall:7.2f} | {cpu:6.2f} | {peak / 1e6:8.0f} "
              f"| {ratio:>14} | {len(runs.wall):4} |")  # fmt: skip


def report(tables: dict[str, dict[str, Runs]], *, as_json: bool, **more: object) -> None:
    """Print all that was measured, as Markdown, or as one JSON object with `more` in it."""
    processors, python = len(os.sched_getaffinity(0)), sys.version.split()[0]
    if as_json:
        plain = {t: {n: vars(r) for n, r in found.items()} for t, found in tables.items()}
        machine = {"processors": processors, "python": python}
        print(json.dumps({"machine": machine, "runs": plain, **more}, indent=2))
        return
    print(f"{processors} processors, Python {python}")
    for line, found in tables.items():
        show(line, found)


def title_of(layers: int, *, zeros: bool) -> str:
    """One line about the model."""
    count = sum(math.prod(s) for s in shapes(layers).values())
    what = "zeros in sparse files" if zeros else "random values"
    return f"{count:,} parameters, bf16, {count * 2 / 1e9:.2f} GB, {layers} layers, {what}"


def growth(small: dict[str, Runs], large: dict[str, Runs]) -> dict[str, float]:
    """Peak memory of the larger model over the smaller one's, for each of adaptool's runs."""
    return {n: large[n].medians[2] / small[n].medians[2] for n in small if n.startswith("adaptool")}


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(tempfile.gettempdir()) / "adaptool-benchmark"
    parser.add_argument("--folder", type=Path, default=default,
                        help="for models and outputs (default: %(default)s)")  # fmt: skip
    parser.add_argument("--layers", type=int, default=16, help="layers (default: %(default)s)")
    parser.add_argument("--scale-up", type=int, default=1, metavar="N",
                        help="also a model with N times as many layers")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--no-peft", action="store_true", help="leave PEFT's script out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)

    tables = {}
    title = title_of(asked.layers, zeros=False)
    small = tables[title] = benchmark(
        asked.folder, asked.layers, asked.rounds, peft=not asked.no_peft
    )
    grown: dict[str, float] = {}
    if asked.scale_up > 1:
        layers = asked.layers * asked.scale_up
        large = benchmark(asked.folder, layers, 1, zeros=True)
        tables[title_of(layers, zeros=True)] = large
        grown = growth(small, large)
    report(tables, as_json=asked.json, peak_growth=grown)
    if asked.json:
        return 0
    for name, ratio in grown.items():
        print(f"\n{name}: peak memory x{ratio:.2f} with {asked.scale_up} times the layers")
    return 0 if all(ratio <= 1.10 for ratio in grown.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
