"""ONNX graphs as ONNX Runtime Web's users need them: names, sizes, precision, what to know of them.

transformers.js makes the empty cache of a first step from the sizes that the inputs state: the
symbol `batch_size` is the number of rows, any other symbol is 0 (its models/modeling_utils.js,
`addPastKeyValues`). So heads and their width must be numbers, and the names must be the ones that
it looks for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from adaptool.canonical import Checkpoint, DType
from adaptool.canonical.graph import Graph
from adaptool.containers.onnx import MODEL, model_of
from adaptool.containers.onnx.elements import DTYPES
from adaptool.errors import JSON, IncompatibleError
from adaptool.storage import SourceFile

BATCH, SEQUENCE, PAST, TOTAL = (
    "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length",
)  # fmt: skip
LOGITS, HIDDEN = "logits", "last_hidden_state"

_CACHED = re.compile(r"(?:present|past_key_values)\.(?:layers\.)?(\d+)\.(key|value)s?")
_WRAPPED = re.compile(r"(?:input|output)\.")
"""What transformers' own exporter puts before every name."""
_ROWS = {
    "input_ids": SEQUENCE, "position_ids": SEQUENCE, "token_type_ids": SEQUENCE,
    LOGITS: SEQUENCE, HIDDEN: SEQUENCE,
}  # fmt: skip
"""The second dimension of what has a row for each text."""

_NBITS, _GATHERED = "com.microsoft:MatMulNBits", "com.microsoft:GatherBlockQuantized"
_BNB4, _GROUPED = "com.microsoft:MatMulBnb4", "com.microsoft:GroupQueryAttention"
_DYNAMIC = ("MatMulInteger", "ConvInteger", "com.microsoft:DynamicQuantizeMatMul")
_FOUR_BITS = {21, 22}
"""TensorProto.DataType: UINT4, INT4."""
_BITS = {8: "q8", 4: "q4", 2: "q2", 1: "q1"}

SUFFIXES = {
    "fp32": "", "fp16": "_fp16", "q8": "_quantized", "int8": "_int8", "uint8": "_uint8",
    "q4": "_q4", "q4f16": "_q4f16", "bnb4": "_bnb4", "q2": "_q2", "q2f16": "_q2f16", "q1": "_q1",
    "q1f16": "_q1f16",
}  # fmt: skip
"""What transformers.js calls a precision -> what it puts behind the model's name (utils/dtypes.js,
`DEFAULT_DTYPE_SUFFIX_MAPPING`)."""
HALVES = ("fp16", "q4f16", "q2f16", "q1f16")
"""Those that compute in float16: on WebGPU only where the device has shader-f16."""


GENERATION, FEATURES, CLASSES, TOKEN_CLASSES, MASKED = (
    "text-generation", "feature-extraction", "text-classification", "token-classification",
    "fill-mask",
)  # fmt: skip


@dataclass(frozen=True)
class Cached:
    """Keys or values of one layer: the input for the past, the output for past and present."""

    past: str
    present: str


def layer_caches(graph: Graph) -> list[Cached]:
    """The caches of a graph whose names are transformers.js's, in the order of its layers."""
    layers = sorted({(int(found[1]), found[2]) for name in graph.inputs
                     if (found := _CACHED.fullmatch(name))})  # fmt: skip
    return [
        Cached(f"past_key_values.{i}.{part}", f"present.{i}.{part}") for i, part in layers
    ]  # fmt: skip


def for_browser(checkpoint: Checkpoint, config: Mapping[str, JSON]) -> Checkpoint:
    """The same model with the names and sizes that transformers.js needs of a decoder or encoder.

    Args:
        checkpoint: opened from an ONNX file, changed or not.
        config: the model's config.json, which tells heads and widths that the graph does not.

    Raises IncompatibleError for a graph without `input_ids`, with inputs of fixed size, with
    bfloat16 (for which ONNX Runtime Web has no operations), or whose cache has no known width.
    """
    graph = checkpoint.graph or Graph(())
    _check(checkpoint, graph)
    names = {**_new_names(graph.inputs, "past_key_values"), **_new_names(graph.outputs, "present")}
    renamed = _renamed(graph, names)
    width = _widths(renamed, config, checkpoint.provenance.name)
    decodes = bool(layer_caches(renamed))
    made = replace(
        renamed,
        inputs={name: (kind, _sizes(name, sizes, width, decodes=decodes))
                for name, (kind, sizes) in renamed.inputs.items()},
        outputs={name: (kind, _sizes(name, sizes, width, decodes=decodes))
                 for name, (kind, sizes) in renamed.outputs.items()},
    )  # fmt: skip
    return checkpoint if made == graph else _without_notes(replace(checkpoint, graph=made))


