"""The next token's loss, for every row, is what transformers' own loss gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.models import build, documents, plan_store, save, windows_of

from actlas.pipeline.extract.extract import Extractor
from actlas.pipeline.extract.loss import NextTokenLoss
from actlas.pipeline.options import PlanOptions, RunOptions
from actlas.pipeline.plan.settings import resolve_settings
from actlas.store.errors import ConfigError, ConflictError, ModelError
from actlas.store.store import Store, open_store
from actlas.store.verify.verify import verify

LENGTHS = [1, 0, 5, 40, 15, 16, 64, 33, 2]


def oracle(store: Store, model: Any) -> NDArray[Any]:
    """By token: the loss that the model's own logits give, window by window."""
    losses = np.full(store.plan.n_tokens, np.nan)
    for at, n_prefix, ids in windows_of(store):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double()
        chances = logits.log_softmax(-1).numpy()
        for i in range(n_prefix, len(ids) - 1):
            losses[at + i - n_prefix] = -chances[i, ids[i + 1]]
    return losses


@pytest.mark.parametrize("order", ["shuffled", "corpus"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "neox", "gemma2"])
def test_every_row_has_the_loss_of_what_follows_it(tmp_path: Path, name: str, order: str) -> None:
    folder = save(name, tmp_path / name)
    columns = documents(LENGTHS)
    store = plan_store(
        tmp_path / "run.zarr", folder, columns, ["resid_post.0"], order=order, with_loss=True
    )
    assert store.plan.n_shards > 2  # so that windows cross borders
    run = RunOptions(device="cpu", threads=1, tokens_per_batch=64)
    extractor = Extractor(store, run)
    for shard in range(store.plan.n_shards):
        extractor.extract(shard, attempt="test")
    rows = store.row_of(np.arange(store.plan.n_tokens))
    found = store.rows.columns["loss"][:][rows]
    truth = oracle(store, build(name))
    assert np.isnan(truth).sum() == len(windows_of(store))
    np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-5, equal_nan=True)
    report = verify(open_store(store.path), full=True)
    assert report.ok
    assert not report.missing


def test_capped_and_scaled_logits() -> None:
    model = build("gemma2")
    assert model.config.final_logit_softcapping
    loss = NextTokenLoss(model)
    tokens = torch.arange(3, 9)[None]
    with torch.no_grad():
        model.config.final_logit_softcapping = None
        plain = model(tokens).logits[0]
        hidden = model.model(tokens).last_hidden_state[0]
    uncapped = torch.nn.functional.cross_entropy(plain, tokens[0], reduction="none")
    with torch.inference_mode():
        found = loss(hidden, tokens[0].numpy())
    assert np.abs(found - uncapped.numpy()).max() > 1e-3  # the cap matters, and is there


def test_logits_that_are_something_else_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    forward = model.forward

    def odd(*args: Any, **given: Any) -> Any:
        output = forward(*args, **given)
        output.logits = output.logits**2
        return output

    monkeypatch.setattr(model, "forward", odd)
    with pytest.raises(ModelError, match="changes its logits after the projection"):
        NextTokenLoss(model)
    with pytest.raises(ModelError, match="no projection onto a vocabulary"):
        NextTokenLoss(build("bert"))


def test_a_loss_that_another_model_left_is_not_adopted(tmp_path: Path) -> None:
    folder = save("llama", tmp_path / "llama")
    store = plan_store(
        tmp_path / "run.zarr", folder, documents(LENGTHS), ["resid_post.0"], with_loss=True
    )
    extractor = Extractor(store, RunOptions(device="cpu", threads=1, tokens_per_batch=64))
    extractor.extract(0, attempt="first")
    Path(store.path, "ledger/receipts/extract/00000000.json").unlink()
    again = extractor.compute(0)
    assert again.loss is not None
    again.loss[5:9] += 3
    with pytest.raises(ConflictError, match="rows/loss"):
        extractor.commit(again, "second")
    receipt = extractor.extract(0, attempt="third")
    assert any(record.key.startswith("rows/loss/") for record in receipt.objects)


def test_a_model_that_predicts_nothing_has_no_loss(tmp_path: Path, shared: Path) -> None:
    folder = save("bert", tmp_path / "bert")
    options = PlanOptions(
        model=str(folder),
        tokenizer=str(shared / "models" / "stories260K"),
        corpus="builtin:python-docs",
        with_loss=True,
    )
    with pytest.raises(ConfigError, match="needs a model that predicts the next token"):
        resolve_settings(options)
