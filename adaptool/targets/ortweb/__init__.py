"""ONNX Runtime Web: a graph, and a manifest that says what to feed it.

    model.onnx                 or, where it needs data files, model_q4.onnx with those beside it
    manifest.json              inputs and outputs by role, cache, tokenizer, labels, adapters
    tokenizer.json, tokenizer_config.json, config.json, generation_config.json
    adapters/NAME.safetensors  tensors by the names of the graph's inputs, with --swappable

An adapter that stays apart is fed at every run: y + lora_scale * (x A) B beside the layers that it
changes (`adaptool.slots`, mode "inputs"), so that it costs no second copy of the model and may
change between two answers. Quantised weights stay as they are beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from operator import add
from pathlib import Path

from adaptool.canonical import Adapter, Checkpoint, LowRank, Provenance
from adaptool.containers import Output, SaveOptions, lay_out_checkpoint
from adaptool.errors import JSON, IncompatibleError, UsageError
from adaptool.slots import INPUTS, Filling, SlotRequest, fill, slots_of, with_slots
from adaptool.targets import Finding, Model, Package, Prepared, Request
from adaptool.targets._beside import beside, json_bytes, written
from adaptool.targets._exports import DTYPES, UNTRACED, exports, notes_of
from adaptool.targets._files import PART, data_files, is_one_file, laid_out, own_name
from adaptool.targets._limits import checked_part_size
from adaptool.targets.ortweb.manifest import ADAPTERS, MANIFEST, MODEL, TASKS, manifest_of
from adaptool.targets.ortweb.verification import findings
from adaptool.tracing import task_of

summary = "ONNX Runtime Web: a graph with a manifest, adapters switched while it runs"
dtypes = DTYPES
options = frozenset({"part_size", "task", "template", "match"})
swappable = "as inputs of the graph, at any strength, in one session"
packages = (
    Package(
        "onnxruntime-web", "1.31.0-dev.20260914-8d85527a0", "dist/ort.wasm.min.mjs",
        (
            "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm",
            "dist/ort.webgpu.min.mjs", "dist/ort-wasm-simd-threaded.asyncify.mjs",
            "dist/ort-wasm-simd-threaded.asyncify.wasm",
        ),
    ),
    Package("@huggingface/tokenizers", "0.2.0", "dist/tokenizers.min.mjs"),
    Package("@huggingface/jinja", "0.5.11", "dist/index.js"),
)  # fmt: skip


def prepare(model: Model, request: Request) -> Prepared:
    """A graph with its manifest; a Hugging Face checkpoint is traced first.

    Raises:
        IncompatibleError: no tokenizer.json or config.json, a model that cannot be traced, a graph
            whose inputs nobody could feed, or an adapter that is no plain LoRA or fits no layer.
        UsageError: several dtypes, a part size that no browser loads, or what tracing needs is not
            installed.
        VerificationError: the traced graph computes something else than the model.
    """
    part_size = checked_part_size(request.part_size, PART) if request.part_size else None
    if len(request.dtypes) > 1:
        raise UsageError(
            f"ortweb has one model: one dtype, not {', '.join(request.dtypes)}",
            hint="export each into a folder of its own",
        )
    for name, adapter in model.adapters.items():
        _refuse_others(name, adapter)
    around = beside(model, request.match)
    is_graph = model.checkpoint.container == "onnx"
    task = request.task or ("" if is_graph else task_of(around.config))
    if task:
        _check_task(task)
    change = partial(_with_slots, model.adapters) if model.adapters else None
    made = next(exports(model, request, around.config, change), None)
    task = made.task if made else task
    side = written(around, around.config)
    known: dict[str, JSON] = {"task": task, "templated": around.templated}
    if made is None:
        return Prepared(side, (UNTRACED,), settings=known, facts={"task": task})
    one = is_one_file(made.checkpoint, part_size)
    name = MODEL if one else own_name(made.checkpoint)  # data files are named after it
    laid = laid_out(made.checkpoint, name, part_size)
    fillings = _fillings(model.adapters, made.checkpoint)
    adapters = {key: _adapter_file(key, filling) for key, filling in fillings.items()}
    manifest = manifest_of(
        made.checkpoint, task, made.precision, around, model=name, scale=model.scale,
        files={plan.name: plan.size for plan in laid.plans}, data=data_files(laid, name),
        adapters={key: (output.names[0], output.nbytes) for key, output in adapters.items()},
    )  # fmt: skip
    stated = Output((), {MANIFEST: json_bytes(manifest)}, is_folder=True)
    facts: dict[str, JSON] = {"task": task, "dtypes": [made.precision]}
    return Prepared(
        reduce(add, [side, stated, laid, *adapters.values()]),
        tuple(notes_of(made, name, laid)),
        _LOADING,
        known,
        {**facts, **({"agreement": made.agreement} if made.agreement else {})},
    )


_LOADING = """\
import * as ort from "onnxruntime-web";
const manifest = await (await fetch("WEB/manifest.json")).json();
const session = await ort.InferenceSession.create(`WEB/${manifest.model}`, {
  externalData: manifest.data.map((path) => ({ path, data: `WEB/${path}` })),
});
// manifest.inputs says what each input takes; driver.js (--page) has the loop around it
"""


def _refuse_others(name: str, adapter: Adapter) -> None:
    """Raise IncompatibleError for an adapter that is more than pairs of factors."""
    others = [f"{site} ({update.kind})" for site, update in adapter.updates.items()
              if not isinstance(update, LowRank)]  # fmt: skip
    reason = adapter.unmergeable or (f"{others[0]} is no plain LoRA" if others else None)
    if reason:
        raise IncompatibleError(
            f"{name}: cannot stay apart, since {reason}",
            hint="make it a plain LoRA (adaptool convert ADAPTER --to lora -o LORA), or merge it",
            code="NOT_EXPRESSIBLE",
        )


def _check_task(task: str) -> None:
    if task not in TASKS:
        raise IncompatibleError(
            f"the ortweb target does not know how to show answers of {task}",
            hint="--target transformersjs has a pipeline for it",
            code="TASK_UNSUPPORTED",
        )


def _with_slots(adapters: Mapping[str, Adapter], checkpoint: Checkpoint) -> Checkpoint:
    """A graph with inputs for what the adapters change, and for nothing else."""
    leaves = dict.fromkeys(site.module.rpartition(".")[2] for adapter in adapters.values()
                           for site in adapter.updates)  # fmt: skip
    return with_slots(checkpoint, SlotRequest(INPUTS, modules=tuple(leaves)))[0]


def _fillings(adapters: Mapping[str, Adapter], checkpoint: Checkpoint) -> dict[str, Filling]:
    if not adapters:
        return {}
    slots = slots_of(checkpoint)
    return {name: fill(adapter, slots) for name, adapter in adapters.items()}


def _adapter_file(name: str, filling: Filling) -> Output:
    factors = Checkpoint(
        filling.tensors, "safetensors", filling.provenance or Provenance(name, "safetensors")
    )
    file = Path(f"{name}.safetensors")
    return lay_out_checkpoint(factors, file, SaveOptions()).within(ADAPTERS)


def verify(folder: Path, library: Path | None) -> Sequence[Finding]:
    """Compare what manifest.json says with the files: see `findings`."""
    del library
    return findings(folder)
