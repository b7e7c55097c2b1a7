"""ggla: llama.cpp's adapter files of 2023, before it had GGUF adapters (read only).

    "algg"  version 1  rank  alpha         int32 each, little endian
    per tensor: dimensions, length of the name, type (0 f32, 1 f16), sizes fastest first, name,
    padding to a multiple of 32 bytes, data

`loraA` is stored as [in, rank], `loraB` as [out, rank]; strength is alpha / rank. The file does not
say whether the rows of q and k are in Hugging Face's order or in that of llama.cpp's models, and
writers of both kinds existed (llama.cpp pull request 7204), so the user has to.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path

from adaptool.architectures.gguf.translation import ARCHITECTURE, GGUF, HUGGINGFACE
from adaptool.canonical import Adapter, DType, LazyTensor, LowRank, Provenance, Site, Stored, Update
from adaptool.canonical.provenance import origin
from adaptool.canonical.tensors import from_storage, transposed
from adaptool.errors import AdaptoolError, CorruptInputError, IncompatibleError, UsageError
from adaptool.formats import ReadOptions, WriteOptions, Written
from adaptool.storage import SourceFile, shown

suffixes: tuple[str, ...] = ()
naming = GGUF

MAGIC = b"algg"
_HEAD = struct.Struct("<4siii")
_ENTRY = struct.Struct("<iii")
_TYPES = {0: DType.FLOAT32, 1: DType.FLOAT16}
_ALIGNMENT = 32
_LONGEST_NAME = 256
_MOST_RANK = 65536

_OLD = re.compile(r"^layers\.(\d+)\.(attention|feed_forward)\.(w[qkvo123])\.weight$")
_NEW = re.compile(r"^blk\.(\d+)\.(attn_(?:q|k|v|output)|ffn_(?:gate|down|up))\.weight$")
_MODULES = {
    "wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output",
    "w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up",
}  # fmt: skip
_HUGGINGFACE = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_down": "mlp.down_proj",
    "ffn_up": "mlp.up_proj",
}  # fmt: skip


def recognises(path: Path) -> bool:
    """A file that starts with the magic word."""
    if not path.is_file():
        return False
    try:
        with SourceFile.open(path) as source:
            return source.size >= len(MAGIC) and source.read(0, len(MAGIC)) == MAGIC
    except AdaptoolError:
        return False


def read(path: Path, options: ReadOptions) -> Adapter:
    """An adapter of a llama model, under Hugging Face's or GGUF's names as its rows are.

    Raises:
        UsageError: `options.row_order` is not given.
        CorruptInputError: a broken file, half a pair, factors that do not fit.
        IncompatibleError: a version or a tensor that was never used.
    """
    if options.row_order not in ("hf", "ggml"):
        raise UsageError(
            f"{path}: a ggla file does not say whose order its q and k rows are in",
            hint="adaptool convert with --row-order hf if it was made from a PEFT adapter, ggml "
            "if llama.cpp trained it",
            code="ROW_ORDER_NEEDED",
        )
    source = SourceFile.open(path)
    tensors, rank, alpha = _tensors(source)
    ordered = options.row_order == "ggml"
    updates: dict[Site, Update] = {}
    for (block, module), pair in _pairs(path, tensors).items():
        site = (
            f"blk.{block}.{module}" if ordered else f"model.layers.{block}.{_HUGGINGFACE[module]}"
        )
        updates[Site(site)] = _update(path, site, pair, rank, alpha)
    return Adapter(
        updates=updates,
        method="lora",
        base=None,
        provenance=Provenance(origin(path), "ggla", {path.name: {"bytes": source.size}}, (path,)),
        config={ARCHITECTURE: "llama"} if ordered else {},
        naming=GGUF if ordered else HUGGINGFACE,
    )


def plan(adapter: Adapter, path: Path, options: WriteOptions) -> Written:
    """Nothing reads these files any more. Raises IncompatibleError."""
    del adapter, options
    raise IncompatibleError(
        f"{path}: ggla files are read here, not written",
        hint="llama.cpp reads GGUF adapters: name a file ending in .gguf",
        code="NOT_WRITABLE",
    )


write = plan


def _tensors(source: SourceFile) -> tuple[dict[str, LazyTensor], int, int]:
    """All tensors by name, the rank and alpha; sizes are checked against the file's."""
    path = source.path
    if source.size < _HEAD.size:
        raise CorruptInputError(f"{path}: too short for a ggla file")
    magic, version, rank, alpha = _HEAD.unpack(source.read(0, _HEAD.size))
    if magic != MAGIC or version != 1:
        raise IncompatibleError(f"{path}: version {version} of ggla, expected 1")
    if not 0 < rank <= _MOST_RANK:
        raise CorruptInputError(f"{path}: rank {rank}")
    tensors: dict[str, LazyTensor] = {}
    position = _HEAD.size
    while position < source.size:
        name, tensor, position = _tensor(source, position)
        if name in tensors:
            raise CorruptInputError(f"{path}: {shown(name)} stands twice")
        tensors[name] = tensor
    return tensors, rank, alpha


