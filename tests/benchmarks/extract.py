"""How long an extraction takes, how much memory it needs, and how near it is to the optimum.

    python tests/benchmarks/extract.py
    python tests/benchmarks/extract.py --layers 2 --rank 64 --rounds 3 --json

Builds, once, a bf16 model with linear layers of a 1.2-billion-parameter Llama's shapes, and a
"fine-tune" of it: every weight has moved by a matrix with a slowly falling spectrum and by noise,
and was rounded to bf16 again. Then runs in turn: `adaptool extract` with one worker and with two,
and a script that decomposes each difference whole, as other extractors do. Each is a child process
of its own; user plus system time and peak resident memory are the kernel's (`wait4`). Shown are
medians; the script with full decompositions runs once.

The exit code is 1 unless adaptool takes a tenth of the script's time or less, loses no more than
0.1 % more, and stays below 1 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from merge import LINEARS

FULL = "full decompositions"

BUILD = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import save_file
home, layers, shapes = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
torch.manual_seed(0)
before, after = {}, {}
for layer in range(layers):
    for name, (rows, cols) in shapes.items():
        weight = (0.02 * torch.randn(rows, cols)).bfloat16()
        rank = 256
        falling = torch.arange(1, rank + 1).float() ** -0.7
        moved = (torch.randn(rows, rank) * falling) @ torch.randn(rank, cols)
        moved = 1e-4 * (moved / moved.std() + 0.5 * torch.randn(rows, cols))
        key = f"model.layers.{layer}.{name}.weight"
        before[key], after[key] = weight, (weight.float() + moved).bfloat16()
    for name in ("input_layernorm", "post_attention_layernorm"):
        key = f"model.layers.{layer}.{name}.weight"
        before[key], after[key] = (torch.ones(2048, dtype=torch.bfloat16) for _ in range(2))
config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
          "num_hidden_layers": layers, "tie_word_embeddings": False}
for folder, tensors in (("base", before), ("tuned", after)):
    (home / folder).mkdir(parents=True)
    save_file(tensors, home / folder / "model.safetensors", {"format": "pt"})
    (home / folder / "config.json").write_text(json.dumps(config))
"""

FULL_SCRIPT = """
import json, sys, torch
from safetensors import safe_open
from safetensors.torch import save_file
torch.set_num_threads(1)
base, tuned, output, rank = *sys.argv[1:4], int(sys.argv[4])
factors, lost, whole = {}, 0.0, 0.0
with safe_open(f"{base}/model.safetensors", "pt") as one:
    with safe_open(f"{tuned}/model.safetensors", "pt") as two:
        for name in one.keys():
            before, after = one.get_tensor(name), two.get_tensor(name)
            if before.dim() != 2 or torch.equal(before, after):
                continue
            difference = after.float() - before.float()
            u, s, vt = torch.linalg.svd(difference, full_matrices=False)
            root = s[:rank].sqrt()
            a, b = root[:, None] * vt[:rank], u[:, :rank] * root
            factors[name + ".a"], factors[name + ".b"] = a.contiguous(), b.contiguous()
            lost += float((difference - b @ a).double().square().sum())
            whole += float(difference.double().square().sum())
save_file(factors, output)
print(json.dumps({"error": (lost / whole) ** 0.5}))
"""


@dataclass
class Runs:
    """What one command took, once per round, and the relative error that it states."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)
    error: float | None = None

    @property
    def medians(self) -> tuple[float, float, float]:
        """Seconds, seconds, bytes."""
        return tuple(statistics.median(v) for v in (self.wall, self.cpu, self.peak))


def ensure_built(folder: Path, layers: int) -> Path:
    """Both models in the folder, built in a child if they are not there."""
    home = folder / f"extract-{layers}-layers"
    if not home.exists():
        print(f"building {home}", file=sys.stderr)
        part = Path(tempfile.mkdtemp(dir=folder))
        arguments = [str(part), str(layers), json.dumps(LINEARS)]
        subprocess.run([sys.executable, "-c", BUILD, *arguments], check=True)
        part.rename(home)
    return home


def measure(command: list[str], runs: Runs) -> None:
    """Run once and take the kernel's numbers."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=log)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read().decode(errors="replace")
        if child.returncode:
            log.seek(0)
            text += log.read().decode(errors="replace")[-2000:]
            raise SystemExit(f"{' '.join(command)}: exit code {child.returncode}\n{text}")
    runs.wall.append(wall)
    runs.cpu.append(usage.ru_utime + usage.ru_stime)
    runs.peak.append(usage.ru_maxrss * 1024)
    if text.lstrip().startswith("{"):
        runs.error = json.loads(text)["error"]


def commands(home: Path, rank: int) -> dict[str, list[str]]:
    """What is measured, in the order of the table."""
    base, tuned = str(home / "base"), str(home / "tuned")
    tool = [sys.executable, "-m", "adaptool", "extract", base, tuned, "--rank", str(rank)]
    tool += ["-o", str(home / "adapter"), "--force", "--json"]
    script = [sys.executable, "-c", FULL_SCRIPT, base, tuned, str(home / "full.safetensors")]
    return {
        "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        "adaptool extract -j 1": [*tool, "-j", "1"],
        "adaptool extract -j 2": [*tool, "-j", "2"],
        FULL: [*script, str(rank)],
    }


def show(found: dict[str, Runs]) -> None:
    """A Markdown table of medians."""
    cpu_of_full = found[FULL].medians[1]
    print("\n| command                  | wall, s | CPU, s | peak, MB | full / CPU |   error |")
    print("|--------------------------|--------:|-------:|---------:|-----------:|--------:|")
    for name, runs in found.items():
        wall, cpu, peak = runs.medians
        error = "" if runs.error is None else f"{runs.error:.5f}"
        print(f"| {name:24} | {wall:7.2f} | {cpu:6.2f} | {peak / 1e6:8.0f} "
              f"| {cpu_of_full / cpu:10.1f} | {error:>7} |")  # fmt: skip


def failures(found: dict[str, Runs]) -> list[str]:
    """Where adaptool falls behind what is promised."""
    full = found[FULL]
    wrong = []
    for name, runs in found.items():
        if not name.startswith("adaptool"):
            continue
        _, cpu, peak = runs.medians
        if full.medians[1] < 10 * cpu:
            wrong.append(f"{name}: only {full.medians[1] / cpu:.1f} times less CPU time")
        if runs.error is None or full.error is None or runs.error > 1.001 * full.error:
            wrong.append(f"{name}: error {runs.error}, optimum {full.error}")
        if peak > 1e9:
            wrong.append(f"{name}: {peak / 1e6:.0f} MB")
    return wrong


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(tempfile.gettempdir()) / "adaptool-benchmark"
    parser.add_argument("--folder", type=Path, default=default,
                        help="for models and outputs (default: %(default)s)")  # fmt: skip
    parser.add_argument("--layers", type=int, default=1, help="layers (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)

    home = ensure_built(asked.folder, asked.layers)
    found: dict[str, Runs] = {}
    for turn in range(asked.rounds):
        for name, command in commands(home, asked.rank).items():
            if turn == 0 or name != FULL:
                print(f"round {turn + 1} of {asked.rounds}: {name}", file=sys.stderr)
                measure(command, found.setdefault(name, Runs()))
    wrong = failures(found)
    if asked.json:
        machine = {"processors": len(os.sched_getaffinity(0)), "python": sys.version.split()[0]}
        plain = {name: vars(runs) for name, runs in found.items()}
        print(json.dumps({"machine": machine, "runs": plain, "failures": wrong}, indent=2))
    else:
        show(found)
        print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
