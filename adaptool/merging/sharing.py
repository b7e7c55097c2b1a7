"""Tensors of an ONNX graph that several modules share, where an adapter changes one of them.

Exporters store equal weights once: tied embeddings, but also all norms that are still ones. The
module that an adapter changes gets a tensor of its own before anything is laid onto it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from adaptool.architectures.naming import INPUT_EMBEDDINGS, OUTPUT_HEADS
from adaptool.architectures.onnx.matching import same_values
from adaptool.architectures.onnx.placing import OnnxPlan
from adaptool.architectures.onnx.uses import Use
from adaptool.canonical import Adapter, Checkpoint, Placement, Site, TokenRows, Update
from adaptool.canonical.graph import Graph, Node
from adaptool.errors import IncompatibleError
from adaptool.merging.tying import Embeddings, is_embedding, is_head, stays_tied


def ends_of(checkpoint: Checkpoint) -> Embeddings:
    """Both ends of an exported model; tied if one tensor serves both."""
    plan = OnnxPlan(checkpoint, {})
    embedding, head = _first(plan, INPUT_EMBEDDINGS), _first(plan, OUTPUT_HEADS)
    tied = embedding is not None and embedding == head
    return Embeddings(embedding, None if tied else head, tied)


def follow_tied_head(
    checkpoint: Checkpoint, adapter: Adapter, site: Site, update: Update
) -> tuple[Placement, ...]:
    """Where an embedding's update lies once more: in a tied head that was stored transposed."""
    if not is_embedding(site) or any(is_head(other) for other in adapter.updates):
        return ()
    ends = ends_of(checkpoint)
    follows = adapter.ties_embeddings or isinstance(update, TokenRows)
    if not follows or ends.tied or ends.head is None:
        return ()
    plan = OnnxPlan(checkpoint, adapter.config)
    head = next(Site(n.removesuffix(".weight")) for n in sorted(OUTPUT_HEADS) if plan.find(n))
    copies = same_values(checkpoint, plan.located(site)[0], plan.located(head)[0])
    return plan.place(head, update) if copies else ()


def separated(base: Checkpoint, adapters: Sequence[Adapter]) -> tuple[Checkpoint, tuple[str, ...]]:
    """The base with a tensor of its own for every module that an adapter changes, and notes.

    Tied embeddings stay one tensor if every adapter leaves them tied.

    Raises IncompatibleError if the graph does not tell which operation is the module's.
    """
    ends = ends_of(base)
    tied = ends.tied and all(_stays_tied(adapter) for adapter in adapters)
    plan = OnnxPlan(base, {})
    notes: list[str] = []
    for site in dict.fromkeys(site for adapter in adapters for site in adapter.updates):
        if tied and (is_embedding(site) or is_head(site)):
            continue
        while (found := _separate(plan, site)) is not None:
            plan = OnnxPlan(found[0], {})
            notes.append(found[1])
    return plan.checkpoint, tuple(notes)


def _stays_tied(adapter: Adapter) -> bool:
    embedding = next((u for s, u in adapter.updates.items() if is_embedding(s)), None)
    head = next((u for s, u in adapter.updates.items() if is_head(s)), None)
    return stays_tied(adapter, embedding, head)


def _separate(plan: OnnxPlan, site: Site) -> tuple[Checkpoint, str] | None:
    """One tensor of the site's own, and a note; None if it shares none."""
    from adaptool.containers.onnx.editing import untie

    for name in dict.fromkeys(place.tensor for place in plan.located(site)):
        uses = [use for use in plan.uses if use.tensor == name]
        own = plan.readers_of(site, name)
        others = {_owner(use) for use in uses} - {_owner(use) for use in own}
        others |= _strangers(plan.graph, name, uses)
        if not others or (not own and len(others) == 1):
            continue
        if not own:
            raise IncompatibleError(
                f"{site}: {name} serves {' and '.join(sorted(others)[:5])}, and the graph does not "
                "tell which of them is this module",
                code="UNSUPPORTED_LAYOUT",
            )
        rest = [use for use in uses if use not in own]
        moves = (rest, own) if _stays(plan, name, own, rest) else (own, rest)
        fresh = _fresh(plan.checkpoint, str(site) if moves[0] is own else moves[0][0].name)
        graph, nodes = _with_own_chains(plan.graph, *moves)
        known = {
            parameter: replace(place, tensor=fresh)
            if place.tensor == name and _is_read_by(plan, parameter, name, moves[0])
            else place
            for parameter, place in plan.checkpoint.placements.items()
        }
        base = untie(replace(plan.checkpoint, graph=graph), name, nodes, fresh)
        note = f"{name} served {len(others) + 1} modules: {site} has a tensor of its own now"
        return replace(base, placements=known), note
    return None


