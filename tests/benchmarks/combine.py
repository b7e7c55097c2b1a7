"""How long combining adapters takes, beside PEFT's add_weighted_adapter.

    python tests/benchmarks/combine.py
    python tests/benchmarks/combine.py --no-peft --json
    python tests/benchmarks/combine.py --layers 32

Three adapters of ranks 8, 16 and 32 on the seven linear layers of a Llama of 1.2 billion
parameters, combined to rank 32: the weighted sum, and TIES. adaptool does all layers, from files to
files. PEFT does ONE layer in memory, and its clock runs for the call alone: "all layers" is that
number times the layers, an extrapolation, since the real thing takes the better part of an hour.
PEFT runs as it does by default, and once more at its best: one thread, and no full matrices in its
singular value decomposition.
"call" is the processor's time in the call; "whole" is that of the process, from the kernel
(`wait4`). Errors are |D - result| / |D| of D, the combination before it is cut to the rank.

With `--job` this file is its own child: each number comes from a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from merge import LINEARS

RANKS = {8: 0.3, 16: 0.6, 32: 0.4}
"""Rank of each adapter, and its weight."""
RANK = 32
DENSITY = 0.5
TASKS = {"linear": "svd", "ties": "ties_svd"}
"""adaptool's method -> PEFT's combination_type."""


def write_adapter(folder: Path, rank: int, layers: int) -> None:
    """A PEFT adapter with random factors, in float32; layer by layer the same values."""
    import torch
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(rank)
    tensors = {}
    for layer in range(layers):
        for name, (rows, columns) in LINEARS.items():
            at = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{at}.lora_A.weight"] = torch.randn(rank, columns, generator=draw) * 0.02
            tensors[f"{at}.lora_B.weight"] = torch.randn(rows, rank, generator=draw) * 0.02
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none",
        "base_model_name_or_path": "benchmark/llama", "inference_mode": True,
        "target_modules": [name.rpartition(".")[2] for name in LINEARS],
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def run_adaptool(folder: Path, method: str, threads: int) -> dict[str, object]:
    """Combine from files to files; what the call took and the error of the first layer."""
    from adaptool.combination import Recipe
    from adaptool.jobs.combining import combine_files

    settings = {"density": DENSITY, "elect": "plain"} if method == "ties" else {}
    pairs = [(str(folder / f"r{rank}"), weight) for rank, weight in RANKS.items()]
    start = time.process_time()
    report = combine_files(pairs, folder / f"out-{method}", Recipe(method, settings, rank=RANK),
                           force=True, threads=threads)  # fmt: skip
    took = time.process_time() - start
    rows = [row for row in report.combination.rows if ".layers.0." in str(row.site)]
    errors = {row.site.module.rpartition(".")[2]: row.error / row.norm for row in rows}
    return {"call": took, "errors": errors}


def run_peft(folder: Path, method: str, *, best: bool) -> dict[str, object]:
    """PEFT on the first layer, in memory: as it is by default, or at its best."""
    import torch
    from peft import LoraConfig, get_peft_model  # noqa: TID251
    from peft.utils.merge_utils import task_arithmetic, ties  # noqa: TID251
    from safetensors import safe_open
    from torch import nn

    if best:
        torch.set_num_threads(1)
    model = nn.Module()
    model.layer = nn.ModuleDict({
        name.rpartition(".")[2]: nn.Linear(columns, rows, bias=False)
        for name, (rows, columns) in LINEARS.items()
    })  # fmt: skip
    configs = {
        f"r{r}": LoraConfig(r=r, lora_alpha=2 * r, target_modules=list(model.layer)) for r in RANKS
    }
    first, *rest = configs
    model = get_peft_model(model, configs[first], adapter_name=first)
    for name in rest:
        model.add_adapter(name, configs[name])
    layers = model.base_model.model.layer
    for name in configs:
        with safe_open(folder / name / "adapter_model.safetensors", "pt") as file:
            for path in LINEARS:
                layer = layers[path.rpartition(".")[2]]
                at = f"base_model.model.model.layers.0.{path}"
                layer.lora_A[name].weight.data = file.get_tensor(f"{at}.lora_A.weight")
                layer.lora_B[name].weight.data = file.get_tensor(f"{at}.lora_B.weight")
    weights = list(RANKS.values())
    start = time.process_time()
    model.add_weighted_adapter(
        list(configs), weights, "new", TASKS[method], svd_rank=RANK, density=DENSITY,
        svd_full_matrices=not best,
    )  # fmt: skip
    took = time.process_time() - start
    errors = {}
    for name, layer in layers.items():
        deltas = [layer.get_delta_weight(each).detach() for each in configs]
        wanted = (task_arithmetic(deltas, torch.tensor(weights)) if method == "linear"
                  else ties(deltas, torch.tensor(weights), DENSITY))  # fmt: skip
        distance = (layer.get_delta_weight("new").detach() - wanted).double().norm()
        errors[name] = float(distance / wanted.double().norm())
    return {"call": took, "errors": errors}


def measure(job: list[str]) -> dict[str, object]:
    """Run a job in a child; its own numbers, and the kernel's of the whole process."""
    command = [sys.executable, __file__, "--job", *job]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    text = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(job)}: exit code {os.waitstatus_to_exitcode(status)}")
    whole = {"whole": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss * 1024}
    return {**json.loads(text), **whole}


