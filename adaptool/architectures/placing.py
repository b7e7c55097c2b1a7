"""Where an adapter's sites lie in a checkpoint stored with Hugging Face names."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from adaptool.architectures.naming import (
    CONV1D_MODELS,
    CONV1D_MODULES,
    TRANSPOSED_EXPERTS,
    normal,
)
from adaptool.canonical import (
    Checkpoint,
    ExpertLowRank,
    LowRank,
    Placement,
    Rebased,
    Replacement,
    Site,
    TokenRows,
    Update,
)
from adaptool.canonical.parts import looks_up
from adaptool.canonical.verbs import Fittable
from adaptool.errors import JSON, IncompatibleError

_EXPERT = re.compile(r"^(?P<stack>.*\.experts)\.(?P<index>\d+)\.(?P<projection>\w+)$")
_HALVES = {"gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1)}


@dataclass(frozen=True)
class Plan:
    """A checkpoint's names, ready to be asked where a site lies.

    Attributes:
        checkpoint: the base.
        hints: the adapter's configuration, asked only where shapes cannot tell.
    """

    checkpoint: Checkpoint
    hints: Mapping[str, JSON]

    @cached_property
    def _by_normal_form(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for name in self.checkpoint.tensors:
            found[normal(name)].append(name)
        return found

    @property
    def model_type(self) -> str:
        """The base's model_type, or an empty string."""
        return str(self.checkpoint.config.get("model_type") or "")

    @property
    def may_untie(self) -> bool:
        """Whether programs that run such a model read an output head of its own."""
        return True

    @property
    def may_add(self) -> bool:
        """Whether such a model can have parameters that the base lacks: a task's head."""
        return True

    def find(self, name: str) -> str | None:
        """The stored tensor that `name` means, or None.

        Raises IncompatibleError if two tensors could be meant.
        """
        if name in self.checkpoint.tensors:
            return name
        found = self._by_normal_form.get(normal(name), [])
        if len(found) > 1:
            raise IncompatibleError(
                f"{name} could mean {' or '.join(found[:5])} in the base",
                code="AMBIGUOUS_NAME",
            )
        return found[0] if found else None

    def place(self, site: Site, update: Update) -> tuple[Placement, ...]:
        """Where `update` lies; empty if the base has no such parameter.

        Raises IncompatibleError if it is there but does not fit.
        """
        if isinstance(update, ExpertLowRank):
            return self._place_experts(site, update)
        name = self.find(str(site))
        if name is None and site.parameter == "weight":
            name = self.find(f"{site.module}.in_proj_weight")
        if name is None:
            return self._place_in_stack(site, update)
        return (self._fit(site, update, name),)

    def oriented(self, site: Site, update: Update) -> Update:
        """The update as [out, in], whichever PEFT version saved it.

        PEFT before 0.19 exchanged the two for experts stored as [expert, out, in]
        (peft pull request 3083); the version tells, and without one the shapes do.
        """
        if not isinstance(update, ExpertLowRank) or self.model_type in TRANSPOSED_EXPERTS:
            return update
        version = re.match(r"(\d+)\.(\d+)", str(self.hints.get("peft_version") or ""))
        if version is not None:
            old = (int(version[1]), int(version[2])) < (0, 19)
        else:
            old = not self._straight(site, update)
        return update.transposed() if old else update

    def _straight(self, site: Site, update: ExpertLowRank) -> bool:
        """Whether the shapes of the base agree with [experts, out, in]."""
        _, rows, cols = update.shape
        name = self.find(str(site))
        if name is not None:
            return self.checkpoint.tensors[name].shape[-2:] == (rows, cols)
        name = self.find(f"{site.module}.0.{site.parameter}.weight")
        name = name or self.find(f"{site.module}.0.gate_proj.weight")
        return name is None or self.checkpoint.tensors[name].shape[1] == cols

    def _fit(self, site: Site, update: Update, name: str) -> Placement:
        stored = self.checkpoint.tensors[name].shape
        shape = update.shape
        if isinstance(update, Rebased):
            return Placement(name, transposed=looks_up(update.update))
        if isinstance(update, TokenRows):
            if shape[1:] != stored[1:] or shape[0] > stored[0]:
                raise self._misfit(site, shape, name, stored)
            return Placement(name)
        if isinstance(update, Replacement):  # of another size: a resized vocabulary, a new head
            return Placement(name)
        swapped = len(shape) == 2 and stored == shape[::-1]
        if looks_up(update) and swapped:
            return Placement(name, transposed=True)
        if stored == shape and not looks_up(update):
            return Placement(name, transposed=swapped and self._is_conv1d(site))
        if swapped:
            return Placement(name, transposed=True)
        raise self._misfit(site, shape, name, stored)

    def shape_of(self, site: Site, update: Fittable) -> tuple[int, ...] | None:
        """[out, in, *kernel] of the site's weight, if the base has it.

        Raises IncompatibleError if the update cannot be one of that weight.
        """
        name = self.find(str(site))
        if name is None:
            return None
        stored = self.checkpoint.tensors[name].shape
        swapped = len(stored) == 2 and self._is_conv1d(site)
        shape = stored[::-1] if swapped else stored
        if not update.fits(shape):
            raise self._misfit(site, update.shape, name, stored)
        return shape

    def _is_conv1d(self, site: Site) -> bool:
        """Whether a square weight is stored transposed: by architecture, else by the flag."""
        if self.model_type in CONV1D_MODELS:
            return site.module.rpartition(".")[2] in CONV1D_MODULES
        return not self.model_type and bool(self.hints.get("fan_in_fan_out"))

    def _place_experts(self, site: Site, update: ExpertLowRank) -> tuple[Placement, ...]:
        experts, rows, cols = update.shape
        name = self.find(str(site))
        if name is not None:
            stored = self.checkpoint.tensors[name].shape
            if experts == 1 and stored == (rows, cols):  # a plain parameter, say a router's
                return (Placement(name, expert=0),)
            straight, swapped = stored == update.shape, stored == (experts, cols, rows)
            if not straight and not swapped:
                raise self._misfit(site, update.shape, name, stored)
            turned = swapped and (not straight or self.model_type in TRANSPOSED_EXPERTS)
            return tuple(
                Placement(name, slot=e, transposed=turned, expert=e) for e in range(experts)
            )
        if site.parameter == "gate_up_proj":
            half = rows // 2
            parts = {"gate_proj": (0, half), "up_proj": (half, rows)}
        else:
            parts = {site.parameter: (0, rows)}
        placed: list[Placement] = []
        for e in range(experts):
            for projection, part in parts.items():
                name = self.find(f"{site.module}.{e}.{projection}.weight")
                if name is None:
                    return ()
                stored = self.checkpoint.tensors[name].shape
                if stored != (part[1] - part[0], cols):
                    raise self._misfit(site, update.shape, name, stored)
                placed.append(Placement(name, part=part, expert=e))
        return tuple(placed)

    def _place_in_stack(self, site: Site, update: Update) -> tuple[Placement, ...]:
        """One expert's own module, in a checkpoint that stacks all experts."""
        match = _EXPERT.match(normal(f"{site.module}.weight").removesuffix(".weight"))
        if match is None or site.parameter != "weight" or not isinstance(update, LowRank):
            return ()
        projection = match["projection"]
        parameter, half = _HALVES.get(projection, (projection, 0))
        name = self.find(f"{match['stack']}.{parameter}")
        if name is None:
            return ()
        stored = self.checkpoint.tensors[name].shape
        expert, (rows, cols) = int(match["index"]), update.shape
        halves = 2 if projection in _HALVES else 1
        if expert >= stored[0] or stored[1:] != (rows * halves, cols):
            raise self._misfit(site, update.shape, name, stored)
        return (Placement(name, slot=expert, rows=(half * rows, (half + 1) * rows)),)

    def closest(self, site: Site) -> list[str]:
        """A few stored names that look most like the site's."""
        wanted = normal(str(site))
        close = difflib.get_close_matches(wanted, list(self._by_normal_form), n=3, cutoff=0.6)
        return [name for form in close for name in self._by_normal_form[form]]

    def _misfit(
        self, site: Site, shape: tuple[int, ...], name: str, stored: tuple[int, ...]
    ) -> IncompatibleError:
        hint = "is this the base that the adapter was trained on?"
        if "quantization_config" in self.checkpoint.config:
            hint = "the base is quantised: merge into the model that it was made from"
        return IncompatibleError(
            f"{site}: the adapter expects {list(shape) or 'another shape'}, the base has "
            f"{list(stored)} in {name}",
            hint=hint,
            code="SHAPE_MISMATCH",
        )
