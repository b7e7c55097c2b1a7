"""The group quantisation of MLC LLM, as WebLLM's compiled libraries read it.

A row is cut into groups of 32 or 40 values that share a scale: value = (code - top) * scale, codes
of 4 or 3 bits packed into 32-bit words. Codes lie in a tensor `q_weight`, scales in `q_scale`.
Written values are, bit for bit, those of MLC's own converter; a search for better scales, which
every library reads just as well, is there to be asked for.
"""

from adaptool.encodings.mlc.casting import plain
from adaptool.encodings.mlc.ledger import Ledger
from adaptool.encodings.mlc.schemes import SCHEMES, Scheme
from adaptool.encodings.mlc.streams import decoded, quantised

__all__ = ["SCHEMES", "Ledger", "Scheme", "decoded", "plain", "quantised"]
