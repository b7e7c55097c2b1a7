"""An ONNX file parsed without the tensors' bytes: these stay in the file, and where is noted.

The message is copied in pieces that leave out what is large in each TensorProto, and the copy is
parsed by the onnx package. So a model of 2 GB takes as much memory as its graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adaptool.containers.onnx.wire import BYTES, Field, Reader, head
from adaptool.errors import CorruptInputError, ResourceLimitError
from adaptool.storage import SourceFile, shown

if TYPE_CHECKING:
    from google.protobuf.message import Message  # type: ignore[import-untyped]
    from onnx import ModelProto

FILE_LIMIT = 2**31 - 1
"""Bytes of the largest message that protocol buffers allow."""
KEPT_LIMIT = 128 << 20
"""Bytes of a graph without its tensors; the largest real ones are a third of it."""
FIELDS_LIMIT = 4_000_000
LEAST = 1024
"""Bytes of the smallest payload that is left in the file."""
DEPTH = 40
"""Messages in messages; one graph nested in another takes three."""

GRAPH, INITIALIZER, NODE, ATTRIBUTE, TENSOR, SUBGRAPH = 7, 5, 1, 5, 5, 6
TENSORS, SUBGRAPHS, FUNCTION, FUNCTION_NODE = 10, 11, 25, 7
RAW, FLOATS, DOUBLES = 9, 4, 10

Path = tuple[int, ...]
"""Where a message stands: field number and index by turns, (7, 0, 5, 3): the fourth initializer."""

_LEVELS: dict[str, dict[int, str]] = {
    "model": {GRAPH: "graph", FUNCTION: "function"},
    "graph": {NODE: "node", INITIALIZER: "tensor"},
    "function": {FUNCTION_NODE: "node"},
    "node": {ATTRIBUTE: "attribute"},
    "attribute": {TENSOR: "tensor", SUBGRAPH: "graph", TENSORS: "tensor", SUBGRAPHS: "graph"},
    "tensor": {},
}
_SINGLE = {("model", GRAPH), ("attribute", TENSOR), ("attribute", SUBGRAPH), ("tensor", RAW)}
_PAYLOADS = (RAW, FLOATS, DOUBLES)


@dataclass(frozen=True, slots=True)
class Payload:
    """A tensor's bytes in the file, little-endian: those of the field `number`."""

    number: int
    offset: int
    size: int


@dataclass
class _Strip:
    reader: Reader
    kept: int = 0
    fields: int = 0
    payloads: dict[Path, Payload] = field(default_factory=dict)

    def message(self, level: str, path: Path, start: int, stop: int) -> list[bytes]:
        """The bytes of the message without its payloads."""
        if len(path) > 2 * DEPTH:
            raise self._broken("graphs nested too deeply")
        parts: list[bytes] = []
        seen: dict[int, int] = {}
        run = start
        for found in self.reader.fields(start, stop):
            self._count()
            index = seen.get(found.number, 0)
            seen[found.number] = index + 1
            if index and (level, found.number) in _SINGLE and found.type == BYTES:
                raise self._broken(f"a {level} with field {found.number} twice")
            inner = self._inner(level, (*path, found.number, index), found)
            if inner is not None:
                parts += [self._keep(run, found.start), *inner]
                run = found.stop
        parts.append(self._keep(run, stop))
        return parts

    def _inner(self, level: str, path: Path, found: Field) -> list[bytes] | None:
        """What replaces a field; None to leave it as it is."""
        if found.type != BYTES or found.size < LEAST:
            return None
        if level == "tensor":
            if found.number not in _PAYLOADS:
                return None
            owner = path[:-2]
            if owner in self.payloads:
                raise self._broken("a tensor whose values are stated twice")
            self.payloads[owner] = Payload(found.number, found.content, found.size)
            return []
        below = _LEVELS[level].get(found.number)
        if below is None:
            return None
        inner = self.message(below, path, found.content, found.stop)
        return [head(found.number, sum(map(len, inner))), *inner]

    def _keep(self, start: int, stop: int) -> bytes:
        self.kept += stop - start
        if self.kept > KEPT_LIMIT:
            raise ResourceLimitError(
                f"{self._name()}: a graph of more than {KEPT_LIMIT >> 20} MiB beside its tensors"
            )
        return self.reader.source.read(start, stop - start)

    def _count(self) -> None:
        self.fields += 1
        if self.fields > FIELDS_LIMIT:
            raise ResourceLimitError(f"{self._name()}: more than {FIELDS_LIMIT} fields in a graph")

    def _name(self) -> str:
        return shown(self.reader.source.path)

    def _broken(self, what: str) -> CorruptInputError:
        return CorruptInputError(f"{self._name()}: {what}: not a sound ONNX file")


def read_model(source: SourceFile) -> tuple[ModelProto, dict[Path, Payload]]:
    """The model without large payloads, and where these lie.

    Raises:
        CorruptInputError: not a ModelProto, or one of more than 2 GiB.
        ResourceLimitError: the graph itself is larger than the stated limits.
    """
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    if source.size > FILE_LIMIT:
        raise CorruptInputError(
            f"{shown(source.path)}: {source.size} bytes; an ONNX file ends at 2 GiB",
            hint="larger models keep their tensors in files beside it",
        )
    strip = _Strip(Reader(source))
    data = b"".join(strip.message("model", (), 0, source.size))
    try:
        model = ModelProto.FromString(data)
    except DecodeError as error:
        raise CorruptInputError(f"{shown(source.path)}: not a sound ONNX file") from error
    if not model.HasField("graph"):
        raise CorruptInputError(f"{shown(source.path)}: no graph in it: not an ONNX model")
    if not _is_text(model):
        raise CorruptInputError(f"{shown(source.path)}: a name in the graph is not UTF-8")
    return model, strip.payloads


def _is_text(message: Message) -> bool:
    """Whether every text in it is UTF-8; protobuf gives the bytes of one that is not."""
    for described, content in message.ListFields():
        if described.type == described.TYPE_MESSAGE:
            inner = (content,) if hasattr(content, "ListFields") else content
            if not all(map(_is_text, inner)):
                return False
        elif described.type == described.TYPE_STRING:
            texts = (content,) if isinstance(content, str | bytes) else content
            if any(isinstance(text, bytes) for text in texts):
                return False
    return True
