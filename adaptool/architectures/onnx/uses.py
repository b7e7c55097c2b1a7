"""Every stored weight of a graph as the operations read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod

from adaptool.architectures.onnx.naming import module_of, parameter_of
from adaptool.canonical import LazyTensor
from adaptool.canonical.graph import Graph, Node

_MICROSOFT = "com.microsoft:"
_PASSING = {"Transpose", "Identity", "Cast", "CastLike", "DequantizeLinear"}
"""What stands between a stored tensor and the operation that a module is known by."""

_LONGEST = 16
"""Nodes that may stand between a tensor and the operation that it is a weight of."""

_LINEAR, _WEIGHT, _BIAS, _ROWS, _PACKED, _PACKED_BIAS, _BEFORE = range(7)
_ROOT_MEAN_SQUARE = ("SimplifiedLayerNormalization", "RMSNormalization")
_VECTORS = ("Mul", "Add", "BiasGelu", "FastGelu", "BiasAdd")
"""Operations of which a stored vector is a norm's weight or a bias, and a matrix is neither."""


def _each(ports: Mapping[int, int], *ops: str) -> dict[str, Mapping[int, int]]:
    return dict.fromkeys(ops, ports)


_PORTS: Mapping[str, Mapping[int, int]] = {
    **_each({1: _LINEAR}, "MatMul", "FusedMatMul", "MatMulInteger", "DynamicQuantizeMatMul",
            "MatMulIntegerToFloat", "MatMulBnb4"),
    **_each({1: _LINEAR, 2: _BIAS}, "Gemm"),
    **_each({1: _LINEAR, 5: _BIAS}, "MatMulNBits"),
    **_each({1: _WEIGHT, 2: _BIAS}, "Conv", "ConvTranspose", "FusedConv", "NhwcConv", "ConvInteger",
            "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization",
            "GroupNormalization", "InstanceNormalization", "BatchNormalization"),
    **_each({2: _WEIGHT, 3: _BEFORE}, "SkipSimplifiedLayerNormalization"),
    **_each({2: _WEIGHT, 3: _BIAS, 4: _BEFORE}, "SkipLayerNormalization"),
    **_each({0: _ROWS}, "Gather", "GatherBlockQuantized"),
    **_each({2: _ROWS, 3: _ROWS, 4: _ROWS, 5: _WEIGHT, 6: _BIAS}, "EmbedLayerNormalization"),
    **_each({1: _PACKED, 2: _PACKED_BIAS}, f"{_MICROSOFT}Attention", "QAttention"),
    **_each({0: _WEIGHT, 1: _WEIGHT}, "Mul"),
    **_each({0: _BIAS, 1: _BIAS}, "Add"),
    **_each({1: _BEFORE}, "BiasGelu", "FastGelu", "BiasAdd"),
}  # fmt: skip
"""Which inputs of an operation are weights, and what each of them is."""


@dataclass(frozen=True, slots=True)
class Use:
    """A stored tensor as one operation reads it.

    Attributes:
        tensor: its name.
        module, parameter: whose it is, in the exporter's spelling.
        kept: the checkpoint's name that the tensor itself seems to bear; "" without. It may be
            another module's, whose weight is equal.
        swapped: it is stored as the transpose, [in, out], of what torch has, [out, in].
        looked_up: its rows are looked up: an embedding.
        unit: the operation multiplies by this what it reads.
        node, port: which input of which node (by position in the graph) reads it.
        chain: positions of the nodes between the tensor and that input, the first one first.
        packed: the operation knows it as several modules' weights side by side.
        exact: it holds torch's parameter itself; Gemma's norms may have been stored with 1 added.
    """

    tensor: str
    module: str
    parameter: str
    node: int
    port: int
    kept: str = ""
    chain: tuple[int, ...] = ()
    swapped: bool = False
    looked_up: bool = False
    unit: float = 1.0
    packed: bool = False
    exact: bool = True

    @property
    def name(self) -> str:
        """The parameter's full name."""
        return f"{self.module}.{self.parameter}" if self.module else self.parameter


@dataclass(frozen=True, slots=True)
class _Value:
    """A value that holds nothing but a stored tensor, turned or not."""

    tensor: str
    swapped: bool = False
    chain: tuple[int, ...] = ()


