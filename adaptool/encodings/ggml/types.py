"""The types of a tensor in ggml: their numbers, names and block sizes.

Source: `enum ggml_type` and the block structures of ggml (ggml.h, ggml-common.h).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from adaptool.canonical.dtypes import DType


@dataclass(frozen=True, slots=True)
class GgmlType:
    """One type: `block` values take `size` bytes.

    Attributes:
        id: its number in a GGUF file.
        name: as ggml spells it in capitals, "Q4_K".
        block: values of one block; 1 where every value stands alone.
        size: bytes of one block.
        home: the module beside this one that reads and writes its blocks; "" where values are
            stored as they are, None where only the size is known.
    """

    id: int
    name: str
    block: int
    size: int
    home: str | None


_ALL = (
    GgmlType(0, "F32", 1, 4, ""),
    GgmlType(1, "F16", 1, 2, ""),
    GgmlType(2, "Q4_0", 32, 18, "legacy"),
    GgmlType(3, "Q4_1", 32, 20, "legacy"),
    GgmlType(6, "Q5_0", 32, 22, "legacy"),
    GgmlType(7, "Q5_1", 32, 24, "legacy"),
    GgmlType(8, "Q8_0", 32, 34, "legacy"),
    GgmlType(9, "Q8_1", 32, 36, None),
    GgmlType(10, "Q2_K", 256, 84, "q2_k"),
    GgmlType(11, "Q3_K", 256, 110, "q3_k"),
    GgmlType(12, "Q4_K", 256, 144, "q4_k"),
    GgmlType(13, "Q5_K", 256, 176, "q4_k"),
    GgmlType(14, "Q6_K", 256, 210, "q6_k"),
    GgmlType(15, "Q8_K", 256, 292, None),
    GgmlType(16, "IQ2_XXS", 256, 66, "reference"),
    GgmlType(17, "IQ2_XS", 256, 74, "reference"),
    GgmlType(18, "IQ3_XXS", 256, 98, "reference"),
    GgmlType(19, "IQ1_S", 256, 50, "reference"),
    GgmlType(20, "IQ4_NL", 32, 18, "iq4"),
    GgmlType(21, "IQ3_S", 256, 110, "reference"),
    GgmlType(22, "IQ2_S", 256, 82, "reference"),
    GgmlType(23, "IQ4_XS", 256, 136, "iq4"),
    GgmlType(24, "I8", 1, 1, ""),
    GgmlType(25, "I16", 1, 2, ""),
    GgmlType(26, "I32", 1, 4, ""),
    GgmlType(27, "I64", 1, 8, ""),
    GgmlType(28, "F64", 1, 8, ""),
    GgmlType(29, "IQ1_M", 256, 56, "reference"),
    GgmlType(30, "BF16", 1, 2, ""),
    GgmlType(34, "TQ1_0", 256, 54, "ternary"),
    GgmlType(35, "TQ2_0", 256, 66, "ternary"),
    GgmlType(39, "MXFP4", 32, 17, "mxfp4"),
    GgmlType(40, "NVFP4", 64, 36, "reference"),
    GgmlType(41, "Q1_0", 128, 18, None),
    GgmlType(42, "Q2_0", 64, 18, None),
)

TYPES: Mapping[int, GgmlType] = MappingProxyType({one.id: one for one in _ALL})
"""Every type by its number."""

NAMED: Mapping[str, GgmlType] = MappingProxyType({one.name: one for one in _ALL})
"""Every type by its name."""

PLAIN: Mapping[str, DType] = MappingProxyType({
    "F64": DType.FLOAT64, "F32": DType.FLOAT32, "F16": DType.FLOAT16, "BF16": DType.BFLOAT16,
})  # fmt: skip
"""Types of weights that are stored value by value, by ggml's name."""

QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION: of the block layouts."""
