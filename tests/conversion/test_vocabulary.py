"""llama.cpp reads texts as the tokenizer does from which our file was made."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from adaptool.conversion.vocabulary import TokenizerFiles, describe_vocabulary, read_vocabulary
from adaptool.conversion.vocabulary.sentencepiece import _scores
from adaptool.errors import (
    AdaptoolError,
    CorruptInputError,
    IncompatibleError,
    ResourceLimitError,
    UsageError,
)

from .made import Reader, checkpoint, save, tokenizer_files, with_tokenizer
from .sentences import model_proto, pieces_of
from .trained import KINDS, MARKS, NASTY, SPECIAL, byte_level, incomplete, sentencepiece

pytest.importorskip("xllamacpp")

MISREAD = {"tekken": {MARKS}, "gpt-4o": {MARKS}}
"""Where llama.cpp's own pattern differs from the one that it stands for: it forgets marks."""


def differences(tokenizer: Tokenizer, reader: Reader) -> set[str]:
    """Texts that are read differently, alone or with what is put around them."""
    return {
        text
        for text in NASTY
        for special in (False, True)
        if tokenizer.encode(text, add_special_tokens=special).ids
        != reader.read(text, special=special)
    }


@pytest.mark.parametrize("name", KINDS)
def test_byte_level(name: str, tmp_path) -> None:
    tokenizer = byte_level(name)
    reader = Reader(with_tokenizer(tokenizer, tmp_path / "model.gguf"))
    assert differences(tokenizer, reader) == MISREAD.get(name, set())
    reader.close()


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(prefix: bool, tmp_path) -> None:
    tokenizer = sentencepiece(prefix)
    reader = Reader(with_tokenizer(tokenizer, tmp_path / "model.gguf"))
    assert differences(tokenizer, reader) == set()
    reader.close()


def test_the_metaspace_of_llama(tmp_path) -> None:
    """As transformers 5 saves Llama's tokenizer: llama.cpp's first space is SentencePiece's."""
    definition = json.loads(sentencepiece().to_str())
    definition["normalizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    reader = Reader(with_tokenizer(tokenizer, tmp_path / "model.gguf"))
    different = differences(tokenizer, reader)
    assert all(text.startswith(" ") or any(s in text for s in SPECIAL) for text in different)
    reader.close()


def test_ways_to_tokens_of_one_score() -> None:
    """Their merges stand mixed, as transformers sorts them."""
    mixed = [("__", "__"), ("_", "_"), ("__", "_"), ("_", "__"), ("___", "_"), ("_", "___")]
    scores = _scores([*mixed, ("a", "b"), ("ab", "c"), ("a", "bc")])
    assert scores == {"____": 0, "__": 0, "___": 0, "ab": -6, "abc": -7}


def test_a_tokenizer_model_beside_a_tokenizer_json(tmp_path) -> None:
    from adaptool.conversion import to_gguf

    tokenizer = sentencepiece()
    proto = model_proto(pieces_of(tokenizer))
    files = tokenizer_files(tokenizer) | {"tokenizer.model": proto}
    model = to_gguf(checkpoint(tokenizer.get_vocab_size(), files), outtype="f32")
    reader = Reader(save(model, tmp_path / "model.gguf"))
    assert differences(tokenizer, reader) == set()
    reader.close()


def test_a_tokenizer_model_alone(tmp_path) -> None:
    from adaptool.conversion import to_gguf

    tokenizer = sentencepiece()
    pieces = [p for p in pieces_of(tokenizer) if p[0] not in SPECIAL]
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    files = {
        "tokenizer.model": model_proto(pieces),
        "tokenizer_config.json": json.dumps(settings).encode(),
    }
    model = to_gguf(checkpoint(len(pieces) + 2, files), outtype="f32")
    reader = Reader(save(model, tmp_path / "model.gguf"))
    plain = [text for text in NASTY if not any(mark in text for mark in SPECIAL)]
    for text in plain:
        assert reader.read(text, special=True) == tokenizer.encode(text).ids
    reader.close()


def test_the_trained_model_of_sentencepiece_itself(tmp_path) -> None:
    """Against the library, where it is installed."""
    import io

    library = pytest.importorskip("sentencepiece")
    from adaptool.conversion import to_gguf

    from .trained import _CORPUS

    stream = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in _CORPUS for line in text.split("\n") if line),
        model_writer=stream, model_type="bpe", vocab_size=500, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    reader_of_texts = library.SentencePieceProcessor(model_proto=stream.getvalue())
    rows = reader_of_texts.vocab_size()
    model = to_gguf(checkpoint(rows, {"tokenizer.model": stream.getvalue()}), outtype="f32")
    reader = Reader(save(model, tmp_path / "model.gguf"))
    for text in NASTY:
        assert reader.read(text) == reader_of_texts.encode(text)
    reader.close()


