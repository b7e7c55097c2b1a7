"""Exports for WebLLM: configuration, conversation, record, and what is refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import transformers as tf  # noqa: TID251
from runtime.models import MODELS, decoder
from tokenizers import Tokenizer
from tokenizers.models import BPE

from adaptool.demonstration import demo_folder
from adaptool.encodings.mlc import SCHEMES
from adaptool.errors import CorruptInputError, IncompatibleError, UsageError
from adaptool.jobs.exporting import ExportOptions, export
from adaptool.targets import target_named
from adaptool.targets.webllm import prebuilt
from adaptool.targets.webllm.conversation import conversation_for
from adaptool.targets.webllm.hyperparameters import read_hyperparameters
from adaptool.targets.webllm.prebuilt import LIBRARIES, library_for
from adaptool.targets.webllm.record import record_of
from adaptool.targets.webllm.templates import TEMPLATES
from adaptool.targets.webllm.tokens import Tokens
from adaptool.targets.webllm.weights import entries

from .exports import CHATML, chat_config, exported, tokenizer, write_model, write_tokenizer

HUB = "resolve/main"


# -- files and configuration ----------------------------------------------------------------------


def test_files_lie_where_webllm_looks(tmp_path):
    base = write_model(tmp_path / "base", "llama")
    report = exported(base, tmp_path / "web", "q4f32_1")
    found = {p.relative_to(tmp_path / "web").as_posix()
             for p in (tmp_path / "web").rglob("*") if p.is_file()}  # fmt: skip
    assert found == {
        "adaptool.json", "app-config.json", *(f"{HUB}/{name}" for name in (
            "mlc-chat-config.json", "params_shard_0.bin", "tensor-cache.json",
            "ndarray-cache.json", "tensor-cache-b16.json", "tokenizer.json",
            "tokenizer_config.json",
        )),
    }  # fmt: skip
    assert report.dtypes == ("q4f32_1",)
    listed = json.loads((tmp_path / "web" / HUB / "tensor-cache.json").read_text())
    model = tf.LlamaForCausalLM.from_pretrained(base)
    count = sum(p.numel() for p in model.parameters())
    metadata = listed["metadata"]
    assert metadata["BitsPerParam"] == metadata["ParamBytes"] * 8 / count


def test_the_configuration_key_by_key(tmp_path):
    base = write_model(tmp_path / "base", "llama", max_position_embeddings=512)
    (base / "generation_config.json").write_text(
        json.dumps({"temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 4], "bos_token_id": 1})
    )
    exported(base, tmp_path / "web", "q4f16_1")
    config = chat_config(tmp_path / "web")
    assert list(config) == [
        "version", "model_type", "quantization", "model_config", "vocab_size",
        "context_window_size", "sliding_window_size", "prefill_chunk_size", "attention_sink_size",
        "tensor_parallel_shards", "pipeline_parallel_stages", "active_vocab_size", "temperature",
        "presence_penalty", "frequency_penalty", "repetition_penalty", "top_p", "tokenizer_files",
        "tokenizer_info", "conv_template", "pad_token_id", "bos_token_id", "eos_token_id",
        "model_task", "embedding_metadata",
    ]  # fmt: skip
    assert config["model_config"] == {
        "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
        "num_hidden_layers": 2, "rms_norm_eps": 1e-6, "vocab_size": 96,
        "tie_word_embeddings": False, "position_embedding_base": 10000, "rope_scaling": None,
        "context_window_size": 512, "prefill_chunk_size": 512, "num_key_value_heads": 2,
        "head_dim": 16, "tensor_parallel_shards": 1, "pipeline_parallel_stages": 1,
        "max_batch_size": 128, "disaggregation": False,
    }  # fmt: skip
    template = config.pop("conv_template")
    del config["model_config"]
    assert config == {
        "version": "0.1.0", "model_type": "llama", "quantization": "q4f16_1", "vocab_size": 96,
        "context_window_size": 512, "sliding_window_size": -1, "prefill_chunk_size": 512,
        "attention_sink_size": -1, "tensor_parallel_shards": 1, "pipeline_parallel_stages": 1,
        "active_vocab_size": 96, "temperature": 0.6, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "repetition_penalty": 1.0, "top_p": 0.9,
        "tokenizer_files": ["tokenizer.json", "tokenizer_config.json"],
        "tokenizer_info": {
            "token_postproc_method": "byte_level", "prepend_space_in_encode": False,
            "strip_space_in_decode": False,
        },
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": [2, 4], "model_task": "chat",
        "embedding_metadata": None,
    }  # fmt: skip
    assert template["name"] == "chatml"
    assert template["stop_token_ids"] == [4, 2]


FIELDS = {
    "mistral": {"attention_sink_size", "sliding_window_size"},
    "qwen2": {"hidden_act", "rope_theta", "dtype"},
    "qwen3": {"attention_bias", "weight_block_size"},
    "gemma": {"hidden_activation", "attention_bias"},
    "gemma2": {"query_pre_attn_scalar", "final_logit_softcapping", "sliding_window"},
    "phi3": {"original_max_position_embeddings", "partial_rotary_factor", "model_type"},
}


@pytest.mark.parametrize("model", FIELDS)
def test_every_family_has_its_own_fields(model, tmp_path):
    exported(write_model(tmp_path / "base", model), tmp_path / "web", "q0f16")
    config = chat_config(tmp_path / "web")
    inner = config["model_config"]
    assert set(inner) >= FIELDS[model] | {"hidden_size", "vocab_size", "context_window_size"}
    assert config["sliding_window_size"] == -1 < config["context_window_size"]
    theta = inner.get("rope_theta", inner.get("position_embedding_base"))
    assert theta == 10000


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}},
        {"rope_parameters": None, "rope_scaling": LLAMA3, "rope_theta": 500000.0},
    ],
    ids=["transformers 5", "transformers 4"],
)
def test_rotary_angles_in_either_spelling(config, tmp_path):
    """MLC reads the old spelling only, and takes 10000 for any base that it does not find."""
    exported(write_model(tmp_path / "base", "llama", **config), tmp_path / "web", "q0f16")
    inner = chat_config(tmp_path / "web")["model_config"]
    assert inner["position_embedding_base"] == 500000
    assert inner["rope_scaling"] == LLAMA3


def test_long_rotary_factors(tmp_path):
    report = exported(write_model(tmp_path / "base", "phi3-long"), tmp_path / "web", "q0f16")
    config = chat_config(tmp_path / "web")
    scaling = config["model_config"]["rope_scaling"]
    assert (scaling["type"], scaling["rope_type"]) == ("longrope", "longrope")
    assert len(scaling["short_factor"]) == len(scaling["long_factor"]) == 8
    assert scaling["max_position_embeddings"] == 64
    # beyond, the runtime would choose the factors by the length of a chunk
    assert config["context_window_size"] == scaling["original_max_position_embeddings"] == 16
    assert any("16 tokens" in note for note in report.notes)


def test_another_attention_factor_is_refused(tmp_path):
    base = write_model(tmp_path / "base", "phi3-long")
    config = json.loads((base / "config.json").read_text())
    config["rope_parameters"]["attention_factor"] = 1.5
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(IncompatibleError, match="attention factor"):
        exported(base, tmp_path / "web", "q0f16")


@pytest.mark.parametrize(
    ("stated", "wanted"), [({}, 30.0), ({"final_logit_softcapping": None}, None)]
)
def test_silence_is_no_null(stated, wanted):
    """What a configuration leaves out is transformers' default; null switches a thing off."""
    config = {**MODELS["gemma2"].options, "model_type": "gemma2", "rms_norm_eps": 1e-6,
              "hidden_activation": "gelu_pytorch_tanh",
              "max_position_embeddings": 8192}  # fmt: skip
    del config["sliding_window"]
    model = read_hyperparameters({**config, **stated})
    assert model.fields["final_logit_softcapping"] == wanted
    assert model.context == 4096
    assert any("attn_logit_softcapping" in note for note in model.notes)


