"""The text that ``actlas-6m`` learns from: cleaned, split into documents and pieces.

Only text whose terms allow a shipped model: WikiText-2 (CC BY-SA 3.0), a C4 sample (ODC-BY),
American presidents' speeches (public domain), and the documentation inside Python and
permissively licensed packages.
"""

from __future__ import annotations

import json
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from pydoc_data import topics
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from actlas.pipeline.builtin.docstrings import docstrings, module_files

MISSING = "<|missing|>"
"""Stands where WikiText has ``<unk>``: seen as input, never a target of the loss."""

DOCUMENTED_PACKAGES = (
    "numpy", "scipy", "pandas", "matplotlib", "sympy", "networkx", "torch", "transformers",
    "dask", "xarray", "zarr", "numcodecs", "hypothesis", "_pytest", "click", "rich", "jinja2",
    "setuptools", "pip", "packaging", "pydantic", "fsspec", "datasets", "huggingface_hub",
    "requests", "pyarrow", "ray",
)  # fmt: skip
"""Packages read where installed; all under BSD, MIT, Apache, PSF-like or MPL terms."""

HELD_OUT_EVERY = 30
"""Every 30th WikiText article is never trained on (about 3 %)."""


class TrainingText(NamedTuple):
    """Documents by kind; each document is one string."""

    english: list[str]
    documentation: list[str]
    held_out: list[str]
    """WikiText articles; ``MISSING`` in them is read but not scored."""


def detokenize(line: str) -> str:
    r"""Undo WikiText's tokenization.

    Examples
    --------
    >>> detokenize('It is 0 @.@ 7 – 2 @.@ 2 kg ( 4 lb ) , the " cutter " \'s own .')
    'It is 0.7 – 2.2 kg (4 lb), the "cutter"\'s own.'
    """
    line = re.sub(r" @([-.,])@ ", r"\1", line.strip())
    line = line.replace("<unk>", MISSING)
    line = re.sub(r'" (.*?) "', r'"\1"', line)
    line = re.sub(r" ([,.;:!?%)\]}])", r"\1", line)
    line = re.sub(r"([(\[{$£]) ", r"\1", line)
    line = re.sub(r" (n't|'(?:s|re|ve|ll|d|m|t))\b", r"\1", line)
    line = re.sub(r"s ' ", "s' ", line)
    line = re.sub(r" / ", "/", line)
    return re.sub(r"  +", " ", line)


def wikitext_articles(text: str) -> Iterator[str]:
    """Yield articles, one paragraph to a line, headings without their signs."""
    article: list[str] = []
    for line in text.splitlines():
        line = line.strip()
        heading = re.fullmatch(r"((?:= )+)(.*?)(?: =)+", line)
        if heading and heading[1].count("=") == 1:
            if article:
                yield "\n".join(article)
            article = []
        if line:
            article.append(detokenize(heading[2] if heading else line))
    if article:
        yield "\n".join(article)


def pieces(document: str) -> list[str]:
    r"""Cut a document where a passage may begin: at sentences and paragraphs.

    The pieces joined give the document again; white space leads its piece.

    Examples
    --------
    >>> pieces('One. "Two" is it. 3.5 three.\nFour')
    ['One.', ' "Two" is it.', ' 3.5 three.', '\nFour']
    """
    cuts = [0]
    for found in re.finditer(r"[.!?][\"')\]]*(?=\s+[A-Z\"'(0-9])|(?=\n)(?<!\n)", document):
        if found.end() > cuts[-1]:
            cuts.append(found.end())
    cuts.append(len(document))
    return [document[a:b] for a, b in pairwise(cuts) if b > a]


