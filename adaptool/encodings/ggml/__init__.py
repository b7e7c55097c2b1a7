"""The block encodings of ggml, which GGUF files are made of.

A block of 32 or 256 values that follow each other in a row is stored as small integers and one or
two scales; the K types divide a block further and store the scales of its parts as integers too.
Values are read exactly as ggml reads them. Written blocks are as good as ggml's or better by the
root mean square error; they are byte for byte ggml's only where it makes no search.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from adaptool.encodings.ggml.types import NAMED, TYPES, GgmlType
from adaptool.errors import IncompatibleError

if TYPE_CHECKING:
    import torch

    from adaptool.encodings.ggml.blocks import Scheme

__all__ = ["ENCODABLE", "TYPES", "GgmlEncoding", "GgmlType", "can_encode", "encoding"]

ENCODABLE = frozenset(one.name for one in TYPES.values() if one.home not in ("", None, "reference"))
"""Names of the types that can be written."""


@dataclass(frozen=True, slots=True)
class GgmlEncoding:
    """A ggml type as an `Encoding`; torch is imported when values are wanted."""

    type: GgmlType

    @property
    def name(self) -> str:
        """As ggml spells it: "Q4_K"."""
        return self.type.name

    @property
    def block(self) -> int:
        """Values of one block."""
        return self.type.block

    @property
    def size(self) -> int:
        """Bytes of one block."""
        return self.type.size

    def decode(self, packed: torch.Tensor) -> torch.Tensor:
        """uint8 [n * size] -> float32 [n * block], exactly the values that ggml reads."""
        blocks = packed.reshape(packed.numel() // self.size, self.size)
        return self._scheme().unpack(blocks).reshape(-1)

    def encode(self, values: torch.Tensor, importance: torch.Tensor | None = None,
               noise: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
        """Float32 [rows, width] -> uint8 [rows * width / block * size]; see `Encoding.encode`.

        Values must be finite; what becomes of a block that has others is not defined.

        Raises:
            IncompatibleError: the type cannot be written, `width` is not a multiple of its block,
                or a value is too large for its half-precision scales.
        """
        from adaptool.encodings.ggml.blocks import encode_rows

        scheme = self._scheme()
        if scheme.pack is None and scheme.pack_lying is None:
            raise IncompatibleError(
                f"{self.name} can be read but not written",
                hint="Choose a type that can be written, for example Q4_K.",
                code="ENCODING_READ_ONLY",
            )
        if values.shape[1] % self.block:
            raise IncompatibleError(
                f"rows of {values.shape[1]} values do not divide into {self.name}'s blocks of "
                f"{self.block}",
                hint="Choose a type with smaller blocks, Q8_0 or F16.",
                code="ENCODING_BLOCK",
            )
        return encode_rows(scheme, self.block, values, importance, noise)

    def _scheme(self) -> Scheme:
        module = import_module(f"{__name__}.{self.type.home}")
        scheme: Scheme = module.SCHEMES[self.name]
        return scheme


def encoding(name: str | int) -> GgmlEncoding:
    """The encoding of that name ("Q4_K") or number (12).

    Raises:
        IncompatibleError: there is no such type, its values are stored as they are (F16), or
            nobody can read its values (Q8_K, which never leaves a computation).
    """
    found = TYPES.get(name) if isinstance(name, int) else NAMED.get(name)
    if found is None:
        raise IncompatibleError(f"ggml type {name} is not known", code="ENCODING_UNKNOWN",
                                hint="The file may come from a newer llama.cpp.")  # fmt: skip
    if not found.home:
        raise IncompatibleError(
            f"ggml type {found.name} is not a block encoding of weights that can be read",
            code="ENCODING_UNKNOWN",
        )
    return GgmlEncoding(found)


def can_encode(name: str) -> bool:
    """Whether blocks of this type can be written."""
    return name in ENCODABLE
