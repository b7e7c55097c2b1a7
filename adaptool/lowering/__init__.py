"""Any adapter -> plain low-rank updates, which every program loads.

What an adapter of another type does to a weight is low-rank exactly (AdaLoRA, LoHa, LoKr, MiSS,
VeRA; with the base at hand also what looks at the weight but adds few directions: HRA, DEFT,
PSOFT), or is of full rank (OFT, (IA)^3, DoRA, FourierFT): then the best approximation of a rank
takes its place, and what that lost is measured. Trained copies of heads and norms stay.

differences   U(W) - W, streamed
candidates    one update: at which rank it is exact, what ranks bring, its factors
sites         what each update of an adapter is: factors, a candidate, or something to keep
assembly      all of them, at the ranks that are asked for
outcome       what it was, and what was lost
"""

from adaptool.lowering.assembly import lower
from adaptool.lowering.outcome import Lowering, Row
from adaptool.lowering.sites import is_plain, needs_base

__all__ = ["Lowering", "Row", "is_plain", "lower", "needs_base"]
