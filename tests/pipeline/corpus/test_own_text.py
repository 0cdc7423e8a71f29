"""Every token shows its own text. The oracle is what its library decodes each alone to."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from actlas.pipeline.corpus.spans import token_codes
from actlas.pipeline.corpus.tokenization import DocumentTokenizer
from actlas.pipeline.model.describe import load_tokenizer
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.plan.make import make_plan

TRAINING = ["the cat sat on the mat", "what is it that the dog did", "Is it so? It is."] * 4

TEXTS = [
    "Q: what is it?",
    " Q: two  spaces",
    "the cat",
    "é and 🎉 x",
    "\nQ\n\nis it",
    "x",
    "   ",
    "QQQ<sep>Q is<sep> it",
]

SPACE = "▁"


def bytes_and_letters() -> dict[str, int]:
    pieces = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), SPACE]
    letters = sorted(set("".join(TRAINING)) - {" "} | {":", "Q"})
    return {piece: i for i, piece in enumerate([*pieces, *letters, SPACE + "i", SPACE + "w"])}


def llama(*, legacy: bool) -> Tokenizer:
    """Byte fallback behind a prefix: by a normalizer as in Llama 2, or by Metaspace."""
    merges = [(SPACE, "i"), (SPACE, "w")]
    vocabulary = bytes_and_letters()
    it = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    if legacy:
        it.normalizer = normalizers.Sequence(
            [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
        )
    else:
        it.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    it.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return it


def unigram() -> Tokenizer:
    scores = [(piece, -2.0) for piece in bytes_and_letters()]
    it = Tokenizer(models.Unigram(scores, 0, byte_fallback=True))
    it.normalizer = normalizers.NFKC()
    it.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    it.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return it


def byte_level(*, prefix: bool, trim: bool = False) -> Tokenizer:
    from tokenizers import processors

    it = Tokenizer(models.BPE())
    it.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    it.decoder = decoders.ByteLevel()
    if trim:
        it.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    it.train_from_iterator(TRAINING, trainer)
    return it


def word_piece() -> Tokenizer:
    letters = sorted(set("".join(TRAINING + TEXTS)) - {" ", "\n"})
    pieces = ["[UNK]", *letters, *("##" + letter for letter in letters)]
    it = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    it.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    it.decoder = decoders.WordPiece(cleanup=False)
    return it


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "Llama 2": lambda: llama(legacy=True),
    "Metaspace first": lambda: llama(legacy=False),
    "Unigram always": unigram,
    "byte level": lambda: byte_level(prefix=False),
    "byte level prefix": lambda: byte_level(prefix=True),
    "byte level trimmed": lambda: byte_level(prefix=True, trim=True),
    "WordPiece": word_piece,
}


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    it = KINDS[kind]()
    it.add_tokens(
        [AddedToken("<sep>", normalized=False)]
    )  # no special one: it splits the text, and stays in it
    return PreTrainedTokenizerFast(tokenizer_object=it)


def pieces_of(ours: DocumentTokenizer, text: str) -> tuple[list[int], list[str]]:
    (tokens,) = ours.tokenize([text])
    edges = [*tokens.char_start.tolist(), tokens.char_stop]
    return tokens.token_id.tolist(), [text[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_token_has_its_own_text(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    ids, pieces = pieces_of(DocumentTokenizer(tokenizer, kind), text)
    assert "".join(pieces) == text[: len("".join(pieces))]
    for index, piece in zip(ids, pieces, strict=True):
        own = tokenizer.backend_tokenizer.decode([index], skip_special_tokens=False)
        own = own.removeprefix("##")
        if "\ufffd" not in own and own != "[UNK]":  # a part of a character: the first has it
            assert piece.strip() == own.strip(), (kind, ids, pieces)
    if text.strip():
        assert "".join(pieces) == text


def test_the_letter_behind_a_prefix(shared: Path, tmp_path: Path) -> None:
    folder = shared / "models" / "stories260K"
    (tmp_path / "a.txt").write_text("Q: what is it?")
    options = PlanOptions(model=str(folder), corpus=str(tmp_path / "a.txt"), order="corpus")
    document = make_plan(tmp_path / "s.zarr", options).document(0)
    tokenizer = load_tokenizer(str(folder))
    own = [tokenizer.decode([index]) for index in document.token_id.tolist()]
    assert [token.strip() for token in document.tokens] == [text.strip() for text in own]
    assert document.tokens[:3] == ("", "Q", ":") or list(document.tokens[:3]) == ["", "Q", ":"]


def test_a_blank_that_was_inserted_has_the_span_of_what_follows() -> None:
    ours = DocumentTokenizer(tokenizer_of("Llama 2"), "it")
    text = "Qa<sep>Qa"
    (tokens,) = ours.tokenize([text])
    pieces = pieces_of(ours, text)[1]
    spans = np.array([(0, 1, 5), (7, 9, 6)], np.int32)
    found = list(zip(pieces, token_codes(tokens, spans).tolist(), strict=True))
    assert found == [("", 5), ("Q", 5), ("a", -1), ("<sep>", -1), ("", 6), ("Q", 6), ("a", 6)]
