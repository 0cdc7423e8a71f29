"""Which sequences may share a forward pass is tried on the loaded model, and the rows are right.

The oracle of a row is transformers' ``output_hidden_states`` on the row's window alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from support.models import build, documents, expected, plan_store, worst
from support.tiny_models import tiny_model

from actlas.analysis.interventions.loss import Window, loss_batching, losses
from actlas.jobs.cli.app import cli
from actlas.pipeline.extract.extract import Extractor
from actlas.pipeline.extract.extract_pooled import PooledExtractor
from actlas.pipeline.forward.batching import InputSequence, pack
from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.forward.checks.batch_invariance import decide_batching
from actlas.pipeline.forward.checks.samples import (
    image_samples,
    text_samples,
    trial_lengths,
)
from actlas.pipeline.forward.generate import compute_logits
from actlas.pipeline.hookpoints.names import resolve
from actlas.pipeline.model.config import quiet
from actlas.pipeline.options import RunOptions
from actlas.store.errors import ModelError
from actlas.store.format.layout import Sequence as Span
from actlas.store.store import Store

LENGTHS = [5, 0, 12, 1, 12, 3, 40, 9, 9, 12, 2]


@pytest.fixture(scope="module")
def mobilebert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that puts the next token's embedding into each row: the last one's is padding."""
    folder = tmp_path_factory.mktemp("models") / "mobilebert"
    with quiet():
        tiny_model("mobilebert").save_pretrained(folder)
    return folder


def planned(folder: Path, path: Path, **changes: Any) -> Store:
    return plan_store(path, folder, documents(LENGTHS), ["resid_post.*"], **changes)


@pytest.mark.slow
def test_rows_of_a_model_that_reads_padding_are_those_of_each_window_alone(
    mobilebert: Path, tmp_path: Path
) -> None:
    store = planned(mobilebert, tmp_path / "run.zarr")
    extractor = Extractor(store, RunOptions(device="cpu", threads=1, tokens_per_batch=64))
    [receipt, *_] = extractor.extract_many(range(store.plan.n_shards), attempt="test")
    names = [h.name for h in store.plan.hookpoints]
    truth = expected(store, extractor.model, names)
    rows = store.row_of(np.arange(store.plan.n_tokens))
    for name in names:
        assert worst(store.activations[name][:][rows], truth[name]) < 1e-4
    assert str(receipt.run["batching"]).startswith("sequences of equal length: at resid_post.0")
    assert receipt.run["note"] == (
        f"batches: sequences of equal length, because {extractor.strategy.why_batching}"
    )
    assert receipt.run["padding_share"] == 0
    assert receipt.run["n_batches"] < 10


def test_the_user_is_told_what_shares_a_pass(mobilebert: Path, tmp_path: Path) -> None:
    store = planned(mobilebert, tmp_path / "run.zarr")
    made = CliRunner().invoke(cli, ["extract", store.path, "--threads", "1"])
    assert made.exit_code == 0, made.output
    said = [line for line in made.stderr.splitlines() if "equal length" in line]
    assert len(said) == 1 and "because at resid_post.0 the rows of" in said[0]


@pytest.mark.slow
def test_pooled_rows_of_such_a_model(mobilebert: Path, tmp_path: Path) -> None:
    store = planned(mobilebert, tmp_path / "run.zarr", pools=("last",), dense=False)
    extractor = PooledExtractor(store, RunOptions(device="cpu", threads=1, tokens_per_batch=64))
    for shard in range(store.n_shards("pooled")):
        extractor.extract(shard, attempt="test")
    [name, *_] = names = [h.name for h in store.plan.hookpoints]
    truth = expected(store, extractor.model, names)[name]
    found = store.pooled[name]["last"][:]
    ends = np.cumsum(LENGTHS)
    for document, n in enumerate(LENGTHS):
        if n:
            assert worst(found[document], truth[ends[document] - 1]) < 1e-4


def decided(model: Any, *, causal: bool = False, longest: int = 48) -> tuple[str, str]:
    hookpoints = resolve(model, ["resid_post.*"])
    samples = text_samples(
        model, trial_lengths(model.config, longest, 2048, causal=causal), causal=causal
    )
    with quiet():
        return decide_batching(model, hookpoints, samples, "cpu")


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert"])
def test_padding_that_changes_nothing_is_used(name: str) -> None:
    batching, why = decided(build(name))
    assert batching == "padded"
    assert why.startswith("seen on this model")


def test_causal_models_are_tried_too() -> None:
    for name in ("llama", "gpt2", "bloom"):
        assert decided(build(name), causal=True)[0] == "padded"


def patched(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor], name: str
) -> Any:
    """A model whose first block's output is changed."""
    model = build(name)
    block = model.model.layers[0] if name == "llama" else model.encoder.layer[0]
    forward = block.forward

    def changed(hidden: torch.Tensor, *args: Any, **given: Any) -> Any:
        out = forward(hidden, *args, **given)
        if isinstance(out, tuple):
            return (change(out[0]), *out[1:])
        return change(out)

    monkeypatch.setattr(block, "forward", changed)
    return model


def with_neighbours(out: torch.Tensor) -> torch.Tensor:
    return out + 0.01 * (out.mean(dim=0, keepdim=True) - out)


def with_length(out: torch.Tensor) -> torch.Tensor:
    return out * (1 + 1e-3 * out.shape[1])


