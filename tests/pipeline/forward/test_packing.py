"""Several documents in a row: each has the rows that it has alone, and none sees another."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.models import (
    CONFIGS,
    build,
    documents,
    expected,
    oracle,
    plan_store,
    save,
    worst,
)

from actlas.pipeline.extract.extract import Extractor
from actlas.pipeline.extract.loss import NextTokenLoss
from actlas.pipeline.forward.batching import InputSequence, assemble
from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.forward.packing import pack_rows, packing_obstacle
from actlas.pipeline.forward.strategy import decide_strategy
from actlas.pipeline.hookpoints.names import resolve
from actlas.pipeline.model.config import quiet
from actlas.pipeline.options import RunOptions
from actlas.store.format.layout import Sequence

ENCODERS = {"bert", "roberta", "modernbert"}
UNFIT = ENCODERS | {"bloom", "opt", "falcon"}
"""Without position_ids, or such that do not tell documents apart."""
LENGTHS = [30, 21, 9, 1, 12, 1, 25, 3]
EDGES = np.cumsum([0, *LENGTHS])
TOKENS = np.random.default_rng(0).integers(3, 97, int(EDGES[-1])).astype(np.int32)


def made(lengths: list[int], n_prefix: int = 1) -> list[InputSequence]:
    edges = np.cumsum([0, *lengths]).tolist()
    return [
        InputSequence(Sequence(i, a, b, a, b), n_prefix, 0)
        for i, (a, b) in enumerate(itertools.pairwise(edges))
    ]


@given(
    st.lists(st.integers(1, 60), max_size=50),
    st.integers(1, 200),
    st.one_of(st.none(), st.integers(1, 200)),
)
def test_every_token_once_in_rows_within_the_budget(
    lengths: list[int], budget: int, row_tokens: int | None
) -> None:
    sequences = made(lengths)
    batches = pack_rows(sequences, budget, row_tokens=row_tokens)
    assert sorted(f for batch in batches for f in batch.sequences) == sorted(sequences)
    longest = max((f.length for f in sequences), default=0)
    for batch in batches:
        assert batch.n_padded <= budget or batch.n_rows == 1
        assert batch.length <= max(row_tokens or longest, longest)
        taken: list[int] = []
        for place, each in zip(batch.offsets, batch.sequences, strict=True):
            assert place // batch.length == (place + each.length - 1) // batch.length
            taken += range(place, place + each.length)
        assert len(taken) == len(set(taken)) == batch.n_input_tokens
        assert max(taken) < batch.n_padded
    tokens = np.arange(sum(lengths), dtype=np.int32)
    seen = []
    for batch in batches:
        inputs = assemble(batch, tokens, 0, prefix_ids=(7,), suffix_ids=(), pad_id=0, causal=True)
        ids, places = inputs.arrays["input_ids"].ravel(), inputs.arrays["position_ids"].ravel()
        assert np.array_equal(ids[inputs.kept], inputs.token)
        start = np.concatenate(([0], np.cumsum(lengths)))
        document = np.searchsorted(start, inputs.token, side="right") - 1
        assert np.array_equal(places[inputs.kept], 1 + inputs.token - start[document])
        seen += inputs.token.tolist()
    assert sorted(seen) == tokens.tolist()


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - UNFIT))
@pytest.mark.parametrize("row_tokens", [None, 64])
def test_no_document_sees_another(name: str, row_tokens: int | None) -> None:
    model = build(name)
    hookpoints = resolve(model, ["resid_p*.*"])
    with quiet():
        assert packing_obstacle(model, hookpoints) is None
    sequences = made(LENGTHS)

    def run(tokens: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
        rows = {h.name: np.full((EDGES[-1], h.width), np.nan, np.float32) for h in hookpoints}
        with quiet(), torch.inference_mode(), Capture(model, hookpoints) as capture:
            for batch in pack_rows(sequences, 64, row_tokens=row_tokens):
                inputs = assemble(
                    batch, tokens, 0, prefix_ids=(1,), suffix_ids=(), pad_id=0, causal=True
                )
                given = {key: torch.from_numpy(array) for key, array in inputs.arrays.items()}
                for key, tensor in capture(**given, shape=inputs.shape).items():
                    rows[key][inputs.token] = tensor.flatten(0, 1)[inputs.kept].numpy()
        return rows

    found = run(TOKENS)
    for start, stop in itertools.pairwise(EDGES):
        truth = oracle(model, [1, *TOKENS[start:stop].tolist()])
        for key, states in truth.items():
            assert worst(found[key][start:stop], states[1:]) < 1e-4
    for start, stop in itertools.pairwise(EDGES):
        other = TOKENS.copy()
        other[start:stop] = (other[start:stop] - 2) % 94 + 3
        moved = run(other)
        kept = np.ones(EDGES[-1], dtype=bool)
        kept[start:stop] = False
        for key, states in moved.items():
            assert worst(states[kept], found[key][kept]) < 1e-6
            assert not np.allclose(states[~kept], found[key][~kept])


@pytest.mark.parametrize("name", sorted(UNFIT & set(CONFIGS)))
def test_a_model_that_cannot_tell_documents_apart_is_found_out(name: str) -> None:
    model = build(name)
    hookpoints = resolve(model, ["resid_post.*"])
    with quiet():
        reason = packing_obstacle(model, hookpoints)
    assert reason is not None
    assert "position_ids" in reason or "differ" in reason or "change" in reason


def test_a_model_that_looks_at_its_neighbours_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One whose rows are right at the places that are tried, but leak into the next document."""
    model = build("llama")
    hookpoints = resolve(model, ["resid_post.0"])
    block = model.model.layers[0]
    forward = block.forward

    def leaking(hidden: torch.Tensor, *args: Any, **given: Any) -> torch.Tensor:
        out: torch.Tensor = forward(hidden, *args, **given)
        places = given["position_ids"]
        starts = (places[:, 1:] == 0) & (places[:, :-1] > 0)
        out[:, 1:][starts] += 0.05 * out[:, :-1][starts]
        return out

    monkeypatch.setattr(block, "forward", leaking)
    with quiet():
        assert packing_obstacle(model, hookpoints) is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("order", ["shuffled", "corpus"])
