"""Finding quantised weights: which tensors of a graph are one weight in several parts.

What does not fit its node's description, or is described by two nodes in two ways, is left as the
integers that it is; nothing is laid into these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from threading import Lock
from typing import TYPE_CHECKING

from adaptool.canonical import DType, LazyTensor
from adaptool.canonical.graph import Graph, Node
from adaptool.containers.onnx import elements
from adaptool.containers.onnx.holders import Holder
from adaptool.containers.onnx.weights import Housed, Part, QuantisedWeight, housed_tensor
from adaptool.containers.onnx.wiring import Wiring
from adaptool.encodings.onnx.affine import Affine, Grid
from adaptool.encodings.onnx.blockwise import Blockwise, Rule, Zeros
from adaptool.encodings.onnx.bnb4 import Bnb4

if TYPE_CHECKING:
    import torch

UINT8, INT8, UINT4, INT4, UINT2, INT2 = 2, 3, 21, 22, 25, 26
_SCALES = (1, 10, 16)
_BITS = {UINT8: 8, INT8: 8, UINT4: 4, INT4: 4, UINT2: 2, INT2: 2}
_SIGNED = (INT8, INT4, INT2)


@dataclass(frozen=True)
class Found:
    """A weight that a node describes: its encoding, its shape and its holders."""

    encoding: Blockwise | Affine | Bnb4
    shape: tuple[int, int]
    holders: tuple[Holder, Holder, Holder | None]
    turned: bool = False
    dense: bool = False


def quantised_weights(
    graph: Graph, holders: Mapping[str, Holder]
) -> Iterator[tuple[str, QuantisedWeight]]:
    """Every weight that the graph dequantises, by the key of its packed tensor."""
    keys = {holder.path: key for key, holder in holders.items()}
    look = _Lookup(graph, holders)
    claimed: dict[str, Found] = {}
    disputed: set[str] = set()
    for node in graph.nodes:
        reader = _READERS.get(node.op)
        found = reader(node, look) if reader else None
        if found is None or min(found.shape) < 1:
            continue
        key = keys[found.holders[0].path]
        before = claimed.setdefault(key, found)
        if before.holders != found.holders:
            disputed.add(key)
    for key, found in claimed.items():
        if key not in disputed:
            parts = tuple(keys[one.path] if one else "" for one in found.holders)
            yield key, QuantisedWeight(_tensor(found), (parts[0], parts[1], parts[2]))


def _tensor(found: Found) -> LazyTensor:
    parts = [Part(one.shape, one.type) if one else None for one in found.holders]
    housed = Housed(found.encoding, (parts[0], parts[1], parts[2]), found.turned, found.dense)
    stored = tuple(one.packed() if one else None for one in found.holders)
    return housed_tensor(housed, found.shape, stored)


class _Lookup:
    """The wiring of a graph, and which of its values are stored."""

    def __init__(self, graph: Graph, holders: Mapping[str, Holder]) -> None:
        count = Counter(holder.name for holder in holders.values())
        self._holders = {
            h.name: h for h in holders.values() if not h.constant and count[h.name] == 1
        }
        self.wiring = Wiring(graph)

    def holder(self, node: Node, index: int) -> Holder | None:
        """The stored tensor that is a node's input."""
        return self._holders.get(node.inputs[index]) if index < len(node.inputs) else None

    def present(self, node: Node, index: int) -> bool:
        """Whether the node has this input."""
        return index < len(node.inputs) and bool(node.inputs[index])


def _number(node: Node, name: str, default: int) -> int:
    value = node.attributes.get(name, default)
    return value if isinstance(value, int) else default


def _nbits(node: Node, look: _Lookup) -> Found | None:
    """com.microsoft.MatMulNBits: B [N, groups, group * bits / 8] of W [N, K]."""
    rows, width = _number(node, "N", 0), _number(node, "K", 0)
    bits, group = _number(node, "bits", 4), _number(node, "block_size", 0)
    packed, scales, zeros = (look.holder(node, index) for index in (1, 2, 3))
    if packed is None or scales is None or look.present(node, 4) or min(rows, width, group) < 1:
        return None
    kind = Zeros.NONE
    if look.present(node, 3):
        if zeros is None:
            return None
        if zeros.type not in (UINT8, scales.type):
            return None
        kind = Zeros.PACKED if zeros.type == UINT8 else Zeros.SCALED
    scale = elements.DTYPES.get(scales.type)
    if bits not in (2, 4, 8) or group % 8 or scale is None or packed.type != UINT8:
        return None
    encoding = Blockwise(bits, group, width, scale, kind, 1 << bits - 1, padded=True)
    return _checked(encoding, (rows, width), (packed, scales, zeros))