# -- what is written ------------------------------------------------------------------------------


def described(tokenizer: Tokenizer, rows: int | None = None, config=None, **settings: Any):
    files = TokenizerFiles(tokenizer_files(tokenizer, **settings))
    rows = rows or tokenizer.get_vocab_size()
    return {k: v.plain() for k, v in describe_vocabulary(files, config or {}, rows).items()}


def test_kinds_of_tokens_and_padding() -> None:
    tokenizer = byte_level("gpt-2")
    known = tokenizer.get_vocab_size()
    values = described(tokenizer, known + 2, bos_token="<|begin|>", eos_token="<|end|>")
    tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert tokens[known:] == [f"[PAD{known}]", f"[PAD{known + 1}]"]
    assert kinds[known:] == [5, 5]
    assert [kinds[tokens.index(text)] for text in (*SPECIAL, "<tool>", "a")] == [3, 3, 3, 4, 1]
    assert values["tokenizer.ggml.bos_token_id"] == 0
    assert values["tokenizer.ggml.eos_token_id"] == 1
    assert values["tokenizer.ggml.add_bos_token"] is True
    assert values["tokenizer.ggml.add_eos_token"] is False
    assert "tokenizer.ggml.scores" not in values


def test_added_tokens_beyond_the_embedding_are_left_out() -> None:
    tokenizer = byte_level("gpt-2")
    base = tokenizer.get_vocab_size(with_added_tokens=False)
    assert described(tokenizer, base)["tokenizer.ggml.tokens"][-1] != "<tool>"
    with pytest.raises(IncompatibleError, match="only 100 rows"):
        described(tokenizer, 100)


def test_absurd_numbers() -> None:
    tokenizer = byte_level("gpt-2")
    with pytest.raises(ResourceLimitError):
        described(tokenizer, 10**9)
    decoder = {"9" * 5000: {"content": "x"}}
    with pytest.raises(CorruptInputError):
        described(tokenizer, added_tokens_decoder=decoder)


def test_two_tokens_with_one_text() -> None:
    """llama.cpp would abort."""
    definition = json.loads(byte_level("gpt-2").to_str())
    first = definition["added_tokens"][0]
    definition["added_tokens"].append({**first, "id": 400})
    files = TokenizerFiles({"tokenizer.json": json.dumps(definition).encode()})
    with pytest.raises(IncompatibleError, match="tokens 0 and 400"):
        read_vocabulary(files, 600)


def test_user_defined_spaces_are_spaces() -> None:
    tokenizer = Tokenizer.from_str(sentencepiece().to_str())
    tokenizer.add_tokens([AddedToken("▁▁▁▁▁▁▁▁▁▁▁▁▁", normalized=False)])
    assert described(tokenizer)["tokenizer.ggml.tokens"][-1] == " " * 13


def test_special_tokens_from_the_configuration() -> None:
    tokenizer = byte_level("qwen2")
    values = described(tokenizer, config={"eos_token_id": [2, 1], "pad_token_id": 1})
    assert values["tokenizer.ggml.eos_token_id"] == 2
    assert values["tokenizer.ggml.padding_token_id"] == 1
    assert values["tokenizer.ggml.bos_token_id"] == 0  # what the post-processor puts before


@pytest.mark.parametrize(
    ("single", "expected"),
    [
        ("$A", (0, False, 1, False)),
        ("<|turn|> $A", (2, True, 1, False)),
        ("$A <|turn|>", (0, False, 2, True)),
        ("<|begin|> $A <|end|>", (0, True, 1, True)),
        ("<|begin|> <|turn|> $A", (0, False, 1, False)),
    ],
)
def test_what_is_put_around_a_text(single: str, expected, tmp_path) -> None:
    pairs = [(text, number) for number, text in enumerate(SPECIAL)]
    template = processors.TemplateProcessing(single=single, special_tokens=pairs)
    tokenizer = changed(byte_level("gpt-2"), post_processor=template)
    values = described(tokenizer, bos_token="<|begin|>", eos_token="<|end|>")
    keys = ("bos_token_id", "add_bos_token", "eos_token_id", "add_eos_token")
    assert tuple(values[f"tokenizer.ggml.{key}"] for key in keys) == expected
    if values["tokenizer.ggml.eos_token_id"] == 2:
        assert "tokenizer.ggml.eot_token_id" not in values  # <|end|> is known by its text