def uses_of(graph: Graph, tensors: Mapping[str, LazyTensor]) -> list[Use]:
    """Every weight, bias and norm that an operation of the graph reads."""
    values: dict[tuple[str, str], _Value] = {}
    found: list[Use] = []
    for position, node in enumerate(graph.nodes):
        op = node.op.removeprefix(_MICROSOFT)
        read = [_value(values, tensors, node.within, name) for name in node.inputs]
        if op in _PASSING or op == "Reshape":
            source = read[0] if read else None
            if op == "Reshape" and (source is None or tensors[source.tensor].encoding is None):
                continue  # packed groups side by side or not are the same weight
            if source is not None and len(source.chain) >= _LONGEST:
                continue
            turned = op == "Transpose" and _exchanges(node, source, tensors)
            if source is not None and (turned or op != "Transpose"):
                swapped = source.swapped != turned
                chain = (*source.chain, position)
                values[node.within, node.outputs[0]] = replace(source, swapped=swapped, chain=chain)
            continue
        for port, use in _read_by(op, node, read, tensors):
            value = read[port]
            if value is not None:
                turned = _is_shown_turned(tensors[value.tensor])
                swapped = (use.swapped != value.swapped) != turned
                named = _named(use, node, value.tensor)
                if len(tensors[value.tensor].shape) == 1 and named.parameter == "weight":
                    named = replace(named, exact=_is_exact(named, node))
                if named.unit and isfinite(named.unit):  # else it is no weight of anything
                    found.append(replace(named, node=position, swapped=swapped, chain=value.chain))
    return found


def _value(values: Mapping[tuple[str, str], _Value], tensors: Mapping[str, LazyTensor],
           within: str, name: str) -> _Value | None:  # fmt: skip
    """What a name stands for in a nested graph: its own value, or one of a graph around it."""
    here = within
    while name:
        if (here, name) in values:
            return values[here, name]
        if here and f"{here}:{name}" in tensors:
            return _Value(f"{here}:{name}")
        if not here:
            break
        here = here.rpartition("/")[0]
    return _Value(name) if name in tensors else None


def _exchanges(node: Node, source: _Value | None, tensors: Mapping[str, LazyTensor]) -> bool:
    """Whether a Transpose exchanges the two dimensions of a stored matrix."""
    if source is None or len(tensors[source.tensor].shape) != 2:
        return False
    return node.attributes.get("perm", (1, 0)) == (1, 0)


def _named(use: Use, node: Node, tensor: str) -> Use:
    """The use with its module: the node's, made more precise by a name that was kept."""
    module, kept = module_of(node), parameter_of(tensor)
    if use.module:
        return use
    if kept is None:
        return replace(use, module=module)
    use = replace(use, kept=".".join(kept))
    if module and (use.packed or not use.kept.startswith(f"{module}.")):
        return replace(use, module=module)
    return replace(use, module=kept[0], parameter=kept[1])


def _read_by(
    op: str, node: Node, read: Sequence[_Value | None], tensors: Mapping[str, LazyTensor]
) -> Iterator[tuple[int, Use]]:
    """The inputs of one operation that are weights, with the role that each plays."""
    for port, role in (_PORTS.get(node.op) or _PORTS.get(op, {})).items():
        value = read[port] if port < len(read) else None
        if value is None:
            continue
        tensor = tensors[value.tensor]
        if not tensor.dtype.is_floating or tensor.count < 2:
            continue
        if op in _VECTORS and len(tensor.shape) != 1:
            continue
        use = _in_role(role, op, node, Use(value.tensor, "", "weight", 0, port), tensor)
        if use is not None:
            yield port, use


def _in_role(role: int, op: str, node: Node, use: Use, tensor: LazyTensor) -> Use | None:
    stated = node.attributes
    if role == _LINEAR:
        return _linear(op, node, use, tensor) if len(tensor.shape) == 2 else None
    if role == _ROWS:
        return replace(use, looked_up=True) if stated.get("axis", 0) == 0 else None
    if role == _BEFORE:  # the bias of the layer before: only its own name tells whose
        kept = parameter_of(use.tensor)
        return None if kept is None else replace(use, module=kept[0], parameter=kept[1])
    if role == _PACKED:
        return replace(use, packed=True, swapped=True)
    if role in (_BIAS, _PACKED_BIAS):
        unit = _number(stated.get("beta", 1.0)) if op == "Gemm" else 1.0
        return replace(use, parameter="bias", packed=role == _PACKED_BIAS, unit=unit)
    return use


def _linear(op: str, node: Node, use: Use, tensor: LazyTensor) -> Use:
    stated = node.attributes
    if op in ("MatMulNBits", "MatMulBnb4"):  # packed along the inputs: [out, in]
        return replace(use, swapped=tensor.shape != (stated.get("N"), stated.get("K")))
    straight = bool(stated.get("transB", 0))
    return replace(use, swapped=not straight, unit=_number(stated.get("alpha", 1.0)))


def _is_exact(norm: Use, node: Node) -> bool:
    """Whether an exporter that traces kept a name, if maybe an equal norm's.

    What it folded has no name; builders keep the names of what they fold.
    """
    traced = bool(node.scopes) or not node.op.endswith(_ROOT_MEAN_SQUARE)
    return traced and bool(norm.kept)


def _is_shown_turned(tensor: LazyTensor) -> bool:
    """Whether a quantised weight is shown as the transpose of what the graph computes with."""
    return bool(getattr(tensor.encoding, "turned", False))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 1.0


def height_of(use: Use, tensor: LazyTensor) -> int:
    """Outputs of what a tensor holds: rows of torch's weight, entries of a bias."""
    shape = tensor.shape
    return shape[-1] if use.swapped and len(shape) == 2 else shape[0] if shape else prod(shape)