def looks_english(text: str) -> bool:
    """Tell running English from spam, lists and other languages by its function words."""
    words = re.findall(r"[a-z']+", text.lower())
    if len(words) < 40:
        return False
    function_words = {"the", "of", "and", "to", "a", "in", "is", "that", "it", "for", "on", "with"}
    share = sum(word in function_words for word in words) / len(words)
    spam = re.search(r"\b(viagra|casino|porn\w*|escorts?|xxx|sex\w*|lorazepam|xanax|cialis)\b",
                     text.lower())  # fmt: skip
    return share > 0.18 and spam is None


def _c4(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)["text"].strip()
            if looks_english(text):
                yield text


def _speeches(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*/*.txt")):
        raw = path.read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("cp1252", errors="replace")
        yield re.sub(r"\s*\n\s*", "\n", text).strip()


def _deduplicated(texts: Iterable[str]) -> Iterator[str]:
    seen: set[bytes] = set()
    for text in texts:
        key = blake2b(" ".join(text.split()).encode("utf-8", "replace"), digest_size=16).digest()
        if key not in seen:
            seen.add(key)
            yield text


def documented_packages() -> list[str]:
    """Name those of `DOCUMENTED_PACKAGES` that are installed, so are read."""
    site = Path(sysconfig.get_paths()["purelib"])
    return [package for package in DOCUMENTED_PACKAGES if (site / package).is_dir()]


def _documentation() -> Iterator[str]:
    yield from topics.topics.values()
    site = Path(sysconfig.get_paths()["purelib"])
    roots = [Path(sysconfig.get_paths()["stdlib"])]
    roots += [site / package for package in documented_packages()]
    for root in roots:
        for name, path in module_files(root):
            try:
                found = list(docstrings(path.read_bytes(), name))
            except SyntaxError as error:
                sys.stderr.write(f"left out, no Python of this version: {path}: {error}\n")
                continue
            for docstring in found:
                if len(docstring.text) >= 60:
                    yield docstring.text


class WikiText(NamedTuple):
    """WikiText-2's articles, split once and for all."""

    trained: list[str]
    held_out: list[str]


def load_wikitext(data: Path) -> WikiText:
    """Read the articles of ``data/wikitext2``; every 30th is held out."""
    articles: list[str] = []
    for split in ("valid", "test"):
        text = (data / "wikitext2" / f"{split}.txt").read_text(encoding="utf-8")
        articles.extend(wikitext_articles(text))
    trained = [article for i, article in enumerate(articles) if i % HELD_OUT_EVERY]
    return WikiText(trained, articles[::HELD_OUT_EVERY])


def load_training_text(data: Path) -> TrainingText:
    """Read and clean everything; ``data`` holds wikitext2, c4_sample and nltk_public_domain.

    Raises
    ------
    FileNotFoundError
        Where one of the three folders lacks its files.
    """
    wikitext = load_wikitext(data)
    web = _c4(data / "c4_sample" / "tiny_c4_sample.jsonl")
    speeches = list(_speeches(data / "nltk_public_domain"))
    if not speeches:
        raise FileNotFoundError(f"no speeches (*/*.txt) under {data / 'nltk_public_domain'}")
    english = list(_deduplicated([*wikitext.trained, *web, *speeches]))
    return TrainingText(english, list(_deduplicated(_documentation())), wikitext.held_out)


class EncodedDocument(NamedTuple):
    """A document's pieces, each as it reads inside a passage and at a passage's start."""

    inside: list[NDArray[np.uint16]]
    leading: list[NDArray[np.uint16]]

    @property
    def n_tokens(self) -> int:
        """The tokens of the whole document, without special ones."""
        return sum(len(piece) for piece in self.inside)


def encode_documents(documents: list[str], tokenizer: Tokenizer) -> list[EncodedDocument]:
    """Encode every piece of every document, in batches of documents."""
    encoded = []
    for start in range(0, len(documents), 500):
        cut = [pieces(document) for document in documents[start : start + 500]]
        flat = [piece for document in cut for piece in document]
        stripped = [piece.lstrip() for piece in flat]
        inside = _encode(flat, tokenizer)
        leading = _encode(stripped, tokenizer)
        at = 0
        for document in cut:
            end = at + len(document)
            encoded.append(EncodedDocument(inside[at:end], leading[at:end]))
            at = end
    return encoded


