"""``Store``: a store with its activations, documents, features and contexts; ``open_store``."""

from __future__ import annotations

import os

from actlas.store.display.html import table_html
from actlas.store.display.text import counted
from actlas.store.features.features import Features, open_features
from actlas.store.features.unit_extremes import Units
from actlas.store.ledger.job_kinds import EXTREMES
from actlas.store.read.document import Context
from actlas.store.read.reader import StoreReader


class Store(StoreReader):
    """An open store of activations. Open one with :func:`actlas.open`.

    Attributes
    ----------
    path : str
        The store's folder or URL.
    plan : Plan
        The definition of every row.
    rows : Rows
        The row columns: ``token_id``, ``doc_idx`` and ``pos_idx`` of every row.
    documents : Documents
        Text, tokens, labels and sources of the documents.
    activations : mapping of hookpoint to LazyArray, shape [row, unit]
        The dense activations.
    pooled : mapping of hookpoint and pool to LazyArray, shape [document, unit]
        The pooled rows.

    Examples
    --------
    >>> store = actlas.open("run.zarr")                        # doctest: +SKIP
    >>> store.activations["resid_post.3"][100:200].shape       # doctest: +SKIP
    (100, 256)
    """

    @property
    def hookpoints(self) -> tuple[str, ...]:
        """The names of the stored hookpoints, in the order of the forward pass."""
        return tuple(hookpoint.name for hookpoint in self.plan.hookpoints)

    def __len__(self) -> int:
        """Return the number of rows: one per kept token, or per document if only pooled."""
        return self.plan.n_tokens if self.plan.dense else self.plan.n_documents

    def __fspath__(self) -> str:
        """Return the folder or URL, so that a store may be given where its path may."""
        return self.path

    def context(self, doc_idx: int, pos_idx: int, words: int = 20) -> Context:
        """Return a token with some words of its document on each side.

        Parameters
        ----------
        doc_idx : int
            The document's number; -1 is the last document.
        pos_idx : int
            The token's position in the document; -1 is its last token.
        words : int
            The number of words on each side.

        Raises
        ------
        IndexError
            There is no such document, or it has no such token.
        """
        return self.documents.context(doc_idx, pos_idx, words)

    def features(self, name: str) -> Features:
        """Return a set of feature activations, to read by token and, once indexed, by feature.

        Parameters
        ----------
        name : str
            The set's name.

        Raises
        ------
        FeatureError
            The store has no such set. The message lists those that it has.
        """
        return open_features(self, name)

    def units(self, hookpoint: str) -> Units:
        """Return the raw units of a hookpoint, with the top and bottom tokens of each.

        The first call for a hookpoint gathers these tokens in one pass over its rows and writes
        them to the store, as ``actlas contexts`` does.

        Parameters
        ----------
        hookpoint : str
            The hookpoint's name.

        Raises
        ------
        HookpointError
            The store has no such hookpoint.
        NotExtractedError
            The tokens are not gathered yet, and not every shard is extracted.
        RunFaultError
            The tokens are not gathered yet, and the store cannot be written to.
        """
        found: Units = EXTREMES.opened(self, hookpoint)
        return found

    def _repr_html_(self) -> str:
        plan = self.plan
        hookpoints = ", ".join(f"{h.name} ({h.width})" for h in plan.hookpoints)
        return table_html(
            [
                ("actlas store", self.path),
                ("model", f"{plan.model.id} ({plan.model.architecture})"),
                ("corpus", plan.corpus.uri),
                ("rows", f"{plan.n_tokens:,} of {counted(plan.n_documents, 'document')}"),
                ("hookpoints", hookpoints),
                (
                    "stored as",
                    f"{plan.dtype}, compression {plan.compression}, order {plan.order}",
                ),
                ("extracted", ", ".join(self.progress())),
            ]
        )


def as_store(store: StoreReader | str | os.PathLike[str]) -> Store:
    """Return an open store, given the store itself, its path or its URL.

    Parameters
    ----------
    store : Store, path or URL
        The store.

    Raises
    ------
    ConfigError
        It is something else.
    ActlasError
        See :func:`open_store`.
    """
    if isinstance(store, Store):
        return store
    if isinstance(store, StoreReader):
        return Store(store.objects, store.plan_file, store.plan_sha256, check=store.check)
    return open_store(store)


def open_store(path: str | os.PathLike[str], *, check: bool = True) -> Store:
    """Open a store for reading. Nothing heavier than numpy is imported.

    Parameters
    ----------
    path : path or URL
        The store's folder, or its URL in a bucket: ``s3://bucket/run.zarr``.
    check : bool
        Whether uncompressed chunks are checked against the checksums in the receipts. Without the
        check, scattered rows of an uncompressed array are read singly and not with their whole
        chunk, which is faster for single documents of a large store. Compressed chunks are always
        checked.

    Raises
    ------
    StoreNotFoundError
        There is no store at this path.
    FormatError
        The store was written by another version of the format, or its metadata was changed.
    CorruptDataError
        The plan is not the one that was written.
    """
    return Store.open(path, check=check)
