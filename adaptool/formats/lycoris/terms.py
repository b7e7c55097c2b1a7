"""What PEFT's configuration would say of LoHa and LoKr: the two algorithms that both have.

PEFT creates a module's tensors from the configuration and the weight's shape, so a LoKr that was
split otherwise than PEFT splits, or a rank from which PEFT would choose another form, has no
configuration; nor has a file of several algorithms.  Such adapters can be merged, not rewritten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from math import ceil

from adaptool.canonical import Site, Update
from adaptool.errors import JSON
from adaptool.tuners.loha import Hadamard
from adaptool.tuners.lokr import Kronecker

_ONE, _TWO, _CORE = "lokr_w1", "lokr_w2", "lokr_t2"


def peft_terms(updates: Mapping[Site, Update]) -> dict[str, JSON]:
    """A configuration with modules as the sites name them; empty if PEFT has no such adapter."""
    kinds = {type(update) for update in updates.values()}
    if kinds == {Hadamard}:
        return _hadamard({s.module: u for s, u in updates.items() if isinstance(u, Hadamard)})
    if kinds == {Kronecker}:
        return _kronecker({s.module: u for s, u in updates.items() if isinstance(u, Kronecker)})
    return {}


def _hadamard(updates: Mapping[str, Hadamard]) -> dict[str, JSON]:
    ranks = {module: u.tensors["hada_w1_b"].shape[0] for module, u in updates.items()}
    alphas = {module: u.scaling * ranks[module] for module, u in updates.items()}
    cored = any("hada_t1" in u.tensors for u in updates.values())
    return {**_common("LOHA", ranks, alphas), "use_effective_conv2d": cored}


def _kronecker(updates: Mapping[str, Kronecker]) -> dict[str, JSON]:
    both = any(f"{_ONE}_a" in u.tensors for u in updates.values())
    factor = _factor(list(updates.values()))
    ranks = {module: _rank(u, both=both) for module, u in updates.items()}
    found = {module: rank for module, rank in ranks.items() if rank is not None}
    if factor is None or len(found) < len(ranks):
        return {}
    alphas = {module: u.scaling * found[module] for module, u in updates.items()}
    return {
        **_common("LOKR", found, alphas),
        "decompose_both": both,
        "decompose_factor": factor,
        "use_effective_conv2d": any(_CORE in u.tensors for u in updates.values()),
    }


def _common(
    peft_type: str, ranks: Mapping[str, int], alphas: Mapping[str, float]
) -> dict[str, JSON]:
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": peft_type,
        "r": rank,
        "alpha": alpha,
        "rank_pattern": {module: r for module, r in ranks.items() if r != rank},
        "alpha_pattern": {module: a for module, a in alphas.items() if a != alpha},
        "target_modules": [*ranks],
        "inference_mode": True,
    }


# -- how PEFT would split a weight ----------------------------------------------------------------


def _sizes(update: Kronecker) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of w1, and of w2 without the kernel where the tensors tell it apart."""
    whole, core = update.tensors.get(_TWO), update.tensors.get(_CORE)
    if whole is not None:
        return update.one, (whole.shape[0], whole.shape[1])
    if core is not None:
        return update.one, (update.two[0], update.tensors[f"{_TWO}_b"].shape[1])
    return update.one, update.two


def _factor(updates: list[Kronecker]) -> int | None:
    """The `decompose_factor` that splits all weights as they are split."""
    sizes = [_sizes(update) for update in updates]
    pairs = {pair for one, two in sizes for pair in zip(one, two, strict=True)}
    tried = [-1, *sorted({number for pair in pairs for number in pair})]
    return next((f for f in tried if all(_split(a * b, f) == (a, b) for a, b in pairs)), None)


def _split(size: int, factor: int) -> tuple[int, int]:
    """`size` as PEFT's and LyCORIS' factorization splits it: the smaller number first.

    A factor that divides it is taken; else the most even split whose smaller number is at most the
    factor (-1: any).
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = size if factor < 0 else factor
    small = next(n for n in range(min(limit, int(size**0.5) + 1), 0, -1) if _divides(n, size))
    return small, size // small


def _divides(number: int, size: int) -> bool:
    return size % number == 0 and number <= size // number


def _rank(update: Kronecker, *, both: bool) -> int | None:
    """A rank with which PEFT chooses the form that each side has; None if there is none."""
    one, two = _sizes(update)
    limits: list[tuple[Callable[[int], bool], bool]] = [
        (lambda rank: both and rank < max(one) / 2, f"{_ONE}_a" in update.tensors),
        (lambda rank: rank < max(two) / 2, f"{_TWO}_a" in update.tensors),
    ]
    factors = [t.shape[0] for name, t in update.tensors.items() if name.endswith("_b")]
    rank = factors[0] if factors else ceil(max(*one, *two) / 2)
    return rank if all(product(rank) == is_product for product, is_product in limits) else None
