"""Shuffled batches: bit for bit the stored rows, each once, exact to resume."""

from __future__ import annotations

import gc
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.stores import Columns, create, fill, plan_for, words_columns

from actlas.analysis.batches.api import Batch as AnyBatch
from actlas.analysis.batches.api import batches
from actlas.store.errors import (
    ActlasError,
    ConfigError,
    CorruptDataError,
    HookpointError,
    NotExtractedError,
)
from actlas.store.store import Store, open_store

Batch = AnyBatch[torch.Tensor]
HOOKPOINT = "mlp.1"
OPTIONS: dict[str, Any] = {"batch_size": 50, "buffer_rows": 200}


def made(path: Path, n_documents: int = 90, shards: range | None = None, **changes: Any) -> Store:
    columns = words_columns(3, n_documents, 25)
    changes = {"shard_rows": 128, "compression": "none", **changes}
    store = create(path, plan_for(columns, **changes), columns)
    fill(store, shards)
    return open_store(path)


def chunks_of(patch: pytest.MonkeyPatch, rows: int) -> None:
    """Give activations chunks of so few rows that a small store has many."""
    patch.setattr("actlas.store.format.layout.chunk_rows", lambda *_: rows)


@pytest.fixture(scope="module", autouse=True)
def _chunks_of_16_rows() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        chunks_of(patch, 16)
        yield