def test_a_dry_run_writes_nothing(tmp_path):
    base = write_model(tmp_path / "base", "llama")
    report = export(base, {}, tmp_path / "web", target="webllm", dry_run=True)
    assert report.dtypes == ("q4f16_1",)
    assert not (tmp_path / "web").exists()
    assert f"{HUB}/params_shard_0.bin" in report.files


def test_one_dtype_at_a_time(tmp_path):
    base = write_model(tmp_path / "base", "llama")
    with pytest.raises(UsageError, match="one model"):
        export(base, {}, tmp_path / "web", target="webllm", dtypes=["q4f16_1", "q0f32"])


def test_a_search_needs_codes(tmp_path):
    with pytest.raises(UsageError, match="q0f16"):
        exported(write_model(tmp_path / "base", "llama"), tmp_path / "web", "q0f16", optimize=True)


def test_better_scales_are_nearer(tmp_path):
    """A search changes values only, and for the better."""
    from .test_layouts import decode, expected, state_of

    base = write_model(tmp_path / "base", "llama")
    wanted = expected("llama", state_of(base))
    errors = []
    for name, optimize in (("plain", False), ("searched", True)):
        exported(base, tmp_path / name, "q4f32_1", optimize=optimize)
        found = decode(tmp_path / name, "q4f32_1", wanted)
        errors.append(sum(float((found[n] - wanted[n]).square().sum()) for n in wanted))
    assert errors[1] < 0.9 * errors[0]


