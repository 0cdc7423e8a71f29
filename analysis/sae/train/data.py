"""The rows of a training, with their scale and moments, and the rows of its evaluation."""

from __future__ import annotations

from contextlib import closing
from typing import NamedTuple

import torch

from actlas.analysis.batches.api import Batches, batches
from actlas.analysis.sae.train.options import TrainOptions
from actlas.store.display.text import counted
from actlas.store.errors import ConfigError, NonFiniteError
from actlas.store.read.reader import StoreReader
from actlas.store.statistics.moments import Moments

Stream = Batches[torch.Tensor]

EVALUATED_SHARE = 0.1

EVALUATED_ROWS = 1_000_000
"""The evaluation takes EVALUATED_SHARE of all rows, and at most EVALUATED_ROWS."""

FOLLOWED_ROWS, FOLLOWED_BYTES = 8192, 64 << 20
"""Held-out rows that are measured during the training: so many, or as many as fit these bytes."""

MEASURED_ROWS = 1_000_000
"""Largest number of rows for mean and variance, where special tokens must be left out."""


class TrainingRows(NamedTuple):
    """The rows of a training.

    Attributes
    ----------
    stream : Batches
        An endless stream of batches of raw rows.
    scale : float
        The factor that gives rows a mean squared norm of ``d_in``.
    mean : Tensor of float32, shape [d_in]
        Mean of the scaled rows.
    variance : float
        Variance of the scaled rows, summed over units.
    """

    stream: Stream
    scale: float
    mean: torch.Tensor
    variance: float


class EvaluationRows(NamedTuple):
    """The rows of an evaluation.

    Attributes
    ----------
    rows : Batches
        One epoch: each row once.
    held_out : bool
        Whether the rows are kept from training.
    """

    rows: Stream
    held_out: bool


def train_stream(store: StoreReader, options: TrainOptions, epochs: int | None = None) -> Stream:
    """Return the batches to train on.

    Parameters
    ----------
    store : Store
        The store to read.
    options : TrainOptions
        Hookpoint, batch size, fraction and seed.
    epochs : int, optional
        Epochs of one loop. Default: endless.
    """
    return batches(
        store,
        options.hookpoint,
        batch_size=options.batch_size,
        seed=options.seed,
        fraction=options.fraction,
        epochs=epochs,
        threads=options.threads,
    )


def evaluation_rows(store: StoreReader, options: TrainOptions, stream: Stream) -> EvaluationRows:
    """Return the rows to evaluate on: held-out rows, or training rows where none are left.

    Parameters
    ----------
    store : Store
        The store to read.
    options : TrainOptions
        Hookpoint, batch size, fraction and seed.
    stream : Batches
        The batches to train on.
    """
    n_rows = batches(store, options.hookpoint, batch_size=1, seed=options.seed).n_rows
    held_out = stream.n_rows < n_rows
    n_available = n_rows - stream.n_rows if held_out else n_rows
    share = min(1.0, EVALUATED_ROWS / n_rows)
    if held_out:
        share = min(share, max(EVALUATED_SHARE, 1 / n_rows), 1 - options.fraction)
    n_wanted = max(1, min(n_available, int(share * n_rows) - 1))  # rounding leaves at least as many
    chosen = batches(
        store,
        options.hookpoint,
        batch_size=min(options.batch_size, n_wanted),
        seed=options.seed,
        fraction=share,
        skip=options.fraction if held_out else 0.0,
        threads=options.threads,
    )
    return EvaluationRows(chosen, held_out)


def followed_rows(
    store: StoreReader, options: TrainOptions, on: EvaluationRows, width: int
) -> list[torch.Tensor]:
    """Return the held-out rows that are measured during the training; none if no rows are held out.

    They are the first ones of the rows to evaluate on, and stay in memory.

    Parameters
    ----------
    store : Store
        The store to read.
    options : TrainOptions
        Hookpoint, batch size, fraction and seed.
    on : EvaluationRows
        The rows to evaluate on.
    width : int
        Units of the hookpoint.

    Returns
    -------
    list of Tensor of float32, shape [rows, width]
        Raw rows.
    """
    if not on.held_out:
        return []
    wanted = max(1, min(FOLLOWED_ROWS, FOLLOWED_BYTES // (4 * width)))
    chosen = on.rows
    if wanted < on.rows.n_rows:
        n_rows = batches(store, options.hookpoint, batch_size=1, seed=options.seed).n_rows
        chosen = batches(
            store,
            options.hookpoint,
            batch_size=max(1, min(options.batch_size, wanted - 1)),  # the share is rounded
            seed=options.seed,
            fraction=wanted / n_rows,
            skip=options.fraction,
            threads=options.threads,
        )
    begin = chosen.state_dict()
    rows = [batch.float() for batch in chosen.tensors()]
    chosen.load_state_dict(begin)  # the evaluation reads the same ones in the same order
    return rows


def training_rows(store: StoreReader, options: TrainOptions, stream: Stream) -> TrainingRows:
    """Return the rows to train on, with their scale, mean and variance.

    Mean and variance are exact, from the statistics that the extraction wrote. Those include
    special tokens, which batches leave out and whose norm can be very large: in a store that keeps
    special tokens, the first rows of the stream are measured instead.

    Parameters
    ----------
    store : Store
        The store to read.
    options : TrainOptions
        Hookpoint, batch size, fraction and seed.
    stream : Batches
        The batches to train on.

    Raises
    ------
    NonFiniteError
        Rows hold NaN or infinity.
    ConfigError
        All rows are the same.
    """
    if store.rows.special is None:
        moments: Moments = store.statistics(options.hookpoint)
        ranges = [store.shard_range(shard) for shard in store.whole()]
        n_rows = sum(stop - start for start, stop in ranges)
    else:
        moments, n_rows = _measured(store, options, stream)
    if (moments.n < n_rows).any():
        raise NonFiniteError(
            f"{store.path}: {options.hookpoint} holds NaN or infinity in "
            f"{int((moments.n < n_rows).sum()):,} of its {counted(len(moments.n), 'unit')}, so "
            "nothing can be trained on it. See `actlas info`."
        )
    variance = float((moments.m2 / moments.n).sum())
    if not variance > 0:
        raise ConfigError(
            f"{store.path}: all rows of {options.hookpoint} are equal, so nothing can be learnt "
            "from them.",
            field="hookpoint",
        )
    scale = (len(moments.mean) / (variance + float((moments.mean**2).sum()))) ** 0.5
    mean = torch.from_numpy(moments.mean * scale).float()
    return TrainingRows(stream, scale, mean, variance * scale**2)


def _measured(store: StoreReader, options: TrainOptions, stream: Stream) -> tuple[Moments, int]:
    wanted = min(MEASURED_ROWS, stream.n_rows)
    parts, n_rows = [], 0
    with closing(iter(train_stream(store, options, epochs=1))) as first:
        for batch in first:
            parts.append(Moments.of(batch.activations.numpy()))
            n_rows += len(batch.rows)
            if n_rows >= wanted:
                break
    return Moments.combine(parts), n_rows
