"""The Store: one folder of activations with its documents, opened with numpy alone."""

from __future__ import annotations

import os

from actlas.store.display.html import table_html
from actlas.store.features.features import Features, open_features
from actlas.store.features.unit_extremes import Units, open_units
from actlas.store.read.document import Context
from actlas.store.read.reader import StoreReader


class Store(StoreReader):
    """A store that has a plan. Open one with :func:`actlas.open`.

    Attributes
    ----------
    path : str
        Where it lies.
    plan : Plan
        What a row is.
    rows : Rows
        ``token_id``, ``doc_idx`` and ``pos_idx`` of every row.
    documents : Documents
        Text, tokens, labels and origin of every document.
    activations : mapping of hookpoint to LazyArray, shape [row, unit]

    Examples
    --------
    >>> store = actlas.open("run.zarr")                        # doctest: +SKIP
    >>> store.activations["resid_post.3"][100:200].shape       # doctest: +SKIP
    (100, 256)
    """

    def context(self, doc_idx: int, pos_idx: int, words: int = 20) -> Context:
        """Return a token with ``words`` words of its document on each side."""
        return self.documents.context(doc_idx, pos_idx, words)

    def features(self, name: str) -> Features:
        """Return a set of features: codes by token, and by feature where they are indexed.

        Raises
        ------
        FeatureError
            There is no such set. The message says which there are.
        """
        return open_features(self, name)

    def units(self, hookpoint: str) -> Units:
        """Return the top and bottom tokens of every raw unit of a hookpoint.

        Raises
        ------
        HookpointError
            There is no such hookpoint.
        FeatureError
            They are not gathered yet.
        """
        return open_units(self, hookpoint)

    def _repr_html_(self) -> str:
        plan = self.plan
        hookpoints = ", ".join(f"{h.name} ({h.width})" for h in plan.hookpoints)
        return table_html(
            [
                ("actlas store", self.path),
                ("model", f"{plan.model.id} ({plan.model.architecture})"),
                ("corpus", plan.corpus.uri),
                ("rows", f"{plan.n_tokens:,} of {plan.n_documents:,} documents"),
                ("hookpoints", hookpoints),
                (
                    "stored as",
                    f"{plan.dtype}, compression {plan.compression}, order {plan.order}",
                ),
                ("extracted", ", ".join(self.progress())),
            ]
        )


def open_store(path: str | os.PathLike[str], *, check: bool = True) -> Store:
    """Open a store to read it: numpy and nothing heavier.

    Parameters
    ----------
    path : path or URL
        The store's folder, or its place in a bucket: ``s3://bucket/run.zarr``.
    check : bool
        Hold raw chunks against the receipts' checksums. Without that, scattered rows in profile
        ``none`` are read alone and not with the whole chunk that the checksum is of: for looking at
        single documents of large stores. Compressed chunks are always checked.

    Raises
    ------
    StoreNotFoundError
        There is no store at this path.
    FormatError
        It was written by another version of the format, or its metadata was changed.
    CorruptDataError
        Its plan is not the one that was written.
    """
    return Store.open(path, check=check)
