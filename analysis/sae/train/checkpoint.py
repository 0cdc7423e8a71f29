"""Checkpoints of a training: one safetensors file with its own checksum, replaced atomically."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash

from actlas.analysis.sae.record import CHECKPOINT_FILE
from actlas.analysis.sae.tensor_file import save_tensors
from actlas.analysis.sae.train.options import name_of
from actlas.store.errors import ConfigError, CorruptDataError
from actlas.store.objects import leftovers
from actlas.store.objects.faults import writing

STATE_FILE = CHECKPOINT_FILE

FORMAT = "actlas.sae.training.1"

FREE = frozenset({"checkpoint_every", "device", "threads"})
"""Options that may change when a training is resumed."""


class Saved(NamedTuple):
    """A saved checkpoint.

    Attributes
    ----------
    tensors : dict of str to Tensor
        The result of :meth:`~actlas.analysis.sae.train.trainer.Trainer.state`.
    state : dict
        The rest as plain values: ``options``, ``step``, ``tokens``, ``batches``, ``points``,
        ``seconds``.
    """

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


def save_state(folder: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Replace the checkpoint in a folder; after a crash the old or the new one is there, whole.

    Parameters
    ----------
    folder : Path
        Created where it does not exist.
    tensors : dict of str to Tensor
        Tensors of the training.
    state : dict
        Plain values for JSON.

    Raises
    ------
    RunFaultError
        The disk is full or fails; a ``PlaceError`` where the folder cannot be there at all.
    """
    with writing(folder / STATE_FILE):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(state)
        metadata = {"format": FORMAT, "state": text, "xxh3": content_digest(tensors, text)}
        save_tensors(tensors, folder / STATE_FILE, metadata)
        (folder / f".{STATE_FILE}.part").unlink(missing_ok=True)  # of a killed earlier version


def try_folder(folder: Path) -> None:
    """Create the folder of a training, and try whether files can be written there, before the work.

    Parameters
    ----------
    folder : Path
        The folder of a training.

    Raises
    ------
    RunFaultError
        They cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        leftovers.sweep(folder / STATE_FILE)
        tried = leftovers.beside(folder / STATE_FILE)
        tried.mkdir()
        leftovers.remove(tried)


def is_leftover(path: Path) -> bool:
    """Return whether a path is what a run leaves that is killed while it saves a checkpoint."""
    if leftovers.is_temporary(path.name, path.with_name(STATE_FILE)):
        return True
    # Of earlier versions, and of safetensors for them.
    return path.name == f".{STATE_FILE}.part" or re.fullmatch(r"\.tmp\w{6}", path.name) is not None


def content_digest(tensors: dict[str, torch.Tensor], state: str) -> str:
    """Return the XXH3 (128 bits, hexadecimal) of a checkpoint's tensors and state.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Tensors on the CPU; name, dtype, shape and values of each count.
    state : str
        The rest, as JSON.
    """
    digest = xxhash.xxh3_128(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_state(folder: Path) -> Saved | None:
    """Return the checkpoint in a folder, or None where none exists.

    Parameters
    ----------
    folder : Path
        The folder of a training.

    Raises
    ------
    CorruptDataError
        The checkpoint is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != FORMAT:
            raise ValueError(f"format {metadata.get('format')!r}, expected {FORMAT!r}")
        _check_content(tensors, metadata)
        state = json.loads(metadata["state"])
        missing = {"options", "step", "tokens", "batches", "points", "seconds"} - set(state)
        if missing:
            raise ValueError(f"{', '.join(sorted(missing))} missing")
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptDataError(
            f"{path}: this checkpoint is damaged ({error}). Remove it and train "
            "again, or give another --out.",
            path=str(path),
        ) from error
    return Saved(tensors, state)


def _check_content(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Raise ``ValueError`` where a checkpoint is not as it was written.

    Those of earlier versions have no checksum: they are read as before.
    """
    if metadata.keys() == {"format", "state"}:
        return
    if metadata.keys() != {"format", "state", "xxh3"}:
        raise ValueError(f"metadata {', '.join(sorted(metadata))}")
    found = content_digest(tensors, metadata["state"])
    if found != metadata["xxh3"]:
        raise ValueError(f"XXH3 {found}, and it says {metadata['xxh3']}")


def require_same(
    folder: Path, got: dict[str, Any], saved: dict[str, Any], what: str = "an unfinished"
) -> None:
    """Check that the training in a folder has the options that are given now.

    Parameters
    ----------
    folder : Path
        The folder of the training.
    got, saved : dict
        The options given now, and those of the training, by their saved names.
    what : str
        "an unfinished" or "a finished", for the message.

    Raises
    ------
    ConfigError
        An option differs; ``details["field"]`` names it.
    """
    for field in sorted((got.keys() | saved.keys()) - FREE):
        if got.get(field) != saved.get(field):
            raise ConfigError(
                f"{folder} holds {what} training with {name_of(field)} {saved.get(field)!r}, got "
                f"{got.get(field)!r}. Give the same options, or another --out.",
                field=name_of(field),
                got=got.get(field),
                expected=saved.get(field),
            )