def crowded(out: torch.Tensor) -> torch.Tensor:
    """Experts of limited capacity: they drop what comes beyond 60 tokens of the whole batch."""
    kept = (torch.arange(out.shape[0] * out.shape[1]) < 60).reshape(out.shape[:2])
    return out * kept[..., None]


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize(
    ("change", "batching"),
    [(with_neighbours, "single"), (with_length, "equal"), (crowded, "single")],
)
def test_what_rows_depend_on_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    change: Callable[[torch.Tensor], torch.Tensor],
    batching: str,
) -> None:
    found, why = decided(patched(monkeypatch, change, name), causal=name == "llama")
    assert found == batching
    assert why.startswith("at resid_post.0 the rows of")


def test_a_leak_between_long_sequences_alone_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Long sequences may be computed by other means than short ones."""

    def leak(out: torch.Tensor) -> torch.Tensor:
        return with_neighbours(out) if out.shape[1] > 40 else out

    assert decided(patched(monkeypatch, leak, "bert"))[0] == "single"
    assert decided(patched(monkeypatch, leak, "bert"), longest=32)[0] == "padded"


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_model_that_draws_random_numbers_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = patched(monkeypatch, lambda out: out + 0.01 * torch.randn_like(out), name)
    with pytest.raises(ModelError, match=r"gives one sequence other rows when it runs again: at"):
        decided(model, causal=name == "llama")


def test_a_model_that_keeps_a_state_between_passes_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    longest = [0]

    def stateful(out: torch.Tensor) -> torch.Tensor:
        longest[0] = max(longest[0], out.shape[1])
        return out * (1 + 1e-3 * longest[0])

    with pytest.raises(ModelError, match="when it runs again"):
        decided(patched(monkeypatch, stateful, "bert"))


def test_in_16_bits_a_single_row_may_take_another_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    def flips(out: torch.Tensor) -> torch.Tensor:
        if len(out) > 1:
            out[:, -1:] *= 1.5
        return out

    assert decided(patched(monkeypatch, flips, "llama").bfloat16(), causal=True)[0] == "padded"
    assert decided(patched(monkeypatch, flips, "llama"), causal=True)[0] == "single"


def test_a_mask_is_never_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    hookpoints = resolve(model, ["resid_post.0"])
    forward = model.forward

    def maskless(input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        return forward(input_ids, use_cache=use_cache)

    monkeypatch.setattr(model, "forward", maskless)
    ids = torch.ones((2, 5), dtype=torch.long)
    with Capture(model, hookpoints) as capture:
        assert capture(ids)["resid_post.0"].shape == (2, 5, 32)
        with pytest.raises(ModelError, match="takes no attention_mask"):
            capture(ids, attention_mask=torch.ones_like(ids))
    with pytest.raises(ModelError, match="takes no attention_mask"):
        compute_logits(model, ids, torch.ones_like(ids))
    batching, why = decided(model)
    assert batching == "equal"
    assert "takes no attention_mask" in why


def test_losses_of_a_model_whose_rows_depend_on_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = patched(monkeypatch, lambda out: out * (1 + 0.02 * out.shape[1]), "llama")
    rng = np.random.default_rng(0)
    windows = [Window(i, rng.integers(3, 90, n), 1, n) for i, n in enumerate([9, 4, 9, 17, 4])]
    batching, _ = loss_batching(model, windows)
    assert batching == "equal"
    found = losses(model, windows, batching=batching)
    for i, window in enumerate(windows):
        ids = torch.from_numpy(window.ids)[None]
        with torch.no_grad():
            truth = model(ids, labels=ids).loss * (len(window.ids) - 1)
        assert float(truth) == pytest.approx(found.total[i], rel=1e-4)
    assert abs(losses(model, windows).total[1] / found.total[1] - 1) > 1e-3


def test_images_that_change_each_other_are_computed_one_at_a_time() -> None:
    from support.architectures import build as build_zoo

    model = build_zoo("vit")
    hookpoints = resolve(model, ["resid_post.*"])
    pixels = np.random.default_rng(0).standard_normal((3, 3, 16, 16), np.float32)
    assert decide_batching(model, hookpoints, image_samples(pixels, 5), "cpu")[0] == "padded"
    model.layers[0].register_forward_hook(lambda _m, _a, out: with_neighbours(out))
    batching, why = decide_batching(model, hookpoints, image_samples(pixels, 5), "cpu")
    assert batching == "single"
    assert "the rows of 5 positions change" in why


@given(
    st.lists(st.integers(1, 30), max_size=40),
    st.integers(1, 100),
    st.sampled_from(["padded", "equal", "single"]),
)
def test_batches_hold_every_sequence_once(lengths: list[int], budget: int, batching: Any) -> None:
    edges = np.cumsum([0, *lengths]).tolist()
    sequences = [
        InputSequence(Span(i, a, b, a, b), 0, 0)
        for i, (a, b) in enumerate(itertools.pairwise(edges))
    ]
    batches = pack(sequences, budget, batching=batching)
    assert sorted(each for batch in batches for each in batch.sequences) == sorted(sequences)
    for batch in batches:
        assert batch.n_padded <= max(budget, batch.length)
        if batching != "padded":
            assert {each.length for each in batch.sequences} == {batch.length}
        if batching == "single":
            assert len(batch.sequences) == 1
