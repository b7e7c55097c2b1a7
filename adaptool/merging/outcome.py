"""A merge that will happen when it is written, and what must be true of it then."""

from __future__ import annotations

from dataclasses import dataclass

from adaptool.architectures.speaking import ONNX
from adaptool.canonical import Checkpoint
from adaptool.errors import IncompatibleError
from adaptool.merging.survival import Tally

LEAST_SURVIVAL = 0.5
"""A merge that stores less of the update than this is refused."""


@dataclass(frozen=True)
class Merge:
    """A merge that will happen when its checkpoint is written.

    Attributes:
        checkpoint: the merged model, lazy.
        touched: names of tensors that are computed, replaced or new.
        tally: filled while the checkpoint is written.
        moves: the scale of some adapter is not zero.
        notes: what was decided that a reader should know.
    """

    checkpoint: Checkpoint
    touched: tuple[str, ...]
    tally: Tally
    moves: bool
    notes: tuple[str, ...]

    def verify(self, *, allow_loss: bool = False) -> None:
        """Check, once all is written, that the merge did what it should.

        Raises IncompatibleError if the result equals the base although a scale is not zero, or
        if less than half of the update was stored (unless `allow_loss`).
        """
        measured = self.tally.tensors()  # what is new or resized is not measured, but moved
        if self.moves and not any(n not in measured or measured[n].stored for n in self.touched):
            raise IncompatibleError(
                f"the result would equal the base: none of the {len(self.touched)} touched "
                "tensors changed",
                hint="the adapter is untrained (B is zero), or its update is smaller than the "
                "output type resolves: try --dtype float32",
                code="NOTHING_MERGED",
            )
        kept = self.tally.total().ratio
        if kept is not None and kept < LEAST_SURVIVAL and not allow_loss:
            raise IncompatibleError(
                f"only {kept:.0%} of the update would survive the rounding to "
                f"{', '.join(self._forms())}",
                hint=self._ways_out(),
                code="UPDATE_LOST",
                details={"survival": kept},
            )

    def _forms(self) -> list[str]:
        tensors = self.checkpoint.tensors
        return sorted({tensors[name].kind for name in self.touched})

    def _ways_out(self) -> str:
        if self.checkpoint.container == ONNX:
            return (
                "quantise W + dW once: --base-weights ORIGINAL; or keep touched weights plain: "
                "--dtype f16 or f32; or --rounding stochastic; or let the update run beside the "
                "model: adaptool slots; or --allow-loss"
            )
        if any(self.checkpoint.tensors[name].encoding for name in self.touched):
            return (
                "quantise W + dW once: --base-weights ORIGINAL; or keep touched tensors wider: "
                "--outtype q8_0 or f16; or --rounding stochastic; or keep the adapter separate; "
                "or --allow-loss"
            )
        return "write a wider type: --dtype float32; or --allow-loss"
