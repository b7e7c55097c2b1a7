"""ONNX models: a graph, and its tensors in the same file or in files beside it.

Opening parses the graph and reads no tensor; saving copies in the kernel what was not touched.
The onnx package is imported when a model is opened.

A checkpoint is changed as a value, and saving writes what it then says:

    tensors     another tensor under a name: new values (in another plain type, if they have one);
                a new name: a new initializer of the main graph; a name left out: removed
    graph       nodes in their order, new ones among them (`origin` None, `within` ""); inputs and
                outputs, new ones too
    metadata    strings: the model's metadata_props
    shards      a new tensor's file: a data file of its own, in a folder

A quantised weight (MatMulNBits, GatherBlockQuantized, MatMulBnb4, DequantizeLinear, MatMulInteger)
is one tensor by the name of its packed initializer, with the values that the graph computes with.
Written as a tensor with the same encoding it is packed again; written as a plain one, the graph's
nodes are changed to plain ones. `untie` gives some of a tensor's consumers a tensor of their own.
"""

from adaptool.containers.onnx.editing import consumers, untie
from adaptool.containers.onnx.model import MODEL, Model, model_of
from adaptool.containers.onnx.reading import open, recognises  # noqa: A004
from adaptool.containers.onnx.writing import lay_out, plan, save

suffixes = (".onnx",)

__all__ = [
    "MODEL",
    "Model",
    "consumers",
    "lay_out",
    "model_of",
    "open",
    "plan",
    "recognises",
    "save",
    "suffixes",
    "untie",
]
