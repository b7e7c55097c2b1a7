"""The stored tensors of a quantised checkpoint: each is taken once, or refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from adaptool.canonical import DType, LazyTensor
from adaptool.errors import JSON, CorruptInputError

Shape = tuple[int | None, ...]
"""Sizes; None stands for any."""

FLOATS = (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16)


@dataclass
class Stock:
    """What a checkpoint stores, and what of it was taken so far.

    Attributes:
        tensors: as stored.
        where: what to call the checkpoint in messages.
        dtype: what the model computes in.
        settings: its quantization_config.
    """

    tensors: Mapping[str, LazyTensor]
    where: str
    dtype: DType
    settings: Mapping[str, JSON] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def ending(self, suffix: str) -> list[str]:
        """What stands before `suffix` in the names that end in it, of tensors not yet taken."""
        size = len(suffix)
        return [n[:-size] for n in self.tensors if n.endswith(suffix) and n not in self.taken]

    def take(self, name: str, dtypes: Iterable[DType], *shapes: Shape) -> LazyTensor:
        """The tensor of that name, which must have one of these types and shapes.

        Raises CorruptInputError if it is missing, taken already, or something else.
        """
        if name not in self.tensors or name in self.taken:
            raise self.broken(name, "a quantised weight needs this tensor, and it is not there")
        tensor = self.tensors[name]
        wanted = tuple(dtypes)
        if tensor.dtype not in wanted:
            raise self.broken(name, f"{tensor.dtype}, expected {' or '.join(wanted)}")
        if shapes and not any(_fits(tensor.shape, shape) for shape in shapes):
            expected = " or ".join(_shown(shape) for shape in shapes)
            raise self.broken(name, f"shape {list(tensor.shape)}, expected {expected}")
        self.taken.add(name)
        return tensor

    def take_if_there(
        self, name: str, dtypes: Iterable[DType], *shapes: Shape
    ) -> LazyTensor | None:
        """The same, or None if there is no such tensor."""
        return self.take(name, dtypes, *shapes) if name in self.tensors else None

    def drop(self, names: Iterable[str]) -> tuple[str, ...]:
        """Take what tells how activations are quantised, which says nothing of the weight."""
        found = tuple(n for n in names if n in self.tensors and n not in self.taken)
        self.taken.update(found)
        return found

    def number(self, key: str, default: int) -> int:
        """A whole number of the settings. Raises CorruptInputError if it is something else."""
        value = self.settings.get(key, default)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.broken("quantization_config", f"{key} is {value!r}, not a whole number")
        return value

    def broken(self, name: str, what: str) -> CorruptInputError:
        """What to raise of a tensor, or a setting, that cannot be so."""
        return CorruptInputError(f"{self.where}: {name}: {what}")


def _fits(shape: tuple[int, ...], wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(
        w is None or s == w for s, w in zip(shape, wanted, strict=True)
    )


def _shown(shape: Shape) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"
