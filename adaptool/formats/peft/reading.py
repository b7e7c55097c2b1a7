"""A PEFT adapter as canonical updates. Every tensor is consumed exactly once, or refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

from adaptool.canonical import (
    Adapter,
    Addition,
    Dora,
    ExpertLowRank,
    LazyTensor,
    LowRank,
    Provenance,
    Rebased,
    Replacement,
    Site,
    TokenRows,
    Update,
)
from adaptool.canonical.provenance import origin
from adaptool.canonical.tensors import same_bytes
from adaptool.errors import CorruptInputError, IncompatibleError
from adaptool.formats import ACTIVATED, ReadOptions
from adaptool.formats.peft.configuration import read_configuration
from adaptool.formats.peft.factors import merged_projections, stacked_a, stacked_b
from adaptool.formats.peft.files import CONFIG, Files, open_files, weights_at
from adaptool.formats.peft.keys import Role, parse_key
from adaptool.formats.peft.settings import LORA, Settings
from adaptool.formats.peft.tuned import read_tuned, tuner_for
from adaptool.formats.peft.variants import Factors, settled, unstacked
from adaptool.storage import shown
from adaptool.tuners._unmergeable import UNMERGEABLE

Parts = Mapping[tuple[Role, str, int], tuple[str, LazyTensor]]


def recognises(path: Path) -> bool:
    """A folder with an adapter_config.json or adapter weights, or such a weights file."""
    if path.is_dir():
        return (path / CONFIG).exists() or weights_at(path) is not None
    if path.name.startswith("adapter_model."):
        return True
    return weights_at(path) is not None and (path.parent / CONFIG).exists()


def read(path: Path, options: ReadOptions) -> Adapter:
    """Read an adapter: headers now, values when they are asked for.

    Raises:
        CorruptInputError: broken files, half a pair, ranks that disagree, empty tensors.
        IncompatibleError: a method or variant that this program does not know.
    """
    if options.configuration and path.is_dir() and weights_at(path) is None:
        return read_configuration(path)
    return read_files(open_files(path, allow_pickle=options.allow_pickle))


def read_files(files: Files) -> Adapter:
    """The adapter that tensors and a config make, wherever they were found. Raises as `read`."""
    settings = Settings(files.config, files.folder / CONFIG)
    if not files.tensors:
        raise CorruptInputError(
            f"{shown(files.folder)}: the adapter file holds no tensors",
            hint="a ZeRO-3 or FSDP run saved it on a process that held no weights: "
            "consolidate the training checkpoint",
        )
    if settings.peft_type in UNMERGEABLE:
        return _opaque(files, settings, UNMERGEABLE[settings.peft_type])
    if settings.peft_type != LORA:
        return _tuned(files, settings)
    settings.refuse_unknown_variants()
    settings.check()
    updates: dict[Site, Update] = {}
    for module, parts in _by_module(files).items():
        for site, update in _Module(module, parts, files, settings).updates():
            if site in updates:
                raise CorruptInputError(f"{shown(files.folder)}: {shown(str(site))} is given twice")
            updates[site] = update
    tokens = settings.raw.get("alora_invocation_tokens")
    return Adapter(
        updates=dict(sorted(updates.items())),
        method=_method(settings, updates),
        base=settings.text("base_model_name_or_path"),
        provenance=_provenance(files, *settings.cautions),
        config=settings.raw,
        unread=settings.unknown,
        unmergeable=ACTIVATED if tokens else None,
        ties_embeddings=settings.flag("ensure_weight_tying"),
        task=settings.text("task_type"),
    )


def _tuned(files: Files, settings: Settings) -> Adapter:
    """An adapter of another type, which a plug-in knows."""
    tuning = read_tuned(files, settings, tuner_for(settings))
    return Adapter(
        updates=tuning.updates,
        method=settings.peft_type.lower(),
        base=settings.text("base_model_name_or_path"),
        provenance=_provenance(files),
        config=settings.raw,
        extras=tuning.shared,
        ties_embeddings=settings.flag("ensure_weight_tying"),
        task=settings.text("task_type"),
    )


def _method(settings: Settings, updates: Mapping[Site, Update]) -> str:
    kinds = {update.kind for update in updates.values()}
    return "dora" if "dora" in kinds else "rslora" if settings.flag("use_rslora") else "lora"


def _opaque(files: Files, settings: Settings, reason: str) -> Adapter:
    return Adapter(
        updates={},
        method=settings.peft_type.lower(),
        base=settings.text("base_model_name_or_path"),
        provenance=_provenance(files),
        config=settings.raw,
        unread=settings.unknown,
        extras=dict(files.tensors),
        unmergeable=reason,
        task=settings.text("task_type"),
    )


def _provenance(files: Files, *notes: str) -> Provenance:
    return Provenance(
        origin(files.folder),
        "peft",
        files.facts,
        sources=(files.weights,),
        notes=(*files.notes, *notes),
    )


def _by_module(files: Files) -> dict[str, dict[tuple[Role, str, int], tuple[str, LazyTensor]]]:
    modules: dict[str, dict[tuple[Role, str, int], tuple[str, LazyTensor]]] = defaultdict(dict)
    for name, tensor in files.tensors.items():
        if tensor.count == 0:
            raise CorruptInputError(
                f"{shown(files.folder)}: tensor {shown(name)} is empty, shape {list(tensor.shape)}",
                hint="a ZeRO-3 run saved it without gathering: consolidate global_step*/ first",
            )
        key = parse_key(name)
        identity = (key.role, key.parameter, key.depth)
        parts = modules[key.module]
        if identity in parts and not same_bytes(parts[identity][1], tensor):
            raise CorruptInputError(
                f"{shown(files.folder)}: {shown(name)} and {shown(parts[identity][0])} "
                "mean the same tensor"
            )
        parts[identity] = (name, tensor)
    return modules


class _Module:
    """The tensors of one module, becoming its updates."""

    def __init__(self, module: str, parts: Parts, files: Files, settings: Settings) -> None:
        self._module = module
        self._left = dict(parts)
        self._files = files
        self._settings = settings
        self._bias_rank = 1

    def updates(self) -> Iterator[tuple[Site, Update]]:
        """Each update with its site; refuses what is left over."""
        for role in (Role.TRAINING, Role.ORIGINAL):  # optimiser state, and copies of the base
            for identity in [i for i in self._left if i[0] is role]:
                del self._left[identity]
        depths = sorted({i[2] for i in self._left if i[0] is Role.A}, reverse=True)
        parameters = self._stacked_parameters(len(depths))
        if parameters:
            for depth, parameter in zip(depths, parameters, strict=True):
                yield Site(self._module, parameter), self._experts(depth, parameter)
        elif depths:
            yield Site(self._module), self._low_rank(depths[0])
        embedding = self._take(Role.EMBEDDING_A)
        if embedding is not None:
            yield Site(self._module), self._embedding(embedding)
        yield from self._vectors()
        if self._left:
            name = next(iter(self._left.values()))[0]
            raise CorruptInputError(
                f"{shown(self._files.folder)}: {shown(name)} stands alone; "
                f"found {', '.join(sorted({i[0].value for i in self._left}))} without its partner",
                hint="the file is incomplete: save the adapter again",
                code="HALF_A_PAIR",
            )

    def _vectors(self) -> Iterator[tuple[Site, Update]]:
        bias = self._take(Role.B_BIAS)
        if bias is not None:
            scaling = self._settings.scaling(self._module, self._bias_rank)
            yield Site(self._module, "bias"), Addition(bias, scaling)
        base_bias = self._take(Role.BASE, "bias")
        if base_bias is not None:
            yield Site(self._module, "bias"), Replacement(base_bias)
        base = self._take(Role.BASE)
        if base is not None:  # a resized layer whose update is elsewhere
            yield Site(self._module), Replacement(base)
        tokens = self._take(Role.TOKENS)
        if tokens is not None:
            yield Site(self._module), self._token_rows(tokens)
        for role, parameter, depth in [i for i in self._left if i[0] is Role.SAVED]:
            _, value = self._left.pop((role, parameter, depth))
            yield Site(self._module, parameter), Replacement(value)

    def _take(self, role: Role, parameter: str = "weight", depth: int = 0) -> LazyTensor | None:
        found = self._left.pop((role, parameter, depth), None)
        return None if found is None else found[1]

    def _stacked_parameters(self, count: int) -> tuple[str, ...]:
        """Names of the parameters (not modules) that wrappers target, innermost first."""
        names = [
            name.rpartition(".")
            for name in self._settings.names("target_parameters")
            if self._module == name.rpartition(".")[0]
            or self._module.endswith("." + name.rpartition(".")[0])
        ]
        found = sorted({name for _, _, name in names}, key=lambda n: ("gate_up" not in n, n))
        if len(found) == count:
            return tuple(found)
        if found and count == 1:
            return (self._guess(found),)
        if count > 1 and not found:
            return ("gate_up_proj", "down_proj")[:count]
        return ()

    def _guess(self, names: list[str]) -> str:
        raise IncompatibleError(
            f"{shown(self._files.folder)}: {shown(self._module)} targets {', '.join(names)}, but "
            "the file holds factors of one",
            code="AMBIGUOUS_PARAMETER",
        )

    def _pair(self, depth: int) -> tuple[LazyTensor, LazyTensor]:
        a, b = self._take(Role.A, depth=depth), self._take(Role.B, depth=depth)
        if a is None or b is None:
            missing = "lora_A" if a is None else "lora_B"
            raise CorruptInputError(
                f"{shown(self._files.folder)}: {shown(self._module)} lacks its {missing}",
                hint="the file is incomplete: save the adapter again",
                code="HALF_A_PAIR",
            )
        for role, factor in ((Role.A, a), (Role.B, b)):
            if len(factor.shape) < 2 or not factor.dtype.is_floating:
                raise CorruptInputError(
                    f"{self._where}: {role} is {factor.dtype} {list(factor.shape)}, "
                    "not a matrix of real numbers"
                )
        return a, b

    def _low_rank(self, depth: int) -> Update:
        a, b = self._pair(depth)
        self._bias_rank = a.shape[0]
        layout = self._settings.raw.get("enable_lora")
        if (isinstance(layout, list) and any(layout) and not all(layout)) or (
            isinstance(layout, list) and b.shape and a.shape and b.shape[1] != a.shape[0]
        ):
            enabled = [flag is True for flag in layout]
            a, b = merged_projections(a, b, enabled, self._where)
            rank = self._settings.rank or a.shape[0] // sum(enabled)
            return LowRank(a, b, self._settings.scaling(self._module, rank))
        found = Factors(a, b, self._take(Role.DIAGONAL), self._where)
        a, b = unstacked(found, self._module, self._settings)
        if b.shape[1] != a.shape[0] or prod(b.shape[2:]) != 1:
            raise CorruptInputError(
                f"{self._where}: lora_A {list(a.shape)}, lora_B {list(b.shape)}: ranks disagree",
                code="RANK_MISMATCH",
            )
        b = b.reshaped(b.shape[0], b.shape[1])
        update = LowRank(a, b, self._settings.scaling(self._module, a.shape[0]))
        changed = settled(update, found, self._settings)
        return self._dressed(changed) if isinstance(changed, LowRank) else changed

    def _embedding(self, a: LazyTensor) -> Update:
        b = self._take(Role.EMBEDDING_B)
        if b is None or len(a.shape) != 2 or len(b.shape) != 2 or b.shape[1] != a.shape[0]:
            raise CorruptInputError(
                f"{self._where}: lora_embedding_A has no fitting lora_embedding_B",
                code="HALF_A_PAIR",
            )
        scaling = self._settings.scaling(self._module, a.shape[0])
        return self._dressed(LowRank(a, b, scaling, embedding=True))

    def _dressed(self, update: LowRank) -> Update:
        """With its magnitude (DoRA), and on its own copy of the base where the file has one."""
        result: LowRank | Dora = update
        magnitude = self._take(Role.MAGNITUDE)
        if magnitude is not None:
            if magnitude.count != update.shape[0]:
                raise CorruptInputError(
                    f"{self._where}: magnitude of {magnitude.count} values for "
                    f"{update.shape[0]} outputs"
                )
            result = Dora(update, magnitude)
        elif self._settings.flag("use_dora") and not update.embedding:
            raise CorruptInputError(f"{self._where}: use_dora is set but there is no magnitude")
        base = self._take(Role.BASE)
        if base is not None:
            wanted = update.shape[::-1] if update.embedding else update.shape
            if base.shape not in (wanted, wanted[::-1]):
                raise CorruptInputError(
                    f"{self._where}: base_layer {list(base.shape)}, factors for {list(wanted)}"
                )
            return Rebased(base, result)
        return result

    def _experts(self, depth: int, parameter: str) -> Update:
        a, b = self._pair(depth)
        rank = self._settings.stated_rank(f"{self._module}.{parameter}") or a.shape[0]
        if len(a.shape) != 2 or len(b.shape) != 2 or b.shape[1] != a.shape[0] or a.shape[0] % rank:
            raise CorruptInputError(
                f"{self._where}: lora_A {list(a.shape)} and lora_B {list(b.shape)} hold no "
                f"whole number of experts of rank {rank}",
                code="RANK_MISMATCH",
            )
        experts = a.shape[0] // rank
        scaling = self._settings.scaling(f"{self._module}.{parameter}", rank)
        return ExpertLowRank(stacked_a(a, experts), stacked_b(b, experts), scaling)

    def _token_rows(self, rows: LazyTensor) -> Update:
        stated = self._settings.raw.get("trainable_token_indices")
        if isinstance(stated, dict):
            matches = [v for k, v in stated.items() if f".{self._module}".endswith(f".{k}")]
            stated = matches[0] if matches else None
        if not rows.shape or not rows.dtype.is_floating:
            raise CorruptInputError(
                f"{self._where}: token rows are {rows.dtype} {list(rows.shape)}, no rows of numbers"
            )
        if not isinstance(stated, list) or len(stated) != rows.shape[0]:
            count = len(stated) if isinstance(stated, list) else "no"
            raise CorruptInputError(
                f"{self._where}: {rows.shape[0]} token rows, {count} indices in {CONFIG}"
            )
        indices = [i for i in stated if isinstance(i, int) and not isinstance(i, bool) and i >= 0]
        if len(indices) != rows.shape[0] or len(set(indices)) != len(indices):
            raise CorruptInputError(f"{self._where}: token indices are not distinct whole numbers")
        return TokenRows(tuple(indices), rows)

    @property
    def _where(self) -> str:
        return f"{shown(self._files.folder)}: {shown(self._module)}"
