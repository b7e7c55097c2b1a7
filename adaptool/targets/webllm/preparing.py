"""An export for WebLLM, planned."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from adaptool.containers import Output, SaveOptions, lay_out_checkpoint
from adaptool.containers._output import side_files
from adaptool.encodings.mlc import SCHEMES, Ledger, Scheme
from adaptool.errors import JSON, IncompatibleError, UsageError
from adaptool.storage import shown
from adaptool.targets import Model, Prepared, Request
from adaptool.targets._limits import GPU_BINDING, MIB
from adaptool.targets.webllm import configuration, record
from adaptool.targets.webllm.checking import fit, tensors_of
from adaptool.targets.webllm.hyperparameters import Hyperparameters, read_hyperparameters
from adaptool.targets.webllm.library import read_library
from adaptool.targets.webllm.prebuilt import RELEASE, Match, library_for
from adaptool.targets.webllm.tokens import Tokens
from adaptool.targets.webllm.weights import Entry, Weights, entries, write_weights

LOST = "lost-groups.json"
"""Written only where there are any: tensor -> groups of values whose scale float16 rounds to zero,
so that they are read as zeros; MLC's own converter makes the same of them."""


@dataclass(frozen=True)
class _Local:
    """A compiled library on the disk: its file, and what the checks say."""

    path: Path
    notes: tuple[str, ...]


def prepare_export(model: Model, request: Request) -> Prepared:
    """See `adaptool.targets.webllm.prepare`."""
    if len(request.dtypes) != 1:
        raise UsageError(
            f"{' and '.join(request.dtypes)}: a folder for WebLLM holds one model",
            hint="export each into a folder of its own",
        )
    scheme = SCHEMES[request.dtypes[0]]
    if request.optimize and not scheme.bits:
        raise UsageError(f"--optimize searches for scales, and {scheme.name} has none")
    checkpoint = model.checkpoint
    plain = read_hyperparameters(checkpoint.config)
    wanted = entries(plain.model_type, plain.shape, scheme)
    record.refuse_large(wanted)
    weights = write_weights(checkpoint, plain, scheme, optimize=request.optimize)
    tokens = Tokens(checkpoint.side_files)
    chat = configuration.describe(
        checkpoint, plain, scheme.name, tokens,
        conversation=request.conversation, page=request.template,
    )  # fmt: skip
    local = None if request.library is None else _checked(request.library, weights, chat)
    match = library_for(plain, scheme.name)
    name = checkpoint.provenance.name.rpartition("/")[2]
    library = None if local is None else local.path.name
    entry = record.record_of(name, plain, scheme, wanted, match, library)
    return Prepared(
        output=_output(weights, tokens, chat, entry, local, request.workers),
        notes=(
            *plain.notes,
            *_dropped(weights),
            *_written(chat),
            *_needs(scheme, wanted, entry),
            *((_about(match, plain, scheme),) if local is None else local.notes),
            *_beyond(match, chat),
        ),
        loading=record.describe_loading(entry),
        settings={"model": entry["model_id"], "library": record.library_name(entry)},
        facts={"app_config": {"model_list": [entry]}},
    )  # fmt: skip


def _output(
    weights: Weights, tokens: Tokens, chat: Mapping[str, JSON], entry: Mapping[str, JSON],
    local: _Local | None, workers: int,
) -> Output:  # fmt: skip
    files = {**tokens.copied, configuration.NAME: configuration.encode(chat)}
    checkpoint = replace(weights.checkpoint, side_files=files)
    hub = lay_out_checkpoint(checkpoint, Path(), SaveOptions(workers=workers)).within(record.HUB)
    beside: dict[str, Path | bytes] = {record.FILE: record.encode(entry)}
    if local is not None:
        beside[f"{record.FOLDER}/{local.path.name}"] = local.path
    plans, small = side_files(beside)
    return hub + Output(tuple(plans), small, is_folder=True, finish=_lost(weights.ledger))


def _lost(ledger: Ledger) -> Callable[[Path], Mapping[str, bytes]]:
    def finish(_folder: Path) -> Mapping[str, bytes]:
        faint = dict(ledger.faint)
        return {LOST: (json.dumps(faint, indent=2) + "\n").encode()} if faint else {}

    return finish


def _checked(path: Path, weights: Weights, chat: Mapping[str, JSON]) -> _Local:
    """A library that runs this model.

    Raises IncompatibleError with the first difference if it is for another one.
    """
    if path.suffix != ".wasm":
        raise UsageError(f"--lib {shown(path)}: a compiled model library ends in .wasm")
    findings = list(fit(read_library(path), path.name, tensors_of(weights.checkpoint), chat))
    wrong = [one for one in findings if not one.right and "never sampled" not in one.detail]
    if wrong:
        more = f", and {len(wrong) - 1} more differences" if len(wrong) > 1 else ""
        raise IncompatibleError(
            f"{wrong[0].what} {wrong[0].detail}{more}",
            hint="take the library of this model's base and dtype, or compile one for it",
            code="LIBRARY_MISMATCH",
        )
    return _Local(path, tuple(f"{one.what}: {one.detail}" for one in findings if not one.right))


def _dropped(weights: Weights) -> tuple[str, ...]:
    names = ", ".join(weights.dropped[:3]) + (" ..." if len(weights.dropped) > 3 else "")
    return (f"left out, for MLC's model has no use for it: {names}",) if names else ()


def _written(chat: Mapping[str, JSON]) -> tuple[str, ...]:
    template = chat["conv_template"]
    name = template.get("name") if isinstance(template, dict) else None
    return (f"conversations are written by the template {name}",)


def _needs(
    scheme: Scheme, wanted: Mapping[str, Entry], entry: Mapping[str, JSON]
) -> tuple[str, ...]:
    """What a device must have."""
    notes = [f"needs WebGPU, and about {entry['vram_required_MB']} MB of its memory"]
    if scheme.dtype.bits == 16:
        notes.append("needs a device with half floats (shader-f16); q4f32_1 and q0f32 do not")
    found = record.sizes(wanted)
    name = max(found, key=lambda one: found[one])
    if found[name] > GPU_BINDING:
        notes.append(
            f"{name} has {found[name] / MIB:.0f} MiB: devices that bind less at once "
            "(maxStorageBufferBindingSize, at least 128 MiB) do not load the model"
        )
    return tuple(notes)


def _about(match: Match, model: Hyperparameters, scheme: Scheme) -> str:
    """Which library runs it, or what to do where none is published."""
    if match.library is not None:
        name = Path(match.library.url(scheme.name)).name
        return (
            f"runs with {name}, published for @mlc-ai/web-llm {RELEASE}; a page wants it in "
            f"{record.FOLDER}/, for it loads nothing from elsewhere"
        )
    reason = "no published library has its shape"
    if match.near is not None:
        reason = f"{match.near.base} has its shape, but {'; '.join(match.differences)}"
    return (
        f"no compiled library is known for this {model.model_type} in {scheme.name}: {reason}. "
        f"Compile one: mlc_llm compile {record.HUB}/{configuration.NAME} --device webgpu "
        "-o model.wasm; then export with --lib model.wasm, or check it: adaptool verify WEB --lib"
    )


def _beyond(match: Match, chat: Mapping[str, JSON]) -> tuple[str, ...]:
    """Tokens that were added to the base's are masked by its library."""
    count, library = chat["active_vocab_size"], match.library
    if library is None or not isinstance(count, int) or count <= library.active:
        return ()
    note = (
        f"the tokenizer has {count - library.active} tokens beyond the {library.active} of "
        f"{library.base}: a library that masks what lies beyond never samples them"
    )
    return (note,)
