"""A number that a tensor of one element holds, read without loading torch."""

from __future__ import annotations

import struct
from math import isfinite

from adaptool.canonical import DType, LazyTensor
from adaptool.tuners import Parts

_CODES = {
    DType.FLOAT64: "<d", DType.FLOAT32: "<f", DType.FLOAT16: "<e",
    DType.INT64: "<q", DType.INT32: "<i", DType.INT16: "<h", DType.INT8: "<b", DType.UINT8: "<B",
    DType.BOOL: "<?",
}  # fmt: skip
_LARGEST = 1e30


def scalar(parts: Parts, role: str) -> float | None:
    """Take a tensor of one element and read it; None if there is no such tensor.

    Raises CorruptInputError if it has more elements, or is no sensible number.
    """
    tensor = parts.tensors.pop(role, None)
    if tensor is None:
        return None
    if tensor.count != 1:
        raise parts.corrupt(f"{role} is {list(tensor.shape)}, expected one number")
    number = _number(tensor)
    if number is None or not isfinite(number) or abs(number) > _LARGEST:
        raise parts.corrupt(f"{role} is {number} of type {tensor.dtype}, expected a number")
    return number


def _number(tensor: LazyTensor) -> float | None:
    stored, code = tensor.stored, _CODES.get(tensor.dtype)
    if stored is None or (code is None and tensor.dtype is not DType.BFLOAT16):
        return None
    raw = bytearray(stored.size)
    stored.source.read_into(stored.offset, memoryview(raw))
    if code is None:  # bfloat16 is the upper half of a float32
        code, raw = "<f", bytearray(2) + raw
    return float(struct.unpack(code, raw)[0])
