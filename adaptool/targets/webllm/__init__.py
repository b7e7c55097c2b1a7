"""WebLLM: weights as MLC lays them out, which a compiled library computes with on WebGPU.

WebLLM applies no adapters at run time: they are merged. A merged model has the parameters of its
base, so it runs with its base's library, and nothing needs to be compiled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from adaptool.targets import Finding, Model, Package, Prepared, Request

summary = "WebLLM (@mlc-ai/web-llm): MLC weights, run on WebGPU by a compiled library"
dtypes: Mapping[str, tuple[str, ...]] = {
    "safetensors": ("q4f16_1", "q4f32_1", "q3f16_1", "q0f16", "q0f32"),
}
options = frozenset({"optimize", "conversation", "library", "template"})
swappable = ""
packages = (Package("@mlc-ai/web-llm", "0.2.86", "lib/index.js"),)


def prepare(model: Model, request: Request) -> Prepared:
    """Weights, configuration, tokenizer, and the record by which WebLLM finds them.

    Raises:
        UsageError: more than one dtype, or an unknown conversation template.
        IncompatibleError: a model that MLC does not have, or would compute otherwise; an unknown
            chat template; a library that is for another model.
        CorruptInputError: broken configuration, tokenizer or library.
    """
    from adaptool.targets.webllm.preparing import prepare_export

    return prepare_export(model, request)


def verify(folder: Path, library: Path | None) -> Sequence[Finding]:
    """Read an export back: digests, the parameters of its architecture, and what a library asks.

    Raises:
        CorruptInputError: weights, configuration or a library that cannot be read at all.
    """
    from adaptool.targets.webllm.checking import examine

    return tuple(examine(folder, library))
