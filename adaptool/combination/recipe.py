"""What is asked of a combination."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from adaptool.errors import UsageError
from adaptool.methods import Elementwise, Exact, Method, Settings, method_named, settings_for

SPACES = {
    "delta": "on the updates scaling * B A themselves",
    "factors": "on A and on B separately, as PEFT does; has cross terms, and is not the same",
    "core": "on small matrices in a basis that all share (arXiv:2509.17786); not the same either",
}


@dataclass(frozen=True)
class Recipe:
    """How adapters are combined.

    Attributes:
        method: a name from `adaptool.methods`.
        settings: its parameters; those not given have their defaults.
        space: a key of SPACES; spectral methods live in "delta".
        rank: of the result, at most. None leaves what is of low rank exact, and gives what is not
            (TIES and kin on "delta") the largest rank that went in.
        seed: of random methods.
        factored: the result is an adapter to be written. False leaves blends as they are, exact
            and of full rank, to be merged straight into a model; unless a rank is given.
        keep_heads: position of the adapter whose trained copies are kept where adapters disagree.
    """

    method: str = "linear"
    settings: Mapping[str, str | float] = field(default_factory=dict)
    space: str = "delta"
    rank: int | None = None
    seed: int = 0
    factored: bool = True
    keep_heads: int | None = None

    @cached_property
    def chosen(self) -> tuple[Method, Settings]:
        """The method and all its settings.

        Raises UsageError for anything in the recipe that does not exist or does not go together.
        """
        method = method_named(self.method)
        settings = settings_for(self.method, self.settings)
        if self.space not in SPACES:
            raise UsageError(f"unknown space {self.space!r}; known: {', '.join(SPACES)}")
        if self.space == "factors" and not isinstance(method, Elementwise):
            raise UsageError(
                f"{self.method} works on singular vectors, not on A and B apart",
                hint="leave out --space",
            )
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"rank {self.rank}: a rank is at least 1")
        if isinstance(method, Elementwise) and not isinstance(method, Exact):
            method.rule(settings)  # settings that do not go together
        return method, settings
