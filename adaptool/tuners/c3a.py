"""C3A: a block-circular convolution (arXiv:2407.19342, eq. 4 to 6).

A kernel [out / b, in / b, b] stands for a matrix of circulant blocks:
D[m b + q, n b + j] = kernel[m, n, (j - q) mod b] / in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import Update, Window
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts
from adaptool.tuners._windowed import Part, Windowed

if TYPE_CHECKING:
    import torch

suffixes = ("c3a_kernel",)
shared = ()


@dataclass(frozen=True, kw_only=True)
class Circulant(Windowed):
    """W + D, D of circulant blocks."""

    kind: ClassVar[str] = "circulant"
    peft_type: ClassVar[str] = "C3A"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it is a matrix of that size."""
        high, wide, block = self.tensors["c3a_kernel"].shape
        return shape == (high * block, wide * block)

    def part(self, dtype: torch.dtype, device: torch.device) -> Part:
        """Turns the kernels of the window's rows."""
        import torch

        kernel = self.tensors["c3a_kernel"].values().to(device, dtype)
        _, wide, block = kernel.shape
        kernel = kernel / (wide * block)
        steps = torch.arange(block, device=device)

        def part(window: Window) -> torch.Tensor:
            rows = torch.arange(window.rows.start, window.rows.stop, device=device)
            kernels = kernel[rows // block]
            turned = (steps - (rows % block)[:, None]) % block
            whole = kernels.gather(2, turned[:, None].expand_as(kernels))
            return whole.flatten(1)[:, window.cols]

        return part


def read(parts: Parts, options: Options) -> Mapping[str, Update]:  # noqa: ARG001
    """`c3a_kernel` [out / b, in / b, b]."""
    kernel = parts.need("c3a_kernel", None, None, None)
    return {"weight": Circulant(tensors={"c3a_kernel": kernel})}
