"""Encoding: the feature activations (codes) of a store's rows under a sparse autoencoder."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from actlas.analysis.features.fit import fitting_hookpoint
from actlas.store.errors import CorruptDataError, FormatError, NonFiniteError, SaeError
from actlas.store.features.codes import Codes, index_dtype, round_values
from actlas.store.features.features import Features, open_features
from actlas.store.format import layout
from actlas.store.format.schema import FeaturesSpec, Receipt
from actlas.store.format.sealing import FORMAT_VERSION, seal
from actlas.store.format.validation import check_line
from actlas.store.ledger.derived import extract_inputs, group_of, input_seal
from actlas.store.ledger.feature_sets import NAME, copy_key, read_description, spec_key
from actlas.store.ledger.job_kinds import ENCODE, ENCODED
from actlas.store.ledger.receipts import receipt_key
from actlas.store.write.derived import commit, ensure_groups, sweep

if TYPE_CHECKING:
    from jaxtyping import Float32, Int64, Shaped

    from actlas.analysis.sae.model import SparseAutoencoder
    from actlas.store.read.reader import StoreReader
    from actlas.store.shards.reader import ShardReader

DENSE_BYTES = 64 << 20
"""Bytes of dense activations [rows, features] in memory at once, before zeros are dropped."""


def create_features(
    store: StoreReader,
    sae: SparseAutoencoder,
    name: str,
    path: str,
    hookpoint: str | None = None,
    accept: Collection[str] = (),
) -> Features:
    """Create the description of a set of features, or open the set if it was begun before.

    Parameters
    ----------
    store : StoreReader
        The store.
    sae : SparseAutoencoder
        The sparse autoencoder.
    name : str
        The name of the set.
    path : str
        The folder of the sparse autoencoder.
    hookpoint : str, optional
        The hookpoint to encode; by default the one that the sparse autoencoder was trained on.
    accept : collection of str
        With ``hook_name``, the hookpoint may be another than that of the training.

    Raises
    ------
    SaeError
        The sparse autoencoder does not fit the hookpoint, or the set of this name was begun with
        another one.
    """
    if not re.fullmatch(NAME, name):
        raise SaeError(
            f"features {name!r}: expected a name of at most 100 letters, digits, dots, dashes and "
            "underscores. Give one with --name.",
            field="name",
        )
    check_line(os.fspath(path), "the sparse autoencoder")
    hookpoint = fitting_hookpoint(store, sae, hookpoint, accept)
    spec = FeaturesSpec(
        format_version=FORMAT_VERSION,
        name=name,
        plan_sha256=store.plan_sha256,
        hookpoint=hookpoint,
        n_features=sae.d_sae,
        sae_kind=sae.architecture,
        sae_sha256=sae.sha256,
        sae_path=os.fspath(path),
        created_unix_s=time.time(),
        has_copy=True,
    )
    sealed = seal(spec)
    if not store.objects.create(copy_key(name), [sealed]):  # an earlier call may have ended here
        sealed = _begun(store, name, sealed)
    store.objects.create(spec_key(name), [sealed])
    features = open_features(store, name)
    for field in ("sae_sha256", "hookpoint", "n_features"):
        was, asked = getattr(features.spec, field), getattr(spec, field)
        if was != asked:
            raise SaeError(
                f"{store.path}: features {name!r} were begun with {field} {was}, got {asked}. "
                "Give another --name.",
                field=field,
            )
    ensure_groups(store, ENCODE, name)
    return features


def _begun(store: StoreReader, name: str, sealed: bytes) -> bytes:
    """Return the description that an earlier call wrote if it is undamaged, else this one."""
    try:
        data = store.objects.read(copy_key(name))
        read_description(data, name, f"{store.path}/{copy_key(name)}")
    except (CorruptDataError, FormatError):
        return sealed
    return data


class Encoder:
    """Encodes the shards of one store by one sparse autoencoder.

    Parameters
    ----------
    store : StoreReader
        The store.
    features : Features
        The set of features that is encoded.
    sae : SparseAutoencoder
        The sparse autoencoder, which must be the one of the set.
    device : str
        The torch device.

    Raises
    ------
    SaeError
        The set was begun with another sparse autoencoder.
    """

    def __init__(
        self, store: StoreReader, features: Features, sae: SparseAutoencoder, device: str = "cpu"
    ) -> None:
        if sae.sha256 != features.spec.sae_sha256:
            raise SaeError(
                f"features {features.name!r} were begun with the sparse autoencoder "
                f"{features.spec.sae_sha256[:16]}…, this one is {sae.sha256[:16]}…. Give the same "
                "one, or another --name.",
                field="sae_sha256",
            )
        self.store, self.features = store, features
        self.device = torch.device(device)
        self.sae = sae.to(self.device).eval()
        self._n_rows = max(1, DENSE_BYTES // (4 * sae.d_sae))

    def encode(self, shard: int) -> Codes:
        """Return the feature activations of a shard's tokens, rounded to bfloat16.

        Tokens are in document order.

        Parameters
        ----------
        shard : int
            The shard.

        Raises
        ------
        NonFiniteError
            An activation is NaN or infinite, because a row or the sparse autoencoder is.
        """
        start, stop = self.store.shard_range(shard)
        reader = self.store.activations[self.features.hookpoint].reader(shard)
        n_active, columns, values = [], [], []
        with torch.inference_mode():
            for first, rows in self._batches(reader, stop - start):
                count, column, value = self._encode_rows(rows, start + first)
                n_active.append(count)
                columns.append(column)
                values.append(value)
        plan = self.store.plan
        token = layout.shard_tokens(plan.order, plan.seed, start, stop) - start
        return in_document_order(
            start, token, np.concatenate(n_active), np.concatenate(columns), np.concatenate(values)
        )

    def _batches(self, reader: ShardReader, n_rows: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield batches of rows that fit ``DENSE_BYTES``; each chunk is decoded once."""
        chunk_rows = reader.spec.chunk_rows
        step = max(1, self._n_rows // chunk_rows) * chunk_rows
        for first in range(0, n_rows, step):
            rows = reader.read_rows(first, min(first + step, n_rows))
            for at in range(0, len(rows), self._n_rows):
                yield first + at, rows[at : at + self._n_rows]

    def extract(self, shard: int, *, attempt: str) -> Receipt:
        """Encode a shard, write its feature activations, and return the receipt.

        Parameters
        ----------
        shard : int
            The shard.
        attempt : str
            The name of this attempt, for the receipt.
        """
        began = time.perf_counter()
        codes = self.encode(shard)
        n_rows = len(codes.indptr) - 1
        features, n_features = self.features, self.features.n_features
        start, stop = codes.start, codes.start + n_rows
        unit = ENCODE.unit_of_work(self.store, features.name, shard, start, stop)
        attributes = {
            "encoding-type": "csr_matrix",
            "encoding-version": "0.1.0",
            "shape": [n_rows, n_features],
            "actlas": {"token_start": codes.start},
        }
        arrays = {"indptr": codes.indptr, "indices": codes.indices, "data": codes.data}
        inputs = {
            spec_key(features.name): features.seal,
            **extract_inputs(self.store, range(shard, shard + 1)),
        }
        run = {"device": str(self.device), "n_active": len(codes.data)}
        run["encode_s"] = time.perf_counter() - began
        return commit(self.store, unit, attributes, arrays, attempt=attempt, inputs=inputs, run=run)

    def _encode_rows(
        self, rows: NDArray[Any], first: int
    ) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.float32]]:
        x = torch.from_numpy(rows.astype(np.float32)).to(self.device)
        codes = self.sae.encode(x)
        row, column = codes.nonzero(as_tuple=True)
        exact = codes[row, column].float().cpu().numpy()
        value = round_values(exact)
        finite = np.isfinite(exact) & np.isfinite(value)
        if not finite.all():
            bad = int(row[int(np.argmin(finite))])
            raise NonFiniteError(
                f"{self.features.hookpoint}: feature activations of row {first + bad} are NaN or "
                "infinite. Check the activations of that row and the autoencoder's weights.",
                row=first + bad,
            )
        kept = value > 0  # drops what rounds to zero
        counts = np.bincount(row.cpu().numpy()[kept], minlength=len(rows))
        index = column.cpu().numpy()[kept].astype(index_dtype(self.features.n_features))
        return counts.astype(np.int64), index, value[kept]


