"""An unfinished training on disk: one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from actlas.store.errors import ConfigError, CorruptDataError, run_fault

STATE_FILE = "checkpoint.safetensors"

FORMAT = "actlas.sae.training.1"

FREE = frozenset({"checkpoint_every", "device", "threads"})
"""Options that may differ when a training goes on."""


class Saved(NamedTuple):
    """A training that was stopped.

    Attributes
    ----------
    tensors : dict of str to Tensor
        As :meth:`~actlas.analysis.sae.train.step.Trainer.state` gives them.
    state : dict
        ``options``, ``step``, ``tokens``, ``batches``, ``points``, ``seconds``.
    """

    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


def save_state(folder: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Write a checkpoint over the one before; a crash leaves the one or the other.

    Raises
    ------
    RunFaultError
        The disk is full or fails.
    """
    from safetensors.torch import save_file

    final, part = folder / STATE_FILE, folder / f".{STATE_FILE}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, part, metadata={"format": FORMAT, "state": json.dumps(state)})
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(final)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        fault = run_fault(error, str(final))
        if fault is None:
            raise
        raise fault from error


def read_state(folder: Path) -> Saved | None:
    """Return the checkpoint in a folder, None where there is none.

    Raises
    ------
    CorruptDataError
        It is damaged.
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
        state = json.loads(metadata["state"])
        missing = {"options", "step", "tokens", "batches", "points", "seconds"} - set(state)
        if missing:
            raise ValueError(f"{', '.join(sorted(missing))} missing")
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CorruptDataError(
            f"{path}: this checkpoint is damaged ({error}). Remove it, or give another --out, and "
            "train anew.",
            path=str(path),
        ) from error
    return Saved(tensors, state)


def require_same(
    folder: Path, got: dict[str, Any], saved: dict[str, Any], what: str = "an unfinished"
) -> None:
    """Raise ``ConfigError`` where a folder's training has other options than those asked for."""
    for field in sorted((got.keys() | saved.keys()) - FREE):
        if got.get(field) != saved.get(field):
            raise ConfigError(
                f"{folder} holds {what} training with {field} {saved.get(field)!r}, asked for is "
                f"{got.get(field)!r}. Give the same options, or another --out.",
                field=field,
                got=got.get(field),
                expected=saved.get(field),
            )