def test_further_ends_of_an_answer() -> None:
    """llama.cpp knows some by their texts; the others are stated."""
    tokenizer = byte_level("qwen2")
    files = tokenizer_files(tokenizer, eos_token="<|end|>")
    files["generation_config.json"] = json.dumps({"eos_token_id": [1, 2]}).encode()
    rows = tokenizer.get_vocab_size()
    values = describe_vocabulary(TokenizerFiles(files), {}, rows)
    assert values["tokenizer.ggml.eot_token_id"].plain() == 2  # <|turn|>


def test_chat_templates_are_carried_as_text() -> None:
    tokenizer = byte_level("qwen2")
    hostile = "{{ ''.__class__.__mro__ }}"
    named = [{"name": "default", "template": hostile}, {"name": "tools", "template": "T"}]
    values = described(tokenizer, chat_template=named)
    assert values["tokenizer.chat_template"] == hostile
    assert values["tokenizer.chat_templates"] == ["tools"]
    assert values["tokenizer.chat_template.tools"] == "T"
    files = tokenizer_files(tokenizer, chat_template="old")
    files["chat_template.jinja"] = b"new"
    found = describe_vocabulary(TokenizerFiles(files), {}, tokenizer.get_vocab_size())
    assert found["tokenizer.chat_template"].plain() == "new"


def test_merges_as_strings_and_as_pairs() -> None:
    definition = json.loads(byte_level("gpt-2").to_str())
    pairs = definition["model"]["merges"]
    definition["model"]["merges"] = [" ".join(pair) for pair in pairs]
    files = TokenizerFiles({"tokenizer.json": json.dumps(definition).encode()})
    assert read_vocabulary(files, 600).merges == tuple(" ".join(pair) for pair in pairs)


# -- what is refused ------------------------------------------------------------------------------


def changed(tokenizer: Tokenizer, **parts: Any) -> Tokenizer:
    copy = Tokenizer.from_str(tokenizer.to_str())
    for name, part in parts.items():
        setattr(copy, name, part)
    return copy


@pytest.mark.parametrize(
    "parts",
    [
        {"pre_tokenizer": pre_tokenizers.Whitespace()},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"pre_tokenizer": pre_tokenizers.Sequence([
            pre_tokenizers.Split("x", "isolated"), pre_tokenizers.ByteLevel(use_regex=False)])},
        {"normalizer": normalizers.Lowercase()},
        {"normalizer": normalizers.Sequence([normalizers.NFC(), normalizers.NFKC()])},
    ],
)  # fmt: skip
def test_an_unknown_cut_is_refused_unless_named(parts, tmp_path) -> None:
    tokenizer = changed(byte_level("gpt-2"), **parts)
    with pytest.raises(IncompatibleError) as caught:
        described(tokenizer)
    assert caught.value.code == "UNKNOWN_PRETOKENIZER"
    assert "--pre" in str(caught.value.hint)
    files = TokenizerFiles(tokenizer_files(tokenizer))
    assert read_vocabulary(files, tokenizer.get_vocab_size(), "gpt-2").pre == "gpt-2"


def test_other_spellings_of_a_cut() -> None:
    definition = json.loads(byte_level("llama-bpe").to_str())
    (split, level) = definition["pre_tokenizer"]["pretokenizers"]
    split["pattern"]["Regex"] = (
        split["pattern"]["Regex"]
        .replace(
            "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
            "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
        )
        .replace(r"\r", "\r")
        .replace(r"\n", "\n")
    )
    split |= {"behavior": "Removed", "invert": True}
    inner = {"type": "Sequence", "pretokenizers": [level]}
    definition["pre_tokenizer"]["pretokenizers"] = [split, inner]
    files = TokenizerFiles({"tokenizer.json": json.dumps(definition).encode()})
    assert read_vocabulary(files, 600).pre == "llama-bpe"
    split["invert"] = False  # throws the words away
    files = TokenizerFiles({"tokenizer.json": json.dumps(definition).encode()})
    with pytest.raises(IncompatibleError):
        read_vocabulary(files, 600)


