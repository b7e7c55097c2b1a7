"""An adapter of large ranks -> one of small ranks, as close to it as ranks allow.

Ranks are chosen from the singular values of all modules (`ranks`), and each update is cut to its
rank by the QR of both factors and the SVD of the small core (`canonical.algebra`): the best
approximation there is, and the dense update is never formed.

Of a DoRA update the direction B A is cut and the magnitude stays: it is the norm of the rows of the
result, so those norms stay exact. Stacked experts share one rank and are cut one by one. What is
not low-rank (trained heads, biases, token rows, the copy of a resized embedding) passes through.
"""

from adaptool.reduction.assembly import Reduction, Row, plan_reduction, reduce

__all__ = ["Reduction", "Row", "plan_reduction", "reduce"]
