"""Several modules' weights side by side in one tensor: which are there, and how large each is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

from adaptool.architectures.onnx.naming import joined_in
from adaptool.architectures.onnx.uses import Use
from adaptool.canonical import LazyTensor
from adaptool.canonical.graph import Graph, Node

PACKS = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "kv_proj": ("k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""A packed module's name -> those whose outputs follow one another in it."""

FUSED = ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q_lin", "k_lin", "v_lin")
"""What the modules of a fused attention are called in one model or another."""

Readers = Mapping[tuple[str, str], Sequence[int]]
"""(nested graph, value) -> positions of the nodes that read it."""

_HOPS = 12
"""Operations between a packed weight and the one that takes its parts apart."""


def parts_of(module: str) -> tuple[str, ...]:
    """The modules that a packed one stands for, full paths; empty for a plain one."""
    before, _, last = module.rpartition(".")
    return tuple(f"{before}.{part}" if before else part for part in PACKS.get(last, ()))


def members_of(use: Use) -> Iterator[tuple[str, ...]]:
    """Names of the parameters that a tensor holds side by side; as many ways as there may be."""
    if joined := joined_in(use.tensor):
        yield joined
    if parts := parts_of(use.module):
        yield tuple(f"{part}.{use.parameter}" for part in parts)
    if use.packed:
        for names in FUSED:
            yield tuple(f"{use.module}.{name}.{use.parameter}" for name in names)


def bands_of(sizes: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """First and last position of each part, ends exclusive."""
    return tuple(pairwise((0, *accumulate(sizes))))


def sizes_of(
    graph: Graph,
    readers: Readers,
    tensors: Mapping[str, LazyTensor],
    position: int,
    total: int,
    count: int,
) -> tuple[int, ...] | None:
    """Outputs of each part of a packed weight; None if the graph does not tell.

    Args:
        graph, readers: of the model.
        tensors: of the model, for the sizes of a Split.
        position: the node that reads the weight.
        total: outputs of all parts together.
        count: how many parts there are.
    """
    node = graph.nodes[position]
    if node.op.endswith("Attention"):
        return _attention(node, total, count)
    reached, seen = [position], {position}
    for _ in range(_HOPS):
        reached = [p for one in reached for p in _next(graph, readers, one) if p not in seen]
        seen.update(reached)
        for here in reached:
            found = _told(graph.nodes[here], tensors, total, count)
            if found is not None:
                return found
    return (total // count,) * count if count == 2 and total % 2 == 0 else None


def readers_of(graph: Graph) -> Readers:
    """Which nodes read each value."""
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for position, node in enumerate(graph.nodes):
        for name in node.inputs:
            found[node.within, name].append(position)
    return found


def _next(graph: Graph, readers: Readers, position: int) -> Iterator[int]:
    node = graph.nodes[position]
    for name in node.outputs:
        yield from readers.get((node.within, name), ())


def _told(
    node: Node, tensors: Mapping[str, LazyTensor], total: int, count: int
) -> tuple[int, ...] | None:
    if node.op.endswith("Attention") and count > 1:
        return _attention(node, total, count)
    if node.op != "Split":
        return None
    sizes = _whole_numbers(node.attributes.get("split"))
    if not sizes and len(node.inputs) > 1 and node.inputs[1] in tensors:
        stored = tensors[node.inputs[1]]
        if stored.count == count:
            sizes = _whole_numbers(tuple(int(n) for n in stored.values().reshape(-1)))
    elif not sizes and len(node.outputs) == count and total % count == 0:
        sizes = (total // count,) * count
    return sizes if len(sizes) == count and sum(sizes) == total else None


def _whole_numbers(stated: object) -> tuple[int, ...]:
    """Positive sizes; empty for anything else."""
    sizes = stated if isinstance(stated, tuple) else ()
    return sizes if all(isinstance(size, int) and size > 0 for size in sizes) else ()


def _attention(node: Node, total: int, count: int) -> tuple[int, ...] | None:
    """Heads of queries, and of keys and values, all of one size."""
    hidden = _whole_numbers(node.attributes.get("qkv_hidden_sizes"))
    if len(hidden) == count and sum(hidden) == total:
        return hidden
    heads = node.attributes.get("num_heads") or node.attributes.get("q_num_heads")
    if not isinstance(heads, int) or heads < 1:
        return None
    pairs = node.attributes.get("kv_num_heads")
    pairs = pairs if isinstance(pairs, int) and pairs > 0 else heads
    shares = (heads, pairs, pairs)[3 - count :]
    size, rest = divmod(total, sum(shares))
    return None if rest else tuple(share * size for share in shares)
