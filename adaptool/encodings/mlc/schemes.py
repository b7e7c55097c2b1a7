"""MLC's names of its quantisations, and what they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adaptool.canonical.dtypes import DType

WORD = 32
"""Bits of a word of codes."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """One quantisation of a whole model.

    Attributes:
        name: as MLC spells it: "q4f16_1".
        bits: of a code; 0 where weights stay plain.
        group: values of a row that share a scale; 0 where weights stay plain.
        dtype: what the model computes in, FLOAT16 or FLOAT32.
    """

    name: str
    bits: int
    group: int
    dtype: DType

    @property
    def stored(self) -> DType:
        """What plain weights and scales are stored in: MLC keeps float32 as bfloat16."""
        return DType.FLOAT16 if self.dtype is DType.FLOAT16 else DType.BFLOAT16

    @property
    def per_word(self) -> int:
        """Codes of one word; 3-bit codes leave its two highest bits empty."""
        return WORD // self.bits

    @property
    def top(self) -> int:
        """The code of zero, and the largest size of a level by MLC's rule: 7 or 3."""
        return (1 << self.bits - 1) - 1

    def groups(self, width: int) -> int:
        """Groups of a row of `width` values; the last may be a part of one."""
        return -(-width // self.group)

    def words(self, width: int) -> int:
        """Words of a row of `width` values: of whole groups."""
        return self.groups(width) * self.group // self.per_word


SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("q0f16", 0, 0, DType.FLOAT16),
        Scheme("q0f32", 0, 0, DType.FLOAT32),
        Scheme("q4f16_1", 4, 32, DType.FLOAT16),
        Scheme("q4f32_1", 4, 32, DType.FLOAT32),
        Scheme("q3f16_1", 3, 40, DType.FLOAT16),
    )
}
"""Those that a browser's runtime has compiled libraries for."""
