"""The rows that a training takes and the rows that it is measured on, and their scale."""

from __future__ import annotations

from contextlib import closing
from typing import NamedTuple

import torch

from actlas.analysis.batches.api import Batches, batches
from actlas.analysis.sae.train.options import TrainOptions
from actlas.store.errors import ConfigError, NonFiniteError
from actlas.store.read.reader import StoreReader
from actlas.store.statistics.moments import Moments

EVALUATED_SHARE = 0.1

EVALUATED_ROWS = 1_000_000
"""Metrics are taken over this share of the rows, and over at most as many."""

MEASURED_ROWS = 1_000_000
"""The most rows that mean and variance are taken over where special tokens must be left out."""


class Data(NamedTuple):
    """The rows of a training.

    Attributes
    ----------
    stream : Batches
        Endless.
    scale : float
        Rows times it have a mean squared norm of ``d_in``.
    mean : Tensor of float32, shape [d_in]
        Of the scaled rows.
    variance : float
        Of the scaled rows, summed over units.
    """

    stream: Batches
    scale: float
    mean: torch.Tensor
    variance: float


class Evaluated(NamedTuple):
    """The rows that metrics are of: each once.

    Attributes
    ----------
    rows : Batches
    held_out : bool
        Whether they are kept from training.
    """

    rows: Batches
    held_out: bool


def train_stream(store: StoreReader, asked: TrainOptions, epochs: int | None = None) -> Batches:
    """Return the batches to train on."""
    return batches(
        store,
        asked.hookpoint,
        batch_size=asked.batch_size,
        seed=asked.seed,
        fraction=asked.fraction,
        epochs=epochs,
        threads=asked.threads,
    )


def evaluated(store: StoreReader, asked: TrainOptions, stream: Batches) -> Evaluated:
    """Return the rows to evaluate on: those left by training, else those trained on."""
    n_rows = batches(store, asked.hookpoint, batch_size=1, seed=asked.seed).n_rows
    held_out = stream.n_rows < n_rows
    n_there = n_rows - stream.n_rows if held_out else n_rows
    share = min(1.0, EVALUATED_ROWS / n_rows)
    if held_out:
        share = min(share, max(EVALUATED_SHARE, 1 / n_rows), 1 - asked.fraction)
    n_wanted = max(1, min(n_there, int(share * n_rows) - 1))  # what rounding leaves at least
    chosen = batches(
        store,
        asked.hookpoint,
        batch_size=min(asked.batch_size, n_wanted),
        seed=asked.seed,
        fraction=share,
        skip=asked.fraction if held_out else 0.0,
        threads=asked.threads,
    )
    return Evaluated(chosen, held_out)


def prepare(store: StoreReader, asked: TrainOptions, stream: Batches) -> Data:
    """Return scale, mean and variance: exact, of the statistics that the extraction left.

    Those count special tokens too, which are left out of batches and can be of huge norm: in a
    store that keeps them the first rows of the stream are measured instead.

    Raises
    ------
    NonFiniteError
        Rows hold NaN or infinity.
    ConfigError
        All rows are the same.
    """
    if store.rows.special is None:
        moments: Moments = store.statistics(asked.hookpoint)
        ranges = [store.shard_range(shard) for shard in store.done()]
        n_rows = sum(stop - start for start, stop in ranges)
    else:
        moments, n_rows = _measured(store, asked, stream)
    if (moments.n < n_rows).any():
        raise NonFiniteError(
            f"{store.path}: {asked.hookpoint} holds NaN or infinity in "
            f"{int((moments.n < n_rows).sum()):,} of its {len(moments.n):,} units: nothing can be "
            "trained on it. `actlas info` says more."
        )
    variance = float((moments.m2 / moments.n).sum())
    if not variance > 0:
        raise ConfigError(
            f"{store.path}: all rows of {asked.hookpoint} are the same: nothing to learn.",
            field="hookpoint",
        )
    scale = (len(moments.mean) / (variance + float((moments.mean**2).sum()))) ** 0.5
    mean = torch.from_numpy(moments.mean * scale).float()
    return Data(stream, scale, mean, variance * scale**2)


def _measured(store: StoreReader, asked: TrainOptions, stream: Batches) -> tuple[Moments, int]:
    wanted = min(MEASURED_ROWS, stream.n_rows)
    parts, n_rows = [], 0
    with closing(iter(train_stream(store, asked, epochs=1))) as first:
        for batch in first:
            parts.append(Moments.of(batch.activations.numpy()))
            n_rows += len(batch.rows)
            if n_rows >= wanted:
                break
    return Moments.combine(parts), n_rows
