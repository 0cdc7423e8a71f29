"""SAELens trains on our batches, and loads what we train."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.features import made_store

import actlas
from actlas.analysis.sae.saelens_format import load_sae
from actlas.analysis.sae.train.api import train_sae
from actlas.store.store import Store

pytestmark = pytest.mark.slow

HOOK = "resid_post.0"
SMALL: dict[str, Any] = {"width": 48, "k": 4, "batch_size": 128, "steps": 40, "lr": 3e-3}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made_store(tmp_path_factory.mktemp("sae") / "s.zarr", n_documents=80)


@pytest.fixture(scope="module")
def sae_lens() -> Any:
    pytest.importorskip("sae_lens", reason="sae-lens is an optional extra: pip install .[saelens]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens

    return sae_lens


@pytest.mark.filterwarnings("ignore")
def test_what_is_trained_loads_in_saelens(sae_lens: Any, store: Store, tmp_path: Path) -> None:
    made = train_sae(store, HOOK, tmp_path / "a", **SMALL)
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "a")
    x = torch.from_numpy(store.activations[HOOK].read(0, 200).astype(np.float32))
    with torch.inference_mode():
        torch.testing.assert_close(theirs.encode(x), made.sae.encode(x), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(theirs(x), made.sae(x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_saelens_trains_on_our_batches(
    sae_lens: Any, store: Store, tmp_path: Path
) -> None:
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = sae_lens.TopKTrainingSAEConfig(d_in=24, d_sae=48, k=4)
    torch.manual_seed(0)
    sae = sae_lens.TopKTrainingSAE(config)
    stream = actlas.batches(store, HOOK, batch_size=64, epochs=None)
    x = torch.from_numpy(store.activations[HOOK][:].astype(np.float32))
    with torch.inference_mode():
        before = float((x - sae(x)).square().mean())
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=64 * 150,
            train_batch_size_samples=64,
            lr=3e-3,
            lr_end=3e-4,  # its config leaves None, which its trainer refuses
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae,
        data_provider=stream.tensors(),
    )
    trainer.fit()
    with torch.inference_mode():
        assert float((x - sae(x)).square().mean()) < 0.9 * before
    sae.save_inference_model(tmp_path / "theirs")
    ours = load_sae(tmp_path / "theirs")
    with torch.inference_mode():
        expected = sae_lens.SAE.load_from_disk(tmp_path / "theirs").encode(x)
        torch.testing.assert_close(ours.encode(x), expected, rtol=1e-6, atol=1e-6)