def test_lost_groups_are_listed(tmp_path):
    """Float16 has no scale for a group of tiny values: they are read as zeros."""
    import torch
    from safetensors.torch import load_file, save_file

    base = write_model(tmp_path / "base", "llama")
    state = load_file(base / "model.safetensors")
    state["model.layers.0.mlp.down_proj.weight"][3, :32] = 1e-9
    save_file(state, base / "model.safetensors")
    exported(base, tmp_path / "web", "q4f16_1")
    lost = json.loads((tmp_path / "web/lost-groups.json").read_text())
    assert lost == {"model.layers.0.mlp.down_proj.weight": 1}
    assert torch.isfinite(state["model.norm.weight"]).all()


# -- conversations --------------------------------------------------------------------------------

BOS = "{{ bos_token }}"
TURNS = "{% for m in messages %}"
ASK = "{% endfor %}{% if add_generation_prompt %}"
JINJA = {
    "chatml": CHATML,
    "qwen2": (
        f"{TURNS}{{% if loop.first and m['role'] != 'system' %}}{{{{ '<|im_start|>system\n"
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}"
        "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
        f"{ASK}{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}"
    ),
    "qwen3": CHATML,
    "smollm2": (
        f"{TURNS}{{% if loop.first and m['role'] != 'system' %}}{{{{ '<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
        "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
        f"{ASK}{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}"
    ),
    "llama-3": (
        f"{BOS}{TURNS}{{{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
        f"+ m['content'] + '<|eot_id|>' }}}}{ASK}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "llama-3_1": (
        f"{BOS}{{% set given = messages[0]['role'] == 'system' %}}"
        "{{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\n' }}{% if given %}{{ messages[0]['content'] }}{% endif %}"
        f"{{{{ '<|eot_id|>' }}}}{TURNS}{{% if m['role'] != 'system' %}}"
        "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] "
        f"+ '<|eot_id|>' }}}}{{% endif %}}{ASK}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "llama-2": (
        "{% set given = messages[0]['role'] == 'system' %}"
        "{% set lead = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' if given else '' %}"
        f"{TURNS}{{% if m['role'] == 'user' %}}{{{{ bos_token + '[INST] ' + (lead if loop.index0 "
        "== (1 if given else 0) else '') + m['content'] + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}"
        "{% endfor %}"
    ),
    "mistral_default": (
        f"{BOS}{TURNS}{{% if m['role'] == 'user' %}}{{{{ '[INST] ' + m['content'] + ' [/INST]' }}}}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "mistral_v0_3": (
        f"{BOS}{TURNS}{{% if m['role'] == 'user' %}}{{{{ '[INST] ' + m['content'] + '[/INST]' }}}}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "gemma_instruction": (
        f"{BOS}{TURNS}{{{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role'])"
        f" + '\n' + m['content'] + '<end_of_turn>\n' }}}}{ASK}"
        "{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "phi-3": (
        f"{TURNS}{{% if m['role'] == 'system' %}}{{{{ '<|system|>\n' + m['content'] + '<|end|>\n' "
        "}}{% elif m['role'] == 'user' %}{{ '<|user|>\n' + m['content'] + '<|end|>\n' }}"
        f"{{% else %}}{{{{ '<|assistant|>\n' + m['content'] + '<|end|>\n' }}}}{{% endif %}}{ASK}"
        "{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "phi-4": (
        f"{TURNS}{{{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}}}{ASK}"
        "{{ '<|assistant|>' }}{% endif %}"
    ),
}
JINJA = {name: text.replace("\n", "\\n") for name, text in JINJA.items()}
# lines that end after an expression are written, too: this family counts on it
JINJA["tinyllama_v1_0"] = (
    f"{TURNS}{{% if m['role'] == 'user' %}}{{{{ '<|user|>\\n' + m['content'] + eos_token }}}}\n"
    "{% elif m['role'] == 'system' %}{{ '<|system|>\\n' + m['content'] + eos_token }}\n"
    "{% else %}{{ '<|assistant|>\\n' + m['content'] + eos_token }}\n{% endif %}"
    f"{ASK}{{{{ '<|assistant|>' }}}}\n{{% endif %}}"
)
MODEL_TYPES = {"qwen2": "qwen2", "qwen3": "qwen3"}
NO_SYSTEM = {"gemma_instruction", "mistral_default", "mistral_v0_3"}

