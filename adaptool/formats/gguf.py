"""GGUF adapters: what llama.cpp and the programs built on it load beside a model.

Format: llama.cpp's `llama-adapter.cpp`. Tensors are `NAME.lora_a` [rank, in] and `NAME.lora_b`
[out, rank] (numpy order) for the tensor NAME of the base model, stacks with one more dimension in
front; of the token embedding `lora_a` is [vocabulary, rank]. The file states one alpha, each
tensor its rank; strength is alpha / rank, or 1 if alpha is missing or 0.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import cast

from adaptool.architectures.gguf.factors import with_scaling
from adaptool.architectures.gguf.translation import ARCHITECTURE, GGUF
from adaptool.canonical import (
    Adapter,
    DType,
    ExpertLowRank,
    LazyTensor,
    LowRank,
    Provenance,
    Site,
    Update,
)
from adaptool.canonical.forms import Form
from adaptool.canonical.provenance import origin
from adaptool.canonical.tensors import transposed
from adaptool.containers import SaveOptions
from adaptool.containers.gguf import Kind, Value, general_type, save_file, size_of_file
from adaptool.containers.gguf.header import Header, read_header
from adaptool.containers.gguf.reading import lazy_tensor
from adaptool.errors import JSON, AdaptoolError, CorruptInputError, IncompatibleError
from adaptool.formats import ACTIVATED, ReadOptions, WriteOptions, Written
from adaptool.records import RECORD, described, record
from adaptool.storage import SourceFile, shown

suffixes = (".gguf",)
naming = GGUF

ALPHA = "adapter.lora.alpha"
TOKENS = "adapter.alora.invocation_tokens"
EMBEDDING = "token_embd.weight"
_A, _B = ".lora_a", ".lora_b"
_ROUNDING = 2.0**-23
_BLOCK = "Q8_0"
"""The block encoding that llama.cpp's own converter offers for factors."""


def recognises(path: Path) -> bool:
    """A GGUF file that says it is an adapter."""
    if not path.is_file():
        return False
    try:
        return general_type(path) == "adapter"
    except AdaptoolError:
        return False


def read(path: Path, options: ReadOptions) -> Adapter:  # noqa: ARG001 - the format protocol
    """An adapter under GGUF's tensor names; only the header is read.

    Raises:
        CorruptInputError: a broken header, half a pair, factors that do not fit each other.
        IncompatibleError: another kind of adapter, or tensors that are no factors.
    """
    source = SourceFile.open(path)
    header = read_header(source)
    kind = _text(header.values, "adapter.type")
    if kind != "lora":
        raise IncompatibleError(
            f"{path}: an adapter of type {shown(str(kind))[:60]}, expected lora",
            code="UNKNOWN_METHOD",
        )
    architecture = _text(header.values, ARCHITECTURE)
    if not architecture:
        raise CorruptInputError(f"{path}: {ARCHITECTURE} is missing, an adapter states it")
    alpha = _alpha(path, header.values)
    tensors = {entry.name: lazy_tensor(source, entry) for entry in header.tensors}
    updates: dict[Site, Update] = {}
    for name, (a, b) in _pairs(path, tensors).items():
        module, _, parameter = name.rpartition(".")
        updates[Site(module, parameter)] = _update(path, name, a, b, alpha)
    config = _config(header)
    return Adapter(
        updates=updates,
        method="lora",
        base=_text(header.values, "general.base_model.0.name"),
        provenance=Provenance(
            origin(path),
            GGUF,
            {path.name: {"bytes": source.size, "header_sha256": header.sha256}},
            sources=(path,),
        ),
        config=config,
        unmergeable=ACTIVATED if "alora_invocation_tokens" in config else None,
        naming=GGUF,
    )


def _text(values: Mapping[str, Value], key: str) -> str | None:
    value = values.get(key)
    found = value.plain() if value is not None and value.kind is Kind.STRING else None
    return found if isinstance(found, str) else None


def _alpha(path: Path, values: Mapping[str, Value]) -> float:
    """The file's alpha; 0 stands for a strength of 1."""
    value = values.get(ALPHA)
    if value is None:
        return 0.0
    number = value.plain()
    if value.kind is not Kind.F32 or not isinstance(number, float):
        raise CorruptInputError(f"{path}: {ALPHA} is of type {value.kind.name}, expected F32")
    if not isfinite(number):
        raise CorruptInputError(f"{path}: {ALPHA} is {number}")
    return number


def _pairs(
    path: Path, tensors: Mapping[str, LazyTensor]
) -> dict[str, tuple[LazyTensor, LazyTensor]]:
    """Base tensor -> its factors; every tensor of the file is in exactly one pair."""
    names: dict[str, None] = {}
    for name in tensors:
        if not name.endswith((_A, _B)):
            raise IncompatibleError(
                f"{path}: tensor {shown(name)} is neither {_A} nor {_B}",
                hint="llama.cpp ignores or refuses such tensors; the file may be incomplete",
                code="UNKNOWN_TENSOR",
            )
        names[name[: -len(_A)]] = None
    found: dict[str, tuple[LazyTensor, LazyTensor]] = {}
    for name in names:
        missing = [half for half in (_A, _B) if name + half not in tensors]
        if missing:
            raise CorruptInputError(f"{path}: {shown(name + missing[0])} is missing")
        found[name] = (tensors[name + _A], tensors[name + _B])
    if not found:
        raise CorruptInputError(f"{path}: the adapter has no tensors")
    return found


