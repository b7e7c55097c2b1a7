"""PEFT: a folder with adapter_config.json and adapter_model.safetensors.

As written by PEFT, and by Axolotl, LLaMA-Factory, Unsloth, AutoTrain and others that save
through it. Keys, shapes and merge semantics: peft.tuners.lora of PEFT 0.21.
"""

from adaptool.formats.peft.reading import read, recognises
from adaptool.formats.peft.writing import plan, write

suffixes: tuple[str, ...] = ()
naming = "huggingface"

__all__ = ["naming", "plan", "read", "recognises", "suffixes", "write"]
