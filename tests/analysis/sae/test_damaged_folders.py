"""A bit that flipped in an autoencoder's folder, a checkpoint or a mask is found, wherever it is.

The oracle is what was flipped: each file is cut into regions (a safetensors file into its length,
its header and each tensor), and each region is hit.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support.crash import overwrite

from actlas.analysis.localizer.masks import Mask, MaskKey
from actlas.analysis.sae.model import SparseAutoencoder
from actlas.analysis.sae.saelens_format import load_sae, save_sae
from actlas.analysis.sae.train.checkpoint import STATE_FILE, read_state, save_state
from actlas.analysis.sae.train.verify import verify_sae
from actlas.jobs.cli.app import cli
from actlas.store.errors import ActlasError, CorruptDataError, MaskError, SaeError

OPTIONS = {"width": 10, "kind": "topk", "k": 3}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    sae = SparseAutoencoder(6, 10, k=3, hookpoint="resid_post.1", model_id="m")
    with torch.no_grad():
        for n, parameter in enumerate(sae.parameters()):
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) + n)
    folder = tmp_path / "sae"
    folder.mkdir()
    (folder / "metrics.json").write_text('{"l0": 3}\n')
    (folder / "density.npy").write_bytes(bytes(range(200)))
    save_sae(sae, folder, {"options": OPTIONS}, ["metrics.json", "density.npy"])
    return folder


def regions(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield the regions of a file: name, start, stop."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        yield from ((path.name, at, min(at + 40, len(data))) for at in range(0, len(data), 40))
        return
    (n,) = struct.unpack("<Q", data[:8])
    yield "length", 0, 8
    yield from (("header", at, min(at + 40, 8 + n)) for at in range(8, 8 + n, 40))
    for name, entry in json.loads(data[8 : 8 + n]).items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            yield name, 8 + n + start, 8 + n + stop


def flips(path: Path, every: int = 1) -> Iterator[tuple[str, bytes]]:
    """Yield a file's bytes with one bit flipped, in each byte of each region or some of them."""
    data = path.read_bytes()
    for name, start, stop in regions(path):
        for at in range(start, stop, every):
            bad = bytearray(data)
            bad[at] ^= 1 << (at * 5 + at // 8) % 8
            yield f"{name} at byte {at}", bytes(bad)


def unfound(path: Path, read: Callable[[], Any], error: type[ActlasError]) -> list[str]:
    """Return the flips of a file after which reading raised nothing."""
    whole, missed = path.read_bytes(), []
    for where, bad in flips(path):
        overwrite(path, bad)
        try:
            read()
        except error:
            continue
        missed.append(where)
    overwrite(path, whole)
    read()
    return missed


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors", "actlas.json"])
def test_a_flipped_bit_in_an_autoencoder(saved: Path, name: str) -> None:
    before = load_sae(saved)
    assert unfound(saved / name, lambda: load_sae(saved), SaeError) == []
    after = load_sae(saved)
    assert after.sha256 == before.sha256
    assert all(map(torch.equal, after.state_dict().values(), before.state_dict().values()))


def test_verify_finds_a_flipped_bit_in_any_file(saved: Path) -> None:
    runner = CliRunner()
    n_bytes = sum(path.stat().st_size for path in saved.iterdir())
    found = verify_sae(saved)
    assert (found.damages, found.n_files, found.n_bytes) == ((), 5, n_bytes)
    assert runner.invoke(cli, ["verify", str(saved)]).exit_code == 0
    for path in sorted(saved.iterdir()):
        whole = path.read_bytes()
        for where, bad in flips(path, 40):
            overwrite(path, bad)
            assert [name for name, _ in verify_sae(saved).damages] == [path.name], where
        result = runner.invoke(cli, ["verify", str(saved), "--json"])
        assert result.exit_code == 4, path
        assert [each["key"] for each in json.loads(result.stdout)["damages"]] == [path.name]
        overwrite(path, whole)
        path.unlink()
        assert verify_sae(saved).damages or path.name == "actlas.json"
        overwrite(path, whole)


def test_a_folder_of_before_records_were_sealed(saved: Path) -> None:
    """Its weights have a SHA-256; its configuration is held against what the record says of it."""
    own = json.loads((saved / "actlas.json").read_text())
    for name in ("files", "sha256", "sae_sha256"):
        del own[name]
    (saved / "actlas.json").write_text(json.dumps(own, indent=1) + "\n")
    before = load_sae(saved)
    weights = saved / "sae_weights.safetensors"
    assert unfound(weights, lambda: load_sae(saved), SaeError) == []
    assert verify_sae(saved).damages == ()
    config = json.loads((saved / "cfg.json").read_text())
    for name, value in (("k", 2), ("architecture", "standard")):
        (saved / "cfg.json").write_text(json.dumps({**config, name: value}))
        with pytest.raises(SaeError, match=r"cfg\.json: damaged"):
            load_sae(saved)
        assert [each for each, _ in verify_sae(saved).damages] == ["cfg.json"]
    (saved / "cfg.json").write_text(json.dumps(config, indent=1) + "\n")
    assert load_sae(saved).sha256 == before.sha256
    del own["sae_weights_sha256"]  # as a bit in its name that flipped would
    (saved / "actlas.json").write_text(json.dumps(own))
    with pytest.raises(SaeError, match="sae_weights_sha256 is None"):
        load_sae(saved)


def test_a_flipped_bit_in_a_checkpoint(tmp_path: Path) -> None:
    state = dict.fromkeys(("options", "step", "tokens", "batches", "points", "seconds"), 7)
    tensors = {
        "weights.W": torch.arange(12.0).reshape(3, 4),
        "silent_rows": torch.arange(5),
        "exp_avg.b": torch.ones(6, dtype=torch.bfloat16),
    }
    save_state(tmp_path, tensors, state)
    path = tmp_path / STATE_FILE
    assert unfound(path, lambda: read_state(tmp_path), CorruptDataError) == []
    read = read_state(tmp_path)
    assert read is not None and read.state == state
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in tensors.items())
    runner = CliRunner()
    assert runner.invoke(cli, ["verify", str(tmp_path)]).exit_code == 0
    overwrite(path, next(flips(path))[1])
    result = runner.invoke(cli, ["verify", str(tmp_path)])
    assert result.exit_code == 4 and STATE_FILE in result.stdout


