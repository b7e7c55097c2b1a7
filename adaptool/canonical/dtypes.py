"""Element types, by torch's names, without importing torch."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from adaptool.errors import UsageError

if TYPE_CHECKING:
    import torch


class DType(StrEnum):
    """One element type; the value is torch's name for it."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT8_E4M3 = "float8_e4m3fn"
    FLOAT8_E5M2 = "float8_e5m2"
    FLOAT8_E4M3FNUZ = "float8_e4m3fnuz"
    FLOAT8_E5M2FNUZ = "float8_e5m2fnuz"
    FLOAT8_E8M0 = "float8_e8m0fnu"
    FLOAT6_E2M3 = "float6_e2m3"
    FLOAT6_E3M2 = "float6_e3m2"
    FLOAT4 = "float4_e2m1fn"
    COMPLEX64 = "complex64"
    INT64 = "int64"
    INT32 = "int32"
    INT16 = "int16"
    INT8 = "int8"
    UINT64 = "uint64"
    UINT32 = "uint32"
    UINT16 = "uint16"
    UINT8 = "uint8"
    BOOL = "bool"

    @property
    def bits(self) -> int:
        """Bits per element."""
        return _BITS[self]

    @property
    def is_floating(self) -> bool:
        """Whether weights of this type can be merged: a real number with at least 8 bits."""
        return self in _MERGEABLE

    @property
    def torch(self) -> torch.dtype:
        """The torch type of the same name."""
        import torch as _torch

        found = getattr(_torch, self.value)
        if not isinstance(found, _torch.dtype):
            raise TypeError(self.value)
        return found

    def nbytes(self, count: int) -> int:
        """Bytes of `count` elements, packed; a fraction of a byte rounds up."""
        return (count * self.bits + 7) // 8


_BITS = {
    DType.FLOAT64: 64, DType.INT64: 64, DType.UINT64: 64, DType.COMPLEX64: 64,
    DType.FLOAT32: 32, DType.INT32: 32, DType.UINT32: 32,
    DType.FLOAT16: 16, DType.BFLOAT16: 16, DType.INT16: 16, DType.UINT16: 16,
    DType.FLOAT8_E4M3: 8, DType.FLOAT8_E5M2: 8, DType.FLOAT8_E4M3FNUZ: 8,
    DType.FLOAT8_E5M2FNUZ: 8, DType.FLOAT8_E8M0: 8, DType.INT8: 8, DType.UINT8: 8, DType.BOOL: 8,
    DType.FLOAT6_E2M3: 6, DType.FLOAT6_E3M2: 6, DType.FLOAT4: 4,
}  # fmt: skip

_MERGEABLE = frozenset({
    DType.FLOAT64, DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16,
    DType.FLOAT8_E4M3, DType.FLOAT8_E5M2, DType.FLOAT8_E4M3FNUZ, DType.FLOAT8_E5M2FNUZ,
})  # fmt: skip


SHORT_NAMES = {
    "f64": DType.FLOAT64, "f32": DType.FLOAT32, "f16": DType.FLOAT16, "bf16": DType.BFLOAT16,
}  # fmt: skip
"""What people call the types that factors and weights are written in."""


def dtype_named(name: str) -> DType | None:
    """The floating-point type of that short or full name; None if it is none of these."""
    text = name.lower()
    found = SHORT_NAMES.get(text)
    return found or next((dtype for dtype in SHORT_NAMES.values() if dtype == text), None)


def element_type(name: str) -> DType:
    """The same. Raises UsageError for any other name."""
    found = dtype_named(name)
    if found is None:
        raise UsageError(f"unknown type {name!r}", hint=f"one of: {', '.join(SHORT_NAMES)}")
    return found