@pytest.fixture(scope="module")
def store(_chunks_of_16_rows: None, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made(tmp_path_factory.mktemp("batches") / "run.zarr")


def plain(store: Store, hookpoint: str = HOOKPOINT) -> NDArray[np.float32]:
    """The same array by zarr alone."""
    array = zarr.open_array(f"{store.path}/activations/{hookpoint}", mode="r")
    return np.asarray(array[:]).astype(np.float32)


def rows_of(given_batches: list[Batch]) -> NDArray[np.int64]:
    return np.concatenate([batch.rows for batch in given_batches])


def same(one: list[Batch], two: list[Batch]) -> bool:
    return len(one) == len(two) and all(
        np.array_equal(a.rows, b.rows)
        and a.activations.dtype == b.activations.dtype
        and a.activations.numpy().tobytes() == b.activations.numpy().tobytes()
        for a, b in zip(one, two, strict=True)
    )


def test_the_fixture_has_many_chunks(store: Store) -> None:
    spec = store.activations[HOOKPOINT].spec
    assert spec.chunk_rows == 16
    assert spec.n_rows > 10 * 128
    assert spec.n_rows % 16


@pytest.mark.parametrize("compression", ["none", "fast"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_batches_are_the_stored_rows_bit_for_bit(
    tmp_path: Path, dtype: str, compression: str
) -> None:
    store = made(tmp_path / "run.zarr", dtype=dtype, compression=compression)
    for hookpoint in store.activations:
        truth = plain(store, hookpoint)
        got = list(batches(store, hookpoint, **OPTIONS))
        assert np.array_equal(np.sort(rows_of(got)), np.arange(len(truth)))
        for batch in got:
            assert batch.activations.dtype == torch.float32
            assert batch.activations.numpy().tobytes() == truth[batch.rows].tobytes()
            assert batch.rows.dtype == np.int64
        stored = next(iter(batches(store, hookpoint, **OPTIONS, dtype=getattr(torch, dtype))))
        assert str(stored.activations.dtype) == f"torch.{dtype}"
        assert torch.equal(stored.activations.float(), got[0].activations)


@pytest.mark.slow
@given(
    chunk=st.sampled_from([8, 16, 32, 64]),
    part=st.integers(1, 40),
    pool=st.integers(0, 500),
    share=st.floats(0.2, 1),
    ranks=st.integers(1, 4),
    seed=st.integers(0, 9),
    order=st.sampled_from(["shuffled", "corpus"]),
    prefetch=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_ranks_share_an_epoch_out(
    tmp_path_factory: pytest.TempPathFactory,
    chunk: int,
    part: int,
    pool: int,
    share: float,
    ranks: int,
    seed: int,
    order: str,
    prefetch: bool,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        chunks_of(patch, chunk)
        path = tmp_path_factory.mktemp("shared") / "run.zarr"
        store = made(path, n_documents=30, shard_rows=64, order=order)
        batch = part * ranks
        options: dict[str, Any] = {"batch_size": batch, "buffer_rows": batch + pool, "seed": seed}
        options |= {"fraction": share, "prefetch": prefetch, "world_size": ranks}
        truth = plain(store)
        each = [list(batches(store, HOOKPOINT, **options, rank=r)) for r in range(ranks)]
        alone = list(batches(store, HOOKPOINT, **{**options, "world_size": 1}))
    for parts, whole in zip(zip(*each, strict=True), alone, strict=True):
        assert np.array_equal(rows_of(list(parts)), whole.rows)
    rows = np.concatenate([rows_of(one) for one in each])
    assert len(np.unique(rows)) == len(rows) == round(share * len(truth))
    for one in each:
        for given_batch in one:
            assert np.array_equal(given_batch.activations.numpy(), truth[given_batch.rows])


def test_threads_and_prefetch_change_nothing_seeds_and_epochs_do(store: Store) -> None:
    first = list(batches(store, HOOKPOINT, **OPTIONS))
    for more in ({"prefetch": False}, {"threads": 1}, {"threads": 7}):
        assert same(first, list(batches(store, HOOKPOINT, **OPTIONS, **more)))
    twice = list(batches(store, HOOKPOINT, **OPTIONS, epochs=2))
    assert same(first, twice[: len(first)])
    orders = [
        rows_of(twice[len(first) :]),
        rows_of(list(batches(store, HOOKPOINT, **OPTIONS, seed=1))),
    ]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(len(order)))
        # As good as independent: of n rows one is in its old place on average, here below ten.
        assert (order == rows_of(first)).sum() < 10


def test_a_loop_that_is_begun_again_goes_on(store: Store) -> None:
    whole = list(batches(store, HOOKPOINT, **OPTIONS, epochs=2))
    stream = batches(store, HOOKPOINT, **OPTIONS)
    assert len(stream) == stream.batches_per_epoch == len(whole) / 2
    got = [next(iter(stream)) for _ in range(3)]
    got += list(stream)
    assert (stream.epoch, stream.batch) == (1, 0)
    got += list(stream)
    assert same(got, whole)


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"prefetch": False}, {"rank": 1, "world_size": 2}])
def test_a_state_goes_on_exactly_from_every_place(store: Store, more: dict[str, Any]) -> None:
    options = {**OPTIONS, "fraction": 0.9, "epochs": 2, **more}
    whole = list(batches(store, HOOKPOINT, **options))
    n = len(whole) // 2
    running = batches(store, HOOKPOINT, **options)
    states = [json.dumps(running.state_dict())]
    for i, _ in enumerate(running):
        assert (running.epoch, running.batch) == (i // n, i % n + 1)
        states.append(json.dumps(running.state_dict()))
    assert len(states) == len(whole) + 1
    for place, text in enumerate(states):
        again = batches(store, HOOKPOINT, **options)
        again.load_state_dict(json.loads(text))
        rest = list(again)
        assert same(rest, whole[place:])


def test_the_number_of_ranks_may_change_after_any_batch(store: Store) -> None:
    options = {"batch_size": 60, "buffer_rows": 240, "epochs": 2}
    whole = list(batches(store, HOOKPOINT, **options))  # type: ignore[arg-type]
    state, seen = None, 0
    for n, steps in ((2, 3), (5, 2), (1, 7), (60, 1), (4, len(whole))):
        ranks = [
            batches(store, HOOKPOINT, **options, world_size=n, rank=r)  # type: ignore[arg-type]
            for r in range(n)
        ]
        for one in ranks:
            if state is not None:
                one.load_state_dict(json.loads(state))
        streams = [iter(one) for one in ranks]
        for parts in itertools.islice(zip(*streams, strict=True), steps):
            assert np.array_equal(rows_of(list(parts)), whole[seen].rows)
            given_rows = torch.cat([part.activations for part in parts])
            assert torch.equal(given_rows, whole[seen].activations)
            seen += 1
        for stream in streams:
            stream.close()
        states = {json.dumps(one.state_dict()) for one in ranks}
        assert len(states) == 1
        state = states.pop()
        assert len(state) < 300
    assert seen == len(whole)


def test_several_hookpoints_give_the_same_rows(tmp_path: Path) -> None:
    """Of other widths too, whose chunks have other numbers of rows."""
    columns = words_columns(3, 90, 25)
    plan = plan_for(columns, shard_rows=128, compression="fast")
    with pytest.MonkeyPatch.context() as patch:
        wide = max(hookpoint.width for hookpoint in plan.hookpoints)
        patch.setattr(
            "actlas.store.format.layout.chunk_rows",
            lambda row_bytes, *_: 16 if row_bytes >= 2 * wide else 64,
        )
        store = create(tmp_path / "run.zarr", plan, columns)
        fill(store)
        store = open_store(store.path)
        names = list(store.activations)
        assert len({store.activations[name].spec.chunk_rows for name in names}) == 2
        truth = {name: plain(store, name) for name in names}
        stream = batches(store, names, **OPTIONS, world_size=2)
        assert stream.hookpoints == tuple(names)
        assert stream.width == sum(len(values[0]) for values in truth.values())
        got = [*stream, *batches(store, names, **OPTIONS, world_size=2, rank=1)]
        assert np.array_equal(
            np.sort(np.concatenate([rows for _, rows in got])), np.arange(plan.n_tokens)
        )
        for tensors, rows in got:
            assert list(tensors) == names
            for name in names:
                assert np.array_equal(tensors[name].numpy(), truth[name][rows])
        one = batches(store, names[:1], **OPTIONS)
        assert [list(x) for x in one.tensors()] == [names[:1]] * len(one)
        with pytest.raises(ConfigError, match=r"hookpoint '2 hookpoints .*expected"):
            one.load_state_dict(batches(store, names[:2], **OPTIONS).state_dict())
        for wrong in ([], [names[0], names[0]]):
            with pytest.raises(ConfigError, match="several different names"):
                batches(store, wrong)
        with pytest.raises(HookpointError, match="this store has"):
            batches(store, [names[0], "resid_post.9"])


def test_a_rank_whose_part_of_the_next_group_is_empty_goes_on(store: Store) -> None:
    options: dict[str, Any] = {"batch_size": 50, "buffer_rows": 50}
    whole = list(batches(store, HOOKPOINT, **options))
    assert 0 < len(whole[-1].rows) < 50
    rest = []
    for rank in range(50):
        stream = batches(store, HOOKPOINT, **options, rank=rank, world_size=50)
        stream.load_state_dict({**stream.state_dict(), "step": len(whole) - 1})
        rest += list(stream)
    assert {len(batch.rows) for batch in rest} == {0, 1}
    assert np.array_equal(rows_of(rest), whole[-1].rows)


def test_a_stream_is_pickled_without_its_memory(store: Store) -> None:
    stream = batches(store, HOOKPOINT, **OPTIONS)
    size = len(pickle.dumps(stream))
    first = list(stream)
    # What the store has read of its receipts since is small; a group alone is 16,000 bytes.
    assert len(pickle.dumps(stream)) < size + 4000
    again = pickle.loads(pickle.dumps(stream))
    again.load_state_dict(batches(store, HOOKPOINT, **OPTIONS).state_dict())
    assert same(list(again), first)


def test_memory_is_kept_between_loops_and_one_group_takes_half(store: Store) -> None:
    stream = batches(store, HOOKPOINT, **OPTIONS)
    list(stream)
    before = {id(buffer) for memory in stream._buffer._kept for buffer in memory}
    assert len(before) == 2
    list(stream)
    assert {id(buffer) for memory in stream._buffer._kept for buffer in memory} == before
    whole = batches(store, HOOKPOINT, batch_size=50, buffer_rows=10_000)
    list(whole)
    assert len(whole._buffer._kept) == 1
    assert whole.buffer_bytes == sum(buffer.nbytes for buffer in whole._buffer._kept[0])


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("seed", {"seed": 1}),
        ("batch_size", {"batch_size": 40}),
        ("buffer_rows", {"buffer_rows": 300}),
        ("fraction", {"fraction": 0.5}),
        ("skip", {"fraction": 0.5, "skip": 0.5}),
        ("drop_last", {"drop_last": True}),
        ("special", {"special": True}),
    ],
)
def test_a_state_of_another_order_is_refused_and_the_field_named(
    store: Store, field: str, change: dict[str, Any]
) -> None:
    base = {**OPTIONS, "fraction": 0.5} if field == "skip" else OPTIONS
    state = batches(store, HOOKPOINT, **base).state_dict()
    with pytest.raises(ConfigError, match=f"has {field} ") as raised:
        batches(store, HOOKPOINT, **{**base, **change}).load_state_dict(state)
    assert raised.value.details["field"] == field


