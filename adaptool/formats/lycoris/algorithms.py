"""The tensors of one module -> what they do to its parameters, algorithm by algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING

from adaptool.canonical import Addition, Applicable, Dora, DType, LazyTensor, LowRank, Update
from adaptool.canonical.tensors import from_recipe
from adaptool.errors import IncompatibleError
from adaptool.formats.lycoris.decompositions import InputDecomposed, OutputDecomposed
from adaptool.formats.lycoris.differences import Difference
from adaptool.formats.lycoris.rotations import RowRotation
from adaptool.formats.lycoris.scalars import scalar
from adaptool.formats.lycoris.shifts import Shifted
from adaptool.tuners import Options, Parts, loha, lokr
from adaptool.tuners.ia3 import InputScaling, OutputScaling
from adaptool.tuners.loha import Hadamard
from adaptool.tuners.lokr import Kronecker

if TYPE_CHECKING:
    import torch

_UP, _DOWN, _MID = "lora_up.weight", "lora_down.weight", "lora_mid.weight"
_ALPHA, _MAGNITUDE = "alpha", "dora_scale"
_BLOCKS, _RESCALE = "oft_blocks", "rescale"
_SHIFTS = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")

_WAY_OUT = "merge it with LyCORIS"

_REFUSED = {
    "q_layer.weight": "T-LoRA, which changes with the step of the diffusion, is no change of a "
    "weight",
    "bias_indices": "a sparse difference of a bias is not read",
    "bm.weight": "GLoRA with a core (bm) is not read",
    "reshape_weight": "an update that resizes its weight is not read",
    "set_weight": "a replaced weight is not read",
}
"""Roles that are known, and why they are refused."""


def update_of(parts: Parts) -> dict[str, Update]:
    """Parameter -> its update; every tensor of `parts` is taken.

    Raises:
        CorruptInputError: tensors are missing, or contradict one another.
        IncompatibleError: a tensor that belongs to no algorithm that is read here.
    """
    for role, reason in _REFUSED.items():
        if parts.has(role):
            raise _unknown(parts, role, reason)
    updates = dict(_READERS[_sign(parts)](parts))
    if parts.has("diff_b"):
        made = Addition if isinstance(updates.get("weight"), LowRank) else Difference
        updates["bias"] = made(parts.need("diff_b", None))
    if parts.tensors:
        role = min(parts.tensors)
        raise _unknown(parts, role, f"{role} belongs to no algorithm that is read here")
    return updates


def algorithm_of(parts: Parts) -> str:
    """Name of the algorithm, as LyCORIS' configuration has it; "dora" for LoRA with magnitudes."""
    sign = _sign(parts)
    if sign in (_UP, _DOWN):
        return "dora" if parts.has(_MAGNITUDE) else "lora"
    if sign == _BLOCKS:
        return "boft" if len(parts.tensors[_BLOCKS].shape) == 4 else "diag-oft"
    return _NAMES[sign]


def _sign(parts: Parts) -> str:
    """The role that tells the algorithm."""
    found = next((sign for sign in _READERS if parts.has(sign)), None)
    if found is None:
        role = min(parts.tensors)
        raise _unknown(parts, role, _REFUSED.get(role, f"{role} alone tells no algorithm"))
    return found


def _unknown(parts: Parts, role: str, reason: str) -> IncompatibleError:
    return IncompatibleError(
        f"{parts.where}: {reason}",
        hint=_WAY_OUT,
        code="UNKNOWN_TENSOR" if role not in _REFUSED else "UNSUPPORTED_VARIANT",
    )


# -- strength and magnitude -----------------------------------------------------------------------


def _strength(parts: Parts, rank: int) -> float:
    """What alpha says for a rank; 1 where it is absent, or 0, which stands for the rank."""
    alpha = scalar(parts, _ALPHA)
    return alpha / rank if alpha else 1.0


def _decomposed(parts: Parts, update: Applicable, height: int) -> Update:
    """The update with the trained norms of the rows, or of the columns, of its result.

    `dora_scale` [out, 1, ...] or [1, in, 1, ...]; PEFT keeps one of a convolution as [1, out, ...].
    """
    magnitude = parts.take(_MAGNITUDE)
    if magnitude is None:
        return update
    tensors = {**update.tensors, _MAGNITUDE: magnitude}
    first, *rest = magnitude.shape or (1,)
    if first == magnitude.count == height:
        if isinstance(update, LowRank):
            kernel = len(update.shape) - 2
            shape = (1, height, *[1] * kernel) if kernel else (height,)
            return Dora(update, magnitude.reshaped(*shape))
        return OutputDecomposed(tensors=tensors, inner=update)
    if first == 1 and rest and rest[0] == magnitude.count:
        return InputDecomposed(tensors=tensors, inner=update)
    raise parts.corrupt(f"{_MAGNITUDE} is {list(magnitude.shape)}, for a weight of {height} rows")


# -- the algorithms -------------------------------------------------------------------------------


