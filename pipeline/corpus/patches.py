"""Patches of an image as tokens of a document: without token ids, in a text that shows the grid.

The text of an image has a name for each patch and a line for each row of patches, so that a display
of tokens in their context shows an image's patches in their places::

    [0,0] [0,1] [0,2]
    [1,0] [1,1] [1,2]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from actlas.pipeline.corpus.corpus import Corpus
from actlas.pipeline.corpus.formats.base import Unreadable
from actlas.pipeline.corpus.records import ReadCounts, Record
from actlas.pipeline.corpus.tokenization import Tokens, Windows
from actlas.store.display.text import counted
from actlas.store.errors import CorpusError
from actlas.store.format.schema import ProcessorSpec

NO_TOKEN = -1
"""The token id of a patch, which has none."""


def patch_texts(grid: tuple[int, int]) -> list[str]:
    r"""Return the text of every patch, row by row, with the white space that follows it.

    Parameters
    ----------
    grid : tuple of int
        Rows and columns of patches.

    Examples
    --------
    >>> patch_texts((2, 2))
    ['[0,0] ', '[0,1]\n', '[1,0] ', '[1,1]']
    """
    rows, columns = grid
    texts = [
        f"[{r},{c}]" + (" " if c + 1 < columns else "\n")
        for r in range(rows)
        for c in range(columns)
    ]
    return [*texts[:-1], texts[-1].rstrip("\n")]


def patch_tokens(grid: tuple[int, int]) -> Tokens:
    """Return an image's patches as the tokens of its grid's text."""
    texts = patch_texts(grid)
    edges = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    return Tokens(np.full(len(texts), NO_TOKEN, np.int32), edges[:-1], int(edges[-1]))


class PatchTokenizer:
    """The tokenizer of images: every document has the same tokens, the patches of an image.

    Parameters
    ----------
    grid : tuple of int
        Rows and columns of patches.
    """

    spec = None
    columns: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def __init__(self, grid: tuple[int, int]) -> None:
        self._tokens = patch_tokens(grid)

    def tokenize(self, texts: Sequence[str]) -> Iterator[Tokens]:
        """Yield the tokens of each document."""
        for _ in texts:
            yield self._tokens


class CorpusView:
    """A corpus that derives its documents from those of another corpus.

    Parameters
    ----------
    corpus : Corpus
        The original corpus.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self.finite, self.labelled = corpus.finite, corpus.labelled
        self.text_field, self.drawn = corpus.text_field, corpus.drawn

    @property
    def uri(self) -> str:
        """The original corpus, as given in the options."""
        return self._corpus.uri

    def text_of(self, record: Record) -> str | Unreadable:
        """Return the text of a document, or the reason why a record is none."""
        raise NotImplementedError

    def records(self) -> Iterator[Record]:
        """Yield the derived documents.

        Raises
        ------
        CorpusError
            No record is a document.
        """
        n_documents = 0
        for record in self._corpus.records():
            text = self.text_of(record)
            if isinstance(text, Unreadable):
                self.counts.skip(text.reason, record.source, record.record)
                continue
            n_documents += 1
            yield record._replace(text=text)
        if not n_documents:
            raise CorpusError(
                f"{self.uri}: none of {counted(self.counts.n_read, 'record')} is a document for "
                f"this model. {'; '.join(self.counts.lines())}. Name the field of images with "
                "--image-field.",
                corpus=self.uri,
            )

    @property
    def counts(self) -> ReadCounts:
        """Records read and skipped so far in the latest reading."""
        return self._corpus.counts

    def describe(self) -> str:
        """Return the corpus as the log names it."""
        return self._corpus.describe()

    def fraction(self) -> float | None:
        """Return the share of the corpus that was read; None if unknown."""
        return self._corpus.fraction()


class ImageCorpus(CorpusView):
    """A corpus of images alone; texts of its records are left out.

    Parameters
    ----------
    corpus : Corpus
        Records with images.
    grid : tuple of int
        Rows and columns of patches.
    """

    def __init__(self, corpus: Corpus, grid: tuple[int, int]) -> None:
        super().__init__(corpus)
        self.text_field = None
        self._text = "".join(patch_texts(grid))

    def text_of(self, record: Record) -> str | Unreadable:
        """Return the text of the grid."""
        return Unreadable("no image") if record.image is None else self._text


def image_windows(processor: ProcessorSpec, *, keep_special: bool) -> Windows:
    """Return the windows of an image corpus: one for each image, never truncated."""
    rows, columns = processor.grid
    return Windows(
        content=rows * columns,
        prefix=(NO_TOKEN,) * processor.n_prefix,
        suffix=(NO_TOKEN,) * processor.n_suffix,
        long="truncate",
        keep_special=keep_special,
    )
