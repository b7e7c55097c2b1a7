"""llama.cpp's own runtime: its C API by ctypes, out of the shared object of `xllamacpp`.

    logits("model.gguf", [5, 7, 9], [("adapter.gguf", 0.5)])      # float32 [3, vocabulary]

Struct layouts are those of llama.h 0.5 and 0.6. `_library` compares the library's own defaults
with what they have to be at these offsets, so that another layout is an error and not noise.
The key-value cache is float32 and flash attention is off: then logits of float32 models agree
with PyTorch's to about 1e-5. llama.cpp aborts the process on some files; `logits_in_child` runs
those where that does no harm.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ctypes import (
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_float,
    c_int,
    c_int8,
    c_int32,
    c_size_t,
    c_uint32,
    c_void_p,
)
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT = 64
"""Longest prompt, in tokens."""

_F32, _F16, _OFF, _AUTO = 0, 1, 0, -1
_WARNING = 3
_log: list[str] = []


class LlamaError(Exception):
    """llama.cpp refused; the message is what it logged."""


class _ModelParams(Structure):
    _fields_ = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int),
        ("load_mode", c_int),
        ("lazy_mode", c_int),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
        ("later_fields", c_int8 * 64),  # whatever a newer version adds at the end
    ]


class _ContextParams(Structure):
    _fields_ = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int),
        ("rope_scaling_type", c_int),
        ("pooling_type", c_int),
        ("attention_type", c_int),
        ("flash_attn_type", c_int),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int),
        ("type_v", c_int),
        ("later_fields", c_int8 * 128),
    ]


class _Batch(Structure):
    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


@ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
def _remember(level: int, text: bytes, _data: None) -> None:
    if level >= _WARNING and text.strip(b".\n"):
        _log.append(text.decode(errors="replace").strip())


def _signatures() -> dict[str, tuple[Any, list[Any]]]:
    return {
        "llama_log_set": (None, [c_void_p, c_void_p]),
        "llama_backend_init": (None, []),
        "llama_model_default_params": (_ModelParams, []),
        "llama_context_default_params": (_ContextParams, []),
        "llama_model_load_from_file": (c_void_p, [c_char_p, _ModelParams]),
        "llama_model_free": (None, [c_void_p]),
        "llama_model_get_vocab": (c_void_p, [c_void_p]),
        "llama_vocab_n_tokens": (c_int32, [c_void_p]),
        "llama_init_from_model": (c_void_p, [c_void_p, _ContextParams]),
        "llama_free": (None, [c_void_p]),
        "llama_adapter_lora_init": (c_void_p, [c_void_p, c_char_p]),
        "llama_set_adapters_lora": (
            c_int32,
            [c_void_p, POINTER(c_void_p), c_size_t, POINTER(c_float)],
        ),
        "llama_decode": (c_int32, [c_void_p, _Batch]),
        "llama_get_logits": (POINTER(c_float), [c_void_p]),
    }


@cache
def _library() -> ctypes.CDLL:
    spec = find_spec("xllamacpp")
    assert spec is not None, "the runtime tests need xllamacpp: pip install xllamacpp"
    (folder,) = spec.submodule_search_locations or ()
    (path,) = Path(folder).glob("xllamacpp*.so")
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in _signatures().items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    context = library.llama_context_default_params()
    found = (context.type_k, context.type_v, context.flash_attn_type, context.defrag_thold)
    assert found == (_F16, _F16, _AUTO, -1.0), f"llama_context_params has another layout: {found}"
    assert library.llama_model_default_params().use_extra_bufts, "llama_model_params changed"
    library.llama_log_set(_remember, None)
    library.llama_backend_init()
    return library


@contextmanager
def _owned(pointer: int | None, free: Any, what: str) -> Iterator[int]:
    if not pointer:
        raise LlamaError(f"{what}: {' | '.join(_log)}")
    try:
        yield pointer
    finally:
        free(pointer)


def logits(
    model: Path | str, tokens: Sequence[int], adapters: Sequence[tuple[Path | str, float]] = ()
) -> np.ndarray:
    """The logits at every position, float32 [tokens, vocabulary].

    Args:
        model: a GGUF model, or the first part of a split one.
        tokens: at most CONTEXT token ids; nothing is put before them.
        adapters: GGUF adapters and their scales.

    Raises:
        LlamaError: llama.cpp does not load the model or an adapter, or cannot compute.
    """
    assert 0 < len(tokens) <= CONTEXT
    library = _library()
    _log.clear()
    options = library.llama_model_default_params()
    settings = library.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = CONTEXT
    settings.n_threads = settings.n_threads_batch = 1
    settings.flash_attn_type = _OFF
    settings.type_k = settings.type_v = _F32
    with ExitStack() as stack:
        pointer = library.llama_model_load_from_file(str(model).encode(), options)
        loaded = stack.enter_context(_owned(pointer, library.llama_model_free, "model"))
        files = [library.llama_adapter_lora_init(loaded, str(p).encode()) for p, _ in adapters]
        if not all(files):
            raise LlamaError(f"adapter: {' | '.join(_log)}")
        pointer = library.llama_init_from_model(loaded, settings)
        context = stack.enter_context(_owned(pointer, library.llama_free, "context"))
        if files:
            count = len(files)
            scales = (c_float * count)(*(scale for _, scale in adapters))
            library.llama_set_adapters_lora(context, (c_void_p * count)(*files), count, scales)
        if code := library.llama_decode(context, _batch(tokens)):
            raise LlamaError(f"decode returned {code}: {' | '.join(_log)}")
        width = library.llama_vocab_n_tokens(library.llama_model_get_vocab(loaded))
        values = library.llama_get_logits(context)
        return np.ctypeslib.as_array(values, shape=(len(tokens), width)).copy()


def _batch(tokens: Sequence[int]) -> _Batch:
    """One sequence whose every position is an output."""
    count = len(tokens)
    numbers = c_int32 * count
    sequence = c_int32(0)
    pointers = (POINTER(c_int32) * count)(*[ctypes.pointer(sequence)] * count)
    return _Batch(count, numbers(*tokens), None, numbers(*range(count)), numbers(*[1] * count),
                  pointers, (c_int8 * count)(*[1] * count))  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a child ended: -6 is SIGABRT; `values` are its logits where it ended well."""

    code: int
    output: str
    values: np.ndarray | None


def logits_in_child(
    model: Path | str, tokens: Sequence[int], adapters: Sequence[tuple[Path | str, float]] = ()
) -> Outcome:
    """The same in a process of its own, which may die."""
    asked = json.dumps([str(model), list(tokens), [[str(p), s] for p, s in adapters]])
    child = subprocess.run(
        [sys.executable, __file__, asked],
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # or it starts a debugger
        capture_output=True,
        timeout=60,
        check=False,
    )
    if child.returncode:
        return Outcome(child.returncode, child.stderr.decode(errors="replace"), None)
    values = np.frombuffer(child.stdout, np.float32).reshape(len(tokens), -1)
    return Outcome(0, child.stderr.decode(errors="replace"), values)


if __name__ == "__main__":
    sys.stdout.buffer.write(logits(*json.loads(sys.argv[1])).tobytes())
