"""Texts with an image in them: where its patches stand among the tokens of the text.

In the text that a store keeps, an image is the text of its grid
(:mod:`actlas.pipeline.corpus.patches`). The tokenizer recognizes it by that text: a text that
merely reads like one is not a document.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from actlas.pipeline.corpus.corpus import Corpus
from actlas.pipeline.corpus.patches import NO_TOKEN, CorpusView, patch_texts, patch_tokens
from actlas.pipeline.corpus.readers import Unreadable
from actlas.pipeline.corpus.records import Record
from actlas.pipeline.corpus.tokenization import DocumentTokenizer, Tokens, Windows, tokens_of
from actlas.pipeline.model.config import LOADING_ERRORS, loading_error, quiet
from actlas.pipeline.model.vision import blank_images
from actlas.store.errors import ConfigError, ModelError
from actlas.store.format.schema import TokenizerSpec

if TYPE_CHECKING:
    from PIL.Image import Image


class Placeholder(NamedTuple):
    """What stands for an image: in a text, among token ids, and how many times."""

    text: str
    token_id: int
    grid: tuple[int, int]


def find_placeholder(processor: Any) -> Placeholder:
    """Return what a processor puts where an image is, seen in what it makes of blank ones.

    Raises
    ------
    ModelError
        It has no placeholder, or images become different numbers of tokens.
    """
    name = type(processor).__name__
    text = getattr(processor, "image_token", None)
    token_id = getattr(processor, "image_token_id", None)
    if not isinstance(text, str) or not isinstance(token_id, int):
        raise ModelError(
            f"{name} has no image_token: expected a processor of the LLaVA kind, which puts one "
            "token for each patch where the image stands in the text.",
            field="processor",
        )
    try:
        with quiet():
            runs = {_run(processor, text, token_id, image) for image in blank_images()}
    except LOADING_ERRORS as error:
        raise loading_error("processor", name, error) from error
    run = runs.pop()
    if runs or run is None:
        raise ModelError(
            f"{name}: images of other shapes become other numbers of tokens, or several pieces, or "
            "inputs that are not known. Expected the same number for every image, one token "
            "behind the other and nothing around them, and one picture to the vision tower (LLaVA "
            "does that).",
            field="processor",
        )
    n, height, width = run
    patch = getattr(processor, "patch_size", None) or 1
    rows, columns = height // patch, width // patch
    return Placeholder(text, token_id, (rows, columns) if rows * columns == n else (1, n))


def _run(processor: Any, text: str, token_id: int, image: Image) -> tuple[int, int, int] | None:
    """Return how many tokens an image becomes, and the pixels of its input; None where not one.

    None also where the processor gives the model more than that, or puts tokens of its own around
    an image, which are not fed.
    """
    made = processor(text=[text], images=[image], return_tensors="np")
    ids, shape = made["input_ids"][0].tolist(), made["pixel_values"].shape
    n = ids.count(token_id)
    first = ids.index(token_id) if n else 0
    own = len(processor.tokenizer("")["input_ids"])
    together = ids[first : first + n] == [token_id] * n and len(ids) == n + own
    known = set(made) <= {"input_ids", "attention_mask", "pixel_values"}
    if not n or not together or not known or len(shape) != 4 or shape[0] != 1:
        return None
    return n, int(shape[2]), int(shape[3])


class MixedTokenizer(DocumentTokenizer):
    """Tokenizes texts, and texts with the grid of one image in them.

    Parameters
    ----------
    tokenizer, identity
        See :class:`~actlas.pipeline.corpus.tokenization.DocumentTokenizer`.
    placeholder : Placeholder
    """

    spec: TokenizerSpec
    columns = MappingProxyType({"modality": ("text", "image")})

    def __init__(self, tokenizer: Any, identity: str, placeholder: Placeholder) -> None:
        super().__init__(tokenizer, identity)
        self._placeholder = placeholder
        self._image = patch_tokens(placeholder.grid)
        self._grid_text = "".join(patch_texts(placeholder.grid))
        # The same tokenizer, in which of all special strings the placeholder alone is no text.
        body = json.loads(self._backend.to_str())
        for token in body["added_tokens"]:
            if token["content"] == placeholder.text:
                token["special"] = False
        self._with_image = type(self._backend).from_str(json.dumps(body))
        self._with_image.encode_special_tokens = True

    def tokenize(self, texts: Sequence[str]) -> Iterator[Tokens]:
        """Yield the tokens of each text, the patches of its image among them."""
        for text, tokens in zip(texts, super().tokenize(texts), strict=True):
            before, grid, after = text.partition(self._grid_text)
            found = self._cut_around(before, after) if grid else tokens
            modality = (found.token_id == NO_TOKEN).astype(np.int32)
            yield Tokens(*found[:3], columns={"modality": modality})

    def _cut_around(self, before: str, after: str) -> Tokens:
        place = self._placeholder
        text = before + place.text + after
        encoding = self._with_image.encode(text, add_special_tokens=False)
        tokens = tokens_of(encoding, len(text))
        [at] = np.flatnonzero(tokens.token_id == place.token_id).tolist()
        shift = len(self._grid_text) - len(place.text)
        patches = len(before) + self._image.char_start
        patches[0] = tokens.char_start[at]  # with a blank that the tokenizer has dropped
        return Tokens(
            np.concatenate([tokens.token_id[:at], self._image.token_id, tokens.token_id[at + 1 :]]),
            np.concatenate([tokens.char_start[:at], patches, tokens.char_start[at + 1 :] + shift]),
            tokens.char_stop + shift,
        )


class MixedCorpus(CorpusView):
    """A corpus of texts, some with an image, in the form that :class:`MixedTokenizer` reads.

    An image stands where the text has its placeholder (``<image>``), else before the text on a
    line of its own. Without an image a placeholder is text like any other.

    Parameters
    ----------
    corpus : Corpus
    placeholder : Placeholder
    tokenizer : MixedTokenizer
    windows : Windows
        An image that no single window holds is no document.
    """

    def __init__(
        self, corpus: Corpus, placeholder: Placeholder, tokenizer: MixedTokenizer, windows: Windows
    ) -> None:
        super().__init__(corpus)
        self._placeholder, self._tokenizer, self._windows = placeholder, tokenizer, windows
        self._grid_text = "".join(patch_texts(placeholder.grid))
        if int(np.prod(placeholder.grid)) > windows.content:
            raise ConfigError(
                f"An image has {int(np.prod(placeholder.grid)):,} tokens, and a window room for "
                f"{windows.content:,}. Give a larger --max-length.",
                field="max_length",
            )

    def text_of(self, record: Record) -> str | Unreadable:
        """Return the text with its image's grid in place."""
        if self._grid_text in record.text:
            return Unreadable("a text that reads like the grid of an image")
        if record.image is None:
            return record.text
        n_places = record.text.count(self._placeholder.text)
        if n_places > 1:
            return Unreadable(f"one image, and {self._placeholder.text} several times")
        before, after = "", "\n" * bool(record.text) + record.text
        if n_places:
            before, _, after = record.text.partition(self._placeholder.text)
        text = before + self._grid_text + after
        return text if self._fits(text) else Unreadable("an image that lies in no single window")

    def _fits(self, text: str) -> bool:
        [tokens] = self._tokenizer.tokenize([text])
        places = np.flatnonzero(tokens.token_id == NO_TOKEN)
        start, stop, content = int(places[0]), int(places[-1]), self._windows.content
        if self._windows.long == "truncate":
            return stop < content
        return start // content == stop // content
