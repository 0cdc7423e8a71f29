"""Bits that flip in an autoencoder's folder and in a training's checkpoint: all are found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.crash import overwrite
from support.damage import flipped

from actlas.analysis.sae.model import SparseAutoencoder
from actlas.analysis.sae.saelens_format import load_sae, save_sae
from actlas.analysis.sae.train.checkpoint import STATE_FILE, read_state, save_state
from actlas.analysis.sae.train.verify import verify_sae
from actlas.store.errors import CorruptDataError, SaeError

pytestmark = pytest.mark.chaos

STATE = dict.fromkeys(("options", "step", "tokens", "batches", "points", "seconds"), 1)


def weights(sae: SparseAutoencoder) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return {name: parameter.detach() for name, parameter in sae.named_parameters()}


def finds(read: Callable[[], Any]) -> bool:
    try:
        read()
    except (SaeError, CorruptDataError):
        return True
    return False


def test_a_flipped_bit_in_what_was_learnt(chaos: Any, tmp_path: Path) -> None:
    """Each file in turn: by loading, where loading reads it, and by verify."""
    whole, half = tmp_path / "sae", tmp_path / "half"
    sae = SparseAutoencoder(8, 32, k=4, hookpoint="resid_post.1")
    tensors = weights(sae)
    whole.mkdir()
    (whole / "density.npy").write_bytes(bytes(range(256)))
    save_sae(sae, whole, {}, ["density.npy"])
    save_state(half, {**tensors, "silent_rows": torch.arange(32)}, STATE)
    readers: list[tuple[Path, Callable[[], Any]]] = [
        (whole / "cfg.json", lambda: load_sae(whole)),
        (whole / "sae_weights.safetensors", lambda: load_sae(whole)),
        (whole / "actlas.json", lambda: load_sae(whole)),
        (half / STATE_FILE, lambda: read_state(half)),
        (whole / "density.npy", lambda: None),
    ]
    n = chaos.count(60, 5000)
    found, tried, missed = Counter[str](), Counter[str](), []
    for i in range(n):
        path, read = readers[i % len(readers)]
        data = path.read_bytes()
        overwrite(path, flipped(data, chaos.rng)[0])
        named = [name for name, _ in verify_sae(path.parent).damages]
        is_found = named == [path.name] and (path.name == "density.npy" or finds(read))
        overwrite(path, data)
        read()
        tried[path.name] += 1
        found[path.name] += is_found
        if not is_found:
            missed.append((path.name, named))
    notes = {f"in_{name}": tried[name] for name in sorted(tried)}
    chaos.record(
        "a flipped bit in an SAE", n, found=sum(found.values()), missed=len(missed), **notes
    )
    assert not missed, missed[0]
