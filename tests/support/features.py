"""Codes made by arithmetic that numpy can repeat, with many ties and empty features."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from actlas.store.store import Store
from support.stores import Columns, create, fill, plan_for, words_columns


class Relu:
    """What the encoder needs of a sparse autoencoder: ReLU of rounded sums, so that codes tie."""

    architecture = "relu"

    def __init__(self, d_in: int, d_sae: int, hookpoint: str | None, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.weights = rng.integers(-2, 3, (d_in, d_sae)).astype(np.float32)
        self.bias = rng.integers(-30, 4, d_sae).astype(np.float32)
        self.bias[0], self.bias[-1] = -1e9, 1e3  # one never fires, one always
        self.d_in, self.d_sae, self.hookpoint = d_in, d_sae, hookpoint
        self.sha256 = hashlib.sha256(self.weights.tobytes() + self.bias.tobytes()).hexdigest()

    def to(self, device: Any) -> Relu:
        return self

    def eval(self) -> Relu:
        return self

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.codes(x.numpy()))

    def codes(self, x: NDArray[Any]) -> NDArray[np.float32]:
        sums = np.round(x.astype(np.float32)) @ self.weights + self.bias  # whole numbers: exact
        return np.maximum(sums, 0).astype(np.float32)


def made_store(path: Path, seed: int = 0, n_documents: int = 40, **changes: Any) -> Store:
    columns: Columns = words_columns(seed, n_documents, 25)
    store = create(path, plan_for(columns, **changes), columns)
    fill(store)
    return store


def rows_by_token(store: Store, hookpoint: str) -> NDArray[np.float32]:
    """The stored rows in document order, by a plain zarr read and the stored columns."""
    import zarr

    rows = np.asarray(zarr.open_array(f"{store.path}/activations/{hookpoint}", mode="r")[:])
    doc = np.asarray(zarr.open_array(f"{store.path}/rows/doc_idx", mode="r")[:])
    pos = np.asarray(zarr.open_array(f"{store.path}/rows/pos_idx", mode="r")[:])
    by_t = np.empty(rows.shape, np.float32)
    by_t[store.documents.start[doc] + pos] = rows.astype(np.float32)
    return by_t


def true_codes(store: Store, sae: Relu, hookpoint: str) -> NDArray[np.float32]:
    """Every code by token, rounded to bfloat16 by ml_dtypes."""
    codes = sae.codes(rows_by_token(store, hookpoint))
    rounded: NDArray[np.float32] = codes.astype(ml_dtypes.bfloat16).astype(np.float32)
    return rounded


def best(values: NDArray[Any], k: int, *, largest: bool) -> NDArray[np.int64]:
    """The places of the k largest (or smallest) values, ties to the lower place: brute force."""
    order = sorted(range(len(values)), key=lambda i: (-values[i] if largest else values[i], i))
    return np.array(order[:k], np.int64)
