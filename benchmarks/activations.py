"""Rows to store: real activations of the embedded model, or synthetic ones without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from benchmarks import corpus

WINDOW = 256


def write_rows(path: str, n_rows: int, width: int) -> str:
    """Write raw bfloat16 rows [n_rows, width] in random order, and return their origin.

    The rows are the residual stream after every block of ``builtin:actlas-6m``, concatenated token
    by token and cut into rows of ``width``: 768 is three blocks of 256 units.
    """
    try:
        rows, origin = (
            _real(n_rows, width),
            "residual streams of builtin:actlas-6m, blocks side by side",
        )
    except (ImportError, FileNotFoundError):
        rows, origin = _synthetic(n_rows, width), "synthetic rows: normal, six outlier channels"
    order = np.random.default_rng(0).permutation(n_rows)
    rows = np.take(rows, order, axis=0)
    Path(path).write_bytes(rows.reshape(-1).view(np.uint8).data)
    return origin


def _real(n_rows: int, width: int) -> NDArray[Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from actlas.pipeline.builtin import builtin_model_path
    from actlas.pipeline.forward.capture import Capture
    from actlas.pipeline.hookpoints.names import resolve

    folder = str(builtin_model_path("actlas-6m"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model.eval()
    hookpoints = resolve(model, ["resid_post.*"])
    per_token = sum(hookpoint.width for hookpoint in hookpoints)
    n_windows = -(-n_rows * width // (per_token * WINDOW))
    windows = torch.from_numpy(corpus.token_windows(tokenizer, n_windows, WINDOW))
    parts = []
    with torch.inference_mode(), Capture(model, hookpoints) as capture:
        for batch in torch.split(windows, 32):
            found = torch.cat(list(capture(batch).values()), dim=-1).to(torch.bfloat16)
            parts.append(found.view(torch.int16).numpy().reshape(-1))
    flat: NDArray[Any] = np.concatenate(parts)[: n_rows * width].view(ml_dtypes.bfloat16)
    return flat.reshape(n_rows, width)


def _synthetic(n_rows: int, width: int) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    scale = rng.lognormal(0, 0.5, width).astype(np.float32)
    scale[rng.choice(width, 6, replace=False)] *= 30
    rows = rng.standard_normal((n_rows, width), dtype=np.float32) * scale
    rows *= rng.lognormal(0, 0.3, (n_rows, 1)).astype(np.float32)
    return rows.astype(ml_dtypes.bfloat16)
