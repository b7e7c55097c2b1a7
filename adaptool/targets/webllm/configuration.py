"""mlc-chat-config.json: what WebLLM, and mlc_llm, read of a model besides its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping

from adaptool.canonical import Checkpoint
from adaptool.errors import JSON, CorruptInputError
from adaptool.targets.webllm.conversation import conversation_for
from adaptool.targets.webllm.hyperparameters import Hyperparameters
from adaptool.targets.webllm.tokens import Tokens

NAME = "mlc-chat-config.json"
VERSION = "0.1.0"

_SAMPLING: Mapping[str, float] = {
    "temperature": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "repetition_penalty": 1.0, "top_p": 1.0,
}  # fmt: skip
_SPECIAL: Mapping[str, int] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
"""mlc_llm's defaults where the model's files are silent."""


def describe(
    checkpoint: Checkpoint,
    model: Hyperparameters,
    scheme: str,
    tokens: Tokens,
    *,
    conversation: str | None = None,
    page: str | None = None,
) -> dict[str, JSON]:
    """The content, in the order of mlc_llm's gen_config.

    Args:
        checkpoint: whose config.json, and generation_config.json beside it, are asked.
        model: what MLC makes of them.
        scheme: name of the quantisation.
        tokens: the tokenizer.
        conversation, page: see `conversation_for`.

    Raises as `conversation_for` and `Tokens`.
    """
    stated = _stated(tokens.read.generation, checkpoint.config)
    ends = _ids(stated.get("eos_token_id"))
    template = conversation_for(tokens, model.model_type, ends, name=conversation, page=page)
    rows = model.shape.vocab_size
    files: list[JSON] = [*tokens.copied]
    return {
        "version": VERSION,
        "model_type": model.model_type,
        "quantization": scheme,
        "model_config": dict(model.fields),
        "vocab_size": rows,
        "context_window_size": model.context,
        "sliding_window_size": -1,
        "prefill_chunk_size": model.chunk,
        "attention_sink_size": model.sink,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "active_vocab_size": min(tokens.count(rows), rows),
        **{name: stated.get(name, default) for name, default in _SAMPLING.items()},
        "tokenizer_files": files,
        "tokenizer_info": tokens.info,
        "conv_template": template,
        **{name: stated.get(name, default) for name, default in _SPECIAL.items()},
        "model_task": "chat",
        "embedding_metadata": None,
    }


def encode(content: Mapping[str, JSON]) -> bytes:
    """The file."""
    return json.dumps(content, indent=2).encode()


def _stated(*sources: Mapping[str, JSON]) -> dict[str, JSON]:
    """Sampling and special tokens; what stands first counts."""
    found: dict[str, JSON] = {}
    for source in sources:
        for name in (*_SAMPLING, *_SPECIAL):
            value = source.get(name)
            if value is None or name in found:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number and not (name == "eos_token_id" and isinstance(value, list)):
                raise CorruptInputError(
                    f"{name} is {str(value)[:80]!r} in the model's files, not a number"
                )
            found[name] = value
    return found


def _ids(value: JSON) -> list[int]:
    listed = value if isinstance(value, list) else [value]
    return [one for one in listed if isinstance(one, int) and not isinstance(one, bool)]
