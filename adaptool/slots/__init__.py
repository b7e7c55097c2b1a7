"""Slots: inputs for an adapter's factors in a finished graph, so that adapters swap at run time.

Beside each linear layer y = x W comes y + lora_scale * (x A) B, where A [in, rank] and
B [rank, out] are inputs of the graph; a quantised weight stays as it is. Three ways to feed them:

    optional   inputs with defaults of rank 0 (or zeros): ONNX Runtime's add_active_adapter with an
               .onnx_adapter file, onnxruntime-genai. Web runtimes cannot see such inputs.
    inputs     inputs that must be fed, of any rank from 1: plain ONNX Runtime Web
    external   tensors in a data file of their own, which a session is given: transformers.js

    manifest   which input takes which module's factors
    sites      where a graph applies the weight of a linear layer
    insertion  the graph with its slots
    declared   the slots that a graph has, ours or those of other tools
    matching   which slots take an adapter's module
    filling    an adapter as a graph's factors, and back
"""

from adaptool.slots.declared import SLOTS, STYLES, slots_for, slots_named, slots_of
from adaptool.slots.filling import Filling, fill, recover
from adaptool.slots.insertion import SlotRequest, with_slots
from adaptool.slots.manifest import EXTERNAL, INPUTS, MODES, OPTIONAL, PROPERTY, Manifest

__all__ = [
    "EXTERNAL",
    "INPUTS",
    "MODES",
    "OPTIONAL",
    "PROPERTY",
    "SLOTS",
    "STYLES",
    "Filling",
    "Manifest",
    "SlotRequest",
    "fill",
    "recover",
    "slots_for",
    "slots_named",
    "slots_of",
    "with_slots",
]
