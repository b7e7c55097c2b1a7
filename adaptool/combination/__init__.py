"""Several adapters -> one, site by site.

recipe     what is asked: method, space, rank, seed
blends     low-rank updates of one weight -> one, in the space that is asked for
heads      trained copies, token rows, biases: averaged, kept, or refused
bases      other types, and what looks at the weight, as plain factors first
assembly   all sites of all adapters
"""

from adaptool.combination.assembly import Combination, combine
from adaptool.combination.bases import plain_updates
from adaptool.combination.recipe import SPACES, Recipe
from adaptool.combination.sites import Row

__all__ = ["SPACES", "Combination", "Recipe", "Row", "combine", "plain_updates"]
