"""SAELens's file format: ``cfg.json`` and ``sae_weights.safetensors``, read and written."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from actlas.analysis.sae.model import Architecture, SparseAutoencoder, shapes
from actlas.analysis.sae.saelens_config import CONFIG_FILE, config_of, parse
from actlas.analysis.sae.tensor_file import save_tensors
from actlas.store.errors import SaeError
from actlas.store.format.sealing import too_deep
from actlas.store.objects.faults import writing
from actlas.store.version import VERSION

WEIGHTS_FILE = "sae_weights.safetensors"

OWN_FILE = "actlas.json"

MAX_CONFIG_BYTES = 1 << 24

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
    config, config_bytes = _read_config(folder)
    parsed = parse(config, folder)
    _check_file_size(folder, parsed.architecture, parsed.d_in, parsed.d_sae)
    sae = SparseAutoencoder(**parsed._asdict())
    weights = _read_weights(folder, shapes(sae.architecture, sae.d_in, sae.d_sae))
    sae.load_state_dict(weights)
    sae.sha256 = _sha256(config_bytes, folder / WEIGHTS_FILE)
    return sae.to(device).eval()


def save_sae(
    sae: SparseAutoencoder, folder: str | os.PathLike[str], metadata: Mapping[str, Any]
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
        (to / OWN_FILE).write_text(json.dumps({**own, **metadata}, indent=1) + "\n")
    sae.sha256 = _sha256(data, to / WEIGHTS_FILE)


def _read_config(folder: Path) -> tuple[dict[str, Any], bytes]:
    if not folder.is_dir():
        raise SaeError(
            f"{folder}: no such folder. Expected one with {CONFIG_FILE} and {WEIGHTS_FILE}, as "
            "`actlas sae train` and SAELens save it, or the name of a feature set whose encoding "
            "was started.",
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


def _read_weights(folder: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS_FILE
    try:
        with safe_open(str(path), framework="pt") as file:
            have = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            wrong = [
                f"{name} {have.get(name, 'missing')}, expected {shape}"
                for name, shape in expected.items()
                if have.get(name) != shape
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
