"""A computation as nodes between named values, where a model file holds one.

Graphs are edited as values: replace nodes in the tuple, put new ones between them, add inputs. The
container that opened the model writes what the graph says, and copies what it does not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Node:
    """One operation.

    Attributes:
        op: its type, with the domain before a colon unless it is the default one:
            "MatMul", "com.microsoft:MatMulNBits".
        name: as the file states it; often the module's path. May be empty.
        inputs, outputs: names of values; an empty name stands for one left out.
        attributes: numbers, strings and lists of them; tensors and graphs are left out.
        scopes: the module path from outermost to innermost, where an exporter wrote it down.
        within: the nested graph in which it stands, "" for the main one.
        origin: what the container knows it by, None for a new node. What a node's `attributes`
            leave out stays with its origin.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, object] = field(default_factory=dict)
    scopes: tuple[str, ...] = ()
    within: str = ""
    origin: object = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Graph:
    """All operations in order, and what goes in and out.

    Attributes:
        nodes: in topological order, those of nested graphs behind the node that holds them.
        inputs: name -> (element type by torch's name, sizes: numbers or symbols); "" for a type
            that is no tensor's, and for a size that is not stated.
        outputs: the same.
    """

    nodes: tuple[Node, ...]
    inputs: Mapping[str, tuple[str, tuple[int | str, ...]]] = field(default_factory=dict)
    outputs: Mapping[str, tuple[str, tuple[int | str, ...]]] = field(default_factory=dict)
