"""Random numbers that depend on where they are used, not on when.

A value's number follows from the seed and the value's position alone, so a result is the same
however the work was cut into blocks and threads, on a CPU or a GPU.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def seed_of(*parts: object) -> int:
    """A signed 64-bit seed from anything that has a text."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def uniform(seed: int, start: int, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Float32 [count] in [0, 1): the numbers of positions start, start + 1, ...

    The generator is SplitMix64 (Steele, Lea and Flood 2014), with the position as its state.
    """
    import torch

    state = torch.arange(start + 1, start + 1 + count, dtype=torch.int64, device=device)
    state.mul_(_GAMMA).add_(seed)
    state = _mixed(state, 30).mul_(_FIRST)
    state = _mixed(state, 27).mul_(_SECOND)
    state = _mixed(state, 31)
    return (state >> 40).bitwise_and_(0xFFFFFF).to(torch.float32).mul_(2.0**-24)


def _mixed(state: torch.Tensor, shift: int) -> torch.Tensor:
    """X ^ (x >> shift), with a logical shift of a signed number."""
    import torch

    high = (state >> shift).bitwise_and_((1 << (64 - shift)) - 1)
    return torch.bitwise_xor(state, high, out=high)
