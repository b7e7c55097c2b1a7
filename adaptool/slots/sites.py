"""Where a graph applies the weight of a linear layer: between which values, and whose it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from adaptool.architectures.naming import normal
from adaptool.architectures.onnx.naming import parameter_of
from adaptool.architectures.onnx.packing import PACKS, bands_of, members_of, readers_of, sizes_of
from adaptool.architectures.onnx.uses import Use, height_of, uses_of
from adaptool.canonical import Checkpoint, DType, Placement
from adaptool.canonical.graph import Graph
from adaptool.containers.onnx import model_of
from adaptool.containers.onnx.elements import DTYPES
from adaptool.slots.manifest import Part

_PRODUCTS = {"MatMul", "Gemm", "MatMulInteger", "com.microsoft:MatMulNBits",
             "com.microsoft:MatMulBnb4", "com.microsoft:FusedMatMul"}  # fmt: skip
_SCALES = {"DequantizeLinear": 1, "com.microsoft:DequantizeLinear": 1,
           "com.microsoft:MatMulNBits": 2, "com.microsoft:MatMulBnb4": 2}  # fmt: skip
"""Which input's type the result of decoding has."""
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj")
"""What onnxruntime-genai keeps in `attn` and Hugging Face's models in `self_attn`."""
_STEPS = 3
"""Operations between an integer product and the value that stands for the float one."""


@dataclass(frozen=True, slots=True)
class Linear:
    """One operation y = x W of a graph, with the weight of one or several modules.

    Attributes:
        tensor: the weight's name.
        module: path of the module (or of the packed one), with Hugging Face's names.
        parts: the modules whose outputs y has.
        node: position of the node whose output y is.
        x, y: names of values.
        within: the nested graph in which these are.
        width, height: of x and y.
        dtype: of both.
    """

    tensor: str
    module: str
    parts: tuple[Part, ...]
    node: int
    x: str
    y: str
    within: str
    width: int
    height: int
    dtype: DType


def linears_of(checkpoint: Checkpoint) -> list[Linear]:
    """Every linear layer of a graph whose module is known, by name or by `Checkpoint.placements`.

    They come in the graph's order, under Hugging Face's names.
    """
    sites = _Sites(checkpoint, checkpoint.graph or Graph(()))
    found = [linear for use in uses_of(sites.graph, checkpoint.tensors)
             if (linear := sites.linear(use)) is not None]  # fmt: skip
    wrapper = _wrapper([linear.module for linear in found])
    return [_without(wrapper, linear) for linear in found] if wrapper else found