def test_packed_rows_in_a_store(tmp_path: Path, name: str, order: str) -> None:
    folder = save(name, tmp_path / name)
    lengths = [1, 0, 5, 40, 15, 16, 3, 64, 33, 7, 100, 2, 2, 13]
    patterns = ["resid_p*.*"]
    store = plan_store(tmp_path / "run.zarr", folder, documents(lengths), patterns, order=order)
    run = RunOptions(device="cpu", threads=1, tokens_per_batch=64, packing="packed")
    extractor = Extractor(store, run)
    assert extractor.strategy.packed
    receipts = list(extractor.extract_many(range(store.plan.n_shards), attempt="test"))
    assert receipts[0].run["packing"].startswith("packed")
    assert max(float(receipt.run["padding_share"]) for receipt in receipts) < 0.5
    names = ["resid_pre.1", "resid_post.2"]
    truth = expected(store, build(name), names)
    rows = store.row_of(np.arange(store.plan.n_tokens))
    for each in names:
        assert worst(store.activations[each][:][rows], truth[each]) < 1e-4


def test_who_may_not_is_padded_and_says_why(tmp_path: Path) -> None:
    folder = save("bert", tmp_path / "bert")
    store = plan_store(tmp_path / "run.zarr", folder, documents([5, 9]), ["resid_post.0"])
    model = build("bert")
    for packing, why in (("packed", "documents"), ("padded", "as asked"), ("auto", "attention")):
        run = RunOptions(packing=packing)
        strategy = decide_strategy(model, store.plan, run, "cpu")
        assert not strategy.packed
        assert strategy.record()["packing"].startswith("padded: ")
        assert why in strategy.why_packing
        assert strategy.why_chunked == "the model is not causal"


def test_what_is_tried_is_as_deep_as_losses_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leak behind the deepest hookpoint is in the losses all the same."""
    folder = save("llama", tmp_path / "llama")
    store = plan_store(tmp_path / "run.zarr", folder, documents([5, 9]), ["resid_post.0"])
    model = build("llama")
    block = model.model.layers[2]
    forward = block.forward

    def leaking(hidden: torch.Tensor, *args: Any, **given: Any) -> torch.Tensor:
        out: torch.Tensor = forward(hidden, *args, **given)
        return torch.cat([out[:, :1], out[:, 1:] + 0.5 * out[:, :-1]], dim=1)

    monkeypatch.setattr(block, "forward", leaking)
    run = RunOptions(packing="packed")
    loss = NextTokenLoss(model).hookpoint
    with quiet():
        assert decide_strategy(model, store.plan, run, "cpu").packed
        deeper = decide_strategy(model, store.plan, run, "cpu", (*store.plan.hookpoints, loss))
    assert not deeper.packed
    assert not deeper.chunked_prefill