def _check(checkpoint: Checkpoint, graph: Graph) -> None:
    name = checkpoint.provenance.name
    known = {_WRAPPED.sub("", one, count=1): facts for one, facts in graph.inputs.items()}
    if "input_ids" not in known:
        raise IncompatibleError(
            f"{name}: the graph takes {', '.join(list(graph.inputs)[:4]) or 'nothing'}, and no "
            "input_ids",
            hint="models that take token ids and give logits or hidden states are exported",
            code="NOT_EXPRESSIBLE",
        )
    for one, (kind, sizes) in known.items():
        if kind == DType.BFLOAT16:
            raise IncompatibleError(
                f"{name}: {one} is bfloat16, for which ONNX Runtime Web has no operations",
                hint="export the Hugging Face model, or an ONNX model of float16",
                code="DTYPE_MISMATCH",
            )
        if one in _ROWS and all(isinstance(size, int) for size in sizes):
            raise IncompatibleError(
                f"{name}: {one} has the fixed size {list(sizes)}",
                hint="export the graph with dynamic shapes (torch.onnx.export: dynamic_shapes)",
                code="SHAPE_MISMATCH",
            )


def _new_names(values: Mapping[str, object], prefix: str) -> dict[str, str]:
    """Name -> the one that transformers.js knows it by, of those that differ."""
    found = {}
    for name in values:
        plain = _WRAPPED.sub("", name, count=1)
        cached = _CACHED.fullmatch(plain)
        found[name] = f"{prefix}.{cached[1]}.{cached[2]}" if cached else plain
    return {old: new for old, new in found.items() if old != new}


def _renamed(graph: Graph, names: Mapping[str, str]) -> Graph:
    if not names:
        return graph

    def new(values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names.get(value, value) for value in values)

    nodes = tuple(
        replace(node, inputs=new(node.inputs), outputs=new(node.outputs)) for node in graph.nodes
    )
    return Graph(
        nodes,
        {names.get(name, name): facts for name, facts in graph.inputs.items()},
        {names.get(name, name): facts for name, facts in graph.outputs.items()},
    )


Widths = tuple[int, int]
"""Key-value heads, and the elements of one."""


def _widths(graph: Graph, config: Mapping[str, JSON], name: str) -> Mapping[str, Widths]:
    """The numbers of each cache, by its input's and its output's name."""
    found: dict[str, Widths] = {}
    stated = {**graph.inputs, **graph.outputs}
    for cached in layer_caches(graph):
        shapes = [stated[one][1] for one in (cached.past, cached.present) if one in stated]
        if any(len(shape) != 4 for shape in shapes):
            raise IncompatibleError(
                f"{name}: {cached.past} has sizes {list(shapes[0])}, expected [batch_size, heads, "
                "past_sequence_length, width]",
                code="SHAPE_MISMATCH",
            )
        heads, width = (
            next((s[axis] for s in shapes if isinstance(s[axis], int)), _stated(config, keys))
            for axis, keys in ((1, _HEADS), (3, ("head_dim", "head_size")))
        )
        if not isinstance(width, int):
            hidden, split = _stated(config, ("hidden_size", "n_embd")), _stated(config, _HEADS[1:])
            width = hidden // split if hidden and split else None
        if not isinstance(heads, int) or width is None:
            raise IncompatibleError(
                f"{name}: how many heads {cached.past} has, and how wide they are, is stated "
                "neither by the graph nor by a config.json",
                hint="put the model's config.json beside the ONNX file, or --match MODEL",
                code="NO_CONFIG",
            )
        found[cached.past] = found[cached.present] = heads, width
    return found


_HEADS = ("num_key_value_heads", "num_attention_heads", "n_head")


def _stated(config: Mapping[str, JSON], keys: tuple[str, ...]) -> int | None:
    return next((value for key in keys if type(value := config.get(key)) is int), None)


def _sizes(
    name: str, sizes: tuple[int | str, ...], widths: Mapping[str, Widths], *, decodes: bool
) -> tuple[int | str, ...]:
    """Sizes with transformers.js's symbols; numbers stay but for the number of rows."""
    if name in widths:
        heads, width = widths[name]
        return BATCH, heads, PAST if name.startswith("past") else TOTAL, width
    second = (TOTAL if decodes else SEQUENCE) if name == "attention_mask" else _ROWS.get(name)
    if second is None or not sizes:
        return sizes
    rest = sizes[1:]
    if rest and isinstance(rest[0], str):
        rest = (second, *rest[1:])
    return BATCH, *rest


