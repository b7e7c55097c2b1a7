"""What a text model is for: which class of transformers runs it, and what it answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adaptool.errors import IncompatibleError, UsageError


@dataclass(frozen=True)
class Task:
    """One use of a model.

    Attributes:
        loader: the class of transformers that loads it.
        outputs: name -> its first dims, as the pipelines of transformers.js read them.
        endings: of the names of architectures that are made for it.
        cached: whether keys and values of earlier tokens come in and go out.
    """

    loader: str
    outputs: Mapping[str, tuple[str, ...]]
    endings: tuple[str, ...]
    cached: bool = False


_ROW = ("batch_size",)
_TOKENS = ("batch_size", "sequence_length")

TASKS: Mapping[str, Task] = {
    "text-generation": Task(
        "AutoModelForCausalLM", {"logits": _TOKENS},
        ("ForCausalLM", "LMHeadModel"), cached=True,
    ),
    "feature-extraction": Task(
        "AutoModel", {"last_hidden_state": _TOKENS}, ("Model",)
    ),
    "text-classification": Task(
        "AutoModelForSequenceClassification", {"logits": _ROW},
        ("ForSequenceClassification",),
    ),
    "token-classification": Task(
        "AutoModelForTokenClassification", {"logits": _TOKENS},
        ("ForTokenClassification",),
    ),
    "fill-mask": Task(
        "AutoModelForMaskedLM", {"logits": _TOKENS}, ("ForMaskedLM",)
    ),
    "question-answering": Task(
        "AutoModelForQuestionAnswering", {"start_logits": _TOKENS, "end_logits": _TOKENS},
        ("ForQuestionAnswering",),
    ),
}  # fmt: skip
"""Every task that can be traced, by the name that transformers.js has for it."""

_OTHER_KEYS = {
    "vision_config": "reads images",
    "image_size": "reads images",
    "patch_size": "reads images",
    "audio_config": "reads audio",
    "num_mel_bins": "reads audio",
    "feat_extract_norm": "reads audio",
}
_OTHER_WORDS = {
    "Image": "reads images", "Vision": "reads images", "Video": "reads images",
    "ObjectDetection": "reads images", "Segmentation": "reads images",
    "Speech": "reads audio", "Audio": "reads audio", "ForCTC": "reads audio",
    "ForConditionalGeneration": "is an encoder with a decoder, or reads more than text",
}  # fmt: skip

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def task_of(config: Mapping[str, object]) -> str:
    """What the model of this config.json is for, by the end of its architecture's name.

    Raises:
        IncompatibleError: it is no text model of one stack, or made for something else.
    """
    name = architecture_of(config)
    refuse_other_kinds(config)
    for task, facts in TASKS.items():
        if name.endswith(facts.endings) and not name.endswith("DoubleHeadsModel"):
            return task
    raise IncompatibleError(
        f"config.json names {name or 'no architecture'}, which is for none of: {', '.join(TASKS)}",
        hint="name the task with --task",
        code="TASK_UNKNOWN",
    )


def architecture_of(config: Mapping[str, object]) -> str:
    """The class of transformers that the checkpoint was saved by; "" if none is named."""
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def refuse_other_kinds(config: Mapping[str, object]) -> None:
    """Raise IncompatibleError for a model that is not one stack of layers over text.

    Also for a mixture of experts: a trace of it gathers the weights of its experts anew for each
    token of a prompt, gigabytes of them, and no quantiser shrinks them.
    """
    name = architecture_of(config)
    if any(isinstance(count := config.get(key), int) and count > 1 for key in _EXPERTS):
        raise IncompatibleError(
            f"{name or config.get('model_type') or 'the model'} is a mixture of experts, which"
            " does not fit a browser as a traced graph",
            hint="use a target that runs GGUF models, or give an ONNX model",
            code="TASK_UNSUPPORTED",
        )
    reasons = [why for key, why in _OTHER_KEYS.items() if config.get(key) is not None]
    reasons += [why for word, why in _OTHER_WORDS.items() if word in name]
    if config.get("is_encoder_decoder"):
        reasons.insert(0, "is an encoder with a decoder")
    if reasons:
        raise IncompatibleError(
            f"{name or config.get('model_type') or 'the model'} {reasons[0]}; only decoders and"
            " encoders of text can be traced",
            hint="export it with a tool for its kind, and give the ONNX model to adaptool",
            code="TASK_UNSUPPORTED",
        )


def known_task(name: str) -> Task:
    """The task of this name. Raises UsageError for any other name."""
    if name not in TASKS:
        raise UsageError(f"unknown task {name!r}", hint=f"one of: {', '.join(TASKS)}")
    return TASKS[name]