def test_a_state_of_another_hookpoint_store_or_shape_is_refused(
    store: Store, tmp_path: Path
) -> None:
    stream = batches(store, HOOKPOINT, **OPTIONS)
    state = stream.state_dict()
    assert json.loads(json.dumps(state)) == state
    with pytest.raises(ConfigError, match=r"hookpoint 'mlp\.1', expected 'resid_post\.0'"):
        batches(store, "resid_post.0", **OPTIONS).load_state_dict(state)
    other = made(tmp_path / "other.zarr", seed=8)
    with pytest.raises(ConfigError, match=r"has rows .*another store"):
        batches(other, HOOKPOINT, **OPTIONS).load_state_dict(state)
    for wrong in (
        {**state, "version": 1},
        {**state, "version": 3},
        {**state, "step": -1},
        {**state, "step": 10**9},
        {**state, "more": 1},
        {k: v for k, v in state.items() if k != "seed"},
        {},
        None,
    ):
        with pytest.raises(ConfigError):
            stream.load_state_dict(wrong)  # type: ignore[arg-type]


def test_shards_that_are_missing_are_outside_and_a_grown_store_is_noticed(tmp_path: Path) -> None:
    store = made(tmp_path / "run.zarr", shards=range(2, 7))
    stream = batches(store, HOOKPOINT, **OPTIONS)
    assert np.array_equal(np.sort(rows_of(list(stream))), np.arange(2 * 128, 7 * 128))
    fill(store)
    grown = batches(store, HOOKPOINT, **OPTIONS)
    with pytest.raises(ConfigError, match="had 5 extracted shards then and has"):
        grown.load_state_dict(stream.state_dict())