def _without_notes(checkpoint: Checkpoint) -> Checkpoint:
    """Without the sizes of values in between, which an exporter noted by other symbols."""
    model = model_of(checkpoint)
    proto = type(model.proto)()
    proto.CopyFrom(model.proto)
    proto.graph.ClearField("value_info")
    changed = replace(model, proto=proto)
    return replace(checkpoint, metadata={**checkpoint.metadata, MODEL: changed})


def task_of_graph(checkpoint: Checkpoint, config: Mapping[str, JSON]) -> str:
    """What a graph with transformers.js's names is for, by what it gives out.

    Raises IncompatibleError for a decoder without a cache, which pages would have to run anew for
    every token, and for outputs that no task has.
    """
    graph = checkpoint.graph or Graph(())
    name, outputs = checkpoint.provenance.name, graph.outputs
    if layer_caches(graph):
        return GENERATION
    if HIDDEN in outputs:
        return FEATURES
    stated = config.get("architectures")
    made_for = str(stated[0]) if isinstance(stated, list) and stated else ""
    if LOGITS not in outputs or made_for.endswith(("ForCausalLM", "LMHeadModel")):
        raise IncompatibleError(
            f"{name}: the graph gives {', '.join(outputs)}, no "
            + (
                "cache (past_key_values, present)" if LOGITS in outputs else f"{LOGITS} or {HIDDEN}"
            ),
            hint="export it with its cache, or give the Hugging Face model",
            code="NOT_EXPRESSIBLE",
        )
    if len(outputs[LOGITS][1]) == 2:
        return CLASSES
    return MASKED if outputs[LOGITS][1][-1] == config.get("vocab_size") else TOKEN_CLASSES


def precision_of(checkpoint: Checkpoint) -> str:
    """What transformers.js calls a model's precision, by its operations and types."""
    graph = checkpoint.graph or Graph(())
    ops = {node.op for node in graph.nodes}
    if _NBITS in ops or _GATHERED in ops:
        bits = min(_bits(graph), default=4)
        half = DType.FLOAT16 in set(_scale_types(checkpoint, graph))
        return _BITS.get(bits, "q4") + ("f16" if half and bits < 8 else "")
    if _BNB4 in ops:
        return "bnb4"
    if ops.intersection(_DYNAMIC) or "DequantizeLinear" in ops:
        types = {holder.type for holder in model_of(checkpoint).holders.values()}
        return "q4" if types & _FOUR_BITS else "q8"
    sizes = {DType.FLOAT32: 0, DType.FLOAT16: 0}
    for tensor in checkpoint.tensors.values():
        if tensor.dtype in sizes:
            sizes[tensor.dtype] += tensor.nbytes
    return "fp16" if sizes[DType.FLOAT16] > sizes[DType.FLOAT32] else "fp32"


def _bits(graph: Graph) -> Iterator[int]:
    for node in graph.nodes:
        bits = node.attributes.get("bits")
        if node.op in (_NBITS, _GATHERED) and isinstance(bits, int):
            yield bits


def _scale_types(checkpoint: Checkpoint, graph: Graph) -> Iterator[DType | None]:
    holders = model_of(checkpoint).holders
    for node in graph.nodes:
        if node.op in (_NBITS, _GATHERED):
            holder = holders.get(node.inputs[2])
            yield None if holder is None else DTYPES.get(holder.type)


def graph_notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What a reader should know of a graph's operations."""
    ops = {node.op for node in (checkpoint.graph or Graph(())).nodes}
    notes: list[str] = []
    if _GROUPED in ops:
        notes.append(
            "the graph's attention (GroupQueryAttention) is wrong for texts of several lengths in "
            "one batch, which transformers.js pads on the left: ask one at a time, or export the "
            "Hugging Face model"
        )
    if _GATHERED in ops:
        notes.append(
            "the embedding is quantised (GatherBlockQuantized): transformers.js has no operation "
            "for it on WASM, only on WebGPU"
        )
    return tuple(notes)


def weight_sizes(checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes of every stored tensor of two dimensions or more, by name."""
    return {n: t.nbytes for n, t in checkpoint.tensors.items() if len(t.shape) > 1}


def data_of(checkpoint: Checkpoint) -> set[str]:
    """Names of the files beside a model that hold its tensors."""
    model = model_of(checkpoint)
    stored = {holder.stored.source for holder in model.holders.values() if holder.stored}
    return {one.path.name for one in stored - {model.source} if isinstance(one, SourceFile)}