def in_document_order(
    start: int,
    token: Int64[NDArray[np.int64], " rows"],
    n_active: Int64[NDArray[np.int64], " rows"],
    columns: Shaped[NDArray[Any], " codes"],
    values: Float32[NDArray[np.float32], " codes"],
) -> Codes:
    """Reorder feature activations from the order of rows on disk to the order of tokens.

    Parameters
    ----------
    start : int
        The first token.
    token : ndarray of int64, shape [rows]
        The token of each row, counted from ``start``; a permutation.
    n_active : ndarray of int64, shape [rows]
        The number of active features of each row.
    columns : ndarray of uint16 or uint32, shape [codes]
        The active features, row after row.
    values : ndarray of float32, shape [codes]
        Their activations.
    """
    indptr = np.zeros(len(token) + 1, np.int64)
    indptr[1:][token] = n_active
    np.cumsum(indptr, out=indptr)
    first = np.cumsum(n_active) - n_active
    to = np.repeat(indptr[token] - first, n_active) + np.arange(len(columns))
    indices, data = np.empty_like(columns), np.empty_like(values)
    indices[to], data[to] = columns, values
    return Codes(start, indptr, indices, data)


def finish(store: StoreReader, features: Features, attempt: str) -> Receipt:
    """Write the table over all encoded shards: the offset of each shard's activations.

    The groups that killed workers left are removed.

    Parameters
    ----------
    store : StoreReader
        The store.
    features : Features
        The set of features, of which every shard has a receipt.
    attempt : str
        The name of this attempt, for the receipt.

    Raises
    ------
    FileNotFoundError
        A shard has no receipt.
    """
    name, n_shards = features.name, store.plan.n_shards
    receipts = ENCODE.receipts(store, name)
    edges, groups, inputs = [0], [], {}
    for shard in range(n_shards):
        receipt = receipts.read(shard)
        key = receipt_key(receipts.job, shard)
        inputs[key] = input_seal(store.objects, key)
        groups.append(group_of(receipt))
        edges.append(edges[-1] + int(receipt.run["n_active"]))
    done = commit(
        store,
        ENCODED.unit_of_work(store, name, 0, 0, n_shards),
        {"groups": [group.rsplit("/", 1)[1] for group in groups]},
        {"nnz_start": np.array(edges, np.int64)},
        attempt=attempt,
        inputs=inputs,
        run={"groups": groups},
    )
    sweep(store, ENCODE, name)
    sweep(store, ENCODED, name)
    return done