class WithSpecial(Columns):
    def special(self, start: int, stop: int) -> NDArray[np.bool_]:
        marks: NDArray[np.bool_] = self._ids[start:stop] % 7 == 0
        return marks


def test_special_rows_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    plain_columns = words_columns(5, 60, 25)
    columns = WithSpecial(plain_columns.texts, plain_columns.tokens)
    plan = plan_for(columns, keep_special=True, shard_rows=128)
    store = create(tmp_path / "run.zarr", plan, columns)
    fill(store)
    marks = np.asarray(zarr.open_array(f"{store.path}/rows/special", mode="r")[:]) != 0
    assert 0 < marks.sum() < len(marks)
    truth = plain(store)
    for ranks in (1, 5):
        got = [
            batch
            for rank in range(ranks)
            for batch in batches(store, HOOKPOINT, **OPTIONS, rank=rank, world_size=ranks)
        ]
        assert np.array_equal(np.sort(rows_of(got)), np.flatnonzero(~marks))
        for batch in got:
            assert np.array_equal(batch.activations.numpy(), truth[batch.rows])
    every = list(batches(store, HOOKPOINT, **OPTIONS, special=True))
    assert np.array_equal(np.sort(rows_of(every)), np.arange(len(marks)))


def test_training_and_held_out_rows_are_disjoint(store: Store) -> None:
    train = rows_of(list(batches(store, HOOKPOINT, **OPTIONS, fraction=0.9)))
    held_out = rows_of(list(batches(store, HOOKPOINT, **OPTIONS, fraction=0.1, skip=0.9)))
    together = np.sort(np.concatenate([train, held_out]))
    assert np.array_equal(together, np.arange(store.plan.n_tokens))


