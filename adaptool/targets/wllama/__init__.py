"""wllama, which is llama.cpp in a browser: a GGUF model in parts, adapters in files beside it.

@wllama/wllama 3.8 loads a list of blobs. Of a split model it wants all parts; of any other the
first blob is the model, and the rest can be named as its LoRA adapters, each of which gets a
strength with every request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from adaptool.containers import Output
from adaptool.encodings.ggml.mixtures import OUTTYPES
from adaptool.errors import JSON, UsageError
from adaptool.targets import AS_STORED, Finding, Model, Package, Prepared, Request

DEFAULT = "q4_k_m"
"""The runtime's authors advise four to six bits."""

_OUTTYPES = (DEFAULT, *(outtype for outtype in OUTTYPES if outtype != DEFAULT))

summary = "llama.cpp in WebAssembly (@wllama/wllama): a GGUF model in parts that browsers load"
dtypes: Mapping[str, tuple[str, ...]] = {
    "safetensors": _OUTTYPES,
    "gguf": (AS_STORED, *_OUTTYPES),
}
options = frozenset({"part_size", "pre", "imatrix"})
swappable = "a GGUF file per adapter, with a scale per request; the model is one file then"
packages = (Package("@wllama/wllama", "3.8.1", "esm/index.js", ("esm/wasm/wllama.wasm",)),)


def prepare(model: Model, request: Request) -> Prepared:
    """A GGUF model in parts, and a GGUF adapter for each that stays apart.

    Raises:
        UsageError: more than one dtype, a size of parts that browsers do not load, `pre` for a
            model that has its tokenizer already.
        IncompatibleError: a model that writes no text or that GGUF cannot express, a tensor too
            large for one file, adapters that a GGUF adapter cannot express or that are to stand
            beside a model in parts.
    """
    from adaptool.targets.wllama.adapters import lay_out_adapters
    from adaptool.targets.wllama.loading import describe_loading
    from adaptool.targets.wllama.memory import cache_size, context_of, describe_memory
    from adaptool.targets.wllama.models import as_gguf, type_notes
    from adaptool.targets.wllama.parts import lay_out_parts, part_notes

    if len(request.dtypes) != 1:
        raise UsageError(
            f"{' and '.join(request.dtypes)}: a folder for wllama holds one model",
            hint="export each into a folder of its own",
        )
    gguf = as_gguf(model.checkpoint, request.dtypes[0], request.pre, request.imatrix)
    parts = lay_out_parts(gguf, request.part_size, alone=bool(model.adapters))
    apart = lay_out_adapters(model, gguf, request.scratch) if model.adapters else None
    output = parts if apart is None else parts + apart
    context = context_of(gguf)
    cache = cache_size(gguf, context)
    chat = "tokenizer.chat_template" in gguf.metadata
    files, beside = _sizes(parts), [] if apart is None else _sizes(apart)
    settings: dict[str, JSON] = {
        "files": files, "adapterFiles": beside, "context": context, "chat": chat,
    }  # fmt: skip
    return Prepared(
        output,
        notes=(
            *type_notes(model.checkpoint, gguf),
            *part_notes(parts, request.part_size),
            *describe_memory(output.nbytes, cache, context),
        ),
        loading=describe_loading(parts.names, tuple(model.adapters), context),
        settings=settings,
        facts={"files": [*files, *beside], "context": context, "cache_bytes": cache},
    )


def _sizes(output: Output) -> list[JSON]:
    return [{"name": plan.name, "bytes": plan.size} for plan in output.plans]


def verify(folder: Path, library: Path | None) -> Sequence[Finding]:
    """Read the parts and adapters of an export back.

    Raises:
        UsageError: a compiled library, of which llama.cpp has none.
        CorruptInputError: there is no model in the folder.
    """
    from adaptool.targets.wllama.findings import examine

    if library is not None:
        raise UsageError("--lib is for webllm: wllama runs every model with one library")
    return examine(folder)
