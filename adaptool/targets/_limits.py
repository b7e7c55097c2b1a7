"""What browsers hold: limits as data, and what a model meets of them.

Sources: ECMAScript leaves the length of an ArrayBuffer to the engine, and Chromium and Firefox end
at 2 GiB and a little beyond; a WebAssembly memory with 32-bit addresses ends at 65,536 pages
(WebAssembly core specification, limits); WebGPU guarantees `maxStorageBufferBindingSize` of 128 MiB
and `maxBufferSize` of 256 MiB (W3C WebGPU, 3.6.2), and devices offer more.
"""

from __future__ import annotations

from collections.abc import Mapping

from adaptool.errors import IncompatibleError, UsageError

MIB, GIB = 1 << 20, 1 << 30
FILE = 2 * 10**9
"""Bytes of the largest file that every browser takes as one ArrayBuffer."""
WASM_MEMORY = 4 * GIB
"""Bytes of the largest memory that a module with 32-bit addresses has."""
WASM_ROOM = GIB // 2
"""Bytes of it that are left for the runtime, activations and the cache, by rule of thumb."""
GPU_BINDING = 128 * MIB
"""Bytes of one weight that every WebGPU device binds."""
USUAL_GPU_BINDING = GIB
"""The same on most computers; many end at 2 GiB, phones earlier."""


def checked_part_size(wanted: int | None, usual: int) -> int:
    """Bytes per file at most. Raises UsageError for a number that no browser would load."""
    if wanted is None:
        return usual
    if not 0 < wanted < FILE:
        raise UsageError(
            f"parts of {wanted} bytes: browsers hold a file in one array of less than 2 GB",
            hint="a smaller --part-size, such as 512MB",
        )
    return wanted


def refuse_large_files(sizes: Mapping[str, int], hint: str) -> None:
    """Raise IncompatibleError for a file that no browser holds; `hint` says what to do."""
    for name, size in sizes.items():
        if size >= FILE:
            raise IncompatibleError(
                f"{name}: {size} bytes, and browsers hold a file in one array of less than 2 GB",
                hint=hint,
                code="FILE_TOO_LARGE",
            )


def memory_notes(nbytes: int, what: str = "the model") -> tuple[str, ...]:
    """What a model's bytes mean for WebAssembly; `what` names it."""
    size = f"{what} has {nbytes / GIB:.1f} GiB"
    if nbytes > WASM_MEMORY - WASM_ROOM:
        return (f"{size}: it does not load on WASM, whose memory ends at 4 GiB",)
    if nbytes > WASM_MEMORY // 2:
        return (f"{size}: on WASM it needs most of the 4 GiB there are; phones have less",)
    return ()


def binding_notes(sizes: Mapping[str, int]) -> tuple[str, ...]:
    """What the largest weight means for WebGPU; `sizes` are bytes by name."""
    if not sizes:
        return ()
    name = max(sizes, key=lambda one: sizes[one])
    size = sizes[name]
    if size <= GPU_BINDING:
        return ()
    which = "most devices" if size > USUAL_GPU_BINDING else "some devices"
    note = (f"{name} has {size / MIB:.0f} MiB: {which} do not bind as much on WebGPU "
            "(maxStorageBufferBindingSize), and need WASM or a smaller dtype")  # fmt: skip
    return (note,)
