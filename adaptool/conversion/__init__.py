"""From a Hugging Face checkpoint to a GGUF model, and what Ollama needs beside it.

checkpoint = open_checkpoint(Path("model"))
save_checkpoint(to_gguf(checkpoint, outtype="q4_k_m"), Path("model.gguf"), SaveOptions())
"""

from adaptool.conversion.assembly import left_out, to_gguf
from adaptool.conversion.modelfile import modelfile

__all__ = ["left_out", "modelfile", "to_gguf"]
