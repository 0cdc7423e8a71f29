"""The documents of a new store, and their images, as a planner hands them over to be written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from actlas.store.format.array_spec import ArraySpec
from actlas.store.format.schema import Plan


class DocumentColumns(Protocol):
    """Every document of a new store, in the plan's order.

    ``token_ids``, ``char_starts``, ``special`` and ``text`` are called for ascending, adjoining
    ranges of at most a few million elements, so the elements may come from disk.
    """

    n_documents: int
    n_tokens: int
    n_text_bytes: int
    start: NDArray[np.int64]
    """[n_documents + 1] The first kept token of each document."""
    text_start: NDArray[np.int64]
    """[n_documents + 1] The first UTF-8 byte of each document's text."""
    char_stop: NDArray[np.int32]
    """[n_documents] The character of its text at which each document's last kept token ends."""
    source: NDArray[np.int32]
    """[n_documents] Index into ``source_names``."""
    source_names: tuple[str, ...]
    record: NDArray[np.int64]
    """[n_documents] The record's place in its source, from 0."""
    label: NDArray[np.int32] | None
    """[n_documents] Index into ``label_names``, -1 where there is none."""
    label_names: tuple[str, ...]
    token_column_names: Mapping[str, tuple[str, ...]]
    """The names that the integers of each token column stand for, by column in plan order."""

    def token_ids(self, start: int, stop: int) -> NDArray[np.int32]:
        """Return the kept tokens [start, stop)."""

    def char_starts(self, start: int, stop: int) -> NDArray[np.int32]:
        """Return the character of the document at which each of the same tokens begins."""

    def special(self, start: int, stop: int) -> NDArray[np.bool_] | None:
        """Return which of the same tokens the tokenizer added; None if none of them has a row."""

    def token_column(self, name: str, start: int, stop: int) -> NDArray[np.int32]:
        """Return the values of a token column for the same tokens; -1 where a token has none."""

    def text(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return bytes [start, stop) of all texts, one after the other."""


class ImageColumns(Protocol):
    """The image files of documents, in the plan's order, byte for byte as they were found.

    ``image`` is called for ascending, adjoining ranges, as ``text`` is.
    """

    image_start: NDArray[np.int64]
    """[n_documents + 1] The first byte of each document's image; a document may have no image."""

    def image(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return bytes [start, stop) of all image files, one after the other."""


def check_counts(plan: Plan, columns: DocumentColumns, images: ImageColumns | None) -> None:
    """Raise ``ValueError`` where the documents' number or lengths differ from the plan's."""
    if (plan.processor is None) != (images is None):
        raise ValueError("images: a plan has a processor if and only if documents may have images")
    if tuple(columns.token_column_names) != plan.token_columns:
        raise ValueError(
            f"token_columns: the plan says {plan.token_columns}, its documents "
            f"{tuple(columns.token_column_names)}"
        )
    for name in ("n_documents", "n_tokens", "n_text_bytes"):
        wanted, got = getattr(plan, name), getattr(columns, name)
        if wanted != got:
            raise ValueError(f"{name}: the plan says {wanted:,}, its documents {got:,}")
    edges = {
        "start": (columns.start, plan.n_tokens),
        "text_start": (columns.text_start, plan.n_text_bytes),
    }
    if images is not None:
        edges["image_start"] = images.image_start, plan.n_image_bytes
    for name, (edge, last) in edges.items():
        if edge.shape != (plan.n_documents + 1,) or edge[0] != 0 or edge[-1] != last:
            raise ValueError(f"{name}: must go from 0 to {last:,} in {plan.n_documents + 1} steps")
        if (np.diff(edge) < 0).any():
            raise ValueError(f"{name}: must not fall")


def document_rows(
    columns: DocumentColumns,
    images: ImageColumns | None,
    name: str,
    spec: ArraySpec,
    start: int,
    stop: int,
) -> NDArray[Any]:
    """Return elements [start, stop) of a column of the documents, in its dtype."""
    readers: dict[str, Callable[[int, int], Any]] = {
        "token_id": columns.token_ids,
        "char_start": columns.char_starts,
        "special": columns.special,
        "text": columns.text,
    }
    for column in columns.token_column_names:
        readers[column] = partial(columns.token_column, column)
    if images is not None:
        readers["image"] = images.image
        readers["image_start"] = lambda start, stop: images.image_start[start:stop]
    rows = readers[name](start, stop) if name in readers else getattr(columns, name)[start:stop]
    rows = np.asarray(rows).astype(spec.numpy_dtype, copy=False)
    if rows.shape != (stop - start,):
        raise ValueError(f"documents/{name}: got {rows.shape} for [{start}, {stop})")
    return rows