def _gathered(node: Node, look: _Lookup) -> Found | None:
    """com.microsoft.GatherBlockQuantized over rows, in groups along them."""
    data, scales, zeros = (look.holder(node, index) for index in (0, 2, 3))
    if data is None or scales is None or len(data.shape) != 2 or scales.type not in _SCALES:
        return None
    axis = _number(node, "quantize_axis", 1)
    if axis not in (1, -1) or _number(node, "gather_axis", 0) != 0:
        return None
    if look.present(node, 3) != (zeros is not None):
        return None
    bits = _number(node, "bits", 4) if data.type == UINT8 else _BITS.get(data.type, 0)
    group = _number(node, "block_size", 128)
    if bits not in (2, 4, 8) or group < 1:
        return None
    width = data.shape[1] * (8 // bits if data.type == UINT8 else 1)
    middle = 1 << bits - 1 if data.type == UINT8 else 0
    encoding = Blockwise(
        bits, group, width, elements.DTYPES[scales.type],
        Zeros.PACKED if zeros else Zeros.NONE, middle, data.type in _SIGNED,
        rule=Rule.MLAS if data.type == UINT8 else Rule.NUMPY,
    )  # fmt: skip
    held = (data, scales, zeros)
    return _checked(encoding, (data.shape[0], width), held, dense=not _aligned(encoding, data))


def _aligned(encoding: Blockwise, data: Holder) -> bool:
    """Whether every row of levels and zero points starts at a byte, as those of bytes do."""
    if data.type == UINT8 and encoding.bits < 8:
        return True
    zeros = encoding.groups * encoding.bits % 8 if encoding.zeros is Zeros.PACKED else 0
    return not (encoding.width * encoding.bits % 8 or zeros)


def _bnb4(node: Node, look: _Lookup) -> Found | None:
    """com.microsoft.MatMulBnb4: B [N * K / 2] of W [N, K]."""
    packed, scales = look.holder(node, 1), look.holder(node, 2)
    rows, width, group = (_number(node, name, 0) for name in ("N", "K", "block_size"))
    code = {0: "fp4", 1: "nf4"}.get(_number(node, "quant_type", 1))
    if packed is None or scales is None or scales.type not in _SCALES or code is None:
        return None
    if min(rows, width, group) < 1 or width % group or width % 2 or group % 2:
        return None
    if _number(node, "transB", 1) != 1:
        return None
    encoding = Bnb4(code, group, width, elements.DTYPES[scales.type])
    return _checked(encoding, (rows, width), (packed, scales, None))


def _dequantised(node: Node, look: _Lookup) -> Found | None:
    """DequantizeLinear of a stored matrix, or of rows gathered out of one."""
    data = look.holder(node, 0)
    if data is None and node.inputs:
        gather = look.wiring.maker(node.inputs[0])
        if gather is not None and gather.op == "Gather" and _number(gather, "axis", 0) == 0:
            data = look.holder(gather, 0)
    return None if data is None else _linear(node, look, data)


def _linear(node: Node, look: _Lookup, data: Holder) -> Found | None:
    scales, zeros = look.holder(node, 1), look.holder(node, 2)
    if scales is None or scales.type not in _SCALES or data.type not in _BITS:
        return None
    if look.present(node, 2) != (zeros is not None) or len(data.shape) != 2:
        return None
    gathered = look.holder(node, 0) is None
    group = _number(node, "block_size", 0)
    axis = _number(node, "axis", 1) % 2
    held = (data, scales, zeros)
    if scales.count == 1 and not group:
        return _affine(held, by_column=False)
    if gathered:  # the axis is that of the gathered rows
        return None
    if not group and scales.shape == (data.shape[axis],):
        if axis == 1:
            return _affine(held, by_column=True)
        return _grouped(held, data.shape[1], Rule.LINEAR, turned=False)
    groups = list(data.shape)
    groups[axis] = -(-groups[axis] // max(group, 1))
    if group < 1 or scales.shape != tuple(groups):
        return None
    return _grouped(held, group, Rule.MLAS, turned=axis == 0)


def _grouped(held: tuple[Holder, Holder, Holder | None], group: int, rule: Rule, *,
             turned: bool) -> Found | None:  # fmt: skip
    data, scales, zeros = held
    rows, width = data.shape[::-1] if turned else data.shape
    bits = _BITS[data.type]
    encoding = Blockwise(
        bits, group, width, elements.DTYPES[scales.type],
        Zeros.PACKED if zeros else Zeros.NONE, 0, data.type in _SIGNED, rule=rule,
    )  # fmt: skip
    dense = not _aligned(encoding, data)
    return _checked(encoding, (rows, width), held, turned=turned, dense=dense)


def _integer(node: Node, look: _Lookup) -> Found | None:
    """MatMulInteger -> Cast -> Mul by (scale of A * scale of B), as quantize_dynamic makes it."""
    behind = look.wiring.behind_integers(node)
    if behind is None:
        return None
    product = behind[2]
    scales = look.holder(product, 1) or look.holder(product, 0)
    return _bytes(node, look, 1, scales, 3)


def _fused(scales: int, zeros: int) -> Callable[[Node, _Lookup], Found | None]:
    """An operation that has the weight's scales and zero points among its inputs."""
    return lambda node, look: _bytes(node, look, 1, look.holder(node, scales), zeros)


def _bytes(node: Node, look: _Lookup, data: int, scales: Holder | None,
           zeros: int) -> Found | None:  # fmt: skip
    packed, middle = look.holder(node, data), look.holder(node, zeros)
    if packed is None or scales is None or len(packed.shape) != 2:
        return None
    if look.present(node, zeros) != (middle is not None) or scales.type not in _SCALES:
        return None
    return _affine((packed, scales, middle), by_column=scales.count > 1)


def _affine(held: tuple[Holder, Holder, Holder | None], *, by_column: bool) -> Found | None:
    data, scales, zeros = held
    rows, width = data.shape
    count = width if by_column else 1
    levels, scale = elements.DTYPES.get(data.type), scales.tensor()
    if levels not in (DType.INT8, DType.UINT8) or scale is None or scales.count != count:
        return None
    if zeros is not None and (zeros.type, zeros.count) != (data.type, count):
        return None
    if zeros is None and levels is DType.UINT8:
        return None  # zero would have to be the least value
    stored = data.tensor()
    if stored is None:
        return None
    middle = zeros.tensor() if zeros else None
    encoding = Affine(levels, width, by_column, scale.dtype, lambda: _grid(scale, middle), stored,
                      Lock())  # fmt: skip
    return Found(encoding, (rows, width), held)


def _grid(scales: LazyTensor, zeros: LazyTensor | None) -> Grid:
    steps: torch.Tensor = scales.values().float().view(-1)
    middle = steps * 0 if zeros is None else zeros.values().float().view(-1)
    return Grid(steps, middle)


def _checked(encoding: Blockwise | Bnb4, shape: tuple[int, int],
             held: tuple[Holder, Holder, Holder | None], *, turned: bool = False,
             dense: bool = False) -> Found | None:  # fmt: skip
    """The weight, if its tensors have the bytes that its encoding takes."""
    if held[1].type not in _SCALES:
        return None
    found = Found(encoding, shape, held, turned, dense)
    if turned or dense:
        data, scales, zeros = held
        groups = shape[0] * encoding.groups if isinstance(encoding, Blockwise) else 0
        fits = data.count == prod(shape) and scales.count == groups and len(scales.shape) == 2
        if zeros is not None:
            fits = fits and (zeros.shape, zeros.type) == (scales.shape, data.type)
        return found if fits else None
    sizes = [elements.nbytes(one.type, one.count) if one else 0 for one in held]
    return found if sizes == [shape[0] * size for size in encoding.parts] else None


_READERS: Mapping[str, Callable[[Node, _Lookup], Found | None]] = {
    "com.microsoft:MatMulNBits": _nbits,
    "com.microsoft:GatherBlockQuantized": _gathered,
    "com.microsoft:MatMulBnb4": _bnb4,
    "DequantizeLinear": _dequantised,
    "com.microsoft:DequantizeLinear": _dequantised,
    "MatMulInteger": _integer,
    "com.microsoft:DynamicQuantizeMatMul": _fused(2, 3),
    "com.microsoft:MatMulIntegerToFloat": _fused(3, 5),
}