def _update(
    path: Path, name: str, a: LazyTensor, b: LazyTensor, alpha: float
) -> LowRank | ExpertLowRank:
    embedding = name == EMBEDDING
    if embedding and len(a.shape) == 2:
        a = transposed(a)
    rank = b.shape[-1] if b.shape else 0
    fits = len(a.shape) == len(b.shape) in (2, 3) and a.shape[-2] == rank > 0
    if not fits or a.shape[:-2] != b.shape[:-2] or 0 in (*a.shape, *b.shape):
        raise CorruptInputError(
            f"{path}: {shown(name)} has factors of {list(a.shape)} and {list(b.shape)}, expected "
            "[rank, in] and [out, rank]"
        )
    scaling = alpha / rank if alpha else 1.0
    a, b = _plain(a), _plain(b)
    if len(a.shape) == 3:
        return ExpertLowRank(a, b, scaling)
    return LowRank(a, b, scaling, embedding)


def _plain(factor: LazyTensor) -> LazyTensor:
    """Block-encoded factors as the values that they stand for."""
    return factor.cast(DType.FLOAT32) if factor.encoding is not None else factor


def _config(header: Header) -> dict[str, JSON]:
    config: dict[str, JSON] = {
        key: value.plain()
        for key, value in header.values.items()
        if value.kind is not Kind.ARRAY and isinstance(value.content, bytes)
    }
    tokens = header.values.get(TOKENS)
    if tokens is not None and tokens.element in (Kind.U32, Kind.I32):
        config["alora_invocation_tokens"] = tokens.plain()
    return config


def plan(adapter: Adapter, path: Path, options: WriteOptions) -> Written:
    """What `write` would write."""
    values, tensors = _compose(adapter, options)
    return Written(path, size_of_file(values, tensors), (path.name,))


def write(adapter: Adapter, path: Path, options: WriteOptions) -> Written:
    """Write one GGUF file that llama.cpp loads with `--lora`.

    The adapter bears GGUF's names (`architectures.gguf.translation.to_gguf`). Strengths that one
    alpha cannot state are folded into B, in float32.

    Raises:
        IncompatibleError: an update that is not low-rank, or other names.
        StorageError: see `adaptool.storage.Staging`.
    """
    values, tensors = _compose(adapter, options)
    saved = save_file(
        path, values, tensors, SaveOptions(force=options.force, inputs=options.inputs)
    )
    return Written(path, saved.nbytes, (path.name,), saved.stale)


def _compose(
    adapter: Adapter, options: WriteOptions
) -> tuple[dict[str, Value], dict[str, LazyTensor]]:
    if adapter.naming != GGUF:
        raise IncompatibleError(
            f"{adapter.provenance.name}: its names are {adapter.naming}'s",
            hint="translate it with the base's config: --base",
            code="NAMING",
        )
    found = {str(site): _low_rank(site, update) for site, update in adapter.updates.items()}
    alpha = _common_alpha(list(found.values()))
    tensors: dict[str, LazyTensor] = {}
    for name, update in found.items():
        stated = alpha / update.rank
        same = abs(update.scaling - stated) <= _ROUNDING * abs(stated)  # alpha as float32
        folded = update if same else with_scaling(update, stated)
        a = transposed(folded.a) if name == EMBEDDING else folded.a
        tensors[name + _A] = _written(a, options)
        tensors[name + _B] = _written(folded.b, options)
    return _values(adapter, alpha, options), tensors


def _low_rank(site: Site, update: Update) -> LowRank | ExpertLowRank:
    if isinstance(update, LowRank | ExpertLowRank):
        return update
    raise IncompatibleError(
        f"{site}: a GGUF adapter holds low-rank updates, this one is {update.kind}",
        hint="merge it into the model: adaptool merge",
        code="NOT_EXPRESSIBLE",
    )


def _common_alpha(updates: list[LowRank | ExpertLowRank]) -> float:
    """The alpha that states most strengths; as float32, and never 0, which would mean 1."""
    alphas = Counter(_float32(update.scaling * update.rank) for update in updates)
    alphas.pop(0.0, None)
    return alphas.most_common(1)[0][0] if alphas else 1.0


def _float32(number: float) -> float:
    plain = Value.f32(number).plain()
    return cast("float", plain)


def _written(factor: LazyTensor, options: WriteOptions) -> LazyTensor:
    if options.encoding is not None:
        if options.encoding.upper() != _BLOCK:
            raise IncompatibleError(
                f"factors are not written as {options.encoding}",
                hint="f32, f16, bf16 or q8_0",
                code="NOT_EXPRESSIBLE",
            )
        from adaptool.encodings.ggml import encoding

        blocks = encoding(_BLOCK)
        fits = factor.shape[-1] % blocks.block == 0
        return factor.written(Form(DType.FLOAT32, blocks) if fits else Form(DType.FLOAT16))
    return factor.cast(options.dtype) if options.dtype is not None else factor


def _values(adapter: Adapter, alpha: float, options: WriteOptions) -> dict[str, Value]:
    values = {
        "general.architecture": Value.string(str(adapter.config[ARCHITECTURE])),
        "general.type": Value.string("adapter"),
        "adapter.type": Value.string("lora"),
        "general.name": Value.string(adapter.provenance.name),
        ALPHA: Value.f32(alpha),
    }
    tokens = adapter.config.get("alora_invocation_tokens")
    if isinstance(tokens, list):
        values[TOKENS] = Value.ints([int(str(token)) for token in tokens], Kind.U32)
    if adapter.base:
        values["general.base_model.count"] = Value.u32(1)
        values["general.base_model.0.name"] = Value.string(adapter.base)
    if options.encoding is not None:
        from adaptool.encodings.ggml.types import QUANTIZATION_VERSION

        values["general.quantization_version"] = Value.u32(QUANTIZATION_VERSION)
    content = record(options.operation, [described(adapter.provenance)])
    values[RECORD.removesuffix(".json")] = Value.string(json.dumps(json.loads(content)))
    return values
