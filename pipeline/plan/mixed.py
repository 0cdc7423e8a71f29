"""Texts with an image in them: the patches of the image among the tokens of the text.

In a stored text an image is the text of its grid (:mod:`actlas.pipeline.corpus.patches`), by which
the tokenizer recognizes it. A record whose own text contains such a grid is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from actlas.pipeline.corpus.corpus import Corpus
from actlas.pipeline.corpus.formats.base import Unreadable
from actlas.pipeline.corpus.patches import NO_TOKEN, CorpusView, patch_texts, patch_tokens
from actlas.pipeline.corpus.records import Record
from actlas.pipeline.corpus.tokenization import DocumentTokenizer, Tokens, Windows
from actlas.pipeline.model.config import LOADING_ERRORS, loading_error, quiet
from actlas.pipeline.model.vision import blank_images
from actlas.store.errors import ConfigError, ModelError
from actlas.store.format.schema import TokenizerSpec

if TYPE_CHECKING:
    from PIL.Image import Image


class Placeholder(NamedTuple):
    """The placeholder of an image.

    Attributes
    ----------
    text : str
        The placeholder in a text, such as ``<image>``.
    token_id : int
        Its token id, which is repeated for each patch.
    grid : tuple of int
        Rows and columns of patches.
    """

    text: str
    token_id: int
    grid: tuple[int, int]


def find_placeholder(processor: Any) -> Placeholder:
    """Return the placeholder that a processor uses, found with black images of several shapes.

    Parameters
    ----------
    processor : transformers.ProcessorMixin
        The processor of text and images.

    Raises
    ------
    ModelError
        The processor has no placeholder, or images become different numbers of tokens.
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
            f"{name}: images of different shapes become different numbers of tokens, or several "
            "tiles, or unknown inputs. Expected the same number of adjacent tokens for every "
            "image with nothing around them, and one image for the vision tower, as in LLaVA.",
            field="processor",
        )
    n, height, width = run
    patch = getattr(processor, "patch_size", None) or 1
    rows, columns = height // patch, width // patch
    return Placeholder(text, token_id, (rows, columns) if rows * columns == n else (1, n))


def _run(processor: Any, text: str, token_id: int, image: Image) -> tuple[int, int, int] | None:
    """Return the number of an image's tokens, and height and width of its input in pixels.

    None is returned for several tiles, for further inputs of the model, and for tokens that the
    processor adds around an image, since these are not supported.
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
    """The tokenizer of texts, and of texts that contain the grid of one image.

    Parameters
    ----------
    tokenizer, identity, prepend_bos
        See :class:`~actlas.pipeline.corpus.tokenization.DocumentTokenizer`.
    placeholder : Placeholder
        The placeholder of an image.
    """

    spec: TokenizerSpec
    columns = MappingProxyType({"modality": ("text", "image")})

    def __init__(
        self,
        tokenizer: Any,
        identity: str,
        placeholder: Placeholder,
        *,
        prepend_bos: bool = False,
    ) -> None:
        super().__init__(tokenizer, identity, prepend_bos=prepend_bos)
        self._placeholder = placeholder
        self._image = patch_tokens(placeholder.grid)
        self._grid_text = "".join(patch_texts(placeholder.grid))
        # The same tokenizer, in which the placeholder is the only special string not taken as text.
        body = json.loads(self._backend.to_str())
        for token in body["added_tokens"]:
            if token["content"] == placeholder.text:
                token["special"] = False
        self._with_image = type(self._backend).from_str(json.dumps(body))
        self._with_image.encode_special_tokens = True

    def tokenize(self, texts: Sequence[str]) -> Iterator[Tokens]:
        """Yield the tokens of each text, including the patches of its image."""
        for text, tokens in zip(texts, super().tokenize(texts), strict=True):
            before, grid, after = text.partition(self._grid_text)
            found = self._around_image(before, after) if grid else tokens
            modality = (found.token_id == NO_TOKEN).astype(np.int32)
            yield Tokens(*found[:3], columns={"modality": modality}, leads=found.leads)

    def _around_image(self, before: str, after: str) -> Tokens:
        place = self._placeholder
        text = before + place.text + after
        encoding = self._with_image.encode(text, add_special_tokens=False)
        tokens = self._tokens_of(encoding, len(text))
        [at] = np.flatnonzero(tokens.token_id == place.token_id).tolist()
        shift = len(self._grid_text) - len(place.text)
        patches = len(before) + self._image.char_start
        patches[0] = tokens.char_start[at]  # includes a blank that the tokenizer dropped
        leads = tokens.leads
        if leads is not None:
            none = np.zeros(len(patches), np.bool_)
            leads = np.concatenate([leads[:at], none, leads[at + 1 :]])
        return Tokens(
            np.concatenate([tokens.token_id[:at], self._image.token_id, tokens.token_id[at + 1 :]]),
            np.concatenate([tokens.char_start[:at], patches, tokens.char_start[at + 1 :] + shift]),
            tokens.char_stop + shift,
            leads=leads,
        )


class MixedCorpus(CorpusView):
    """A corpus of texts, some with an image, in the form that :class:`MixedTokenizer` reads.

    The image replaces the placeholder (``<image>``) in the text; without one it precedes the text
    on a line of its own. In a record without an image a placeholder is ordinary text.

    Parameters
    ----------
    corpus : Corpus
        Texts, some with images.
    placeholder : Placeholder
        The placeholder of an image.
    tokenizer : MixedTokenizer
        The plan's tokenizer.
    windows : Windows
        The division into windows; a record whose image crosses windows is skipped.
    """

    def __init__(
        self, corpus: Corpus, placeholder: Placeholder, tokenizer: MixedTokenizer, windows: Windows
    ) -> None:
        super().__init__(corpus)
        self._placeholder, self._tokenizer, self._windows = placeholder, tokenizer, windows
        self._grid_text = "".join(patch_texts(placeholder.grid))
        if int(np.prod(placeholder.grid)) > windows.content:
            raise ConfigError(
                f"An image has {int(np.prod(placeholder.grid)):,} tokens, and a window holds "
                f"{windows.content:,}. Give a larger --max-length.",
                field="max_length",
            )

    def text_of(self, record: Record) -> str | Unreadable:
        """Return the text with the grid of its image, or the reason why a record is no document."""
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
