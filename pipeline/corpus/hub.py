"""Data sets of the Hugging Face hub, streamed by the ``datasets`` library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from actlas.pipeline.corpus.formats.base import Raw
from actlas.pipeline.corpus.records import RawSource, ReadCounts, Record, Selection
from actlas.pipeline.options import PlanOptions
from actlas.store.errors import CorpusError
from actlas.store.format import layout

if TYPE_CHECKING:
    from actlas.pipeline.corpus.chat import Chat

DEFAULT_SPLIT = "train"


class HubCorpus:
    """A corpus that streams a data set of the hub, file by file.

    The files are read in a seeded order, or in their own with order ``corpus``. A document's
    source is the file's index in the data set's own order.

    Parameters
    ----------
    options : PlanOptions
        The options of the plan.
    name : str
        ``NAME``, ``NAME:SPLIT`` or ``NAME:CONFIG:SPLIT``; the default split is ``train``. A name
        may be a local folder.
    chat : Chat, optional
        The chat template, where ``messages_field`` is given.
    """

    finite = False
    drawn = False

    def __init__(self, options: PlanOptions, name: str, chat: Chat | None = None) -> None:
        self.uri = options.corpus
        self.labelled = options.label_field is not None
        self.counts = ReadCounts()
        self._selection = Selection(options, chat)
        self.text_field: str | None = self._selection.text.name
        parts = name.split(":")
        if not parts[0] or len(parts) > 3:
            raise CorpusError(
                f"{options.corpus}: expected hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT.",
                corpus=options.corpus,
            )
        self._name = parts[0]
        self._split = parts[-1] if len(parts) > 1 else DEFAULT_SPLIT
        self._config = parts[1] if len(parts) == 3 else None
        self._shuffled = (options.order or ("corpus" if self.labelled else "shuffled")) != "corpus"
        self._seed = options.seed
        self._n_records: int | None = None

    def records(self) -> Iterator[Record]:
        """Yield the documents of all files."""
        self.counts = ReadCounts()
        yield from self._selection.select(self._sources(), self.counts)

    def _sources(self) -> Iterator[RawSource]:
        with _reported(self.uri):
            stream = _open(self._name, self._config, self._split)
            n_files = int(stream.num_shards)
            splits = stream.info.splits or {}
            self._n_records = splits[self._split].num_examples if self._split in splits else None
        order = np.arange(n_files)
        if self._shuffled:
            order = layout.permutation(self._seed, layout.STREAM_DOCUMENTS, 0, n_files)
        for place in order.tolist():
            part = stream.shard(num_shards=n_files, index=place)
            name = f"{self._name}:{self._split} file {place} of {n_files}"
            yield RawSource(name, self._rows(part))

    def _rows(self, part: Any) -> Iterator[tuple[int, Raw]]:
        rows = enumerate(part)
        while True:
            with _reported(self.uri):
                item = next(rows, None)
            if item is None:
                return
            yield item

    def describe(self) -> str:
        """Return the corpus as the log names it."""
        return f"the stream of {self._name}, split {self._split}"

    def fraction(self) -> float | None:
        """Return the share of the records that was read; None if the data set states no number."""
        return self.counts.n_read / self._n_records if self._n_records else None


def _open(name: str, config: str | None, split: str) -> Any:
    from datasets import load_dataset

    stream = load_dataset(name, config, split=split, streaming=True)
    return stream.decode(False) if hasattr(stream, "decode") else stream


@contextmanager
def _reported(uri: str) -> Iterator[None]:
    """Convert exceptions of the library into a :class:`CorpusError`."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub import errors as hub

    network = hub.HTTPError  # type: ignore[attr-defined]  # its HTTP library's, whichever that is
    errors = (DatasetsError, network, OSError, ValueError, RuntimeError, LookupError)
    try:
        yield
    except errors as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise CorpusError(
            f"{uri}: the data set cannot be read: {reason}. Expected hf:NAME[:SPLIT] of a data set "
            "on the hub that this machine can reach, or of a local folder.",
            corpus=uri,
        ) from error