def test_drop_last_gives_full_batches_only(store: Store) -> None:
    each = [
        list(batches(store, HOOKPOINT, **OPTIONS, drop_last=True, rank=r, world_size=5))
        for r in range(5)
    ]
    assert {len(batch.rows) for one in each for batch in one} == {10}
    assert len({len(one) for one in each}) == 1
    given_rows = sum(10 * len(one) for one in each)
    assert 0 <= store.plan.n_tokens - given_rows < 50


def test_tensors_and_a_data_loader_give_the_same(store: Store) -> None:
    whole = list(batches(store, HOOKPOINT, **OPTIONS))
    endless = batches(store, HOOKPOINT, **OPTIONS, epochs=None).tensors()
    tensors = [next(endless) for _ in range(len(whole) + 1)]
    assert all(torch.equal(t, b.activations) for t, b in zip(tensors, whole, strict=False))
    assert not torch.equal(tensors[len(whole)], tensors[0])
    loader = torch.utils.data.DataLoader(batches(store, HOOKPOINT, **OPTIONS), batch_size=None)
    for (x, rows), batch in zip(loader, whole, strict=True):
        assert torch.equal(x, batch.activations)
        assert np.array_equal(np.asarray(rows), batch.rows)


KILLED = """
import json, os, sys, actlas
from actlas.store.format import layout
layout.chunk_rows = lambda *_: 16
from actlas.analysis.batches.api import batches
path, saved = sys.argv[1:]
stream = batches(actlas.open(path), "mlp.1", batch_size=50, buffer_rows=200, epochs=3)
for i, batch in enumerate(stream):
    if i == 40:
        with open(saved + ".part", "w") as file:
            json.dump(stream.state_dict(), file)
        os.replace(saved + ".part", saved)
    if i == 45:
        print("ready", flush=True)
        sys.stdin.read()
"""


