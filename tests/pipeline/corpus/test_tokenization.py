"""Cutting text into kept tokens. The oracle is transformers itself, called the plain way."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlas.pipeline.corpus.tokenization import (
    DocumentTokenizer,
    Tokens,
    Windows,
    batches,
    make_windows,
)
from actlas.pipeline.model.describe import load_tokenizer
from actlas.store.errors import ConfigError, ModelError

TEXTS = [
    "",
    " ",
    "   \n\n ",
    "a",
    "The cat sat.  Two  spaces, a\ttab and\r\na newline.\n\n\n",
    "</s><s><unk><pad> text <|endoftext|> and <|padding|> more</s>",
    "héllo 你好 🎉👩‍👩‍👧 नमस्ते שלום العربية ไทย",
    "ﬁ ½ e\u0301 Ａ İstanbul ǅ \u200b\ufeff\x00end",
    "                        twenty-four spaces",
    "🎉" * 50,
]
NAMES = ("stories", "gpt2", "neox")


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request: pytest.FixtureRequest, shared: Path) -> Any:
    from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

    if request.param == "stories":
        return load_tokenizer(str(shared / "models" / "stories260K"))
    if request.param == "gpt2":
        folder = shared / "data" / "gpt2_tokenizer"
        files = {"vocab": folder / "encoder.json", "merges": folder / "vocab.bpe"}
        return GPT2TokenizerFast(**{key: str(path) for key, path in files.items()})
    path = shared / "data" / "neox20b_tokenizer" / "20B_tokenizer.json"
    return PreTrainedTokenizerFast(tokenizer_file=str(path))


@pytest.fixture(scope="module")
def ours(tokenizer: Any) -> DocumentTokenizer:
    return DocumentTokenizer(tokenizer, "it")


def plain(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]
    return ids


def check_partition(tokens: Tokens, text: str) -> None:
    """The slices between starts are the text, in order, nothing twice and nothing missing."""
    edges = [*tokens.char_start.tolist(), tokens.char_stop]
    if len(tokens) == 0:
        assert tokens.char_stop == 0
        return
    assert edges[0] == 0 and edges == sorted(edges) and edges[-1] <= len(text)
    assert "".join(text[a:b] for a, b in pairwise(edges)) == text[: edges[-1]]


def test_kept_tokens_are_transformers_own(tokenizer: Any, ours: DocumentTokenizer) -> None:
    for text, tokens in zip(TEXTS, ours.tokenize(TEXTS), strict=True):
        assert tokens.token_id.tolist() == plain(tokenizer, text)
        assert tokens.token_id.dtype == np.int32 and tokens.char_start.dtype == np.int32
        check_partition(tokens, text)
        assert tokens.char_stop == (len(text) if len(tokens) else 0)


def test_special_strings_in_text_are_text(tokenizer: Any, ours: DocumentTokenizer) -> None:
    decoder = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    special = {index: str(token.content) for index, token in decoder.items() if token.special}
    assert special
    for text in special.values():
        (tokens,) = ours.tokenize([f"a {text} b{text}"])
        assert not set(tokens.token_id.tolist()) & set(special)
        # And the plain way would have found it: the test tests something.
        assert set(tokenizer(f"a {text} b{text}")["input_ids"]) & set(special)


def test_slices_are_what_each_token_decodes_to(tokenizer: Any, ours: DocumentTokenizer) -> None:
    text = "Once upon a time, there was a little girl named Lily. She liked 12 (twelve) cats!"
    (tokens,) = ours.tokenize([text])
    edges = [*tokens.char_start.tolist(), tokens.char_stop]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    for piece, index in zip(pieces, tokens.token_id.tolist(), strict=True):
        assert piece.strip() == tokenizer.decode([index]).strip()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=40), min_size=1, max_size=4))
def test_any_text_is_partitioned(ours: DocumentTokenizer, tokenizer: Any, texts: list[str]) -> None:
    for text, tokens in zip(texts, ours.tokenize(texts), strict=True):
        assert tokens.token_id.tolist() == plain(tokenizer, text)
        check_partition(tokens, text)


def test_real_text_is_partitioned(shared: Path, ours: DocumentTokenizer) -> None:
    text = (shared / "data" / "wikitext2" / "valid.txt").read_text()[:200_000]
    (tokens,) = ours.tokenize([text])
    check_partition(tokens, text)


def test_long_texts_bring_no_warning_and_the_tokenizer_stays_as_it_was(shared: Path) -> None:
    tokenizer = load_tokenizer(str(shared / "models" / "stories260K"))
    tokenizer.backend_tokenizer.enable_truncation(5)
    before = tokenizer.backend_tokenizer.to_str()
    ours = DocumentTokenizer(tokenizer, "it")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (tokens,) = ours.tokenize(["cat " * 5000])
    assert len(tokens) > 5000
    fresh = DocumentTokenizer(load_tokenizer(str(shared / "models" / "stories260K")), "it")
    assert fresh.spec == ours.spec  # Truncation is no part of what a tokenizer is.
    assert before != fresh._backend.to_str()


def test_what_a_tokenizer_adds_is_found(tokenizer: Any, ours: DocumentTokenizer) -> None:
    spec = ours.spec
    for text in TEXTS:
        ours = [*spec.prefix_ids, *plain(tokenizer, text), *spec.suffix_ids]
        assert tokenizer(text, split_special_tokens=True)["input_ids"] == ours
    assert spec.vocab_size == len(tokenizer)


@pytest.mark.parametrize(
    ("template", "prefix", "suffix"),
    [
        ("[B] $A [E]", (0,), (1,)),
        ("$A [E] [E]", (), (1, 1)),
        ("[B] [E] $A", (0, 1), ()),
        ("$A", (), ()),
    ],
)
def test_templates(template: str, prefix: tuple[int, ...], suffix: tuple[int, ...]) -> None:
    ours = DocumentTokenizer(made_up(template), "it")
    assert ours.spec.prefix_ids == prefix and ours.spec.suffix_ids == suffix
    (tokens,) = ours.tokenize(["[B] a"])
    assert tokens.token_id.tolist() == [2, 3, 4, 5]


def made_up(template: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["[B]", "[E]", "[", "B", "]", "a", "?"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.add_special_tokens(["[B]", "[E]"])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("[B]", 0), ("[E]", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_fingerprints_tell_tokenizers_apart() -> None:
    templates = ["[B] $A [E]", "[B] $A", "$A"]
    prints = [DocumentTokenizer(made_up(template), "it").spec.sha256 for template in templates]
    assert len(set(prints)) == 3
    assert prints == [
        DocumentTokenizer(made_up(template), "other").spec.sha256 for template in templates
    ]


def test_slow_tokenizers_are_refused() -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(ModelError, match=r"ByT5Tokenizer.*fast tokenizer.*tokenizer="):
        DocumentTokenizer(ByT5Tokenizer(), "it")


def tokens_of(n: int) -> Tokens:
    return Tokens(np.arange(10, 10 + n, dtype=np.int32), np.arange(n, dtype=np.int32) * 2, 2 * n)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=8),
    st.integers(1, 9),
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from(["window", "truncate"]),
)
def test_windows_with_special_tokens(
    lengths: list[int], content: int, n_prefix: int, n_suffix: int, long: Any
) -> None:
    windows = Windows(content, (1,) * n_prefix, (2,) * n_suffix, long, True)
    kept = [windows.apply(tokens_of(n)) for n in lengths]
    expected: list[list[int]] = []
    for n in lengths:
        ids = list(range(10, 10 + n))[: content if long == "truncate" else n]
        parts = [ids[i : i + content] for i in range(0, len(ids), content)]
        expected.append([t for part in parts for t in [1] * n_prefix + part + [2] * n_suffix])
    assert [tokens.token_id.tolist() for tokens in kept] == expected
    start = np.cumsum([0, *map(len, kept)])
    flat = [t for ids in expected for t in ids]
    special = windows.special(start, 0, len(flat))
    assert special is not None and special.tolist() == [t < 10 for t in flat]
    middle = windows.special(start, len(flat) // 3, len(flat) // 2)
    assert middle is not None
    assert middle.tolist() == special[len(flat) // 3 : len(flat) // 2].tolist()
    for tokens in kept:
        edges = [*tokens.char_start.tolist(), tokens.char_stop]
        assert edges == sorted(edges)
        widths = [
            b - a
            for (a, b), t in zip(pairwise(edges), tokens.token_id.tolist(), strict=True)
            if t < 10
        ]
        assert not any(widths)  # A special token has no text.


def test_truncation_keeps_the_first_tokens_and_their_end() -> None:
    windows = Windows(3, (1,), (), "truncate", False)
    cut = windows.apply(tokens_of(10))
    assert cut.token_id.tolist() == [10, 11, 12] and cut.char_stop == 6
    whole = windows.apply(tokens_of(3))
    assert whole.char_stop == 6 and len(whole) == 3
    assert windows.special(np.array([0, 3]), 0, 3) is None


def test_windows_need_room(shared: Path) -> None:
    spec = DocumentTokenizer(made_up("[B] $A [E]"), "it").spec
    assert make_windows(spec, 3, "window", False).content == 1
    assert make_windows(spec, 3, "window", False).kept == 1
    assert make_windows(spec, 3, "window", True).kept == 3
    with pytest.raises(ConfigError, match=r"max_length 2 leaves no room beside 2 special tokens"):
        make_windows(spec, 2, "window", False)


def test_batches_are_bounded_and_lose_nothing() -> None:
    items = [("x" * n, n) for n in (0, 1, 600_000, 600_000, 3_000_000, 0, 5)] + [("", 0)] * 10_000
    groups = list(batches(items))
    assert [item for group in groups for item in group] == items
    for group in groups:
        assert len(group) <= 4096
        assert sum(len(text) for text, _ in group[:-1]) < 1 << 20
