"""Small graphs made by hand, and ONNX Runtime's own quantisers applied to them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
    QuantFormat,
)

logging.disable(logging.INFO)
IN, OUT, WORDS = 96, 72, 50
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64

Quantise = Callable[[onnx.ModelProto, Path], onnx.ModelProto]


def numbers(seed: int, *shape: int, spread: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32)


def wrapped(nodes: list, weights: dict[str, np.ndarray], **kinds: tuple) -> onnx.ModelProto:
    """A model of these nodes from `x` (or `ids`) to `y`."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(n, *k) for n, k in kinds.items() if n != "y"],
        [helper.make_tensor_value_info("y", *kinds["y"])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def words(linear: np.ndarray, embedding: np.ndarray) -> onnx.ModelProto:
    """Y = tanh(embedding[ids]) @ linear, with linear [IN, OUT]."""
    nodes = [
        helper.make_node("Gather", ["E", "ids"], ["e"], name="/embed/Gather"),
        helper.make_node("Tanh", ["e"], ["x"], name="/act/Tanh"),
        helper.make_node("MatMul", ["x", "W"], ["y"], name="/fc/MatMul"),
    ]
    return wrapped(nodes, {"E": embedding, "W": linear}, ids=(INT64, ["n"]), y=(FLOAT, ["n", OUT]))


def blocks(bits: int, group: int, *, symmetric: bool, form: QuantFormat = QuantFormat.QOperator,
           kinds: tuple[str, ...] = ("MatMul",)) -> Quantise:  # fmt: skip
    def quantise(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
        config = DefaultWeightOnlyQuantConfig(
            block_size=group, is_symmetric=symmetric, bits=bits, quant_format=form,
            op_types_to_quantize=kinds,
        )  # fmt: skip
        quantiser = MatMulNBitsQuantizer(model, algo_config=config)
        quantiser.process()
        return quantiser.model.model

    return quantise


def dynamic(**options: object) -> Quantise:
    def quantise(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
        onnx.save(model, folder / "plain.onnx")
        quantize_dynamic(folder / "plain.onnx", folder / "quantised.onnx", **options)
        return onnx.load(folder / "quantised.onnx")

    return quantise


class Calibration(CalibrationDataReader):
    def __init__(self) -> None:
        self.batches = [{"ids": np.arange(5)}]

    def get_next(self) -> dict | None:
        return self.batches.pop() if self.batches else None


def static(**options: object) -> Quantise:
    def quantise(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
        onnx.save(model, folder / "plain.onnx")
        quantize_static(folder / "plain.onnx", folder / "quantised.onnx", Calibration(), **options)
        return onnx.load(folder / "quantised.onnx")

    return quantise


def bnb(code: int) -> Quantise:
    def quantise(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
        quantiser = MatMulBnb4Quantizer(model, code, 32)
        quantiser.process()
        return quantiser.model.model

    return quantise


QDQ = QuantFormat.QDQ
SCHEMES: dict[str, Quantise] = {
    **{
        f"MatMulNBits {bits} bits {group} {'symmetric' if s else 'asymmetric'}":
            blocks(bits, group, symmetric=s)
        for bits in (2, 4, 8) for group in (16, 32, 64) for s in (True, False)
    },
    "GatherBlockQuantized": blocks(4, 32, symmetric=True, kinds=("MatMul", "Gather")),
    "GatherBlockQuantized, three zero points in a row":
        blocks(4, 32, symmetric=False, kinds=("MatMul", "Gather")),
    "QDQ int4": blocks(4, 32, symmetric=True, form=QDQ),
    "QDQ uint4, two groups": blocks(4, 64, symmetric=False, form=QDQ),
    "dynamic": dynamic(),
    "dynamic, 7 bits": dynamic(reduce_range=True),
    "dynamic, uint8": dynamic(weight_type=QuantType.QUInt8),
    "dynamic, by column": dynamic(per_channel=True),
    "static": static(),
    "static, by column": static(per_channel=True),
    "nf4": bnb(1),
    "fp4": bnb(0),
}  # fmt: skip
"""Every scheme by the quantiser of ONNX Runtime's that makes it."""


def run(path: Path, **feeds: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options).run(None, feeds)[0]


def stored(model: onnx.ModelProto | Path) -> dict[str, bytes]:
    """Every initializer's bytes."""
    loaded = onnx.load(model) if isinstance(model, Path) else model
    return {t.name: numpy_helper.to_array(t).tobytes() for t in loaded.graph.initializer}
