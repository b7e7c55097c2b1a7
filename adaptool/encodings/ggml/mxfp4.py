"""MXFP4: 32 values in E2M1 with one shared power of two (OCP Microscaling Formats v1.0, 5.3).

Bytes of a block: the exponent, 16 of nibbles. Source: ggml-common.h, block_mxfp4.
"""

from __future__ import annotations

import torch

from adaptool.encodings.ggml.blocks import Blocks, Scheme, lay
from adaptool.encodings.ggml.packing import pack_nibbles, unpack_nibbles

_SPAN = 16
_SIZES = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""Twice the eight sizes of E2M1; the fourth bit is the sign."""
_BIAS = 128
"""Of the exponent: 127, and one for the doubled sizes."""


def _unpack(packed: torch.Tensor) -> torch.Tensor:
    levels = torch.tensor((*_SIZES, *(-size for size in _SIZES)), device=packed.device)
    indices = unpack_nibbles(packed[:, 1:], _SPAN).to(torch.int32)
    values = levels.index_select(0, indices.view(-1)).view(indices.shape)
    exponents = packed[:, :1].to(torch.int32) - _BIAS
    return values.mul_(torch.ldexp(torch.ones_like(exponents, dtype=torch.float32), exponents))


def _pack(blocks: Blocks) -> torch.Tensor:
    values = blocks.values
    largest = values.abs().amax(0)
    exponents = (largest.log2().floor_() - 2 + 127).clamp_(0, 254)  # log2(0) ends as 0
    steps = torch.ldexp(torch.ones_like(largest), exponents.to(torch.int32) - _BIAS)
    sizes = values.abs() / steps
    # where a size lies among the eight, as a fraction of the way from one to the next
    positions = (
        sizes.clamp(max=4) + (sizes - 4).clamp_(0, 4) / 2 + (sizes - 8).clamp_(0, 4) / 4
    )  # fmt: skip
    if blocks.noise is None:
        indices = positions.sub_(0.5).ceil_()  # of two equally near the smaller, as ggml
    else:
        indices = positions.add_(blocks.noise).floor_()
    indices = indices.clamp_(0, 7)
    indices += ((values < 0) & (indices > 0)) * 8.0
    return lay(torch.cat((exponents.to(torch.uint8).unsqueeze(0), pack_nibbles(indices, _SPAN))))


SCHEMES = {"MXFP4": Scheme(_unpack, _pack)}
