"""Nodes that computed with a quantised weight and compute with a plain one now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from adaptool.canonical import Checkpoint
from adaptool.canonical.graph import Graph, Node
from adaptool.containers.onnx import elements
from adaptool.containers.onnx.model import Model
from adaptool.containers.onnx.weights import Housed
from adaptool.containers.onnx.wiring import Wiring
from adaptool.errors import IncompatibleError


def widened(checkpoint: Checkpoint, model: Model) -> Checkpoint:
    """The same checkpoint, whose graph suits the tensors that are no longer packed.

    Raises IncompatibleError where an operation has no plain counterpart.
    """
    graph = checkpoint.graph
    plain = {
        key: weight.tensor.encoding
        for key, weight in model.quantised.items()
        if key in checkpoint.tensors and checkpoint.tensors[key].encoding is None
    }
    if graph is None or not plain:
        return checkpoint
    work = _Widening(graph, checkpoint, plain)
    nodes: list[Node] = []
    for node in graph.nodes:
        taken = next((value for value in node.inputs if value in plain), None)
        change = _CHANGES.get(node.op)
        if taken is None and node.op in _DEQUANTISE:
            taken = work.gathered(node)
        if taken is not None and change is not None:
            nodes += change(work, node, taken)
        elif taken is not None and node.op != "Gather":
            raise IncompatibleError(
                f"{taken}: {node.op} ({node.name}) cannot compute with a plain weight",
                hint="keep the model's own quantisation",
                code="NOT_EXPRESSIBLE",
            )
        else:
            nodes.append(node)
    kept = tuple(work.replaced.get(id(node), node) for node in nodes if id(node) not in work.gone)
    return replace(checkpoint, graph=replace(graph, nodes=kept))


@dataclass
class _Widening:
    graph: Graph
    checkpoint: Checkpoint
    plain: Mapping[str, object]
    made: set[str] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    replaced: dict[int, Node] = field(default_factory=dict)

    @cached_property
    def wiring(self) -> Wiring:
        """Who makes and takes what."""
        return Wiring(self.graph)

    def gathered(self, node: Node) -> str | None:
        """The weight whose rows a node dequantises."""
        maker = self.wiring.maker(node.inputs[0])
        found = maker.inputs[0] if maker is not None and maker.op == "Gather" else None
        return found if found in self.plain else None

    def ready(self, node: Node, name: str, *, turn: bool) -> tuple[list[Node], str]:
        """Nodes that bring a weight into the type and orientation that `node` computes in."""
        encoding = self.plain[name]
        tensor = self.checkpoint.tensors[name]
        scale = encoding.encoding.scale if isinstance(encoding, Housed) else tensor.dtype
        nodes, value = [], name
        if tensor.dtype is not scale:
            number = elements.NUMBERS[scale]
            nodes.append(_new("Cast", node, (value,), f"{name}_cast", {"to": number}))
            value = f"{name}_cast"
        if turn:
            nodes.append(_new("Transpose", node, (value,), f"{name}_turned", {"perm": (1, 0)}))
            value = f"{name}_turned"
        nodes = [one for one in nodes if one.outputs[0] not in self.made]
        self.made.update(one.outputs[0] for one in nodes)
        return nodes, value


def _new(op: str, like: Node, inputs: tuple[str, ...], output: str,
         attributes: Mapping[str, object] | None = None, name: str = "") -> Node:  # fmt: skip
    return Node(op, name or f"{output}/{op}", inputs, (output,), attributes or {}, like.scopes,
                like.within)  # fmt: skip


def _matmul(work: _Widening, node: Node, weight: str) -> Iterator[Node]:
    """MatMulNBits and MatMulBnb4 keep [out, in]; a bias may follow."""
    before, value = work.ready(node, weight, turn=True)
    yield from before
    output = node.outputs[0]
    bias = node.inputs[5] if len(node.inputs) > 5 else ""
    product = f"{output}_product" if bias else output
    yield _new("MatMul", node, (node.inputs[0], value), product, name=node.name)
    if bias:
        yield _new("Add", node, (product, bias), output)


def _gather(work: _Widening, node: Node, weight: str) -> Iterator[Node]:
    before, value = work.ready(node, weight, turn=False)
    yield from before
    axis = node.attributes.get("gather_axis", 0)
    yield _new("Gather", node, (value, node.inputs[1]), node.outputs[0], {"axis": axis}, node.name)


def _dequantise(work: _Widening, node: Node, weight: str) -> Iterator[Node]:
    encoding = work.plain[weight]
    if weight not in node.inputs:  # of gathered rows, which have their place and not their type
        scale = encoding.encoding.scale if isinstance(encoding, Housed) else None
        dtype = work.checkpoint.tensors[weight].dtype
        op, attributes = ("Identity", {}) if scale in (None, dtype) else (
            "Cast", {"to": elements.NUMBERS[scale]})  # fmt: skip
        yield _new(op, node, node.inputs[:1], node.outputs[0], attributes, node.name)
        return
    turned = isinstance(encoding, Housed) and encoding.turned
    before, value = work.ready(node, weight, turn=turned)
    yield from before
    yield _new("Identity", node, (value,), node.outputs[0], name=node.name)


def _integer(work: _Widening, node: Node, weight: str) -> Iterator[Node]:
    behind = work.wiring.behind_integers(node)
    source = work.wiring.maker(node.inputs[0])
    if behind is None or source is None or source.op != "DynamicQuantizeLinear":
        raise IncompatibleError(f"{weight}: its MatMulInteger ({node.name}) is not understood")
    cast, scaled, product = behind
    yield from (ready := work.ready(node, weight, turn=False))[0]
    work.gone |= {id(cast), id(product)}
    name = node.name.removesuffix("_quant")
    matmul = _new("MatMul", node, (source.inputs[0], ready[1]), scaled.outputs[0], name=name)
    work.replaced[id(scaled)] = matmul


_DEQUANTISE = ("DequantizeLinear", "com.microsoft:DequantizeLinear")

_CHANGES: Mapping[str, Callable[[_Widening, Node, str], Iterator[Node]]] = {
    "com.microsoft:MatMulNBits": _matmul,
    "com.microsoft:MatMulBnb4": _matmul,
    "com.microsoft:GatherBlockQuantized": _gather,
    "MatMulInteger": _integer,
    **dict.fromkeys(_DEQUANTISE, _dequantise),
}
