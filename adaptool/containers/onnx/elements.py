"""ONNX's numbers of element types (TensorProto.DataType) and what they are here."""

from __future__ import annotations

from adaptool.canonical import DType

STRING = 8

DTYPES = {
    1: DType.FLOAT32, 2: DType.UINT8, 3: DType.INT8, 4: DType.UINT16, 5: DType.INT16,
    6: DType.INT32, 7: DType.INT64, 9: DType.BOOL, 10: DType.FLOAT16, 11: DType.FLOAT64,
    12: DType.UINT32, 13: DType.UINT64, 14: DType.COMPLEX64, 16: DType.BFLOAT16,
    17: DType.FLOAT8_E4M3, 18: DType.FLOAT8_E4M3FNUZ, 19: DType.FLOAT8_E5M2,
    20: DType.FLOAT8_E5M2FNUZ, 24: DType.FLOAT8_E8M0,
}  # fmt: skip
"""The types whose elements are whole bytes, each with a type of the same name in torch."""

NUMBERS = {dtype: number for number, dtype in DTYPES.items()}

NARROW = {21: ("uint4", 4), 22: ("int4", 4), 23: ("float4e2m1", 4), 25: ("uint2", 2),
          26: ("int2", 2), 27: ("float6e2m3", 6), 28: ("float6e3m2", 6)}  # fmt: skip
"""Types with several elements in a byte: ONNX's name and the bits of one."""

_COMPLEX128 = 15


def nbytes(number: int, count: int) -> int | None:
    """Bytes of so many elements; None for strings and types that are not known."""
    if number in DTYPES:
        return DTYPES[number].nbytes(count)
    if number in NARROW:
        return (count * NARROW[number][1] + 7) // 8
    return 16 * count if number == _COMPLEX128 else None


def type_name(number: int) -> str:
    """The type by torch's name, or ONNX's where torch has none; "" for none."""
    if number in DTYPES:
        return DTYPES[number].value
    if number in NARROW:
        return NARROW[number][0]
    return {STRING: "string", _COMPLEX128: "complex128"}.get(number, "")


def type_number(name: str) -> int | None:
    """The number of a type by the name that `type_name` gives."""
    known = (*DTYPES, *NARROW, STRING, _COMPLEX128)
    return next((number for number in known if type_name(number) == name), None)
