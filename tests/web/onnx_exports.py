"""What the tests of the two ONNX targets share: exports made once, graphs, a driver's script."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf  # noqa: TID251
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper, save
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from zoo.models import randomise

from adaptool.demonstration import demo_folder
from adaptool.jobs.exporting import ExportOptions, ExportReport, export

from .chromium import Browser, Visit

DEMO = demo_folder()
EXPECTED = json.loads((DEMO / "expected.json").read_text())
PROMPTS = list(EXPECTED["base"])
ONNX_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}

IMPORTS = {
    "@huggingface/transformers": "/npm/@huggingface/transformers/dist/transformers.min.js",
    "@huggingface/tokenizers": "/npm/@huggingface/tokenizers/dist/tokenizers.min.mjs",
    "@huggingface/jinja": "/npm/@huggingface/jinja/dist/index.js",
}
RUNTIME = {"onnxruntime-web": "/npm/onnxruntime-web/dist/"}

_SCRIPT = """
export default async ({ runtime, visits }) => {
  const here = (path) => new URL(path, location).href;
  const answers = [];
  for (const { folder, settings, questions } of visits) {
    const { open } = await import(`/${folder}/driver.js`);
    const page = await (await fetch(`/${folder}/page.json`)).json();
    const urls = Object.entries(runtime).map(([name, path]) => [name, here(path)]);
    const steps = [];
    const model = await open(
      { ...page, ...settings, base: here(`/${folder}/`), runtime: Object.fromEntries(urls) },
      { progress: (fraction, text) => steps.push([fraction, text]) });
    const said = [];
    for (const { prompt, ...options } of questions) {
      const controller = new AbortController();
      const texts = [];
      const token = (text) => {
        texts.push(text);
        if (options.stopAfter === texts.length) controller.abort();
      };
      const given = { maxTokens: 40, ...options, token, signal: controller.signal };
      said.push({ ...await model.answer(prompt, given), texts });
    }
    answers.push({ device: model.device, adapters: model.adapters, steps, said });
  }
  return answers;
};
"""


def kept(shared: Path, key: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` fills once for all processes of a run."""
    folder, fresh = shared / f"onnx-{key}", shared / f"onnx-{key}-fresh"
    with (shared / f"onnx-{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            make(fresh)
            fresh.rename(folder)
    return folder


def exported(
    model: Path, adapters: Mapping[str, float], output: Path, target: str,
    dtypes: Sequence[str] = (), *, swappable: bool = False, dry_run: bool = False,
    page: bool = True, **options: Any,
) -> ExportReport:  # fmt: skip
    """An export with its page, but without the runtime."""
    asked = ExportOptions(**{"template": EXPECTED["template"], **options})
    named = {str(DEMO / name): scale for name, scale in adapters.items()}
    return export(model, named, output, target=target, dtypes=dtypes, options=asked,
                  swappable=swappable, dry_run=dry_run, page=page)  # fmt: skip


def visited(browser: Browser, root: Path, visits: Sequence[Mapping[str, Any]], *,
            webgpu: bool = False) -> tuple[list[Any], Visit]:  # fmt: skip
    """What models answer that are opened one after the other in one page."""
    given = {"runtime": RUNTIME, "visits": [{"settings": {}, **one} for one in visits]}
    visit = browser.visit(root, _SCRIPT, given, imports=IMPORTS, webgpu=webgpu)
    return visit.result, visit


def texts(answers: Mapping[str, Any]) -> list[str]:
    """The answers of one model, without the space that comes first."""
    return [one["text"].strip() for one in answers["said"]]


# -- encoders -------------------------------------------------------------------------------------

WORDS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]",
         "good", "bad", "a", "film", "is", "the", "so")  # fmt: skip
SENTENCES = ("the film is good", "so bad", "a good film")


def encoder(folder: Path, kind: type, **more: Any) -> tuple[Any, Any]:
    """A tiny random BERT with a word-level tokenizer, saved; the model and the tokenizer."""
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=32, pad_token_id=0, **more,
    )  # fmt: skip
    model = kind(config).float().eval()
    randomise(model)
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", unk_token="[UNK]",
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


# -- graphs made by hand --------------------------------------------------------------------------


@dataclass(frozen=True)
class Toy:
    """A decoder of one layer as exporters write it; what it computes means nothing.

    Attributes:
        past, present: names of the cache, with {} for "key" or "value" (and an s where wanted).
        batch, heads, width: sizes that the inputs state for it.
        kind: of weights and cache.
        prefix: before the names of inputs and outputs.
        op: operation with the output's weight.
    """

    past: str = "past_key_values.0.{}"
    present: str = "present.0.{}"
    batch: int | str = "batch_size"
    heads: int | str = 2
    width: int | str = 4
    kind: str = "float32"
    rows: int | str = "sequence_length"

    def values(self) -> Iterator[tuple[str, ValueInfoProto, ValueInfoProto]]:
        kind = ONNX_TYPES[self.kind]
        for part in ("key", "value"):
            past, present = self.past.format(part), self.present.format(part)
            sizes = [self.batch, self.heads, "past", self.width]
            after = [self.batch, self.heads, "past + new", self.width]
            yield (
                part,
                helper.make_tensor_value_info(past, kind, sizes),
                helper.make_tensor_value_info(present, kind, after),
            )

    def write(self, folder: Path, name: str = "model.onnx") -> Path:
        """The model's file, with a tokenizer and a config.json beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(DEMO / "model" / file, folder)
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "eos_token_id": 2,
                  "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16,
                  "vocab_size": 512}  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))
        save(self.model(), folder / name)
        return folder / name

    def model(self) -> ModelProto:
        """ids -> embedding [., ., 8] -> logits; the cache grows by the embedding's values."""
        kind = ONNX_TYPES[self.kind]
        generator = np.random.default_rng(0)
        table = generator.standard_normal((512, 8)).astype(self.kind)
        head = generator.standard_normal((8, 512)).astype(self.kind)
        ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [self.batch, self.rows])
        mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64,
                                             [self.batch, "past + new"])  # fmt: skip
        logits = helper.make_tensor_value_info("logits", kind, [self.batch, self.rows, 512])
        caches = list(self.values())
        nodes = [
            helper.make_node("Gather", ["model.embed_tokens.weight", "input_ids"], ["h"]),
            helper.make_node("Reshape", ["h", "split"], ["parts"]),
            helper.make_node("Transpose", ["parts"], ["new"], perm=[0, 2, 1, 3]),
            helper.make_node("Identity", ["attention_mask"], ["unused"]),
            helper.make_node("MatMul", ["h", "head"], ["logits"], name="/lm_head/MatMul"),
            *(helper.make_node("Concat", [past.name, "new"], [present.name], axis=2)
              for _, past, present in caches),
        ]  # fmt: skip
        stale = helper.make_tensor_value_info("new", kind, [self.batch, 2, self.rows, 4])
        graph = helper.make_graph(
            nodes, "toy", [ids, mask, *(past for _, past, _ in caches)],
            [logits, *(present for _, _, present in caches)],
            [
                numpy_helper.from_array(table, "model.embed_tokens.weight"),
                numpy_helper.from_array(head, "head"),
                numpy_helper.from_array(np.array([0, 0, 2, 4]), "split"),
            ],
            value_info=[stale],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
