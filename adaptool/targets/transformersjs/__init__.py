"""transformers.js 4: a folder that `pipeline(task, "./WEB")` loads.

    config.json               with transformers.js_config: default dtype, number of data files
    tokenizer.json, tokenizer_config.json (with the chat template), generation_config.json
    onnx/model_q4.onnx        one model per precision; data files of less than 2 GB beside it

Source: @huggingface/transformers 4.3.1, src/models/session.js, src/utils/model-loader.js.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path

from adaptool.errors import JSON
from adaptool.targets import Finding, Model, Package, Prepared, Request
from adaptool.targets._beside import beside, written
from adaptool.targets._exports import DTYPES, UNTRACED, exports, notes_of
from adaptool.targets._files import PART, data_files, laid_out
from adaptool.targets._limits import checked_part_size
from adaptool.targets._onnx import HALVES, SUFFIXES
from adaptool.targets.transformersjs.verification import FOLDER, SETTINGS, findings
from adaptool.tracing import task_of

summary = "Hugging Face's transformers.js: ONNX on WASM or WebGPU, whole pipelines"
dtypes = DTYPES
options = frozenset({"part_size", "task", "template", "match"})
swappable = ""
packages = (
    Package("@huggingface/transformers", "4.3.1", "dist/transformers.min.js"),
    Package(
        "onnxruntime-web", "1.31.0-dev.20260914-8d85527a0",
        "dist/ort-wasm-simd-threaded.asyncify.mjs",
        ("dist/ort-wasm-simd-threaded.asyncify.wasm",),
    ),
)  # fmt: skip


def prepare(model: Model, request: Request) -> Prepared:
    """The layout that transformers.js loads; a Hugging Face checkpoint is traced first.

    Raises:
        IncompatibleError: no tokenizer.json or config.json, a model that cannot be traced, or a
            graph that transformers.js cannot run.
        UsageError: a part size that no browser loads, or what tracing needs is not installed.
        VerificationError: the traced graph computes something else than the model.
    """
    part_size = checked_part_size(request.part_size, PART) if request.part_size else None
    around = beside(model, request.match)
    made = {_file(one.precision): one for one in exports(model, request, around.config)}
    laid = {name: laid_out(one.checkpoint, name, part_size) for name, one in made.items()}
    chunks = {name: len(data_files(output, name)) for name, output in laid.items()}
    names = [one.precision for one in made.values()] or [*request.dtypes]
    tasks = [one.task for one in made.values()]
    task = tasks[0] if tasks else request.task or task_of(around.config)
    config = {**around.config, SETTINGS: _settings(around.config.get(SETTINGS), names, chunks)}
    models = [output.within(FOLDER) for output in laid.values()]
    notes = [note for name, one in made.items() for note in notes_of(one, name, laid[name])]
    known: dict[str, JSON] = {"task": task, "dtypes": [*names]}
    agreement: dict[str, JSON] = {one.precision: one.agreement for one in made.values()
                                  if one.agreement}  # fmt: skip
    return Prepared(
        reduce(add, [written(around, config), *models]),
        tuple(dict.fromkeys(notes)) if made else (UNTRACED,),
        _loading(task, names[0]),
        known,
        {**known, **({"agreement": agreement} if agreement else {})},
    )


def _file(precision: str) -> str:
    return f"model{SUFFIXES[precision]}.onnx"


def _settings(before: JSON, names: Sequence[str], chunks: Mapping[str, int]) -> dict[str, JSON]:
    """What transformers.js reads in config.json: else it would load q8 on WASM, fp32 elsewhere.

    What an ONNX model's config.json says of devices stays; what it says of files is told anew.
    """
    stated = before if isinstance(before, dict) else {}
    settings = {key: value for key, value in stated.items() if key not in _OURS}
    settings["dtype"] = names[0]
    counts: dict[str, JSON] = {name: count for name, count in chunks.items() if count}
    if counts:
        settings["use_external_data_format"] = counts
    halves: dict[str, JSON] = {name: "float16" for name in names if name in HALVES}
    if halves:
        settings["kv_cache_dtype"] = halves  # version 3 reads it, version 4 the graph
    return settings


_OURS = ("dtype", "use_external_data_format", "kv_cache_dtype")


def _loading(task: str, dtype: str) -> str:
    return (
        'import { env, pipeline } from "@huggingface/transformers";\n'
        "env.allowLocalModels = true;\n"
        "env.allowRemoteModels = false;\n"
        'env.localModelPath = "./";  // the folder above WEB\n'
        f'const run = await pipeline("{task}", "WEB", {{ dtype: "{dtype}" }});\n'
    )


def verify(folder: Path, library: Path | None) -> Sequence[Finding]:
    """Compare what config.json says with the files: see `findings`."""
    del library
    return findings(folder)