def run_job(words: list[str]) -> int:
    """What a child does; prints one JSON object."""
    who, folder, method, count = words
    if who == "build":
        for rank in RANKS:
            write_adapter(Path(folder) / f"r{rank}", rank, int(count))
        found: dict[str, object] = {}
    elif who == "adaptool":
        found = run_adaptool(Path(folder), method, int(count))
    else:
        found = run_peft(Path(folder), method, best=count == "best")
    print(json.dumps(found))
    return 0


def show(layers: int, found: dict[str, dict[str, object]]) -> None:
    """A Markdown table, and the errors module by module."""
    print(f"{len(os.sched_getaffinity(0))} processors, {layers} layers, ranks "
          f"{', '.join(map(str, RANKS))} to rank {RANK}\n")  # fmt: skip
    print("| what                | layers | call, CPU s | all layers, CPU s | peak, MB |")
    print("|---------------------|-------:|------------:|------------------:|---------:|")
    for name, facts in found.items():
        count = layers if name.startswith("adaptool") else 1
        everything = facts["call"] * layers / count
        print(f"| {name:19} | {count:6} | {facts['call']:11.2f} | {everything:17.2f} "
              f"| {facts['peak'] / 1e6:8.0f} |")  # fmt: skip
    for method, kind in TASKS.items():
        ours = found[f"adaptool {method}"]
        for name in (f"PEFT {kind}", f"PEFT {kind}, best"):
            if name in found:
                peft = found[name]["call"] * layers
                print(f"\n{method}: {peft / ours['call']:.0f} times fewer CPU seconds than {name} "
                      f"({peft / ours['whole']:.0f} times the whole process)")  # fmt: skip
        if f"PEFT {kind}" in found:
            for module, error in ours["errors"].items():
                other = found[f"PEFT {kind}"]["errors"][module]
                print(f"  {module:10} error {error:.4f}, PEFT {other:.4f}")


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16, help="layers (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="workers (default: %(default)s)")
    parser.add_argument("--no-peft", action="store_true", help="leave PEFT out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--job", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.job:
        return run_job(asked.job)
    found = {}
    with tempfile.TemporaryDirectory(prefix="adaptool-benchmark-") as folder:
        measure(["build", folder, "-", str(asked.layers)])
        for method, kind in TASKS.items():
            print(f"adaptool {method}", file=sys.stderr)
            found[f"adaptool {method}"] = measure(["adaptool", folder, method, str(asked.threads)])
            if not asked.no_peft:
                for name, way in ((f"PEFT {kind}", "default"), (f"PEFT {kind}, best", "best")):
                    print(f"{name}, one layer", file=sys.stderr)
                    found[name] = measure(["peft", folder, method, way])
    if asked.json:
        print(json.dumps({"layers": asked.layers, "runs": found}, indent=2))
    else:
        show(asked.layers, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