def _locon(parts: Parts) -> Mapping[str, Update]:
    """W + alpha / r * up down; with `lora_mid` [r, r, *kernel] between them (Tucker form)."""
    down, up = parts.need(_DOWN), parts.need(_UP)
    rank = down.shape[0] if len(down.shape) > 1 else 0
    if not rank or up.shape[1:2] != (rank,) or prod(up.shape[2:]) != 1:
        raise parts.corrupt(f"{_DOWN} is {list(down.shape)}, {_UP} {list(up.shape)}")
    mid = parts.take(_MID)
    if mid is not None:
        if mid.shape[:2] != (rank, rank) or len(mid.shape) < 3 or prod(down.shape[2:]) != 1:
            raise parts.corrupt(f"{_MID} is {list(mid.shape)}, {_DOWN} {list(down.shape)}")
        down = _cored(mid, down)
    low = LowRank(down, up.reshaped(*up.shape[:2]), _strength(parts, rank))
    return {"weight": _decomposed(parts, low, up.shape[0])}


def _cored(mid: LazyTensor, down: LazyTensor) -> LazyTensor:
    """sum_n mid[m, n, kernel] down[n, in] as one factor [r, in, *kernel]."""
    wide = DType.FLOAT64 in (mid.dtype, down.dtype)
    dtype = DType.FLOAT64 if wide else DType.FLOAT32
    shape = (mid.shape[0], down.shape[1], *mid.shape[2:])
    return from_recipe(shape, dtype, partial(_contract, mid, down, dtype))


def _contract(mid: LazyTensor, down: LazyTensor, dtype: DType) -> torch.Tensor:
    import torch

    flat = down.values().double().flatten(1)
    made = torch.einsum("mn...,nj->mj...", mid.values().double(), flat)
    return made.to(dtype.torch).contiguous()


def _hadamard(parts: Parts) -> Mapping[str, Update]:
    """`hada_*`, of tuners/loha; the kernel of a convolution is flat there."""
    _flatten(parts, "hada_w1_b", "hada_w2_b", core="hada_t1")
    for core in ("hada_t1", "hada_t2"):
        _make_planar(parts, core)
    (update,) = loha.read(parts, _options(parts, 1)).values()
    if not isinstance(update, Hadamard):
        raise TypeError(update.kind)
    a, b = update.tensors["hada_w1_a"], update.tensors["hada_w1_b"]
    update = replace(update, scaling=_strength(parts, b.shape[0]))
    height = a.shape[1 if "hada_t1" in update.tensors else 0]
    return {"weight": _decomposed(parts, update, height)}


def _kronecker(parts: Parts) -> Mapping[str, Update]:
    """`lokr_*`, of tuners/lokr; alpha counts only where one of the two is a product."""
    _flatten(parts, "lokr_w2_b", core="lokr_t2")
    _make_planar(parts, "lokr_t2")
    whole = parts.tensors.get("lokr_w2")
    if whole is not None and len(whole.shape) not in (2, 4):
        _flatten(parts, "lokr_w2")
    factors = [parts.tensors.get(f"lokr_w{side}_b") for side in (2, 1)]
    rank = next((t.shape[0] for t in factors if t is not None and t.shape), None)
    (update,) = lokr.read(parts, _options(parts, rank or 1)).values()
    strength = _strength(parts, rank or 1)
    if not isinstance(update, Kronecker):
        raise TypeError(update.kind)
    update = replace(update, scaling=strength if rank else 1.0)
    return {"weight": _decomposed(parts, update, update.one[0] * update.two[0])}


def _options(parts: Parts, rank: int) -> Options:
    """What a configuration would say, where shapes say the rest."""
    raw = {"r": rank, "alpha": rank}
    return Options(raw, parts.where, lambda _key, _module: None, lambda _key, _module: False)


def _flatten(parts: Parts, *roles: str, core: str | None = None) -> None:
    """Make [rows, ...] a matrix, unless a core holds the kernel."""
    for role in () if core is not None and parts.has(core) else roles:
        tensor = parts.tensors.get(role)
        if tensor is not None and len(tensor.shape) > 2:
            parts.tensors[role] = tensor.reshaped(tensor.shape[0], prod(tensor.shape[1:]))


def _make_planar(parts: Parts, role: str) -> None:
    """See a core [r, r, *kernel] as one of two kernel dimensions, whose order is kept."""
    tensor = parts.tensors.get(role)
    if tensor is not None and len(tensor.shape) > 2:
        rows, cols, first, *rest = tensor.shape
        parts.tensors[role] = tensor.reshaped(rows, cols, first, prod(rest))


