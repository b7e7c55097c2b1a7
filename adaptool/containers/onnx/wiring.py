"""Which node makes a value and which take it."""

from __future__ import annotations

from dataclasses import dataclass, field

from adaptool.canonical.graph import Graph, Node


@dataclass(frozen=True)
class Wiring:
    """The values of a graph between its nodes."""

    graph: Graph
    _makers: dict[str, Node] = field(default_factory=dict)
    _takers: dict[str, list[Node]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.graph.nodes:
            for value in node.outputs:
                self._makers[value] = node
            for value in dict.fromkeys(node.inputs):
                self._takers.setdefault(value, []).append(node)

    def maker(self, value: str) -> Node | None:
        """The node that makes a value; None for what is stored or comes in."""
        return self._makers.get(value)

    def takers(self, value: str) -> tuple[Node, ...]:
        """The nodes that take a value, in their order."""
        return tuple(self._takers.get(value, ()))

    def only_taker(self, value: str, op: str) -> Node | None:
        """The node that takes a value, if it is the only one and of this type."""
        takers = self._takers.get(value, []) if value else []
        return takers[0] if len(takers) == 1 and takers[0].op == op else None

    def behind_integers(self, node: Node) -> tuple[Node, Node, Node] | None:
        """Behind a MatMulInteger: the Cast, the Mul by a scale, and the Mul that makes the scale.

        quantize_dynamic writes y = Cast(A * B) * (scale of A * scale of B). None for others.
        """
        cast = self.only_taker(_output(node), "Cast")
        scaled = self.only_taker(_output(cast), "Mul") if cast else None
        if cast is None or scaled is None:
            return None
        factors = [value for value in scaled.inputs if value != _output(cast)]
        product = self.maker(factors[0]) if factors else None
        if product is None or product.op != "Mul":
            return None
        return cast, scaled, product

    def scaling(self, node: Node) -> tuple[Node, ...]:
        """The nodes that take the scales and zero points of the packed weight that `node` takes."""
        if node.op == "MatMulInteger":
            behind = self.behind_integers(node)
            return (node, behind[2]) if behind else (node,)
        if node.op == "Gather":
            return self.takers(_output(node))
        return (node,)


def _output(node: Node) -> str:
    """Its first output; "" for a node without any, which nobody can take."""
    return node.outputs[0] if node.outputs else ""
