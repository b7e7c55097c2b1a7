"""PEFT's types that cannot be merged: why, as the end of a sentence.

All but one change no weight.
"""

UNMERGEABLE = {
    "PROMPT_TUNING": "prompt tuning adds virtual tokens to the input",
    "MULTITASK_PROMPT_TUNING": "prompt tuning adds virtual tokens to the input",
    "CPT": "context-aware prompt tuning adds virtual tokens to the input",
    "P_TUNING": "p-tuning adds virtual tokens, made by a network of its own, to the input",
    "PREFIX_TUNING": "prefix tuning adds keys and values to the attention cache",
    "CARTRIDGE": "a cartridge adds keys and values to the attention cache",
    "ADAPTION_PROMPT": "an adaption prompt adds gated tokens to the attention",
    "XLORA": "X-LoRA mixes several adapters anew for every token",
    "POLY": "Poly routes between adapters by task",
    "ADAMSS": "AdaMSS finds the groups of rows that it trained by k-means when it is loaded, and "
    "its file does not hold them",
    "LILY": "Lily routes between shared experts by the input",
    "SHADOW": "a shadow model runs beside the base and is no change of its weights",
}
