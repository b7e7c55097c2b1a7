"""How long a merge into an ONNX model takes, beside copying its files.

    python tests/benchmarks/onnx_models.py
    python tests/benchmarks/onnx_models.py --types float16 --rounds 1 --layers 4
    python tests/benchmarks/onnx_models.py --peer 2    # also a model of 2 layers the peer's way

Builds, once for each type, the Llama of 1.2 billion parameters of merge.py as a graph of its
matrix products in the manner of optimum, `onnx::MatMul_N` [in, out] under the nodes' paths, with
its weights in one file of external data; and an r=16 adapter on all linear layers. Then runs in
turn `cp -r`, `cp -r && sync`, and `adaptool merge` with one and with two workers.

The peer's only way is to merge in PEFT and to export again: `--peer` measures that, and adaptool
on the same checkpoint's export, on a model of so many layers. The clock is merge.py's.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from merge import (
    COPY,
    COPY_SYNC,
    HIDDEN,
    INNER,
    LINEARS,
    TORCH,
    VOCABULARY,
    Runs,
    measure,
    report,
    warm,
    write_adapter,
)
from merge import ensure_built as ensure_checkpoint

TYPES = {"float16": (10, 2), "float32": (1, 4)}
"""ONNX's number, bytes of a value."""
TILE = 1 << 21
"""Values that are made once and repeated."""
PEER = "PEFT, then export"

PEER_SCRIPT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, output = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
if adapter:
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
class Logits(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model
    def forward(self, ids):
        return self.model(input_ids=ids, use_cache=False).logits
import os
os.makedirs(output)
ids = torch.ones(1, 8, dtype=torch.int64)
program = torch.onnx.export(Logits().eval(), (ids,), dynamo=True, verbose=False)
program.save(output + "/model.onnx", external_data=True)
"""


# -- the model ------------------------------------------------------------------------------------


def products(layers: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Module and [in, out] of every product."""
    for layer in range(layers):
        for name, (rows, columns) in LINEARS.items():
            yield f"model.layers.{layer}.{name}", (columns, rows)
    yield "lm_head", (HIDDEN, VOCABULARY)


def write_model(folder: Path, kind: str, layers: int) -> None:
    """The graph, and its weights beside it."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    number, size = TYPES[kind]
    nodes, stored, offset = [], [], 0

    def weight(name: str, shape: tuple[int, ...]) -> None:
        nonlocal offset
        tensor = TensorProto(name=name, data_type=number, dims=shape, data_location=1)
        length = math.prod(shape) * size
        facts = {"location": "model.onnx_data", "offset": offset, "length": length}
        for key, value in facts.items():
            tensor.external_data.add(key=key, value=str(value))
        stored.append(tensor)
        offset += length

    weight("model.embed_tokens.weight", (VOCABULARY, HIDDEN))
    nodes.append(helper.make_node("Gather", ["model.embed_tokens.weight", "input_ids"], ["h"],
                                  "/model/embed_tokens/Gather"))  # fmt: skip
    inner = "h"
    for position, (module, (inputs, outputs)) in enumerate(products(layers)):
        name, path = (
            f"onnx::MatMul_{position}",
            module.replace("layers.", "layers/").replace(".", "/"),
        )
        path = path.replace("layers/", "layers.")
        weight(name, (inputs, outputs))
        value = "logits" if module == "lm_head" else f"v{position}"
        source = inner if inputs == HIDDEN else f"v{position - 1}"
        nodes.append(helper.make_node("MatMul", [source, name], [value], f"/{path}/MatMul"))
        if module.endswith("down_proj"):
            inner = value
    made = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", number, ["batch", "length", VOCABULARY])],
        stored,
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    assert INNER > HIDDEN
    values = np.random.default_rng(0).standard_normal(TILE, np.float32) * np.float32(0.02)
    pool = values.astype(kind).tobytes()
    with (folder / "model.onnx_data").open("wb") as file:
        while offset:
            offset -= file.write(memoryview(pool)[: min(len(pool), offset)])
    onnx.checker.check_model(str(folder / "model.onnx"))


def ensure_built(folder: Path, kind: str, layers: int) -> Path:
    """The folder of this type, built in a child if it is not there."""
    home = folder / f"{kind}-{layers}-layers"
    if not home.exists():
        print(f"building {home}", file=sys.stderr)
        part = home.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        asked = ["--build", str(part), "--types", kind, "--layers", str(layers)]
        subprocess.run([sys.executable, __file__, *asked], check=True)
        part.rename(home)
    return home


# -- what is measured -----------------------------------------------------------------------------


def merging(model: Path, adapter: Path, output: Path, workers: int) -> list[str]:
    """One merge."""
    tool = [sys.executable, "-m", "adaptool", "merge", str(model), str(adapter)]
    return [*tool, "-o", str(output), "-j", str(workers)]


def commands(home: Path, output: Path) -> dict[str, list[str]]:
    """What is measured, in the order of the table."""
    model, adapter = home / "model", home / "linear"
    copy = f'cp -r "{model}" "{output}"'
    return {
        TORCH: [sys.executable, "-c", "import torch"],
        COPY: ["sh", "-c", copy],
        COPY_SYNC: ["sh", "-c", f"{copy} && sync"],
        "adaptool merge -j 1": merging(model, adapter, output, 1),
        "adaptool merge -j 2": merging(model, adapter, output, 2),
    }


def against_peer(folder: Path, layers: int) -> dict[str, Runs]:
    """The peer's way and adaptool's to the same merged ONNX model."""
    model, adapter = ensure_checkpoint(folder, layers, zeros=False)
    exported, output = folder / f"exported-{layers}", folder / "output"
    script = [sys.executable, "-c", PEER_SCRIPT, str(model)]
    if not exported.exists():
        print(f"exporting {exported}", file=sys.stderr)
        subprocess.run([*script, "", str(exported)], check=True, capture_output=True)
    found = {PEER: Runs(), "adaptool merge -j 2": Runs()}
    print("PEFT, then export", file=sys.stderr)
    measure([*script, str(adapter), str(output)], output, found[PEER])
    measure(merging(exported, adapter, output, 2), output, found["adaptool merge -j 2"])
    return found


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(tempfile.gettempdir()) / "adaptool-benchmark-onnx"
    parser.add_argument("--folder", type=Path, default=default,
                        help="for models and outputs (default: %(default)s)")  # fmt: skip
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--layers", type=int, default=16, help="layers (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--peer", type=int, default=0, metavar="LAYERS",
                        help="also PEFT and an exporter, on a model of so many layers")  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="leave the models in the folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.build is not None:
        write_model(asked.build / "model", asked.types[0], asked.layers)
        write_adapter(asked.build / "linear", asked.layers)
        return 0
    tables: dict[str, dict[str, Runs]] = {}
    for kind in asked.types:
        home = ensure_built(asked.folder, kind, asked.layers)
        size = sum(file.stat().st_size for file in (home / "model").iterdir())
        found = tables[f"{kind}, {size / 1e9:.2f} GB, {asked.layers} layers"] = {}
        for turn in range(asked.rounds):
            warm(home / "model")
            for name, command in commands(home, asked.folder / "output").items():
                print(f"{kind}, round {turn + 1} of {asked.rounds}: {name}", file=sys.stderr)
                measure(command, asked.folder / "output", found.setdefault(name, Runs()))
        if not asked.keep:
            shutil.rmtree(home)
    if asked.peer:
        title = f"float32, {asked.peer} layers, exported by torch"
        tables[title] = against_peer(asked.folder, asked.peer)
    report(tables, as_json=asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
