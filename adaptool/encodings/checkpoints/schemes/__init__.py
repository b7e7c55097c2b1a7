"""A scheme is a file here, named as `quantization_config` names its method (with _ for -).

It offers the two members of `Scheme`; nothing else is edited to add one.
"""

from collections.abc import Iterator
from typing import Protocol

from adaptool.encodings.checkpoints.stock import Stock
from adaptool.encodings.checkpoints.weights import StoredWeight


class Scheme(Protocol):
    """What a module of this folder offers."""

    SIDES: tuple[str, ...]
    """Endings of the names of what is stored beside codes: a tensor that is left with one
    belongs to no weight, and is refused."""

    @staticmethod
    def find(stock: Stock) -> Iterator[StoredWeight]:
        """Every quantised weight of a checkpoint, its parts taken from the stock.

        Raises:
            CorruptInputError: parts are missing, or contradict each other.
            IncompatibleError: a variant of the scheme that is not read here.
        """
        ...
