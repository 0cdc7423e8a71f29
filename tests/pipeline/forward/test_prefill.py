"""Long sequences chunk by chunk: the rows of one pass, whatever the chunks and the borders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.models import CONFIGS, build, documents, expected, oracle, plan_store, save, worst

from actlas.pipeline.extract.extract import Extractor
from actlas.pipeline.forward.batching import Batch, InputSequence, assemble
from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.forward.prefill import (
    CachedPrefix,
    Prefill,
    prefill_chunks,
    prefill_obstacle,
    split_long,
)
from actlas.pipeline.hookpoints.names import resolve
from actlas.pipeline.model.config import quiet
from actlas.pipeline.options import RunOptions
from actlas.store.errors import HookpointError
from actlas.store.format.layout import Sequence
from actlas.store.store import Store

pytestmark = pytest.mark.slow

TOKENS = np.random.default_rng(0).integers(3, 97, 200).astype(np.int32)
CAUSAL = sorted(set(CONFIGS) - {"bert", "roberta", "modernbert"})


def laid_out(batch: Batch) -> Any:
    return assemble(batch, TOKENS, 0, prefix_ids=(1,), suffix_ids=(), pad_id=0, causal=True)


@given(st.integers(1, 300), st.integers(1, 80), st.integers(0, 3), st.booleans(), st.data())
def test_chunks_cover_a_sequence_once(
    n: int, budget: int, n_prefix: int, continues: bool, data: st.DataObject
) -> None:
    sequence = InputSequence(Sequence(4, 10, 10 + n, 10, 10 + n), n_prefix, 0)
    start = data.draw(st.integers(0, sequence.length - 1))
    found = [
        batch.chunk for batch in prefill_chunks(sequence, budget, start=start, continues=continues)
    ]
    covered = [place for chunk in found if chunk for place in range(chunk.start, chunk.stop)]
    assert covered == list(range(start, sequence.length))
    assert all(chunk is not None and chunk.stop - chunk.start <= budget for chunk in found)
    assert [chunk.continues for chunk in found if chunk] == [True] * (len(found) - 1) + [continues]
    assert all(
        batch.n_input_tokens == batch.n_padded
        for batch in prefill_chunks(sequence, budget, start=start)
    )


@pytest.mark.parametrize("pattern", ["resid_p*.*", "attn_out.1", "mlp_out.1", "resid_pre.0"])
@pytest.mark.parametrize("name", CAUSAL)
def test_chunks_give_the_rows_of_one_pass(name: str, pattern: str) -> None:
    model = build(name)
    try:
        hookpoints = resolve(model, [pattern])
    except HookpointError:
        assert name in {"bloom", "falcon"}  # their parts add the stream themselves
        return
    with quiet():
        assert prefill_obstacle(model, hookpoints, 64) is None
    sequence = InputSequence(Sequence(0, 0, 49, 0, 49), 1, 0)
    whole = laid_out(Batch((sequence,), 50))
    with quiet(), torch.inference_mode(), Capture(model, hookpoints) as capture:
        one = capture(torch.from_numpy(whole.arrays["input_ids"]))
        one = {key: rows[0].clone().numpy() for key, rows in one.items()}
        if pattern == "resid_p*.*":
            truth = oracle(model, whole.arrays["input_ids"][0].tolist())
            assert all(worst(one[key], states) < 1e-4 for key, states in truth.items())
        for size in (1, 7, 8, 9, 25, 49, 64):
            prefill = Prefill(model)
            found: dict[str, list[torch.Tensor]] = {h.name: [] for h in hookpoints}
            for batch in prefill_chunks(sequence, size):
                inputs = laid_out(batch)
                given = {key: torch.from_numpy(array) for key, array in inputs.arrays.items()}
                got = capture(**given, shape=inputs.shape, **prefill.kwargs(inputs))
                for key, rows in got.items():
                    found[key].append(rows[0][inputs.kept].clone())
            prefill.finish()
            assert prefill.cached is None
            for key, parts in found.items():
                assert worst(torch.cat(parts).numpy(), one[key][1:]) < 1e-4, (size, key)


def stored(store: Store, name: str) -> Any:
    return store.activations[name][:][store.row_of(np.arange(store.plan.n_tokens))]


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gemma3", "gpt2", "neox"])
@pytest.mark.parametrize("order", ["shuffled", "corpus"])
def test_long_documents_in_a_store(tmp_path: Path, name: str, order: str) -> None:
    """Windows of 64 in passes of 10, over borders of 32: caches go from shard to shard."""
    folder = save(name, tmp_path / name)
    store = plan_store(
        tmp_path / "run.zarr",
        folder,
        documents([5, 63, 100, 1, 63, 40, 63]),
        ["resid_p*.*"],
        order=order,
        windows={"max_length": 64, "long": "window"},
        shard_rows=32,
    )
    extractor = Extractor(store, RunOptions(device="cpu", threads=1, tokens_per_batch=10))
    assert extractor.strategy.chunked_prefill
    n_input_tokens = 0
    for shard in range(store.plan.n_shards):
        receipt = extractor.extract(shard, attempt="test")
        n_input_tokens += int(receipt.run["n_tokens_fed"])
        assert receipt.run["long_sequences"].startswith("by pieces")
    n_windows = sum(-(-n // 63) for n in (5, 63, 100, 1, 63, 40, 63))
    assert n_input_tokens == store.plan.n_tokens + n_windows  # no token but the first was fed twice
    names = ["resid_pre.1", "resid_post.2"]
    truth = expected(store, build(name), names)
    assert all(worst(stored(store, each), truth[each]) < 1e-4 for each in names)


def test_shards_in_any_order_give_the_same(tmp_path: Path) -> None:
    folder = save("llama", tmp_path / "llama")
    store = plan_store(
        tmp_path / "run.zarr",
        folder,
        documents([63, 63, 63]),
        ["resid_post.*"],
        windows={"max_length": 64, "long": "window"},
        shard_rows=32,
    )
    extractor = Extractor(store, RunOptions(device="cpu", threads=1, tokens_per_batch=10))
    for shard in (3, 1, 0, 2, 5, 4):  # a cache that stands is of use only once here
        extractor.extract(shard, attempt="test")
    truth = expected(store, build("llama"), ["resid_post.2"])
    assert worst(stored(store, "resid_post.2"), truth["resid_post.2"]) < 1e-4


def test_a_pass_that_failed_leaves_no_cache_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save("llama", tmp_path / "llama")
    store = plan_store(
        tmp_path / "run.zarr",
        folder,
        documents([20, 63, 63]),
        ["resid_post.*"],
        windows={"max_length": 64, "long": "window"},
        shard_rows=32,
    )
    extractor = Extractor(store, RunOptions(device="cpu", threads=1, tokens_per_batch=10))
    forward = extractor.model.forward
    n_left = 3

    def failing(*args: Any, **given: Any) -> Any:
        nonlocal n_left
        n_left -= 1
        if n_left == 0:
            raise RuntimeError("a kernel failed")
        return forward(*args, **given)

    monkeypatch.setattr(extractor.model, "forward", failing)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        extractor.compute(0)
    for shard in (4, 0, 1, 2, 3):
        extractor.extract(shard, attempt="test")
    truth = expected(store, build("llama"), ["resid_post.2"])
    assert worst(stored(store, "resid_post.2"), truth["resid_post.2"]) < 1e-4


def test_a_cache_of_something_else_is_not_gone_on_from() -> None:
    model = build("llama")
    sequence = InputSequence(Sequence(0, 0, 30, 0, 30), 1, 0)
    first, second, *_ = prefill_chunks(sequence, 10)
    prefill = Prefill(model)
    prefill.kwargs(laid_out(first))
    wrong = second._replace(chunk=second.chunk._replace(doc_idx=5))  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="for the next chunk, got"):
        prefill.kwargs(laid_out(wrong))
    prefill.drop()
    with pytest.raises(RuntimeError, match="for the next chunk, got"):
        prefill.kwargs(laid_out(second))
    ready = CachedPrefix(0, 0, 11)
    later = InputSequence(Sequence(0, 0, 30, 10, 30), 1, 0)
    assert split_long([later], 100, None, ready)[0][0].chunk == (0, 0, 11, 31, False)
    assert split_long([later], 100, None, CachedPrefix(0, 0, 12)) == ([], [later])


def test_a_model_whose_cache_is_wrong_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    hookpoints = resolve(model, ["resid_post.*"])
    forward = model.model.forward

    def forgetting(*args: Any, **given: Any) -> Any:
        if given.get("position_ids") is not None:  # counts from 0 again in every chunk
            given["position_ids"] = given["position_ids"] - given["position_ids"][:, :1]
        return forward(*args, **given)

    monkeypatch.setattr(model.model, "forward", forgetting)
    with quiet():
        reason = prefill_obstacle(model, hookpoints, 64)
    assert reason is not None
    assert "differs from one pass" in reason
