"""The dtypes of transformers.js, made from a traced graph by ONNX Runtime's own quantisers.

    fp32, fp16          as traced
    q8, int8, uint8     dynamic: weights in 8 bits with one scale per column, embeddings and
                        activations in 8 bits with one scale, computed with integers
    q4, q4f16           MatMulNBits: weights in symmetric 4 bits with one scale per 32 of them
    bnb4                MatMulBnb4: weights in NF4 with one scale per 64 of them

The 4-bit ones leave embeddings as traced: the one operator that holds those in 4 bits
(GatherBlockQuantized) has no kernel in the WASM that transformers.js loads. Of tied embeddings the
head gets a copy, which is quantised like every other weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptool.canonical import DType
from adaptool.errors import UsageError, VerificationError
from adaptool.tracing import COUNT, DATA, INLINE_LIMIT, run_of, save_graph
from adaptool.tracing.silence import silenced

if TYPE_CHECKING:
    import onnx
    import torch


@dataclass(frozen=True)
class Precision:
    """One dtype.

    Attributes:
        suffix: of the graph's file, by which transformers.js finds it.
        traced: the type of the graph that it is made from.
        quantise: changes a graph, given a path that it may use; None if it is the traced one.
    """

    suffix: str
    traced: DType
    quantise: Callable[[onnx.ModelProto, Path], onnx.ModelProto] | None = None


def with_precision(model: Path, name: str, into: Path, *, stem: str = "model") -> Path:
    """Write the graph at `model` to `into/<stem><suffix>.onnx`; weights beyond 1.9 GB beside it.

    Args:
        model: traced in `PRECISIONS[name].traced`, with its weights in it or beside it.
        name: one of `PRECISIONS`.
        into: an existing folder; the graph's own is allowed.
        stem: what the name of the file begins with.

    Returns:
        The file; its weights, if they lie beside it, are in one of the same name with `_data`.

    Raises:
        UsageError: no such dtype.
        VerificationError: what was written is no valid graph, does not run, or its answers are
            farther from those of `model` than zero is. Nothing is left of it.
    """
    import onnx
    import onnx_ir

    if name not in PRECISIONS:
        raise UsageError(f"unknown dtype {name!r}", hint=f"one of: {', '.join(PRECISIONS)}")
    precision = PRECISIONS[name]
    path = into / f"{stem}{precision.suffix}.onnx"
    if precision.quantise is None:
        if path != model:
            save_graph(onnx_ir.load(model), path)
        return path
    try:
        with silenced():  # quantisers log what they do with every node
            quantised = precision.quantise(onnx.load(model), path)
        save_graph(onnx_ir.from_proto(quantised), path)
        _require_likeness(model, path)
    except BaseException:
        for written in (path, path.with_name(path.name + DATA)):
            written.unlink(missing_ok=True)
        raise
    return path


# -- quantisers -----------------------------------------------------------------------------------


_SCRATCH = ("plain", "small")


def _dynamic(kind: str | None) -> Callable[[onnx.ModelProto, Path], onnx.ModelProto]:
    """Integers of 8 bits, signed or not; None for what the kernels of the graph's nodes take."""

    def quantise(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
        import onnx
        import onnx_ir
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.quantization.quant_utils import add_pre_process_metadata

        _turn_constants(model)
        add_pre_process_metadata(model)  # else it logs that it was not asked to
        # Convolutions have kernels for unsigned weights alone.
        convolves = any(node.op_type == "Conv" for node in model.graph.node)
        chosen = kind or ("QUInt8" if convolves else "QInt8")
        size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
        plain, small = (path.with_name(f"{path.stem}.{word}.onnx") for word in _SCRATCH)
        try:
            save_graph(onnx_ir.from_proto(model), plain)
            quantize_dynamic(
                plain,
                small,
                # Further kinds that it knows are wrong for the operators of plain ai.onnx graphs.
                op_types_to_quantize=["MatMul", "Gather", "Conv"],
                weight_type=QuantType[chosen],
                per_channel=True,  # WebGPU has no kernel for it, and lets the CPU do it
                use_external_data_format=size > INLINE_LIMIT,
                extra_options={"MatMulConstBOnly": True, "EnableSubgraph": True},
            )
            found = onnx.load(small)
        finally:
            for word in _SCRATCH:
                for written in path.parent.glob(f"{path.stem}.{word}*"):
                    written.unlink()
        del found.metadata_props[:]
        return found

    return quantise


def _blocks(model: onnx.ModelProto, _path: Path) -> onnx.ModelProto:
    """Four bits, blocks of 32, symmetric; no accuracy level, which kernels of the web lack."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    _turn_constants(model)
    quantiser = MatMulNBitsQuantizer(
        model, bits=4, block_size=32, is_symmetric=True, op_types_to_quantize=("MatMul",)
    )
    quantiser.process()
    found: onnx.ModelProto = quantiser.model.model
    return found


def _normal_floats(model: onnx.ModelProto, _path: Path) -> onnx.ModelProto:
    """NF4, blocks of 64 as bitsandbytes has them."""
    from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer

    _turn_constants(model)
    quantiser = MatMulBnb4Quantizer(model, MatMulBnb4Quantizer.NF4, block_size=64)
    quantiser.process()
    found: onnx.ModelProto = quantiser.model.model
    return found


def _turn_constants(model: onnx.ModelProto) -> None:
    """Replace each Transpose of a weight by the turned weight, which a quantiser can see."""
    from onnx import numpy_helper

    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    turning = [
        node for node in graph.node if node.op_type == "Transpose" and node.input[0] in weights
    ]
    for node in turning:
        axes = next((list(one.ints) for one in node.attribute if one.name == "perm"), None)
        values = numpy_helper.to_array(weights[node.input[0]]).transpose(axes)
        graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for name in {node.input[0] for node in turning} - used:
        graph.initializer.remove(weights[name])


PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision("", DType.FLOAT32),
    "fp16": Precision("_fp16", DType.FLOAT16),
    "q8": Precision("_quantized", DType.FLOAT32, _dynamic(None)),
    "int8": Precision("_int8", DType.FLOAT32, _dynamic("QInt8")),
    "uint8": Precision("_uint8", DType.FLOAT32, _dynamic("QUInt8")),
    "q4": Precision("_q4", DType.FLOAT32, _blocks),
    "q4f16": Precision("_q4f16", DType.FLOAT16, _blocks),
    "bnb4": Precision("_bnb4", DType.FLOAT32, _normal_floats),
}
"""Every dtype, by the name that transformers.js has for it."""


# -- checks ---------------------------------------------------------------------------------------


def _require_likeness(model: Path, path: Path) -> None:
    """Raise VerificationError if the graph at `path` does not answer much as `model` does.

    The error of a sound 8-bit or 4-bit model is a part of its answers; what a broken one says has
    nothing to do with them, which makes an error of more than the answers themselves.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().partition("\n")[0]
        raise VerificationError(f"{path.name}: {reason}", code="GRAPH_BROKEN") from None
    inputs = _probe(model)
    wanted, found = run_of(model)(inputs), run_of(path)(inputs)
    for name in (name for name in wanted if not name.startswith("present.")):
        one, other = wanted[name].double(), found[name].double()
        off = float((other - one).norm() / one.norm())
        if not off < 1:
            raise VerificationError(
                f"{path.name}: {name} is off by {off:.2g} of itself, so the weights do not bear"
                " this dtype",
                hint="choose one with more bits",
                code="QUANTISED_BEYOND_USE",
            )


def _probe(model: Path) -> dict[str, torch.Tensor]:
    """Rows of tokens, an empty cache, and noise for what else there is."""
    import onnx_ir
    import torch

    known = {"batch_size": 4, "sequence_length": 16, "total_sequence_length": 16}
    noise = torch.Generator().manual_seed(0)
    found = {}
    for value in onnx_ir.load(model).graph.inputs:
        shape = [size if isinstance(size, int) else known.get(str(size.value), 0)
                 for size in value.shape or ()]  # fmt: skip
        dtype = torch.float16 if value.dtype == onnx_ir.DataType.FLOAT16 else torch.float32
        found[str(value.name)] = torch.randn(shape, generator=noise).to(dtype)
    columns = torch.arange(16).expand(4, 16).contiguous()
    known_rows = {
        "input_ids": (columns + 5 * torch.arange(4).unsqueeze(1)) % 16,
        "position_ids": columns,
        "attention_mask": torch.ones_like(columns),
        "token_type_ids": torch.zeros_like(columns),
        COUNT: torch.tensor(0),
    }
    return {name: known_rows.get(name, values) for name, values in found.items()}