def _tensor(source: SourceFile, position: int) -> tuple[str, LazyTensor, int]:
    """The tensor whose entry starts at `position`, and where its data end."""
    where = f"{source.path}: at byte {position}"
    if position + _ENTRY.size + 8 > source.size:
        raise CorruptInputError(f"{where}: the file ends in the middle of an entry")
    dimensions, length, kind = _ENTRY.unpack(source.read(position, _ENTRY.size))
    dtype = _TYPES.get(kind)
    if dimensions != 2 or not 0 < length <= _LONGEST_NAME or dtype is None:
        raise CorruptInputError(
            f"{where}: {dimensions} dimensions, a name of {length} bytes, type {kind}"
        )
    position += _ENTRY.size
    if position + 8 + length > source.size:
        raise CorruptInputError(f"{where}: the file ends in the middle of an entry")
    sizes = struct.unpack("<ii", source.read(position, 8))
    name = source.read(position + 8, length).decode("utf-8", "replace")
    start = position + 8 + length
    start += -start % _ALIGNMENT
    nbytes = dtype.nbytes(prod(sizes))
    if min(sizes) <= 0 or start + nbytes > source.size:
        raise CorruptInputError(f"{where}: {shown(name)} of {list(sizes)} does not fit the file")
    tensor = from_storage(Stored(source, start, nbytes), (sizes[1], sizes[0]), dtype)
    return name, tensor, start + nbytes


def _pairs(
    path: Path, tensors: Mapping[str, LazyTensor]
) -> dict[tuple[int, str], dict[str, LazyTensor]]:
    """(block, GGUF module) -> its two factors."""
    pairs: dict[tuple[int, str], dict[str, LazyTensor]] = {}
    for name, tensor in tensors.items():
        base, _, factor = name.rpartition(".")
        old, new = _OLD.match(base), _NEW.match(base)
        if factor not in ("loraA", "loraB") or not (old or new):
            raise IncompatibleError(
                f"{path}: {shown(name)} is no factor of a llama model", code="UNKNOWN_TENSOR"
            )
        found = (int(old[1]), _MODULES[old[3]]) if old else (int(new[1]), new[2]) if new else None
        if found is not None:
            pairs.setdefault(found, {})[factor] = tensor
    if not pairs:
        raise CorruptInputError(f"{path}: the adapter has no tensors")
    return pairs


def _update(
    path: Path, site: str, pair: Mapping[str, LazyTensor], rank: int, alpha: int
) -> LowRank:
    if len(pair) != 2:
        raise CorruptInputError(f"{path}: {site} has {', '.join(pair)} only")
    a, b = pair["loraA"], pair["loraB"]
    if a.shape[1] != rank or b.shape[1] != rank:
        raise CorruptInputError(
            f"{path}: {site} has factors of {list(a.shape)} and {list(b.shape)}, rank {rank}"
        )
    return LowRank(transposed(a), b, alpha / rank)
