"""SentencePiece byte-pair encoding: Llama 2, Mistral, Gemma.

llama.cpp joins, of all neighbours whose texts together are a token, those with the highest score.
A tokenizer.model has the scores.  A tokenizer.json has merges in an order instead, which says the
same if every way of putting a token together is among them: then the place of its first merge is
a token's score.  Where one is missing the two would read some texts differently, so that is
checked and refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from adaptool.conversion.vocabulary.bytelevel import read_merges, read_vocabulary_table
from adaptool.conversion.vocabulary.files import TokenizerFiles, steps
from adaptool.conversion.vocabulary.protobuf import BPE, SentencePieceModel, read_model
from adaptool.conversion.vocabulary.words import Kind, Vocabulary, Word, number_words
from adaptool.errors import JSON, IncompatibleError, UsageError
from adaptool.storage import shown

PRE = "default"
SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def read_sentencepiece(files: TokenizerFiles, size: int, pre: str | None) -> Vocabulary:
    """The vocabulary of a tokenizer.model, else of a tokenizer.json that does the same.

    Args:
        files: with one of the two.
        size: rows of the input embedding.
        pre: "default" accepts that llama.cpp may read some texts differently; None checks.

    Raises:
        UsageError: another pre-tokenizer, which llama.cpp would not use.
        IncompatibleError: llama.cpp would read texts differently (UNSUPPORTED_TOKENIZER).
        CorruptInputError: not such files.
    """
    if pre not in (None, PRE):
        raise UsageError(
            f"pre-tokenizer {pre}: SentencePiece vocabularies have none but {PRE!r}",
        )
    if files.sentencepiece is not None:
        stored = read_model(files.sentencepiece)
        _check_model(stored, accepted=pre is not None)
        pieces = stored.pieces[:size]  # some publish more pieces than the model has rows
        base = {i: Word(p.text, Kind(p.kind), p.score) for i, p in enumerate(pieces)}
        prefix = _stated_prefix(files, silent=stored.space_prefix)
    else:
        base = _words_of_merges(files, accepted=pre is not None)
        prefix = _stated_prefix(files, silent=True)
    return Vocabulary(
        model="llama",
        pre=PRE,
        words=number_words(base, files.added, size),
        space_prefix=prefix,
    )


def _check_model(model: SentencePieceModel, *, accepted: bool) -> None:
    if model.kind != BPE:
        raise _unsupported("tokenizer.model is not byte-pair encoding but a model of another kind")
    if not model.escape_spaces:
        raise _unsupported("tokenizer.model keeps spaces as they are")
    if model.charsmap and not accepted:
        raise _unsupported("tokenizer.model changes characters (a normalisation)")
    if model.merge_spaces and not accepted:
        raise _unsupported("tokenizer.model takes several spaces for one")
    if any(piece.kind not in set(Kind) for piece in model.pieces):
        raise _unsupported("tokenizer.model has tokens of an unknown kind")


def _stated_prefix(files: TokenizerFiles, *, silent: bool) -> bool:
    """Whether a text is read as if it began with a space; tokenizer.json knows it best.

    llama.cpp puts that space before every text and behind special tokens, as SentencePiece does.
    `Metaspace` spares texts that begin with one, and its scheme "first" what follows a special
    token; nothing says that to llama.cpp.
    """
    definition = files.tokenizer
    if not definition:
        stated = files.config.get("add_prefix_space")
        return stated if isinstance(stated, bool) else silent
    changes = steps(definition.get("normalizer"), "normalizers")
    cuts = steps(definition.get("pre_tokenizer"), "pretokenizers")
    prefix = False
    for change in changes:
        match change:
            case {"type": "Prepend", "prepend": "▁"}:
                prefix = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                pass
            case _:
                raise _unsupported(f"tokenizer.json changes text with {change.get('type')}")
    for cut in cuts:
        match cut:
            case {"type": "Metaspace", "replacement": "▁"}:
                scheme = cut.get(
                    "prepend_scheme", "always" if cut.get("add_prefix_space", True) else "never"
                )
                prefix = prefix or scheme in ("always", "first")
                _check_cut(cut, files)
            case {"type": "Split", "pattern": {"String": " "}}:
                pass  # Gemma's: no space is left to split at
            case _:
                raise _unsupported(f"tokenizer.json cuts text with {cut.get('type')}")
    return prefix


def _check_cut(cut: Mapping[str, JSON], files: TokenizerFiles) -> None:
    """A cut before every space is none where no token has one inside."""
    if cut.get("split", True) and any(SPACE in t[1:] for t in read_vocabulary_table(files.model)):
        raise _unsupported("tokenizer.json cuts before spaces that its tokens contain")


def _words_of_merges(files: TokenizerFiles, *, accepted: bool) -> dict[int, Word]:
    model = files.model
    table = read_vocabulary_table(model)
    merges = read_merges(model)
    scores = _scores(merges)
    if not accepted:
        known = {added.text for added in files.added.values()}
        _check_complete(set(merges), scores, {t for t in table if len(t) == 1} - known)
    unknown = model.get("unk_token")
    words = {}
    for text, number in table.items():
        if _BYTE.fullmatch(text):
            kind = Kind.BYTE
        else:
            kind = Kind.UNKNOWN if text == unknown else Kind.NORMAL
        words[number] = Word(text, kind, scores.get(text, -float(len(merges))))
    return words


def _scores(merges: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Results of merges -> scores that rank them alike.

    Ways to tokens of one score stand mixed in a list that was made of scores: tokens whose ways
    overlap get one score, and llama.cpp, like SentencePiece, takes the leftmost of them first.
    """
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        first.setdefault(left + right, rank)
        last[left + right] = rank
    scores: dict[str, float] = {}
    begin = end = -1
    for text, rank in first.items():  # in the order of ranks, as they were met
        begin = rank if rank > end else begin
        end = max(end, last[text])
        scores[text] = -float(begin)
    return scores


def _check_complete(
    merges: Collection[tuple[str, str]], scores: Mapping[str, float], characters: Collection[str]
) -> None:
    """Refuse merges from which a way to a token is missing.

    Only parts that merging can meet count: results of merges, and single characters that are not
    cut out of the text before.
    """
    for text in scores:
        for cut in range(1, len(text)):
            parts = text[:cut], text[cut:]
            if parts not in merges and all(p in scores or p in characters for p in parts):
                raise _unsupported(
                    f"tokenizer.json does not merge {shown(parts[0])!r} with {shown(parts[1])!r}, "
                    f"though both and {shown(text)!r} are tokens"
                )


def _unsupported(what: str) -> IncompatibleError:
    return IncompatibleError(
        f"{what}: llama.cpp would read some texts as other tokens",
        hint="put the tokenizer.model that it was made from beside it, if there is one; "
        f"--pre {PRE} accepts the difference",
        code="UNSUPPORTED_TOKENIZER",
    )
