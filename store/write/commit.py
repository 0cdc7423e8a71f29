"""Committing a shard: its arrays to their final names, then its receipt, which comes last.

There is one protocol. What a shard consists of is a value (:mod:`actlas.store.write.outputs`); what
happens to objects that exist already is another (a
:class:`~actlas.store.write.array_writer.WritePolicy`).

A run creates: the first writer wins. A later one reads the existing objects: row columns must be
equal, activations must match up to rounding, and the checksums and statistics of the receipt come
from the bytes at the final names, whoever wrote them. A repair replaces what is damaged:
:mod:`actlas.store.verify.repair_shard`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.format.schema import ObjectRecord, Receipt
from actlas.store.format.sealing import FORMAT_VERSION
from actlas.store.read.reader import StoreReader
from actlas.store.version import versions
from actlas.store.write.array_writer import ArrayWriter
from actlas.store.write.outputs import DenseOutputs, DenseRows, Outputs, PooledOutputs, PooledRows


def commit(
    store: StoreReader,
    shard: int,
    outputs: Outputs,
    *,
    attempt: str,
    run: Mapping[str, Any] | None = None,
    on_nonfinite: str = "record",
) -> Receipt:
    """Write one shard create-only and return the receipt that stands.

    Parameters
    ----------
    store : StoreReader
        The store.
    shard : int
        The number of the shard.
    outputs : Outputs
        The shard's arrays.
    attempt : str
        Names this attempt, for the receipt.
    run : mapping, optional
        How the rows were made, for the receipt.
    on_nonfinite : {"record", "refuse"}
        What to do with NaN and infinity.

    Raises
    ------
    NonFiniteError
        There are NaN or infinite values, and they are refused; nothing is written.
    ConflictError
        An object under a final name is not what this plan and model give, or is damaged; or the
        plan at this path is another one by now.
    RunFaultError
        The disk is full or fails.
    """
    outputs.check_shapes(store, shard)
    receipts = store.receipts(outputs.job)
    if receipts.exists(shard):
        return receipts.read(shard)
    store.require_same_plan()
    writer = ArrayWriter(store, shard, attempt)
    records, n_nonfinite = outputs.write(writer, refuse_nonfinite=on_nonfinite == "refuse")
    return write_receipt(
        store,
        outputs.job,
        shard,
        store.covered(shard, outputs.job),
        records,
        attempt=attempt,
        n_nonfinite=n_nonfinite,
        run=run,
    )


def commit_shard(
    store: StoreReader,
    shard: int,
    activations: DenseRows,
    *,
    loss: NDArray[np.float32] | None = None,
    **options: Any,
) -> Receipt:
    """Write one shard of extraction: :func:`commit` of :class:`DenseOutputs`.

    Parameters
    ----------
    store : StoreReader
        The store.
    shard : int
        The number of the shard.
    activations : mapping of hookpoint to ndarray, shape [rows of the shard, units]
        In the plan's dtype, the rows in their stored order.
    loss : ndarray of float32, shape [rows of the shard], optional
        The next-token loss of each row, in nats: where the plan has it.
    **options
        ``attempt``, ``run`` and ``on_nonfinite`` of :func:`commit`.
    """
    return commit(store, shard, DenseOutputs(activations, loss), **options)


def commit_pooled(store: StoreReader, shard: int, pooled: PooledRows, **options: Any) -> Receipt:
    """Write one shard of pooled rows: :func:`commit` of :class:`PooledOutputs`.

    Parameters
    ----------
    store : StoreReader
        The store.
    shard : int
        The number of the shard, a range of whole documents.
    pooled : mapping of (hookpoint, pooling) to ndarray of float32, shape [documents, units]
        NaN for documents without tokens.
    **options
        ``attempt``, ``run`` and ``on_nonfinite`` of :func:`commit`.
    """
    return commit(store, shard, PooledOutputs(pooled), **options)


def write_receipt(
    store: StoreReader,
    job: str,
    shard: int,
    covers: tuple[int, int],
    records: Sequence[ObjectRecord],
    *,
    attempt: str,
    n_nonfinite: Mapping[str, int],
    run: Mapping[str, Any] | None,
    generation: int = 0,
) -> Receipt:
    """Write a shard's receipt, the last of its objects, and return the one that stands.

    Parameters
    ----------
    store : StoreReader
        The store.
    job : str
        The job's name.
    shard : int
        The number of the shard.
    covers : tuple of int
        The rows (of a pooled shard, the documents) [start, stop) that it holds.
    records : sequence of ObjectRecord
        Every object of the shard.
    attempt : str
        Names this attempt.
    n_nonfinite : mapping of str to int
        NaN and infinite values by hookpoint.
    run : mapping or None
        How the rows were made.
    generation : int
        0 for a run; a repair with other bits writes the next one.

    Raises
    ------
    ConflictError
        The plan at this path is another one by now.
    """
    receipt = Receipt(
        format_version=FORMAT_VERSION,
        plan_sha256=store.plan_sha256,
        job=job,
        shard=shard,
        start=covers[0],
        stop=covers[1],
        attempt=attempt,
        host=socket.gethostname(),
        created_unix_s=time.time(),
        versions=versions(),
        objects=tuple(records),
        n_nonfinite=dict(n_nonfinite),
        run=dict(run or {}),
        generation=generation,
    )
    store.require_same_plan()
    return store.receipts(job).write(receipt)