def test_sequences_within_sequences_without_end() -> None:
    definition = json.loads(byte_level("gpt-2").to_str())
    for _ in range(300):
        definition["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [definition["pre_tokenizer"]],
        }
    files = TokenizerFiles({"tokenizer.json": json.dumps(definition).encode()})
    assert read_vocabulary(files, 600).pre == "gpt-2"


def test_composed_accents_are_accepted() -> None:
    tokenizer = changed(byte_level("qwen2"), normalizer=normalizers.NFC())
    assert described(tokenizer)["tokenizer.ggml.pre"] == "qwen2"


def test_a_missing_way_to_a_token_is_refused() -> None:
    tokenizer = incomplete()
    with pytest.raises(IncompatibleError, match="does not merge") as caught:
        described(tokenizer)
    assert caught.value.code == "UNSUPPORTED_TOKENIZER"
    files = TokenizerFiles(tokenizer_files(tokenizer))
    assert read_vocabulary(files, tokenizer.get_vocab_size(), "default").model == "llama"
    with pytest.raises(UsageError):
        read_vocabulary(files, tokenizer.get_vocab_size(), "qwen2")


def test_a_missing_way_is_really_read_differently(tmp_path) -> None:
    """So that the refusal above is no mere caution."""
    single = {f"<0x{i:02X}>": i for i in range(256)}
    words = ("<unk>", "a", "b", "c", "bc", "ab", "abc")
    vocabulary = single | {word: 256 + i for i, word in enumerate(words)}
    model = models.BPE(
        vocabulary, [("b", "c"), ("a", "b"), ("ab", "c")], unk_token="<unk>", byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    assert tokenizer.encode("abc").tokens == ["a", "bc"]
    reader = Reader(with_tokenizer(tokenizer, tmp_path / "model.gguf", pre="default"))
    assert reader.read("abc") == [vocabulary["abc"]]
    reader.close()


@pytest.mark.parametrize(
    ("proto", "what"),
    [
        ({"kind": 1}, "another kind"),
        ({"charsmap": b"table"}, "changes characters"),
        ({"merge_spaces": True}, "several spaces"),
    ],
)
def test_other_models_of_sentencepiece(proto, what: str) -> None:
    files = {"tokenizer.model": model_proto([("<unk>", 0.0, 2), ("a", -1.0, 1)], **proto)}
    with pytest.raises(IncompatibleError, match=what):
        read_vocabulary(TokenizerFiles(files), 10)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x0a", b"\x0a\xff\xff\xff\xff\x7f", b"\xff" * 30, b"\x0b", b"IQ== 0\nIg== 1\n",
     model_proto([])],
)  # fmt: skip
def test_a_broken_tokenizer_model(data: bytes) -> None:
    with pytest.raises(CorruptInputError):
        read_vocabulary(TokenizerFiles({"tokenizer.model": data}), 10)


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_a_truncated_tokenizer_model(cut: int) -> None:
    data = model_proto([(f"piece{i}", -float(i), 1) for i in range(30)])[: cut + 1]
    with contextlib.suppress(AdaptoolError):
        read_vocabulary(TokenizerFiles({"tokenizer.model": data}), 100)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"vocab": []}, CorruptInputError),
        ({"vocab": {"a": -1}}, CorruptInputError),
        ({"vocab": {"a": 1, "b": 1}}, CorruptInputError),
        ({"vocab": {"a": True}}, CorruptInputError),
        ({"merges": {}}, CorruptInputError),
        ({"merges": ["a b c"]}, CorruptInputError),
        ({"merges": [["a", " b"]]}, CorruptInputError),
        ({"merges": [["a"]]}, CorruptInputError),
        ({"merges": [7]}, CorruptInputError),
        ({"type": "Unigram"}, IncompatibleError),
        ({"type": "WordPiece"}, IncompatibleError),
        ({"end_of_word_suffix": "</w>"}, IncompatibleError),
    ],
)
def test_a_broken_tokenizer_json(change, error) -> None:
    definition = json.loads(byte_level("gpt-2").to_str())
    definition["model"] |= change
    with pytest.raises(error):
        read_vocabulary(TokenizerFiles({"tokenizer.json": json.dumps(definition).encode()}), 600)


def test_no_tokenizer() -> None:
    with pytest.raises(IncompatibleError, match=r"no tokenizer\.json") as caught:
        read_vocabulary(TokenizerFiles({}), 600)
    assert caught.value.code == "TOKENIZER_MISSING"
