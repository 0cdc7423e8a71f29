"""SAELens's file format: ``cfg.json`` and ``sae_weights.safetensors``, read and written."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from actlas.analysis.sae.foreign import raise_if_foreign
from actlas.analysis.sae.model import Architecture, SparseAutoencoder, shapes
from actlas.analysis.sae.record import (
    CONFIG_FILE,
    OWN_FILE,
    WEIGHTS_FILE,
    Record,
    check_files,
    damaged,
    read_record,
    write_record,
)
from actlas.analysis.sae.saelens_config import SaeConfig, config_of, parse
from actlas.analysis.sae.tensor_file import save_tensors
from actlas.store.errors import SaeError
from actlas.store.format.sealing import too_deep
from actlas.store.objects.faults import writing
from actlas.store.version import VERSION

MAX_CONFIG_BYTES = 1 << 24

_OPTIONS = {"d_sae": "width", "architecture": "kind", "k": "k"}
"""Fields of a configuration, and the options of a training that they must equal."""

_DTYPES = ("F32", "F16", "BF16", "F64")


def load_sae(path: str | os.PathLike[str], device: str = "cpu") -> SparseAutoencoder:
    """Load a sparse autoencoder that actlas or SAELens saved. No code of the files is run.

    Parameters
    ----------
    path : path
        A folder with ``cfg.json`` and ``sae_weights.safetensors``.
    device : str
        The torch device to load it to.

    Returns
    -------
    SparseAutoencoder
        In float32, whatever dtype it was saved in.

    Raises
    ------
    SaeError
        The folder has no sparse autoencoder, its architecture is not supported, or its files are
        damaged.
    """
    folder = Path(path).expanduser().absolute()
    raise_if_foreign(folder)
    config, config_bytes = _read_config(folder)
    parsed = parse(config, folder)
    _check_file_size(folder, parsed.architecture, parsed.d_in, parsed.d_sae)
    record = read_record(folder)
    sha256 = _sha256(config_bytes, folder / WEIGHTS_FILE)
    if record is not None:
        _check_record(folder, record, sha256, parsed)
        model = record.values.get("model")
        if isinstance(model, dict) and isinstance(model.get("weights_sha256"), str):
            parsed.trained_on.setdefault("model_weights_sha256", model["weights_sha256"])
    sae = SparseAutoencoder(**parsed._asdict())
    sae.load_state_dict(_read_weights(folder, sae.architecture, sae.d_in, sae.d_sae))
    sae.sha256 = sha256
    return sae.to(device).eval()


def _check_record(folder: Path, record: Record, sha256: str, parsed: SaeConfig) -> None:
    """Check a folder that actlas saved against its record; the weights are not hashed again."""
    if record.sealed:
        if record.values.get("sae_sha256") != sha256:
            found = check_files(folder, record)
            raise found[0] if found else damaged(folder / OWN_FILE, "its sae_sha256 is another")
        return
    for error in check_files(folder, record):
        raise error
    own = record.values
    said: dict[str, Any] = {name: own[name] for name in ("hookpoint", "model_id") if name in own}
    options = own.get("options")
    if isinstance(options, dict):
        said |= {name: options[key] for name, key in _OPTIONS.items() if key in options}
    for name, value in said.items():
        got = getattr(parsed, name)
        if got != value and not (name == "k" and parsed.architecture != "topk"):
            why = f"it says {name} {got!r}, and {OWN_FILE} says {value!r}"
            raise damaged(folder / CONFIG_FILE, why)


def save_sae(
    sae: SparseAutoencoder,
    folder: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    files: Iterable[str] = (),
) -> None:
    """Save a sparse autoencoder so that actlas and SAELens load it.

    Parameters
    ----------
    sae : SparseAutoencoder
        The sparse autoencoder; its ``sha256`` is set.
    folder : path
        Created where it does not exist.
    metadata : mapping
        Plain values about the training, kept in ``actlas.json``.
    files : iterable of str
        Further files of the folder, whose SHA-256 is recorded with that of the weights.

    Raises
    ------
    RunFaultError
        The disk is full or fails; a ``PlaceError`` where the folder cannot be there at all.
    """
    to = Path(folder)
    config = config_of(sae)
    own = {"actlas_version": VERSION, "hookpoint": sae.hookpoint, "model_id": sae.model_id}
    tensors = {name: p.detach().float().cpu().contiguous() for name, p in sae.named_parameters()}
    data = (json.dumps(config, indent=1) + "\n").encode()
    with writing(to):
        to.mkdir(parents=True, exist_ok=True)
        save_tensors(tensors, to / WEIGHTS_FILE)
        (to / CONFIG_FILE).write_bytes(data)
        (to / WEIGHTS_FILE).chmod((to / CONFIG_FILE).stat().st_mode)  # safetensors: owner only
        sae.sha256 = _sha256(data, to / WEIGHTS_FILE)
        values = {**own, **metadata, "sae_sha256": sae.sha256}
        write_record(to, values, (CONFIG_FILE, WEIGHTS_FILE, *files))


def _read_config(folder: Path) -> tuple[dict[str, Any], bytes]:
    if not folder.is_dir():
        raise SaeError(
            f"{folder}: no such folder. Expected one with {CONFIG_FILE} and {WEIGHTS_FILE}, as "
            "`actlas sae train` and SAELens save it (a published one: SAE.from_pretrained(RELEASE, "
            "ID).save_inference_model(DIR)), or the name of a feature set whose encoding was "
            "started.",
            path=str(folder),
        )
    path = folder / CONFIG_FILE
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_CONFIG_BYTES:
            raise SaeError(
                f"{path}: expected a configuration, a plain file of at most "
                f"{MAX_CONFIG_BYTES >> 20} MiB.",
                path=str(path),
            )
        data = path.read_bytes()
        config = json.loads(data)
    except FileNotFoundError as error:
        raise SaeError(
            f"{folder}: no {CONFIG_FILE} here. Expected the folder of a sparse autoencoder.",
            path=str(folder),
        ) from error
    except (ValueError, RecursionError) as error:
        raise SaeError(f"{path}: expected JSON ({error}).", path=str(path)) from error
    except OSError as error:
        raise SaeError(f"{path}: cannot be read ({error.strerror}).", path=str(path)) from error
    if not isinstance(config, dict) or too_deep(config):
        raise SaeError(f"{path}: expected a JSON object that is not deeply nested.", path=str(path))
    return config, data


def _check_file_size(folder: Path, architecture: Architecture, d_in: int, d_sae: int) -> None:
    """Check that the weights' file can hold the sizes, before memory is allocated for them."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise SaeError(f"{folder}: no {WEIGHTS_FILE} here.", path=str(folder))
    least = sum(torch.Size(shape).numel() for shape in shapes(architecture, d_in, d_sae).values())
    if least > path.stat().st_size:  # less than a byte for each number
        raise SaeError(
            f"{path}: {path.stat().st_size:,} bytes cannot hold {architecture} with d_in {d_in} "
            f"and d_sae {d_sae}: {CONFIG_FILE} belongs to other weights, or this file is "
            "truncated.",
            path=str(path),
        )


