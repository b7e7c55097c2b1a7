"""The tensors of one module, handed to the tuner that knows what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adaptool.canonical import LazyTensor
from adaptool.errors import CorruptInputError, IncompatibleError


@dataclass
class Parts:
    """A module's own tensors by suffix, and the shared ones by name.

    Attributes:
        module: path of the module in the model.
        where: file and module, for messages.
        tensors: what was not taken yet; all of it must be.
        shared: tensors that all modules share; they may be asked for many times.
        modules: every module of the adapter that has tensors of this tuner, in the file's order.
    """

    module: str
    where: str
    tensors: dict[str, LazyTensor]
    shared: Mapping[str, LazyTensor] = field(default_factory=dict)
    modules: tuple[str, ...] = ()

    def has(self, suffix: str) -> bool:
        """Whether a tensor of that suffix is there and was not taken."""
        return suffix in self.tensors

    def need(self, suffix: str, *shape: int | None) -> LazyTensor:
        """Take a tensor of real numbers of that shape (None: any size; no shape: any shape).

        Raises CorruptInputError if it is absent, or is not of that kind.
        """
        found = self.tensors.pop(suffix, None)
        if found is None:
            raise CorruptInputError(
                f"{self.where} lacks its {suffix}",
                hint="the file is incomplete: save the adapter again",
                code="HALF_A_PAIR",
            )
        return self.checked(suffix, found, *shape)

    def take(self, suffix: str, *shape: int | None) -> LazyTensor | None:
        """As `need`, but None if it is absent."""
        return self.need(suffix, *shape) if suffix in self.tensors else None

    def series(self, suffix: str) -> list[LazyTensor]:
        """Take `suffix`.0, `suffix`.1 ... : an empty list if there is none."""
        found: list[LazyTensor] = []
        while (name := f"{suffix}.{len(found)}") in self.tensors:
            found.append(self.need(name))
        return found

    def common(self, name: str, *shape: int | None) -> LazyTensor | None:
        """A shared tensor, checked like the module's own; None if the file has none."""
        found = self.shared.get(name)
        return None if found is None else self.checked(name, found, *shape)

    def checked(self, name: str, tensor: LazyTensor, *shape: int | None) -> LazyTensor:
        """`tensor`, if it holds real numbers and has that shape.

        Raises CorruptInputError otherwise.
        """
        fits = len(shape) == len(tensor.shape) and all(
            want is None or want == size for want, size in zip(shape, tensor.shape, strict=True)
        )
        if not tensor.count:
            raise self.corrupt(f"{name} is empty, shape {list(tensor.shape)}")
        if not tensor.dtype.is_floating:
            raise self.corrupt(f"{name} is of type {tensor.dtype}, not real numbers")
        if shape and not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise self.corrupt(f"{name} is {list(tensor.shape)}, expected [{wanted}]")
        return tensor

    def corrupt(self, what: str) -> CorruptInputError:
        """What to raise for tensors that contradict one another."""
        return CorruptInputError(f"{self.where}: {what}", code="RANK_MISMATCH")

    def unsupported(self, what: str) -> IncompatibleError:
        """What to raise for a variant that is not built in here."""
        return IncompatibleError(
            f"{self.where}: {what} is not supported",
            hint="merge it with PEFT",
            code="UNSUPPORTED_VARIANT",
        )