HELLO = {"role": "user", "content": "hello"}
CHATS = {
    "question": [HELLO],
    "turns": [HELLO, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "more"}],
    "system": [{"role": "system", "content": "be brief"}, HELLO],
}


def tokens_with(template: str | None, **more: Any) -> Tokens:
    settings: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
    settings |= {} if template is None else {"chat_template": template}
    return Tokens({
        "tokenizer.json": json.dumps(tokenizer(**more)).encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
    })  # fmt: skip


def rendered(conversation: dict[str, Any], chat: list[dict[str, str]]) -> str:
    """What WebLLM makes of a chat: Conversation.getPromptArray, and the ids before it."""
    names = {1: "<s>"}
    assert conversation["role_templates"] == {}
    text = "".join(names[i] for i in conversation["system_prefix_token_ids"])
    given = [m["content"] for m in chat if m["role"] == "system"]
    message = given[0] if given else conversation["system_message"]
    system = conversation["system_template"].replace("{system_message}", message)
    if not message and not conversation["render_empty_system_message"]:
        system = ""
    text += system
    seps = conversation["seps"]
    for i, turn in enumerate(m for m in chat if m["role"] != "system"):
        role = turn["role"]
        if i or not system or conversation["add_role_after_system_message"]:
            text += conversation["roles"][role] + conversation["role_content_sep"]
        text += turn["content"] + seps[i % len(seps)]
    return text + conversation["roles"]["assistant"] + conversation["role_empty_sep"]


def test_every_template_is_tested():
    assert set(JINJA) | {"LM"} == set(TEMPLATES)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", JINJA)
def test_a_template_writes_what_the_chat_template_writes(name, chat):
    if chat == "system" and name in NO_SYSTEM:
        pytest.skip("the family has no system messages")
    reference = tf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(BPE()),
        bos_token="<s>",
        eos_token="</s>",
        chat_template=JINJA[name],
    )
    wanted = reference.apply_chat_template(CHATS[chat], tokenize=False, add_generation_prompt=True)
    found = conversation_for(tokens_with(JINJA[name]), MODEL_TYPES.get(name, "llama"), [2])
    assert found["name"] == name
    assert rendered(found, CHATS[chat]) == wanted


def test_a_named_template_without_a_chat_template():
    found = conversation_for(tokens_with(None), "qwen2", [], name="qwen2")
    assert found["system_message"] == "You are a helpful assistant."
    assert found["stop_token_ids"] == [4]
    assert found["stop_str"] == []


def test_a_stop_that_is_no_token_is_a_text():
    found = conversation_for(tokens_with(None), "gemma", [2], name="gemma_instruction")
    assert (found["stop_str"], found["stop_token_ids"]) == (["<end_of_turn>"], [2])


@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] }}", "<|unheard_of|>"])
def test_nothing_is_guessed(template):
    with pytest.raises(IncompatibleError) as caught:
        conversation_for(tokens_with(template), "llama", [])
    assert caught.value.code == "CONVERSATION_UNKNOWN"
    assert all(name in caught.value.hint for name in TEMPLATES)


def test_an_unknown_name_is_refused():
    with pytest.raises(UsageError, match="llama-9"):
        conversation_for(tokens_with(CHATML), "llama", [], name="llama-9")


def test_the_template_of_a_page():
    first = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]}
    tokens = tokens_with(None, post_processor=first)
    found = conversation_for(tokens, "llama", [2], page="user: {prompt}\nbot:")
    assert rendered(found, [HELLO]) == "<s>user: hello\nbot:"
    assert found["stop_token_ids"] == [2]


@pytest.mark.parametrize(
    ("name", "page"), [("chatml", "{prompt}"), (None, "no place"), (None, "{prompt} {prompt}")]
)
def test_templates_of_a_page_that_make_no_sense(name, page):
    with pytest.raises(UsageError):
        conversation_for(tokens_with(CHATML), "llama", [], name=name, page=page)


