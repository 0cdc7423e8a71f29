"""Running a model over batches: kept rows are gathered inside the pass and passed on."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from actlas.pipeline.forward.batching import Batch, Inputs
from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.model.config import quiet
from actlas.pipeline.model.device import send, synchronize, to_device
from actlas.store.format.schema import HookpointSpec

Consume = Callable[[str, "torch.Tensor", Inputs], None]
"""Called for each hookpoint of each batch with its name, its kept rows [rows, units] as the model
computed them, on their device, and the input of the pass."""

AHEAD = 2
"""Batches that are prepared before they are needed."""

ItemT = TypeVar("ItemT")


@dataclass(slots=True)
class Clock:
    """Seconds spent in each stage of a shard.

    Attributes
    ----------
    forward_s : float
        Forward passes, without ``gather_s``.
    gather_s : float
        Gathering kept rows and passing them on.
    input_s : float
        Waiting for the next batch's input: reading tokens, decoding images.
    started : float
        The time of creation, by ``time.perf_counter``.
    """

    forward_s: float = 0.0
    gather_s: float = 0.0
    input_s: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def total_s(self) -> float:
        """Seconds since the clock was created."""
        return time.perf_counter() - self.started


def run_batches(
    model: nn.Module,
    hookpoints: Sequence[HookpointSpec],
    batches: Iterable[tuple[Batch, Inputs]],
    consume: Consume,
    *,
    device: str,
    clock: Clock,
    extra: Callable[[Inputs], Mapping[str, Any]] = lambda _inputs: {},
) -> None:
    """Run every batch as deep as the deepest hookpoint, and pass the kept rows on.

    Rows are gathered inside the pass, on the device: a model may overwrite its tensors, and rows
    that are not kept need not stay in memory.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    hookpoints : sequence of HookpointSpec
        The hookpoints to read.
    batches : iterable of (Batch, Inputs)
        Iterated in a thread, a few batches ahead.
    consume : callable
        ``consume(name, gathered, inputs)`` is called once for each hookpoint of each batch.
    device : str
        The device of the model's input.
    clock : Clock
        Seconds are added to it. A CUDA device still works after a call returns: ``gather_s`` is the
        time of the calls, and the device's own time counts as ``forward_s``.
    extra : callable
        Returns further arguments of the model's ``forward`` for an input, such as a key-value
        cache.
    """
    with quiet(), torch.inference_mode(), Capture(model, hookpoints) as capture:
        waiting = time.perf_counter()
        for _batch, inputs in ahead(batches, AHEAD):
            clock.input_s += time.perf_counter() - waiting
            _run_one(capture, inputs, consume, device, clock, extra(inputs))
            waiting = time.perf_counter()
        synchronize(device)
        clock.forward_s += time.perf_counter() - waiting


def _run_one(
    capture: Capture,
    inputs: Inputs,
    consume: Consume,
    device: str,
    clock: Clock,
    extra: Mapping[str, Any],
) -> None:
    kept_on: dict[torch.device, torch.Tensor] = {}
    gather_s = 0.0

    def read(name: str, tensor: torch.Tensor) -> None:
        nonlocal gather_s
        started = time.perf_counter()
        kept = kept_on.get(tensor.device)
        if kept is None:
            kept = kept_on[tensor.device] = send(inputs.kept, tensor.device)
        consume(name, tensor.flatten(0, 1).index_select(0, kept), inputs)
        gather_s += time.perf_counter() - started

    began = time.perf_counter()
    capture(**{**to_device(inputs.arrays, device), **extra}, shape=inputs.shape, read=read)
    clock.forward_s += time.perf_counter() - began - gather_s
    clock.gather_s += gather_s


def ahead(items: Iterable[ItemT], n: int) -> Iterator[ItemT]:
    """Yield items from a thread that is at most ``n`` items ahead.

    An error of ``items`` is raised here. The thread ends with this generator.

    Parameters
    ----------
    items : iterable
        Iterated in the thread.
    n : int
        Items that may wait.
    """
    made: queue.Queue[tuple[ItemT] | BaseException | None] = queue.Queue(n)
    ended = threading.Event()

    def put(thing: tuple[ItemT] | BaseException | None) -> None:
        while not ended.is_set():
            try:
                made.put(thing, timeout=0.1)
            except queue.Full:
                continue
            return

    def make() -> None:
        try:
            for item in items:
                put((item,))
                if ended.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - raised where the items are used
            put(error)

    thread = threading.Thread(target=make, name="actlas-inputs", daemon=True)
    thread.start()
    try:
        while (thing := made.get()) is not None:
            if isinstance(thing, BaseException):
                raise thing
            yield thing[0]
    finally:
        ended.set()
        thread.join()
