"""Whole models: every tensor in its place, everything refused that would be lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from runtime import llama
from runtime.zoo import MODELS, TOKENS, forward, load

from adaptool import demonstration
from adaptool.canonical import Checkpoint, LazyTensor, Placement
from adaptool.canonical.tensors import from_values
from adaptool.containers import open_checkpoint
from adaptool.conversion import left_out, modelfile, to_gguf
from adaptool.conversion.tensors import band, lay_out
from adaptool.errors import IncompatibleError, UsageError

from .made import Reader, checkpoint, save, tensors, tokenizer_files
from .trained import byte_level

DEMO = demonstration.demo_folder()


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def converted(model: Checkpoint, outtype: str = "f32") -> dict[str, torch.Tensor]:
    made = to_gguf(model, outtype=outtype, vocabulary=None)
    return {name: tensor.values() for name, tensor in made.tensors.items()}


# -- the demo -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    model = to_gguf(open_checkpoint(DEMO / "model"), outtype="f32", pre="gpt-2")
    return save(model, tmp_path_factory.mktemp("demo") / "model.gguf")


def test_the_demo_answers_in_llama_cpp(demo: Path) -> None:
    """Through our vocabulary, greedily, what it answers in numpy.

    Its tokenizer makes small letters of capitals, which llama.cpp does not: hence the name above.
    """
    reader = Reader(demo)
    expected = json.loads((DEMO / "expected.json").read_text())["base"]
    words = open_checkpoint(demo).metadata["tokenizer.ggml.tokens"].plain()
    end = words.index("<eos>")
    from tokenizers import Tokenizer

    decoder = Tokenizer.from_file(str(DEMO / "model" / "tokenizer.json"))
    for prompt in ("hello ada", "what is 2 plus 3"):
        ids = reader.read(demonstration.TEMPLATE.format(prompt=prompt), special=True)
        new: list[int] = []
        while len(ids + new) < llama.CONTEXT:
            token = int(llama.logits(demo, ids + new)[-1].argmax())
            if token == end:
                break
            new.append(token)
        assert decoder.decode(new).strip() == expected[prompt]
    reader.close()


# -- where weights go -----------------------------------------------------------------------------


def test_rows_of_queries_are_interleaved() -> None:
    config = {"num_attention_heads": 4, "num_key_value_heads": 4}
    found = converted(checkpoint(config=config))
    weight = tensors(16)["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(
        found["blk.0.attn_q.weight"], weight.view(4, 2, 4, 32).transpose(1, 2).reshape(32, 32)
    )
    assert torch.equal(
        found["blk.0.attn_v.weight"], tensors(16)["model.layers.0.self_attn.v_proj.weight"]
    )


def test_norms_are_float32_and_the_rest_is_what_was_asked_for() -> None:
    made = to_gguf(checkpoint(), outtype="f16", vocabulary=None)
    kinds = {name: tensor.kind for name, tensor in made.tensors.items()}
    assert kinds["blk.0.attn_norm.weight"] == "float32"
    assert kinds["blk.0.attn_q.weight"] == "float16"
    assert made.metadata["general.file_type"].plain() == 1


def test_tensors_are_in_the_order_of_computing() -> None:
    model = checkpoint(config={"num_hidden_layers": 1, "tie_word_embeddings": False},
                       extra={"lm_head.weight": torch.randn(16, 32)})  # fmt: skip
    names = list(to_gguf(model, outtype="f32", vocabulary=None).tensors)
    assert names[0] == "token_embd.weight"
    assert set(names[-2:]) == {"output_norm.weight", "output.weight"}


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "deepseek2", "gemma2"])
def test_llama_cpp_computes_the_same(name: str, tmp_path: Path) -> None:
    MODELS[name].write(tmp_path / "model")
    model = to_gguf(open_checkpoint(tmp_path / "model"), outtype="f32", vocabulary=None)
    logits = llama.logits(save(model, tmp_path / "model.gguf"), TOKENS)
    expected = forward(load(tmp_path / "model"))
    assert np.abs(logits - expected).max() < MODELS[name].tolerance * np.abs(expected).max()


@pytest.mark.parametrize(("outtype", "largest"), [("f16", 0.01), ("q8_0", 0.1), ("q4_k_m", 0.6)])
def test_every_precision_is_loaded(outtype: str, largest: float, tmp_path: Path) -> None:
    MODELS["llama-wide"].write(tmp_path / "model")
    source = open_checkpoint(tmp_path / "model")
    exact, made = converted(source), to_gguf(source, outtype=outtype, vocabulary=None)
    for name, tensor in made.tensors.items():
        lost = (tensor.values().float() - exact[name]).norm() / exact[name].norm()
        assert lost < {"f16": 1e-3, "q8_0": 0.01, "q4_k_m": 0.1}[outtype], name
    logits = llama.logits(save(made, tmp_path / "model.gguf"), TOKENS)
    expected = forward(load(tmp_path / "model"))
    error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    assert error < largest


def test_buffers_of_old_checkpoints_are_left_out() -> None:
    buffers = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    model = checkpoint(extra=buffers)
    assert left_out(model) == tuple(buffers)
    assert set(converted(model)) == set(converted(checkpoint()))


def test_other_senses_are_left_to_their_own_file() -> None:
    eye = {"vision_tower.blocks.0.weight": torch.ones(8, 8)}
    model = checkpoint(config={"vision_config": {"depth": 1}}, extra=eye)
    assert left_out(model) == tuple(eye)
    made = to_gguf(model, outtype="f32", vocabulary=None)
    assert any("mmproj" in note for note in made.provenance.notes)
    with pytest.raises(IncompatibleError, match="vision_tower"):
        to_gguf(checkpoint(extra=eye), outtype="f32", vocabulary=None)


def test_a_tensor_without_a_place_is_refused() -> None:
    with pytest.raises(IncompatibleError, match=r"model\.surprise") as caught:
        converted(checkpoint(extra={"model.surprise.weight": torch.ones(4)}))
    assert caught.value.code == "UNPLACED"


def test_a_missing_expert_is_refused(tmp_path: Path) -> None:
    MODELS["qwen3-moe"].write(tmp_path)
    model = open_checkpoint(tmp_path)
    gone = next(name for name in model.tensors if ".experts.1.up_proj" in name)
    rest = {name: tensor for name, tensor in model.tensors.items() if name != gone}
    with pytest.raises(IncompatibleError, match="ffn_up_exps") as caught:
        converted(Checkpoint(rest, "safetensors", model.provenance, config=model.config))
    assert caught.value.code == "INCOMPLETE_MODEL"


def test_no_embedding() -> None:
    model = checkpoint()
    rest = {name: t for name, t in model.tensors.items() if "embed" not in name}
    with pytest.raises(IncompatibleError, match="no input embedding"):
        converted(Checkpoint(rest, "safetensors", model.provenance, config=model.config))


def test_a_quantised_checkpoint() -> None:
    with pytest.raises(IncompatibleError, match="quantised already"):
        converted(checkpoint(config={"quantization_config": {"quant_method": "bitsandbytes"}}))


@pytest.mark.parametrize("change", [{"vocab_size": 17}, {}])
def test_a_tied_head_is_written_once(change) -> None:
    embedding = tensors(16)["model.embed_tokens.weight"]
    model = checkpoint(config=change, extra={"lm_head.weight": embedding.clone()})
    assert "output.weight" not in converted(model)


def test_a_head_of_its_own() -> None:
    head = torch.randn(16, 32)
    assert torch.equal(converted(checkpoint(extra={"lm_head.weight": head}))["output.weight"], head)
    gemma = {
        "model_type": "gemma", "hidden_act": "gelu_pytorch_tanh", "head_dim": 16,
        "rms_norm_eps": 1e-6,
    }  # fmt: skip
    with pytest.raises(IncompatibleError, match="no head of its own"):
        converted(checkpoint(config=gemma, extra={"lm_head.weight": head}))
    embedding = tensors(16)["model.embed_tokens.weight"]
    tied = converted(checkpoint(config=gemma, extra={"lm_head.weight": embedding}))
    assert torch.equal(tied["blk.0.attn_norm.weight"], torch.full((32,), 2.0))


def test_a_value_beyond_float16() -> None:
    head = torch.full((16, 32), 70000.0).bfloat16()
    model = checkpoint(config={"tie_word_embeddings": False}, extra={"lm_head.weight": head})
    made = to_gguf(model, outtype="f16", vocabulary=None)
    with pytest.raises(IncompatibleError, match=r"output\.weight: has a value beyond 65504"):
        made.tensors["output.weight"].values()
    assert converted(model, "bf16")["output.weight"].float()[0, 0] == head.float()[0, 0]


def test_an_unknown_model() -> None:
    with pytest.raises(IncompatibleError):
        converted(checkpoint(config={"model_type": "sphinx"}))


def test_no_tokenizer() -> None:
    with pytest.raises(IncompatibleError, match="no tokenizer"):
        to_gguf(checkpoint(), outtype="f32")


# -- bands of rows --------------------------------------------------------------------------------


class Rows:
    """A layout in which one tensor is filled by two parameters, the second from above."""

    architecture = "llama"

    def __init__(self, *places: tuple[int, int]) -> None:
        self.places = places

    def place(self, name: str) -> tuple[Placement, ...]:
        return (Placement("fused.weight", rows=self.places[int(name)]),)

    def stored_transposed(self, name: str) -> bool:
        return False

    decays = stored_transposed


def test_bands_below_one_another() -> None:
    one, other = torch.randn(3, 5), torch.randn(4, 5)
    parameters = {"0": from_values(other), "1": from_values(one)}
    fused = lay_out(parameters, Rows((3, 7), (0, 3)))["fused.weight"]
    assert torch.equal(fused.values(), torch.cat([one, other]))
    for start, stop, block in ((0, 35, 5), (5, 30, 10), (14, 16, 1)):
        pieces = [piece.clone() for piece in fused.pieces(start, stop, block)]
        assert all(piece.numel() <= block for piece in pieces)
        assert torch.equal(torch.cat(pieces), torch.cat([one, other]).reshape(-1)[start:stop])


@pytest.mark.parametrize("places", [((4, 8), (0, 3)), ((0, 4), (3, 6)), ((3, 6), (0, 3))])
def test_bands_with_a_gap(places) -> None:
    parameters = {"0": from_values(torch.randn(4, 5)), "1": from_values(torch.randn(3, 5))}
    with pytest.raises(IncompatibleError, match="filled exactly"):
        lay_out(parameters, Rows(*places))


def test_a_band_that_is_not_there() -> None:
    with pytest.raises(IncompatibleError):
        band(from_values(torch.randn(4, 5)), 2, 6)


def test_a_band_of_a_file_is_copied_as_bytes(tmp_path: Path) -> None:
    MODELS["phi3"].write(tmp_path / "model")
    made = to_gguf(open_checkpoint(tmp_path / "model"), outtype="f32", vocabulary=None)
    assert made.tensors["blk.0.attn_qkv.weight"].stored is not None


def test_nothing_is_computed_before_it_is_saved() -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("read")

    model = checkpoint(16, tokenizer_files(byte_level("gpt-2")), {"tie_word_embeddings": False})
    lazy = {
        name: LazyTensor((600, 32) if "embed" in name else t.shape, t.dtype, forbidden)
        for name, t in model.tensors.items()
    }
    made = to_gguf(
        Checkpoint(lazy, "safetensors", model.provenance, model.config, side_files=model.side_files)
    )
    assert made.tensors["token_embd.weight"].shape == (600, 32)


# -- Ollama ---------------------------------------------------------------------------------------


def with_template(template: str | None, **settings: str) -> Checkpoint:
    tokenizer = byte_level("qwen2")
    stated = {"eos_token": "<|end|>", **settings}
    if template is not None:
        stated["chat_template"] = template
    files = tokenizer_files(tokenizer, **stated)
    return to_gguf(checkpoint(tokenizer.get_vocab_size(), files), outtype="f32")


def test_a_modelfile() -> None:
    chat = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    text = modelfile(with_template(chat), "model.gguf", adapter="a.gguf", system="Be brief.")
    assert text == (
        "FROM ./model.gguf\n"
        "ADAPTER ./a.gguf\n"
        'TEMPLATE """{{- range .Messages }}<|im_start|>{{ .Role }}\n'
        "{{ .Content }}<|im_end|>\n"
        "{{ end }}<|im_start|>assistant\n"
        '"""\n'
        'SYSTEM """Be brief."""\n'
        'PARAMETER stop "<|im_start|>"\n'
        'PARAMETER stop "<|im_end|>"\n'
        'PARAMETER stop "<|end|>"\n'
    )


@pytest.mark.parametrize(
    ("jinja", "mark"),
    [
        ("<|start_header_id|>", "<|eot_id|>"),
        ("<start_of_turn>", "<start_of_turn>model"),
        ("<|user|> <|end|> <|assistant|>", "<|end|>"),
        ("<|user|> <|assistant|>", "</s>"),
        ("[INST] <<SYS>>", "<<SYS>>"),
        ("[INST]", "[INST]"),
    ],
)
def test_known_templates(jinja: str, mark: str) -> None:
    text = modelfile(with_template(jinja), "/models/model.gguf")
    assert text.startswith("FROM /models/model.gguf\nTEMPLATE ")
    assert mark in text


def test_an_unknown_template_is_said_to_be_one() -> None:
    text = modelfile(with_template("### {{ messages }}"), "model.gguf")
    assert 'TEMPLATE "' not in text
    assert "# The model's own chat template" in text
    assert "#" not in modelfile(with_template(None), "model.gguf")


def test_what_a_modelfile_cannot_quote() -> None:
    model = with_template(None)
    with pytest.raises(UsageError):
        modelfile(model, "model.gguf", system='"""\nFROM evil')
    with pytest.raises(UsageError):
        modelfile(model, "model\nFROM evil")