def hidden_in(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Fused attention operations: the products with their weights are no values of the graph."""
    graph = checkpoint.graph or Graph(())
    uses = (use for use in uses_of(graph, checkpoint.tensors) if use.packed)
    names = (graph.nodes[use.node].name or use.module for use in uses if use.parameter == "weight")
    return tuple(dict.fromkeys(names))


def _wrapper(modules: Sequence[str]) -> str:
    """The name of what an export wrapped the model in: what all paths start with, before a body."""
    first = {module.partition(".")[0] for module in modules}
    if len(first) != 1:
        return ""
    wrapper = f"{first.pop()}."
    inner = [module.removeprefix(wrapper) for module in modules]
    is_body = any(_starts_with_body(module) for module in inner)
    return wrapper if is_body and not _starts_with_body(modules[0]) else ""


def _starts_with_body(module: str) -> bool:
    """Whether a path starts with one of the names that heads have for the model that they hold."""
    return not normal(f"{module}.weight").startswith(module.partition(".")[0] + ".")


def _without(wrapper: str, linear: Linear) -> Linear:
    parts = tuple(replace(p, module=p.module.removeprefix(wrapper)) for p in linear.parts)
    return replace(linear, module=linear.module.removeprefix(wrapper), parts=parts)


def spelt(path: str) -> str:
    """A module's path in Hugging Face's spelling, where an exporter is known to have another."""
    before, _, last = path.rpartition(".")
    if before.endswith(".attn") and last in _PROJECTIONS:
        return f"{before.removesuffix('.attn')}.self_attn.{last}"
    return path


@dataclass(frozen=True)
class _Sites:
    checkpoint: Checkpoint
    graph: Graph

    @cached_property
    def _readers(self) -> Mapping[tuple[str, str], list[int]]:
        return {key: [*found] for key, found in readers_of(self.graph).items()}

    @cached_property
    def _makers(self) -> Mapping[tuple[str, str], int]:
        nodes = enumerate(self.graph.nodes)
        return {(node.within, name): i for i, node in nodes for name in node.outputs}

    @cached_property
    def _placed(self) -> Mapping[str, list[tuple[str, Placement]]]:
        """Tensor -> the modules that were found in it by their values."""
        found: dict[str, list[tuple[str, Placement]]] = {}
        for name, place in self.checkpoint.placements.items():
            found.setdefault(place.tensor, []).append((name.removesuffix(".weight"), place))
        return found

    def linear(self, use: Use) -> Linear | None:
        """The layer that a weight is applied in, where it is one and has a name."""
        node = self.graph.nodes[use.node]
        tensor = self.checkpoint.tensors[use.tensor]
        if node.op not in _PRODUCTS or use.port != 1 or len(tensor.shape) != 2:
            return None
        height = height_of(use, tensor)
        module, parts = self._owner(use, height)
        ends, dtype = self.ends(use), self.dtype(use)
        if ends is None or dtype is None or not module:
            return None
        x, position, y = ends
        return Linear(use.tensor, module, parts, position, x, y, node.within,
                      tensor.count // height, height, dtype)  # fmt: skip

    def _owner(self, use: Use, height: int) -> tuple[str, tuple[Part, ...]]:
        """The module, and those whose outputs lie side by side in it."""
        placed = self._placed.get(use.tensor, [])
        if not placed:
            return spelt(use.module), tuple(self.parts(use, height))
        found = sorted((place.cols or place.rows or (0, height), name) for name, place in placed)
        parts = tuple(Part(name, band) for band, name in found)
        if len(parts) == 1 and parts[0].rows == (0, height):
            return parts[0].module, parts
        leaves = tuple(part.module.rpartition(".")[2] for part in parts)
        packed = next((name for name, held in PACKS.items() if held == leaves), "+".join(leaves))
        return f"{parts[0].module.rpartition('.')[0]}.{packed}", parts

    def ends(self, use: Use) -> tuple[str, int, str] | None:
        """x, the position of the node that gives y, and y; None where these are not plain."""
        node = self.graph.nodes[use.node]
        attributes = node.attributes
        if use.unit != 1.0 or attributes.get("transA") or attributes.get("transBatchA"):
            return None
        if node.op != "MatMulInteger":
            return node.inputs[0], use.node, node.outputs[0]
        quantising = self._makers.get((node.within, node.inputs[0]))
        last = self._dequantised(use.node)
        if quantising is None or last is None:
            return None
        source = self.graph.nodes[quantising]
        if source.op != "DynamicQuantizeLinear":
            return None
        return source.inputs[0], last, self.graph.nodes[last].outputs[0]

    def _dequantised(self, position: int) -> int | None:
        """The Mul that makes an integer product a float one, behind a Cast."""
        for _ in range(_STEPS):
            node = self.graph.nodes[position]
            found = self._readers.get((node.within, node.outputs[0]), [])
            if len(found) != 1:
                return None
            position = found[0]
            if self.graph.nodes[position].op == "Mul":
                return position
        return None

    def dtype(self, use: Use) -> DType | None:
        """The type of the values that the operation takes and gives."""
        node = self.graph.nodes[use.node]
        found: DType | None = self.checkpoint.tensors[use.tensor].dtype
        for position in use.chain:
            step = self.graph.nodes[position]
            if step.op in _SCALES:
                found = self._type_of(step.inputs[_SCALES[step.op]])
            elif step.op == "Cast":
                to = step.attributes.get("to")
                found = DTYPES.get(to) if isinstance(to, int) else None
            elif step.op == "CastLike":
                return None
        if node.op in _SCALES:
            return self._type_of(node.inputs[_SCALES[node.op]])
        return DType.FLOAT32 if node.op == "MatMulInteger" else found

    def _type_of(self, name: str) -> DType | None:
        holder = model_of(self.checkpoint).holders.get(name)
        return None if holder is None else DTYPES.get(holder.type)

    def parts(self, use: Use, height: int) -> Iterable[Part]:
        """The modules whose outputs lie side by side; the whole where the graph does not tell."""
        for names in members_of(use):
            sizes = sizes_of(self.graph, self._readers, self.checkpoint.tensors, use.node, height,
                             len(names))  # fmt: skip
            if sizes is not None:
                for name, band in zip(names, bands_of(sizes), strict=True):
                    found = parameter_of(name)
                    yield Part(spelt(found[0] if found else name), band)
                return
        yield Part(spelt(use.module), (0, height))