def test_a_checkpoint_of_before_checksums_is_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = dict.fromkeys(("options", "step", "tokens", "batches", "points", "seconds"), 7)
    metadata = {"format": "actlas.sae.training.1", "state": json.dumps(state)}
    save_file({"a": torch.ones(2)}, tmp_path / STATE_FILE, metadata=metadata)
    read = read_state(tmp_path)
    assert read is not None and read.state == state


def a_mask() -> Mask:
    """A mask of one hookpoint of nothing."""
    spec = {"name": "resid_post.0", "module": "layers.0", "side": "output", "width": 32}
    numbers = {"max_length": 12, "d_model": 32, "n_layers": 3}
    key = {
        name: "x" if field.annotation is str else None
        for name, field in MaskKey.model_fields.items()
    }
    more = {
        "keep_special": False,
        "lowercase": False,
        "signed": False,
        "pool": "last",
        "versions": {},
        "stimuli": "x",
    }
    fields = {**key, **numbers, **more, "model_id": "x", "hookpoints": [spec]}
    return Mask(MaskKey.model_validate(fields), {"resid_post.0": (1, 2, 30)})


def test_a_flipped_bit_in_a_mask(tmp_path: Path) -> None:
    a_mask().save(tmp_path / "mask.json")
    path = tmp_path / "mask.json"
    assert unfound(path, lambda: Mask.load(path), MaskError) == []
    runner = CliRunner()
    for given in (path, tmp_path):
        assert runner.invoke(cli, ["verify", str(given)]).exit_code == 0
    a_mask().save(tmp_path / "other.json")
    assert runner.invoke(cli, ["verify", str(tmp_path / "other.json")]).exit_code == 0
    overwrite(path, next(flips(path))[1])
    for given in (path, tmp_path):
        assert runner.invoke(cli, ["verify", str(given)]).exit_code == 4
