"""Types that are only read, and seldom: by the reference decoders of the gguf package."""

from __future__ import annotations

from functools import partial

import torch

from adaptool.encodings.ggml.blocks import Scheme

_NAMES = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "NVFP4")


def _unpack(name: str, packed: torch.Tensor) -> torch.Tensor:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    values = dequantize(packed.cpu().contiguous().numpy(), GGMLQuantizationType[name])
    return torch.from_numpy(values).to(packed.device)


SCHEMES = {name: Scheme(partial(_unpack, name)) for name in _NAMES}