@pytest.mark.slow
def test_a_killed_process_is_resumed_exactly(store: Store, tmp_path: Path) -> None:
    saved = tmp_path / "state.json"
    command = [sys.executable, "-c", KILLED, store.path, str(saved)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    whole = list(batches(store, HOOKPOINT, **OPTIONS, epochs=3))
    again = batches(store, HOOKPOINT, **OPTIONS, epochs=3)
    again.load_state_dict(json.loads(saved.read_text()))
    assert same(list(again), whole[41:])


@pytest.mark.slow
def test_memory_is_two_pools_and_does_not_grow(store: Store) -> None:
    stream = batches(store, HOOKPOINT, **OPTIONS, epochs=8)
    row_bytes = store.activations[HOOKPOINT].spec.row_bytes
    assert stream.buffer_bytes == 2 * 200 * row_bytes
    single = batches(store, HOOKPOINT, **OPTIONS, prefetch=False)
    assert 2 * single.buffer_bytes == stream.buffer_bytes
    held = []
    tracemalloc.start()
    try:
        for i, _ in enumerate(stream):
            if i % len(stream) == len(stream) - 1:
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert len(held) == 8
    assert max(held[2:]) < held[1] + stream.buffer_bytes


def test_a_batch_is_memory_of_its_own_as_long_as_anything_refers_to_it(store: Store) -> None:
    truth = plain(store)
    stream = batches(store, HOOKPOINT, **OPTIONS, epochs=3)
    kept: list[tuple[Any, NDArray[np.int64]]] = []
    places = set()
    for i, (x, rows) in enumerate(stream):
        places.add(x.data_ptr())
        if i % 5 == 0:
            kept.append((x[3:].numpy() if i % 2 else x.view(-1)[:7].detach(), rows))
        elif i % 5 == 1:
            kept.append((x, rows))
        else:
            x.zero_()  # a trainer may write into it
    for i, (some, rows) in enumerate(kept):
        whole = truth[rows]
        wanted = [whole, whole[3:], whole.reshape(-1)[:7]]
        assert any(
            np.array_equal(np.asarray(some), w) for w in wanted if w.shape == tuple(some.shape)
        ), i
    assert len(places) > len(kept) / 2
    del some, kept, x
    again = {x.data_ptr() for x, _ in batches(store, HOOKPOINT, **OPTIONS)}
    assert len(again) <= 3


def our_threads() -> int:
    return sum(t.name.startswith("actlas-batches") for t in threading.enumerate())


def test_threads_end_with_the_iterator(store: Store) -> None:
    stream = batches(store, HOOKPOINT, **OPTIONS, epochs=None)
    iterator = iter(stream)
    next(iterator)
    assert our_threads() > 0
    iterator.close()
    assert our_threads() == 0
    iterator = iter(stream)
    next(iterator)
    del iterator
    gc.collect()
    assert our_threads() == 0
    tensors = stream.tensors()
    next(tensors)
    del tensors
    gc.collect()
    assert our_threads() == 0


def test_an_iterator_that_is_out_of_date_says_so(store: Store) -> None:
    stream = batches(store, HOOKPOINT, **OPTIONS)
    first = iter(stream)
    next(first)
    second = iter(stream)
    next(second)
    with pytest.raises(RuntimeError, match="no longer valid: another one was started"):
        next(first)
    next(second)


def test_damage_is_raised_at_the_consumer_and_names_the_rows(tmp_path: Path) -> None:
    store = made(tmp_path / "run.zarr")
    path = Path(store.path) / store.activations[HOOKPOINT].spec.key(3)
    damaged = bytearray(path.read_bytes())
    damaged[17] ^= 1
    path.write_bytes(bytes(damaged))
    for prefetch in (True, False):
        stream = batches(store, HOOKPOINT, **OPTIONS, prefetch=prefetch)
        with pytest.raises(CorruptDataError, match=r"mlp.1.*rows \[384, 400\)"):
            list(stream)
        assert our_threads() == 0


def test_a_fork_says_so_and_does_not_hang(store: Store) -> None:
    iterator = iter(batches(store, HOOKPOINT, **OPTIONS))
    for _ in range(4):
        next(iterator)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        text = b"no error"
        try:
            next(iterator)
        except RuntimeError as error:
            text = str(error).encode()
        finally:
            os.write(write, text)
            os._exit(0)
    os.waitpid(child, 0)
    assert b"forked" in os.read(read, 1000)
    assert len(next(iterator).rows) == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"batch_size": 10**6, "buffer_rows": None}, "the selection has"),
        ({"fraction": 0.01}, "the selection has"),
        ({"fraction": 0}, "fraction: got 0"),
        ({"fraction": 1.5}, "fraction: got 1.5"),
        ({"fraction": float("nan")}, "fraction: got nan"),
        ({"skip": -0.1}, "skip: got -0.1"),
        ({"skip": 0.6, "fraction": 0.6}, r"skip \+ fraction: got 0.6 \+ 0.6"),
        ({"rank": 2, "world_size": 2}, "rank: got 2"),
        ({"rank": -1}, "rank: got -1"),
        ({"world_size": 0}, "world_size: got 0"),
        ({"world_size": 3}, "world_size: got 3, expected a number that divides batch_size, 50"),
        ({"epochs": 0}, "epochs: got 0"),
        ({"threads": 0}, "threads: got 0"),
        ({"buffer_rows": 10}, "buffer_rows: got 10"),
        ({"batch_size": 2.5}, "batch_size: got 2.5"),
        ({"seed": "a"}, "seed: got a"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    store: Store, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        batches(store, HOOKPOINT, **{**OPTIONS, **options})


def test_no_hookpoint_and_nothing_extracted(store: Store, tmp_path: Path) -> None:
    with pytest.raises(HookpointError, match="this store has"):
        batches(store, "resid_post.9", **OPTIONS)
    empty = made(tmp_path / "run.zarr", shards=range(0))
    with pytest.raises(NotExtractedError, match="no shard is extracted yet"):
        batches(empty, HOOKPOINT, **OPTIONS)
    assert issubclass(NotExtractedError, ActlasError)


def test_numpy_integers_are_integers(store: Store) -> None:
    stream = batches(
        store, HOOKPOINT, batch_size=np.int64(50), buffer_rows=np.int64(200), seed=np.int64(0)
    )
    assert (
        json.loads(json.dumps(stream.state_dict()))
        == batches(store, HOOKPOINT, **OPTIONS).state_dict()
    )


def test_the_repr_says_what_it_costs(store: Store) -> None:
    text = repr(batches(store, HOOKPOINT, **OPTIONS, rank=1, world_size=2))
    for part in (f"{store.plan.n_tokens:,} rows", "50", "rank 1 of 2", "MiB", "200"):
        assert part in text


@pytest.mark.slow
def test_batches_mix_documents_nearly_as_independent_rows_do(tmp_path: Path) -> None:
    """Variance of the share of one document in a batch, beside that of independent rows."""
    columns = words_columns(9, 600, 25)
    store = create(tmp_path / "run.zarr", plan_for(columns, shard_rows=1024), columns)
    fill(store)
    doc = np.asarray(zarr.open_array(f"{store.path}/rows/doc_idx", mode="r")[:])
    effect = np.random.default_rng(0).standard_normal(doc.max() + 1)[doc]
    effect -= effect.mean()
    stream = batches(store, HOOKPOINT, batch_size=64, buffer_rows=2048, drop_last=True, epochs=12)
    means = np.array([effect[batch.rows].mean() for batch in stream])
    inflation = means.var() / (effect.var() / 64)
    in_order = effect[np.argsort(store.documents.start[doc], kind="stable")]
    n = len(in_order) // 64
    ordered = in_order[: n * 64].reshape(n, 64).mean(axis=1).var() / (effect.var() / 64)
    assert ordered > 10
    assert 0.85 < inflation < 1.3, inflation


@pytest.mark.slow
def test_a_stream_that_is_left_open_ends_quietly_with_its_process(store: Store) -> None:
    code = (
        "import sys, actlas\n"
        f"stream = iter(actlas.batches(actlas.open(sys.argv[1]), {HOOKPOINT!r}, batch_size=50))\n"
        "next(stream)\n"
    )
    patched = (
        f"import actlas.store.format.layout as layout; layout.chunk_rows = lambda *_: 16\n{code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", patched, store.path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_pool_is_an_alias_of_the_shuffle_buffer(store: Store) -> None:
    one = batches(store, HOOKPOINT, batch_size=50, buffer_rows=200)
    other = batches(store, HOOKPOINT, batch_size=50, pool_rows=200)
    assert one.state_dict() == other.state_dict() and other.state_dict()["buffer_rows"] == 200
    assert other.pool_rows == other.buffer_rows == 200
    assert other.pool_bytes == other.buffer_bytes == one.buffer_bytes
    with pytest.raises(ConfigError, match="buffer_rows or its alias pool_rows, got both"):
        batches(store, HOOKPOINT, pool_rows=200, buffer_rows=200)