def _is_idle(file: Any, name: str) -> bool:
    """Return whether a tensor is SAELens's scaling factor of 1, as its early versions saved it."""
    factor = file.get_tensor(name) if name == "scaling_factor" else torch.zeros(1)
    return bool(torch.allclose(factor.float(), torch.ones(1)))


def _read_weights(
    folder: Path, architecture: Architecture, d_in: int, d_sae: int
) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    path, expected = folder / WEIGHTS_FILE, shapes(architecture, d_in, d_sae)
    try:
        with safe_open(str(path), framework="pt") as file:
            have = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            wrong = [
                f"{name} {have.get(name, 'missing')}, expected {shape}"
                for name, shape in expected.items()
                if have.get(name) != shape
            ]
            wrong += [
                f"{name} {have[name]}, which no {architecture} has"
                for name in sorted(have.keys() - expected.keys())
                if not _is_idle(file, name)
            ]
            if wrong:
                raise SaeError(
                    f"{path}: does not fit {CONFIG_FILE}: {'; '.join(wrong)}.", path=str(path)
                )
            weights = {}
            for name in expected:
                if (dtype := file.get_slice(name).get_dtype()) not in _DTYPES:
                    raise SaeError(
                        f"{path}: {name} has dtype {dtype}, expected {', '.join(_DTYPES)}.",
                        path=str(path),
                    )
                weights[name] = file.get_tensor(name).float()
    except (SafetensorError, OSError) as error:
        raise SaeError(f"{path}: cannot be read ({error}).", path=str(path)) from error
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise SaeError(f"{path}: {name} holds NaN or infinity.", path=str(path), field=name)
    return weights


def _sha256(config: bytes, weights: Path) -> str:
    """Return the sha256 over both files, each preceded by its size."""
    digest = hashlib.sha256(len(config).to_bytes(8, "little") + config)
    digest.update(weights.stat().st_size.to_bytes(8, "little"))
    with weights.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
