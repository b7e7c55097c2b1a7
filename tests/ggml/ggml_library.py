"""llama.cpp's own quantisers, by ctypes: what the encodings are compared with.

The library comes with the package xllamacpp; nothing of that package itself is used.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest


def is_installed() -> bool:
    """Whether there is a library to compare with."""
    return find_spec("xllamacpp") is not None


@cache
def library() -> ctypes.CDLL:
    """The shared library; skips the calling test where xllamacpp is not installed."""
    spec = find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs xllamacpp")
    folder = Path(spec.submodule_search_locations[0])
    found = ctypes.CDLL(str(next(folder.glob("xllamacpp*.so"))))
    found.ggml_quantize_chunk.restype = ctypes.c_size_t
    found.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
        ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    found.ggml_quantize_init.argtypes = [ctypes.c_int]
    found.ggml_row_size.restype = ctypes.c_size_t
    found.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    return found


def quantize(type_id: int, values: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Float32 [rows, width] -> uint8 [bytes]."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    rows, width = values.shape
    packed = np.zeros(rows * library().ggml_row_size(type_id, width), dtype=np.uint8)
    if importance is not None:
        importance = np.ascontiguousarray(importance, dtype=np.float32)
        assert importance.shape == (width,)
    library().ggml_quantize_init(type_id)
    written = library().ggml_quantize_chunk(
        type_id, values.ctypes.data, packed.ctypes.data, 0, rows, width,
        None if importance is None else importance.ctypes.data,
    )  # fmt: skip
    assert written == packed.size
    return packed


def dequantize(name: str, packed: np.ndarray, count: int) -> np.ndarray:
    """uint8 [bytes] -> float32 [count], by `dequantize_row_<name>`."""
    values = np.empty(count, dtype=np.float32)
    decode = getattr(library(), f"dequantize_row_{name}")
    decode.restype = None
    decode.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    decode(packed.ctypes.data, values.ctypes.data, count)
    return values
