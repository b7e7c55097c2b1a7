"""A folder that holds only adapter_config.json: what kind of adapter belongs to it."""

from __future__ import annotations

from pathlib import Path

from adaptool.canonical import Adapter, Provenance
from adaptool.canonical.provenance import origin
from adaptool.formats import ACTIVATED
from adaptool.formats.peft.files import CONFIG, read_config
from adaptool.formats.peft.settings import LORA, Settings
from adaptool.formats.peft.tuned import tuner_for
from adaptool.tuners._unmergeable import UNMERGEABLE


def read_configuration(folder: Path) -> Adapter:
    """An adapter without tensors; whether those of its type can be merged is known.

    Raises:
        CorruptInputError: the file is broken.
        IncompatibleError: a type or variant that this program does not know.
    """
    settings = Settings(read_config(folder), folder / CONFIG)
    reason = UNMERGEABLE.get(settings.peft_type)
    method = settings.peft_type.lower()
    unread: tuple[str, ...] = ()
    if settings.peft_type == LORA:
        settings.refuse_unknown_variants()
        settings.check()
        method = _variant(settings)
        unread = settings.unknown
        reason = ACTIVATED if settings.raw.get("alora_invocation_tokens") else None
    elif reason is None:
        tuner_for(settings)
    note = f"only {CONFIG} is here: the adapter's weights are elsewhere"
    return Adapter(
        updates={},
        method=method,
        base=settings.text("base_model_name_or_path"),
        provenance=Provenance(origin(folder), "peft", {}, notes=(note,)),
        config=settings.raw,
        unread=unread,
        unmergeable=reason,
        task=settings.text("task_type"),
    )


def _variant(settings: Settings) -> str:
    if settings.flag("use_dora"):
        return "dora"
    return "rslora" if settings.flag("use_rslora") else "lora"
