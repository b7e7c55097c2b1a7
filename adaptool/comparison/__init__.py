"""How alike two adapters are: module by module and in total, in the measures of `measures`.

In total a module that one adapter lacks counts as an update that is zero. Of DoRA the directions
B A are compared. Trained copies (heads, norms, token rows) are compared as they are: without the
base nobody knows their difference, so they stay out of the total, and so does what
cannot be compared.
"""

from adaptool.comparison.assembly import Comparison, compare, compare_files
from adaptool.comparison.measures import Meeting

__all__ = ["Comparison", "Meeting", "compare", "compare_files"]