def _encode(texts: list[str], tokenizer: Tokenizer) -> list[NDArray[np.uint16]]:
    batch = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.asarray(encoding.ids, dtype=np.uint16) for encoding in batch]


def _passages(
    document: EncodedDocument, rng: np.random.Generator
) -> list[list[NDArray[np.uint16]]]:
    """Cut one document into passages: 30 % short, 40 % middling, 30 % up to the context."""
    bos, eos = (np.array([token], dtype=np.uint16) for token in (BOS_ID, EOS_ID))
    passages: list[list[NDArray[np.uint16]]] = []
    at, n_pieces = 0, len(document.inside)
    while at < n_pieces:
        low, high = ((8, 64), (64, 256), (256, 500))[rng.choice(3, p=(0.3, 0.4, 0.3))]
        target = int(rng.integers(low, high))
        passage = [bos, document.leading[at]]
        n_tokens = len(document.leading[at])
        at += 1
        while at < n_pieces and n_tokens < target:
            passage.append(document.inside[at])
            n_tokens += len(document.inside[at])
            at += 1
        if at == n_pieces:
            passage.append(eos)
        passages.append(passage)
    return passages


def epoch_tokens(
    english: list[EncodedDocument],
    documentation: list[EncodedDocument],
    *,
    docs_share: float,
    seed: int,
    epoch: int,
) -> NDArray[np.int64]:
    """Lay out one epoch: all of ``english`` and the next part of ``documentation``.

    Parameters
    ----------
    docs_share
        The share of the tokens that documentation makes up, in [0, 1).
    seed, epoch
        Name the random generator; the same pair gives the same tokens.

    Returns
    -------
    Token ids, shape (tokens,), passages shuffled and joined without padding.
    """
    n_english = sum(document.n_tokens for document in english)
    quota = int(n_english * docs_share / (1.0 - docs_share))
    order = np.random.default_rng(seed).permutation(len(documentation))
    lengths = np.array([documentation[i].n_tokens for i in order], dtype=np.int64)
    ends = np.cumsum(lengths)
    first = int(np.searchsorted(ends, (epoch * quota) % int(ends[-1])))
    chosen: list[EncodedDocument] = []
    n_chosen = 0
    while n_chosen < quota:
        document = documentation[order[first % len(order)]]
        chosen.append(document)
        n_chosen += document.n_tokens
        first += 1
    rng = np.random.default_rng((seed, epoch))
    passages = [p for document in [*english, *chosen] for p in _passages(document, rng)]
    shuffled = (passages[i] for i in rng.permutation(len(passages)))
    return np.concatenate([part for passage in shuffled for part in passage]).astype(np.int64)


VOCABULARY_SIZE = 4_096

CONTEXT = 512


class SpecialTokens(NamedTuple):
    """The strings of the special tokens, in the order of their ids from 0."""

    pad: str = "<|pad|>"
    bos: str = "<|bos|>"
    eos: str = "<|eos|>"
    missing: str = MISSING


SPECIAL = SpecialTokens()

PAD_ID, BOS_ID, EOS_ID, MISSING_ID = range(4)


def fit_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Fit the merges on ``texts``; digits stay single, so that sums are legible."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL.bos} $A",
        pair=f"{SPECIAL.bos} $A {SPECIAL.bos}:1 $B:1",
        special_tokens=[(SPECIAL.bos, BOS_ID)],
    )
    return tokenizer


def as_transformers(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap for ``save_pretrained``, with the roles of the special tokens."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=SPECIAL.bos,
        eos_token=SPECIAL.eos,
        pad_token=SPECIAL.pad,
        additional_special_tokens=[SPECIAL.missing],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