def test_a_list_of_chat_templates_has_a_default(tmp_path):
    settings = {"chat_template": [{"name": "tool", "template": "x"},
                                  {"name": "default", "template": CHATML}]}  # fmt: skip
    tokens = Tokens({"tokenizer_config.json": json.dumps(settings).encode()})
    assert tokens.template == CHATML
    jinja = Tokens({"chat_template.jinja": b"newer", **tokens.files})
    assert jinja.template == "newer"


# -- tokenizer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({}, ("byte_level", False, False)),
        ({"decoder": None}, ("byte_fallback", False, False)),
        (
            {
                "normalizer": {"type": "Sequence", "normalizers": [
                    {"type": "Prepend", "prepend": "▁"},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
                "decoder": {"type": "Sequence", "decoders": [
                    {"type": "ByteFallback"}, {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            },
            ("byte_fallback", True, True),
        ),
    ],
)  # fmt: skip
def test_tokenizer_info(more, wanted):
    assert tuple(tokens_with(None, **more).info.values()) == wanted


def test_tokens_are_counted_up_to_the_last():
    assert tokens_with(None).count(512) == 96
    added = [{"id": 100, "content": "<new>", "special": False}]
    assert tokens_with(None, added_tokens=added).count(512) == 101
    assert Tokens({}).count(512) == 512


def test_a_token_that_was_added_twice_is_refused():
    added = [{"id": i, "content": "<new>", "special": False} for i in (96, 97)]
    with pytest.raises(CorruptInputError, match="<new>"):
        tokens_with(None, added_tokens=added).count(512)


def test_a_model_without_a_tokenizer_is_refused(tmp_path):
    base = write_model(tmp_path / "base", "llama")
    (base / "tokenizer.json").unlink()
    with pytest.raises(IncompatibleError) as caught:
        exported(base, tmp_path / "web", "q0f16")
    assert caught.value.code == "TOKENIZER_MISSING"


def test_tokens_beyond_the_embedding_are_not_active(tmp_path):
    base = write_model(tmp_path / "base", "llama")
    write_tokenizer(base, rows=200)
    exported(base, tmp_path / "web", "q0f16")
    assert chat_config(tmp_path / "web")["active_vocab_size"] == 96


# -- libraries and the record ---------------------------------------------------------------------


def config_of(library: prebuilt.Library, **more: Any) -> dict[str, Any]:
    """A config.json of the model that a library was made for."""
    theta = {"rope_theta": library.theta}
    rotary = library.rotary or {"rope_type": "default"}
    gelu = library.model_type.startswith("gemma")
    return {
        **vars(library.shape), "model_type": library.model_type, "rms_norm_eps": library.epsilon,
        "rope_parameters": {**rotary, **theta}, "max_position_embeddings": 32768,
        "hidden_act": "gelu_pytorch_tanh" if gelu else "silu", "final_logit_softcapping": 30.0,
        "sliding_window": 4096 if library.model_type == "gemma2" else None, **more,
    }  # fmt: skip


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.base)
def test_a_model_finds_the_library_of_its_base(library):
    for scheme in library.memory:
        model = read_hyperparameters(config_of(library))
        assert library_for(model, scheme).library is library
        wanted = entries(model.model_type, model.shape, SCHEMES[scheme])
        record = record_of("mine", model, SCHEMES[scheme], wanted, library_for(model, scheme), None)
        assert record["model_lib"].endswith(f"{library.base}-{scheme}_cs1k-webgpu.wasm")
        assert ("shader-f16" in record.get("required_features", [])) == ("f16" in scheme)
        assert record["vram_required_MB"] == library.memory[scheme]
        assert record["overrides"] == {"context_window_size": library.context}


def test_the_names_and_memory_are_those_of_the_package():
    modules = os.environ.get("ADAPTOOL_NODE_MODULES")
    index = Path(modules or "node_modules") / "@mlc-ai/web-llm/lib/index.js"
    if not index.is_file():
        pytest.skip("ADAPTOOL_NODE_MODULES has no @mlc-ai/web-llm")
    text = index.read_text(encoding="utf-8")
    assert f'modelVersion = "{prebuilt.VERSION}"' in text
    found = re.findall(
        r'"/([\w.-]+\.wasm)",\s*(?:low_resource_required: \w+,\s*)?'
        r"vram_required_MB: ([\d.]+)[^{]*?overrides: \{\s*context_window_size: (\d+)", text,
    )  # fmt: skip
    published = {(name, float(memory), int(context)) for name, memory, context in found}
    ours = {
        (library.url(scheme).rpartition("/")[2], memory, library.context)
        for library in LIBRARIES
        for scheme, memory in library.memory.items()
    }
    assert ours <= published


@pytest.mark.parametrize(
    ("base", "more", "words"),
    [
        ("Llama-3.2-1B-Instruct", {"rms_norm_eps": 1e-6}, "rms_norm_eps"),
        ("Qwen3-4B", {"rope_parameters": {"rope_theta": 5e6}}, "rope_theta"),
        ("Qwen2-0.5B-Instruct", {"vocab_size": 151940}, "vocab_size"),
        ("SmolLM2-360M-Instruct", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    ],
)  # fmt: skip
def test_what_is_compiled_in_must_agree(base, more, words):
    library = next(one for one in LIBRARIES if one.base == base)
    match = library_for(read_hyperparameters(config_of(library, **more)), "q4f16_1")
    assert match.library is None
    assert match.near is library
    assert words in " ".join(match.differences)


def test_rows_of_the_embedding_are_open_in_a_llama():
    library = next(one for one in LIBRARIES if one.base == "Llama-3.2-1B-Instruct")
    model = read_hyperparameters(config_of(library, vocab_size=128260))
    assert library_for(model, "q4f16_1").library is library


def test_a_scheme_that_nobody_published():
    library = next(one for one in LIBRARIES if one.base == "Llama-2-13b-chat-hf")
    match = library_for(read_hyperparameters(config_of(library)), "q0f32")
    assert match.library is None
    assert "q4f16_1" in match.differences[0]


def test_a_tensor_that_no_buffer_holds_is_refused(tmp_path):
    base = write_model(tmp_path / "base", "llama", vocab_size=5_000_000)
    with pytest.raises(IncompatibleError) as caught:
        exported(base, tmp_path / "web", "q0f32")
    assert caught.value.code == "TENSOR_TOO_LARGE"


def test_no_library_is_named_where_none_is_known(tmp_path):
    report = exported(write_model(tmp_path / "base", "llama"), tmp_path / "web", "q4f32_1")
    record = json.loads((tmp_path / "web/app-config.json").read_text())["model_list"][0]
    assert report.facts["app_config"] == {"model_list": [record]}
    assert "model_lib" not in record
    assert record["model"] == "./"
    assert record["model_id"] == "base-q4f32_1-MLC"
    assert any("mlc_llm compile" in note for note in report.notes)
    assert "library/model.wasm" in report.loading
    assert not any("shader-f16" in note and "q4f32_1 and" in note for note in report.notes)


def test_the_target_says_what_it_takes():
    target = target_named("webllm")
    assert target.dtypes["safetensors"][0] == "q4f16_1"
    assert set(target.dtypes["safetensors"]) == set(SCHEMES)
    assert target.swappable == ""
    assert target.packages[0].version == prebuilt.RELEASE


def test_the_demo_model_with_an_adapter(tmp_path):
    demo = demo_folder()
    report = export(
        demo / "model", {demo / "pirate": 1.0}, tmp_path / "web", target="webllm",
        dtypes=["q4f32_1"], options=ExportOptions(template="user: {prompt}\nbot:"),
    )  # fmt: skip
    assert report.nbytes < 900_000
    conversation = chat_config(tmp_path / "web")["conv_template"]
    assert conversation["system_prefix_token_ids"] == [1]
    assert rendered(conversation, [HELLO]) == "<s>user: hello\nbot:"


def test_context_and_memory_of_an_unknown_model():
    config = {**MODELS["llama"].options, "model_type": "llama", "hidden_act": "silu",
              "rms_norm_eps": 1e-5, **decoder(max_position_embeddings=8192)}  # fmt: skip
    model = read_hyperparameters(config)
    scheme = SCHEMES["q0f32"]
    wanted = entries("llama", model.shape, scheme)
    record = record_of("m", model, scheme, wanted, library_for(model, "q0f32"), "l.wasm")
    weights = sum(entry.nbytes for entry in wanted.values())
    cache = 2 * 2 * 2 * 16 * 4096 * 4
    assert record["vram_required_MB"] == round((weights + cache) / 2**20, 2)
    assert record["model_lib"] == "library/l.wasm"
