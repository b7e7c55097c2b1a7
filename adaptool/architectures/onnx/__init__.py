"""Hugging Face names in ONNX graphs: which stored tensor holds which module's weight.

An exporter renames, transposes, packs and shares weights. What it left of the module's name may
stand in a node's metadata, in a node's name or in the initializer's; else values tell.

    uses      every weight as an operation reads it: orientation, role, module
    naming    paths in exporters' spellings as parameter names
    packing   several modules' weights in one tensor
    placing   where an adapter's sites lie
    sharing   a weight of two modules becomes two, where an adapter changes one of them
    matching  names by comparing values with the original checkpoint
    originals full-precision weights in the graph's layout
"""
