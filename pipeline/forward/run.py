"""A model run over batches: what is kept is gathered inside the pass and handed on."""

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

Take = Callable[[str, "torch.Tensor", Inputs], None]
"""Given, for each hookpoint of each batch, the kept rows [rows, units] as the model computed them,
on the device they lie on."""

AHEAD = 2
"""Batches that are laid out before they are needed."""

ItemT = TypeVar("ItemT")


@dataclass(slots=True)
class Clock:
    """Seconds spent in each stage of a shard."""

    forward_s: float = 0.0
    gather_s: float = 0.0
    input_s: float = 0.0
    """Waiting for a batch to be laid out: reading tokens, decoding images."""
    started: float = field(default_factory=time.perf_counter)

    @property
    def total_s(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self.started


def run_batches(
    model: nn.Module,
    hookpoints: Sequence[HookpointSpec],
    batches: Iterable[tuple[Batch, Inputs]],
    take: Take,
    *,
    device: str,
    clock: Clock,
    extra: Callable[[Inputs], Mapping[str, Any]] = lambda _inputs: {},
) -> None:
    """Run every batch to the deepest hookpoint and hand on what is kept.

    Rows are gathered inside the pass, on the device: a model may overwrite its tensors, and what
    is not kept need not live any longer.

    Parameters
    ----------
    model : torch.nn.Module
    hookpoints : sequence of HookpointSpec
    batches : iterable of (Batch, Inputs)
        Laid out in a thread, a few ahead.
    take : callable
        ``take(name, gathered, inputs)``, once for each hookpoint of each batch.
    device : str
        Where the model's first layer is.
    clock : Clock
        Its seconds are added to. On a CUDA device the work goes on after a call returns:
        ``gather_s`` is what the calls took, and the device's own time counts as ``forward_s``.
    extra : callable
        More for the model's ``forward``, such as a key-value cache.
    """
    with quiet(), torch.inference_mode(), Capture(model, hookpoints) as capture:
        waiting = time.perf_counter()
        for _batch, inputs in ahead(batches, AHEAD):
            clock.input_s += time.perf_counter() - waiting
            _run_one(capture, inputs, take, device, clock, extra(inputs))
            waiting = time.perf_counter()
        synchronize(device)
        clock.forward_s += time.perf_counter() - waiting


def _run_one(
    capture: Capture,
    inputs: Inputs,
    take: Take,
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
        take(name, tensor.flatten(0, 1).index_select(0, kept), inputs)
        gather_s += time.perf_counter() - started

    began = time.perf_counter()
    capture(**{**to_device(inputs.arrays, device), **extra}, shape=inputs.shape, read=read)
    clock.forward_s += time.perf_counter() - began - gather_s
    clock.gather_s += gather_s


def ahead(items: Iterable[ItemT], n: int) -> Iterator[ItemT]:
    """Yield items that a thread makes, at most ``n`` of them before they are asked for.

    What making one raises is raised here. The thread ends when this generator does.
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
