"""Our sparse autoencoders and SAELens's: the same files, the same codes, both ways."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actlas.analysis.sae.model import SparseAutoencoder
from actlas.analysis.sae.saelens_format import load_sae, save_sae
from actlas.store.errors import SaeError

D_IN, D_SAE, K = 24, 96, 7


@pytest.fixture(scope="module")
def sae_lens() -> Any:
    pytest.importorskip("sae_lens", reason="sae-lens is an optional extra: pip install .[saelens]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens

    return sae_lens


def randomize(parameters: Any, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in parameters:
            scale = 1 if name.startswith("W") else 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if name == "threshold":
                parameter.abs_()


def rows(n: int = 500) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    return 3 * torch.randn(n, D_IN, generator=generator) + 1


def theirs(sae_lens: Any, kind: str, **more: Any) -> Any:
    names = {
        "relu": ("StandardSAE", "StandardSAEConfig"),
        "topk": ("TopKSAE", "TopKSAEConfig"),
        "jumprelu": ("JumpReLUSAE", "JumpReLUSAEConfig"),
        "gated": ("GatedSAE", "GatedSAEConfig"),
    }
    sae_class, config_class = (getattr(sae_lens, name) for name in names[kind])
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name="blocks.3.hook_resid_post", model_name="m")
    sae = sae_class(config_class(d_in=D_IN, d_sae=D_SAE, metadata=metadata, **more))
    randomize(sae.named_parameters())
    return sae


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert ((found > 0) == (expected > 0)).all()
    assert (expected > 0).any() and not (expected > 0).all()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


CASES = [
    ("relu", {}),
    ("relu", {"apply_b_dec_to_input": False}),
    ("relu", {"normalize_activations": "layer_norm"}),
    ("relu", {"normalize_activations": "constant_norm_rescale"}),
    ("topk", {"k": K}),
    ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
    ("jumprelu", {}),
    ("gated", {}),
]


@pytest.mark.parametrize(("kind", "more"), CASES)
def test_what_saelens_saves_encodes_the_same_here(
    sae_lens: Any, tmp_path: Path, kind: str, more: dict[str, Any]
) -> None:
    original = theirs(sae_lens, kind, **more)
    original.save_model(tmp_path / "saved")
    sae = load_sae(tmp_path / "saved")
    assert (sae.kind, sae.d_in, sae.d_sae) == (kind, D_IN, D_SAE)
    assert sae.hookpoint == "resid_post.3" and sae.model_id == "m"
    with torch.inference_mode():
        same(sae.encode(rows()), original.encode(rows()))
        torch.testing.assert_close(sae(rows()), original(rows()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "more"), CASES)
def test_what_we_save_encodes_the_same_in_saelens(
    sae_lens: Any, tmp_path: Path, kind: Any, more: dict[str, Any]
) -> None:
    own = SparseAutoencoder(
        D_IN,
        D_SAE,
        kind=kind,
        k=more.get("k"),
        apply_b_dec_to_input=more.get("apply_b_dec_to_input", True),
        normalize=more.get("normalize_activations", "none"),
        rescale_by_decoder_norm=more.get("rescale_acts_by_decoder_norm", False),
        hookpoint="resid_post.3",
        model_id="m",
    )
    randomize(own.named_parameters(), seed=1)
    save_sae(own, tmp_path / "saved", {"note": "made by a test"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = sae_lens.SAE.load_from_disk(tmp_path / "saved")
    assert loaded.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
    with torch.inference_mode():
        same(own.encode(rows()), loaded.encode(rows()))
        torch.testing.assert_close(own(rows()), loaded(rows()), rtol=1e-5, atol=1e-5)
    again = load_sae(tmp_path / "saved")
    assert again.sha256 == own.sha256 and len(own.sha256) == 64
    assert torch.equal(again.encode(rows()), own.encode(rows()))
    assert json.loads((tmp_path / "saved/actlas.json").read_text())["note"] == "made by a test"


def test_batchtopk_is_read_as_the_jumprelu_that_saelens_saves(
    sae_lens: Any, tmp_path: Path
) -> None:
    config = sae_lens.BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K)
    training = sae_lens.BatchTopKTrainingSAE(config)
    randomize(training.named_parameters())
    training.topk_threshold = torch.tensor(2.5, dtype=torch.float64)
    training.save_inference_model(tmp_path / "saved")
    sae = load_sae(tmp_path / "saved")
    assert sae.kind == "jumprelu"
    with torch.inference_mode():
        inference = sae_lens.SAE.load_from_disk(tmp_path / "saved")
        same(sae.encode(rows()), inference.encode(rows()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_are_widened(tmp_path: Path, dtype: torch.dtype) -> None:
    own = SparseAutoencoder(D_IN, D_SAE, kind="relu")
    randomize(own.named_parameters())
    save_sae(own, tmp_path / "saved", {})
    path = tmp_path / "saved/sae_weights.safetensors"
    narrow = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(narrow, path)
    (tmp_path / "saved/actlas.json").unlink()
    sae = load_sae(tmp_path / "saved")
    assert sae.W_enc.dtype == torch.float32
    assert torch.equal(sae.W_enc, narrow["W_enc"].float())


@pytest.mark.parametrize("kind", ["relu", "topk", "jumprelu", "gated"])
def test_codes_by_hand(kind: Any) -> None:
    sae = SparseAutoencoder(D_IN, D_SAE, kind=kind, k=K if kind == "topk" else None)
    randomize(sae.named_parameters(), seed=3)
    w = {name: p.detach().numpy().astype(np.float64) for name, p in sae.named_parameters()}
    z = rows(50).numpy().astype(np.float64) - w["b_dec"]
    if kind == "gated":
        magnitude = np.maximum(z @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"], 0)
        codes = (z @ w["W_enc"] + w["b_gate"] > 0) * magnitude
    else:
        a = z @ w["W_enc"] + w["b_enc"]
        codes = np.maximum(a, 0)
        if kind == "jumprelu":
            codes *= a > w["threshold"]
        if kind == "topk":
            codes *= a >= np.sort(a, axis=1)[:, [-K]]
            assert ((codes > 0).sum(axis=1) <= K).all()
    with torch.inference_mode():
        found = sae.encode(rows(50))
        np.testing.assert_allclose(found.numpy(), codes, rtol=1e-4, atol=1e-4)
        rebuilt = codes @ w["W_dec"] + w["b_dec"]
        np.testing.assert_allclose(sae.decode(found).numpy(), rebuilt, rtol=1e-3, atol=1e-3)


def changed(folder: Path, **changes: Any) -> None:
    (folder / "actlas.json").unlink()  # as SAELens's folders, which have no checksums
    path = folder / "cfg.json"
    config = json.loads(path.read_text())
    config |= changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "temporal"}, "'temporal'; this version encodes with standard, topk"),
        ({"normalize_activations": "expected_average_only_in"}, "fold it first"),
        ({"normalize_activations": "other"}, "expected one of none"),
        ({"d_sae": 95}, "does not fit cfg.json"),
        ({"d_sae": 10**9}, "cannot hold"),
        ({"d_in": "24"}, "d_in is '24'"),
        ({"d_in": True}, "d_in is True"),
        ({"d_in": -1}, "expected a whole number above 0"),
        ({"k": "absent"}, "k is None"),
        ({"k": 97}, "expected 1 to 96"),
        ({"activation_fn_kwargs": [1]}, "activation_fn_kwargs is"),
        ({"architecture": ["x"]}, "architecture is"),
        ({"normalize_activations": [1]}, "normalize_activations is"),
        ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input is 'false', expected bool"),
        ({"reshape_activations": "hook_q"}, "expected none or hook_z"),
        ({"finetuning_scaling_factor": True}, "fold it into the decoder"),
    ],
)
def test_a_configuration_that_does_not_fit(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    sae = SparseAutoencoder(D_IN, D_SAE, kind="topk", k=K)
    save_sae(sae, tmp_path / "saved", {})
    changed(tmp_path / "saved", **changes)
    with pytest.raises(SaeError, match=message):
        load_sae(tmp_path / "saved")


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(SaeError, match="no such folder"):
        load_sae(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SaeError, match=r"no cfg\.json here"):
        load_sae(tmp_path / "empty")
    folder = tmp_path / "saved"
    save_sae(SparseAutoencoder(D_IN, D_SAE, kind="relu"), folder, {})
    (folder / "actlas.json").unlink()  # as SAELens's folders, which have no checksums
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    weights, config = folder / "sae_weights.safetensors", folder / "cfg.json"
    for path, data, message in (
        (weights, whole[weights][:-100], "cannot be read"),
        (weights, b"", "cannot hold"),
        (weights, b"\xff" * len(whole[weights]), "cannot be read"),
        (config, b"[]", "expected a JSON object"),
        (config, b"{" * 100_000, "expected JSON"),
        (config, b"\x80", "expected JSON"),
    ):
        path.write_bytes(data)
        with pytest.raises(SaeError, match=message):
            load_sae(folder)
        path.write_bytes(whole[path])
    weights.unlink()
    with pytest.raises(SaeError, match=r"no sae_weights\.safetensors"):
        load_sae(folder)
    tensors = {"W_enc": torch.full((D_IN, D_SAE), torch.nan), "W_dec": torch.zeros(D_SAE, D_IN)}
    save_file(tensors | {"b_enc": torch.zeros(D_SAE), "b_dec": torch.zeros(D_IN)}, weights)
    with pytest.raises(SaeError, match="W_enc holds NaN"):
        load_sae(folder)


def test_a_saelens_config_of_before_version_6(tmp_path: Path) -> None:
    sae = SparseAutoencoder(D_IN, D_SAE, kind="topk", k=K)
    randomize(sae.named_parameters())
    save_sae(sae, tmp_path / "saved", {})
    old = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "dtype": "float32",
        "architecture": "standard",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "hook_name": "blocks.2.hook_resid_pre",
        "model_name": "gpt2",
        "normalize_activations": "none",
        "finetuning_scaling_factor": False,
    }
    (tmp_path / "saved/cfg.json").write_text(json.dumps(old))
    (tmp_path / "saved/actlas.json").unlink()
    loaded = load_sae(tmp_path / "saved")
    assert (loaded.kind, loaded.k, loaded.hookpoint) == ("topk", K, "resid_pre.2")
    assert torch.equal(loaded.encode(rows()), sae.encode(rows()))