def _is_read_by(plan: OnnxPlan, parameter: str, tensor: str, readers: Sequence[Use]) -> bool:
    module, _, last = parameter.rpartition(".")
    return any(use in readers for use in plan.readers_of(Site(module, last), tensor))


def _stays(plan: OnnxPlan, name: str, own: Sequence[Use], rest: Sequence[Use]) -> bool:
    """Whether the others get a tensor of their own instead.

    The scales of a quantised weight stand beside the node that computes with them, so a module that
    reads it through other nodes (GatherBlockQuantized behind a Reshape) keeps the stored one.
    """
    packed = plan.checkpoint.tensors[name].encoding is not None
    through = any(use.chain for use in own) and not any(use.chain for use in rest)
    return packed and through and bool(rest) and not _strangers(plan.graph, name, [*own, *rest])


def _strangers(graph: Graph, name: str, uses: Sequence[Use]) -> set[str]:
    """Nodes that read a tensor for something that is not understood."""
    known = {use.chain[0] if use.chain else use.node for use in uses}
    known |= {position for use in uses for position in use.chain}
    return {
        f"node {node.name or position}"
        for position, node in enumerate(graph.nodes)
        if name in node.inputs and position not in known
    }


def _owner(use: Use) -> str:
    return use.name if use.module else f"node {use.node}"


def _fresh(base: Checkpoint, wanted: str) -> str:
    taken = set(base.tensors)
    for node in base.graph.nodes if base.graph else ():
        taken.update(node.inputs, node.outputs)
    name, number = wanted, 1
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    return name


def _with_own_chains(
    graph: Graph, own: Sequence[Use], others: Sequence[Use]
) -> tuple[Graph, list[Node]]:
    """A graph in which no node stands between the tensor and both kinds of uses.

    Returns it, and those of its nodes that read the tensor for `own`.
    """
    shared = {position for use in others for position in use.chain}
    nodes = list(graph.nodes)
    direct = [use.chain[0] if use.chain else use.node for use in own]
    copies: dict[int, list[Node]] = {}
    readers: list[Node | int] = []
    for use, first in zip(own, direct, strict=True):
        if shared.isdisjoint(use.chain):
            readers.append(first)
            continue
        chain = list(_copied([nodes[position] for position in use.chain], use))
        copies[use.node] = [*copies.get(use.node, []), *chain]
        last = nodes[use.node]
        inputs = (*last.inputs[: use.port], chain[-1].outputs[0], *last.inputs[use.port + 1 :])
        nodes[use.node] = replace(last, inputs=inputs)
        readers.append(chain[0])
    found = [nodes[one] if isinstance(one, int) else one for one in readers]
    placed = [n for i, node in enumerate(nodes) for n in (*copies.get(i, ()), node)]
    return replace(graph, nodes=tuple(placed)), found


def _copied(chain: Iterable[Node], use: Use) -> Iterable[Node]:
    """The same nodes once more, with values of their own."""
    before: str | None = None
    for node in chain:
        output = f"{node.outputs[0]}/{use.module or use.node}"
        inputs = node.inputs if before is None else (before, *node.inputs[1:])
        yield replace(node, name=f"{node.name}/{use.module or use.node}" if node.name else "",
                      inputs=inputs, outputs=(output,), origin=None)  # fmt: skip
        before = output


def _first(plan: OnnxPlan, names: Collection[str]) -> str | None:
    return next((found for name in sorted(names) if (found := plan.find(name))), None)
