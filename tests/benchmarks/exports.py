"""How large the exports of the demo model are and how long they take; and a larger model's.

    python tests/benchmarks/exports.py
    python tests/benchmarks/exports.py --targets wllama webllm --rounds 3
    python tests/benchmarks/exports.py --large                # 1.2 billion parameters, beside `cp`

The first table exports the demo model with the pirate adapter, to each target in each dtype. The
second (`--large`) exports the Llama of merge.py with its r=16 adapter to the targets whose writers
stream. The clock is merge.py's: every export is a process of its own; sizes are of all files that
were written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from merge import COPY, COPY_SYNC, TORCH, Runs, ensure_built, measure, show, warm

DEMO = Path(__file__).parents[2] / "fixtures" / "demo"
MORE = {"wllama": ["--pre", "gpt-2"], "webllm": ["--conversation", "LM"]}
LARGE = {
    "webllm": ("q4f16_1", "q4f16_1 --optimize", "q0f16"),
    "wllama": ("f16", "q8_0", "q4_k_m"),
}


def dtypes_of(target: str) -> list[str]:
    """What the target makes of a Hugging Face checkpoint, told by a child: it imports much."""
    code = (
        "import sys; from adaptool.targets import target_named;"
        "print(*target_named(sys.argv[1]).dtypes['safetensors'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, target], check=True, capture_output=True, text=True
    )
    return done.stdout.split()


def export(model: Path, adapter: Path, target: str, dtype: str, output: Path) -> list[str]:
    """The command line; what follows the dtype's name are further options."""
    name, *options = dtype.split()
    tool = [sys.executable, "-m", "adaptool", "export", str(model), str(adapter)]
    return [*tool, "--target", target, "--dtype", name, *options, *MORE.get(target, []),
            "-o", str(output)]  # fmt: skip


def written(command: list[str], output: Path) -> tuple[int, int] | None:
    """Bytes and number of the files that a command writes; None if it refuses, and says why."""
    shutil.rmtree(output, ignore_errors=True)
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        print(done.stderr.decode().strip(), file=sys.stderr)
        return None
    sizes = [path.stat().st_size for path in output.rglob("*") if path.is_file()]
    shutil.rmtree(output)
    return sum(sizes), len(sizes)


def demo(folder: Path, targets: list[str], rounds: int) -> dict[str, dict[str, object]]:
    """Each target in each dtype: sizes, and what it took."""
    found: dict[str, dict[str, object]] = {}
    output = folder / "output"
    for target in targets:
        for dtype in dtypes_of(target):
            print(f"{target} {dtype}", file=sys.stderr)
            command = export(DEMO / "model", DEMO / "pirate", target, dtype, output)
            what = written(command, output)
            if what is None:
                continue
            runs = Runs()
            for _ in range(rounds):
                measure(command, output, runs)
            found[f"{target} {dtype}"] = {"bytes": what[0], "files": what[1], **vars(runs)}
    return found


def show_demo(found: dict[str, dict[str, object]]) -> None:
    """A Markdown table of medians."""
    print("\nThe demo model with the pirate adapter\n")
    print("| export                  |   size, MB | files | wall, s | CPU, s | peak, MB |")
    print("|-------------------------|-----------:|------:|--------:|-------:|---------:|")
    for name, one in found.items():
        wall, cpu, peak = Runs(one["wall"], one["cpu"], one["peak"]).medians
        print(f"| {name:23} | {one['bytes'] / 1e6:10.2f} | {one['files']:5} | {wall:7.2f} "
              f"| {cpu:6.2f} | {peak / 1e6:8.0f} |")  # fmt: skip


def large(folder: Path, layers: int, rounds: int) -> dict[str, Runs]:
    """The streaming targets beside copying the model's files."""
    model, adapter = ensure_built(folder, layers, zeros=False)
    for file in (DEMO / "model").glob("*token*"):
        shutil.copy(file, model)
    output = folder / "output"
    copy = f'cp -r "{model}" "{output}"'
    lines = {
        TORCH: [sys.executable, "-c", "import torch"],
        COPY: ["sh", "-c", copy],
        COPY_SYNC: ["sh", "-c", f"{copy} && sync"],
    }
    for target, dtypes in LARGE.items():
        for dtype in dtypes:
            for workers in ("1", "2"):
                command = export(model, adapter, target, dtype, output)
                lines[f"{target} {dtype} -j {workers}"] = [*command, "-j", workers]
    found = {name: Runs() for name in lines}
    for turn in range(rounds):
        warm(model)
        for name, command in lines.items():
            print(f"round {turn + 1} of {rounds}: {name}", file=sys.stderr)
            measure(command, output, found[name])
    return found


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(tempfile.gettempdir()) / "adaptool-benchmark"
    parser.add_argument("--folder", type=Path, default=default,
                        help="for models and outputs (default: %(default)s)")  # fmt: skip
    targets = ["transformersjs", "ortweb", "wllama", "webllm"]
    parser.add_argument("--targets", nargs="*", choices=targets, default=targets)
    parser.add_argument("--rounds", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--large", action="store_true", help="also the larger model")
    parser.add_argument("--layers", type=int, default=16, help="of it (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    small = demo(asked.folder, asked.targets, asked.rounds)
    more = large(asked.folder, asked.layers, asked.rounds) if asked.large else {}
    if asked.json:
        plain = {name: vars(runs) for name, runs in more.items()}
        print(json.dumps({"demo": small, "large": plain}, indent=2))
        return 0
    print(f"{len(os.sched_getaffinity(0))} processors, Python {sys.version.split()[0]}")
    show_demo(small)
    if more:
        show(f"1.2 billion parameters, {asked.layers} layers", more)
    return 0


if __name__ == "__main__":
    sys.exit(main())