def _rotation(parts: Parts) -> Mapping[str, Update]:
    """`oft_blocks` [n, b, b] (diagonal OFT) or [m, n, b, b] (butterfly), `rescale` [out, 1, ...].

    alpha bounds the norm of the generators: at most alpha * out; 0 for no bound.
    """
    blocks = parts.need(_BLOCKS)
    *outer, side, other = blocks.shape if len(blocks.shape) in (3, 4) else (0, 0, 1)
    levels = outer[0] if len(outer) == 2 else 1
    count = outer[-1]
    if side != other:
        raise parts.corrupt(f"{_BLOCKS} is {list(blocks.shape)}, expected squares")
    if len(outer) == 2 and (side % 2 or levels > 32 or count % (1 << (levels - 1))):
        raise parts.corrupt(f"{count} blocks of {side} make no butterfly of {levels} levels")
    tensors = {_BLOCKS: blocks}
    rescale = parts.take(_RESCALE)
    if rescale is not None:
        tensors[_RESCALE] = rescale
        if rescale.count != count * side:
            raise parts.corrupt(f"{_RESCALE} is {list(rescale.shape)}, for {count * side} rows")
    bound = (scalar(parts, _ALPHA) or 0.0) * count * side
    if bound < 0:
        raise parts.corrupt("a negative alpha bounds no norm")
    return {"weight": RowRotation(tensors=tensors, bound=bound or None)}


def _difference(parts: Parts) -> Mapping[str, Update]:
    """`diff` (and `diff_b`): what full training added; alpha beside it means nothing."""
    scalar(parts, _ALPHA)
    return {"weight": Difference(parts.need("diff"))}


def _norm(parts: Parts) -> Mapping[str, Update]:
    """`w_norm` and `b_norm` [channels]: what training added to a norm."""
    roles = {"weight": "w_norm", "bias": "b_norm"}
    return {
        parameter: Difference(parts.need(role, None))
        for parameter, role in roles.items()
        if parts.has(role)
    }


def _generalised(parts: Parts) -> Mapping[str, Update]:
    """`a1` [in, r], `a2` [r, in], `b1` [out, r], `b2` [r, in, *kernel], each `.weight`."""
    tensors = {role: parts.need(role) for role in _SHIFTS}
    a1, a2, b1, b2 = tensors.values()
    rank = a2.shape[0] if a2.shape else 0
    fits = (
        all(len(t.shape) > 1 for t in tensors.values())
        and a1.shape[:2] == a2.shape[1::-1]
        and b1.shape[1] == b2.shape[0] == rank
        and b2.shape[1] == a1.shape[0]
        and prod(a1.shape[2:]) == prod(a2.shape[2:]) == prod(b1.shape[2:]) == 1
    )
    if not fits:
        raise parts.corrupt(", ".join(f"{role} {list(t.shape)}" for role, t in tensors.items()))
    return {"weight": Shifted(tensors=tensors, scaling=_strength(parts, rank))}


def _scaling(parts: Parts) -> Mapping[str, Update]:
    """`weight` l, `on_input`: columns, or rows, times 1 + l; the bias stays (not so in PEFT)."""
    on_input = scalar(parts, "on_input")
    trained = parts.need("weight")
    if trained.count != max(trained.shape, default=0):
        raise parts.corrupt(f"weight is {list(trained.shape)}, no row and no column")
    factors = from_recipe(
        (trained.count,), DType.FLOAT64, lambda: trained.values().double().reshape(-1) + 1
    )
    made = InputScaling if on_input else OutputScaling
    return {"weight": made(tensors={"ia3_l": factors})}


_READERS: Mapping[str, Callable[[Parts], Mapping[str, Update]]] = {
    _UP: _locon,
    _DOWN: _locon,
    "hada_w1_a": _hadamard,
    "hada_w1_b": _hadamard,
    "hada_w2_a": _hadamard,
    "hada_w2_b": _hadamard,
    "lokr_w1": _kronecker,
    "lokr_w1_a": _kronecker,
    "lokr_w2": _kronecker,
    "lokr_w2_a": _kronecker,
    _BLOCKS: _rotation,
    "a1.weight": _generalised,
    "on_input": _scaling,
    "diff": _difference,
    "diff_b": lambda _parts: {},
    "w_norm": _norm,
    "b_norm": _norm,
}
"""By the role that tells the algorithm, in LyCORIS' own order."""

_NAMES = {
    **{sign: sign.split("_")[0] for sign in _READERS},
    **{sign: "loha" for sign in _READERS if sign.startswith("hada_")},
    "a1.weight": "glora", "on_input": "ia3", "diff": "full", "diff_b": "full", "w_norm": "norm",
    "b_norm": "norm",
}  # fmt: skip

SIGNS = frozenset({_UP, _DOWN, _BLOCKS, *(s for s in _READERS if s.startswith(("hada_", "lokr_")))})
"""Roles that no model's parameter bears, whatever stands before them."""

ROLES = frozenset(
    {*_READERS, *_REFUSED, _ALPHA, _MAGNITUDE, _MID, _RESCALE, "weight", "diff_b", "hada_t1",
     "hada_t2", "lokr_w1_b", "lokr_w2_b", "lokr_t2", *_SHIFTS}
)  # fmt: skip
"""All roles."""
