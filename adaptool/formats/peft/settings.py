"""adapter_config.json, read tolerantly where it does not matter and strictly where it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path

from adaptool.errors import JSON, CorruptInputError, IncompatibleError, ResourceLimitError
from adaptool.formats.peft.patterns import Pattern, PatternError
from adaptool.storage import shown
from adaptool.tuners._residual import Taken

LORA = "LORA"
"""PEFT's name of the type that is no plug-in."""

DEFAULT_ALPHA = 8.0
"""LoraConfig's own default, for a config that does not state alpha."""

_MAX_PATTERNS = 20_000
_MAX_MATCHES = 2_000_000  # a few seconds
_LARGEST = 1e30

KNOWN = frozenset({
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "auto_mapping",
    "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "kasa_config",
    "layer_replication", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_bias", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core",
    "modules_to_save", "monteclora_config", "peft_type", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "runtime_config", "target_modules", "target_parameters",
    "task_type", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora", "use_rslora",
    "velora_config", "enable_lora", "merge_weights", "mica_config", "target_r", "init_r",
})  # fmt: skip
"""Keys of LoraConfig, present and past."""

_MUTATING_INITS = ("pissa", "olora", "corda", "lora_ga", "loftq")


@dataclass(frozen=True)
class Settings:
    """What of adapter_config.json decides the meaning of the tensors.

    Attributes:
        raw: the whole file.
        path: for messages.
        notes: decisions a reader should know of.
    """

    raw: Mapping[str, JSON]
    path: Path
    _tables: dict[str, list[tuple[Pattern, float]]] = field(default_factory=dict)
    _spent: dict[str, int] = field(default_factory=dict)

    @property
    def peft_type(self) -> str:
        """Upper-case tuner type; a file that lacks it is LoRA."""
        return str(self.raw.get("peft_type") or LORA).upper()

    @property
    def unknown(self) -> tuple[str, ...]:
        """Keys that no LoraConfig has had."""
        return tuple(sorted(k for k in self.raw if k not in KNOWN))

    def flag(self, key: str) -> bool:
        """A key that is on or off; anything but a boolean or null is refused."""
        value = self.raw.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._refuse(key, "true or false")
        return bool(value)

    def text(self, key: str) -> str | None:
        """A string, or None."""
        value = self.raw.get(key)
        return value if isinstance(value, str) and value else None

    @property
    def rank(self) -> int | None:
        """`r` as stated, or None."""
        value = self._number("r")
        if value is None:
            return None
        if value != int(value) or not 0 < value < 2**31:
            raise self._refuse("r", "a positive whole number")
        return int(value)

    def scaling(self, module: str, rank: int) -> float:
        """The effective strength of a module's update: alpha / rank, rsLoRA alpha / sqrt(rank).

        `rank` is the tensors' own; alpha comes from the first alpha_pattern that matches.
        """
        alpha = self.pattern("alpha_pattern", module)
        if alpha is None:
            alpha = self._number("lora_alpha")
        if alpha is None:
            alpha = DEFAULT_ALPHA
        if alpha < 0:
            raise self._refuse("lora_alpha", "not negative (a negative --scale un-applies)")
        return alpha / (sqrt(rank) if self.flag("use_rslora") else rank)

    def stated_rank(self, module: str) -> int | None:
        """The rank that the config states for a module."""
        value = self.pattern("rank_pattern", module)
        return self.rank if value is None else int(value)

    def check(self) -> None:
        """Refuse what is stated wrongly, whether it is needed or not.

        Raises CorruptInputError; ResourceLimitError for very many patterns.
        """
        _ = self.rank
        self._number("lora_alpha")
        self._table("rank_pattern")
        self._table("alpha_pattern")

    def pattern(self, key: str, module: str) -> float | None:
        """What the first pattern of a table that matches a module stands for, or None."""
        for pattern, value in self._table(key):
            self._spend(key)
            try:
                if pattern.matches(module):
                    return value
            except PatternError as error:
                raise CorruptInputError(f"{shown(self.path)}: {key} holds {error}") from None
        return None

    def targets(self, key: str, module: str) -> bool:
        """Whether a list of endings, or one expression, names a module (`target_modules`).

        Raises CorruptInputError for anything else.
        """
        stated = self.raw.get(key)
        if not isinstance(stated, str):
            return any(module.endswith(name) for name in self.names(key))
        self._spend(key)
        try:
            return Pattern(stated, whole=True).matches(module)
        except PatternError as error:
            raise CorruptInputError(f"{shown(self.path)}: {key} holds {error}") from None

    def _spend(self, key: str) -> None:
        self._spent[key] = self._spent.get(key, 0) + 1
        if self._spent[key] > _MAX_MATCHES:
            raise ResourceLimitError(
                f"{shown(self.path)}: {key} takes too long for an adapter of so many modules"
            )

    def _table(self, key: str) -> list[tuple[Pattern, float]]:
        found = self._tables.get(key)
        if found is None:
            found = self._tables[key] = self._read_table(key)
        return found

    def _read_table(self, key: str) -> list[tuple[Pattern, float]]:
        table = self.raw.get(key)
        if table is None:
            return []
        if not isinstance(table, dict):
            raise self._refuse(key, "a table of pattern -> number")
        if len(table) > _MAX_PATTERNS:
            raise ResourceLimitError(
                f"{shown(self.path)}: {key} has {len(table)} patterns, at most {_MAX_PATTERNS} "
                "are read"
            )
        rows: list[tuple[Pattern, float]] = []
        for text, value in table.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise self._refuse(key, "a table of pattern -> number")
            if not 0 <= value <= _LARGEST:
                raise self._refuse(key, "a table of finite, positive numbers")
            try:
                rows.append((Pattern(text), float(value)))
            except PatternError as error:
                raise CorruptInputError(
                    f"{shown(self.path)}: {key} holds {error}: {shown(text[:60])}"
                ) from None
        return rows

    def _number(self, key: str) -> float | None:
        value = self.raw.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._refuse(key, "a number")
        if not -_LARGEST <= value <= _LARGEST:
            raise self._refuse(key, "a sensible number")
        return float(value)

    def names(self, key: str) -> tuple[str, ...]:
        """A list of strings, or nothing; one string counts as one name."""
        value = self.raw.get(key)
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self._refuse(key, "a list of names")
        return tuple(str(v) for v in value)

    @property
    def taken(self) -> Taken | None:
        """Which part of the base was taken out before training, where that can be done again.

        A sketch ("pissa_niter_16") depends on the random numbers of that day, and other ways of
        beginning on data or on gradients.
        """
        if self.raw.get("kasa_config"):
            return Taken.WEAKEST
        init = self.raw.get("init_lora_weights")
        exact = {Taken.STRONGEST, Taken.FIRST}
        return next((t for t in exact if isinstance(init, str) and init.lower() == t), None)

    @property
    def cautions(self) -> tuple[str, ...]:
        """What a user should know of how the adapter is understood."""
        if self.taken is None:
            return ()
        note = (
            f"{self.taken}: a part of the base is taken out before the update goes in, so the base "
            "must be the model that training began with, and not its residual"
        )
        return (note,)

    def refuse_unknown_variants(self) -> None:
        """Refuse, by name, what would change the mathematics in a way not built in here.

        Raises IncompatibleError.
        """
        init = self.raw.get("init_lora_weights")
        known = self.taken is not None
        if isinstance(init, str) and init.lower().startswith(_MUTATING_INITS) and not known:
            raise IncompatibleError(
                f"{shown(self.path)}: saved with init_lora_weights={shown(init[:40])}, "
                "whose base was changed before training",
                hint="save it with path_initial_model_for_weight_conversion, which makes it "
                "a plain LoRA",
                code="UNSUPPORTED_VARIANT",
            )
        for key in ("use_dora", "target_parameters") if known else ():
            if self.raw.get(key):
                raise IncompatibleError(
                    f"{shown(self.path)}: {self.taken} together with {key} is not supported",
                    hint="merge it with PEFT",
                    code="UNSUPPORTED_VARIANT",
                )
        for key in ("use_qalora", "arrow_config"):
            if self.raw.get(key):
                raise IncompatibleError(
                    f"{shown(self.path)}: the LoRA variant {key} is not supported",
                    hint="merge it with PEFT",
                    code="UNSUPPORTED_VARIANT",
                )
        for key in self.unknown:
            if key.startswith("use_") and self.raw[key] is True:
                raise IncompatibleError(
                    f"{shown(self.path)}: unknown LoRA variant {shown(key)}",
                    hint="update adaptool, or merge it with the PEFT version that made it",
                    code="UNSUPPORTED_VARIANT",
                )

    def _refuse(self, key: str, wanted: str) -> CorruptInputError:
        found = shown(str(self.raw.get(key))[:60])
        return CorruptInputError(f"{shown(self.path)}: {key} is {found}, expected {wanted}")
