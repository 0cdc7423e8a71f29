"""What holds for one architecture: its residual stream, and the sequences that may share a pass.

The oracle is transformers: its own ``output_hidden_states`` on each sequence alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from actlas.pipeline.forward.batching import Batching, InputSequence, assemble, pack
from actlas.pipeline.forward.capture import Capture
from actlas.pipeline.forward.checks.batch_invariance import decide_batching
from actlas.pipeline.forward.checks.samples import Samples, image_samples, samples_for
from actlas.pipeline.forward.invariants import check_causal, probe_ids
from actlas.pipeline.hookpoints.names import resolve_in, survey
from actlas.pipeline.hookpoints.shapes import observe
from actlas.pipeline.model.config import (
    build_skeleton,
    is_causal,
    modality_of,
    quiet,
)
from actlas.pipeline.model.windows import context_length_of
from actlas.store.errors import ActlasError, HookpointError
from actlas.store.format.layout import Sequence as Span
from actlas.store.format.schema import HookpointSpec, ModelSpec
from support.tiny_models import architecture_for, tiny_model

BUDGET = 256
LENGTHS = (13, 1, 7, 4, 20, 7, 3, 31, 7)
"""Other lengths than those that a model is tested with, several of them equal."""

BOUND = 1e-4  # of the layer's largest magnitude, in float32: the contract's


AFTER_BLOCKS_ALONE = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv"})
"""Model types of which ``hidden_states`` begins after the first block, and not before it."""


class Row(NamedTuple):
    """A line of the table."""

    model_type: str
    reads: str
    stream: str
    """``hidden_states`` where every ``resid_post.L`` is transformers' own, else why not."""
    batching: str
    """``padded``, ``equal``, ``single``, or ``refused``."""
    why: str = ""


class WrongError(AssertionError):
    """Rows that were accepted are not transformers' own."""


def examine(model_type: str) -> Row:
    """Build a tiny model, decide what holds, and compare with transformers what was accepted."""
    model, architecture = tiny_model(model_type), architecture_for(model_type)
    config = model.config
    for part in (config, config.get_text_config()):  # as a worker loads it
        if hasattr(part, "use_cache"):
            part.use_cache = False
    reads = modality_of(config)
    skeleton = build_skeleton(config, architecture)
    known = survey(skeleton)
    stream = "hidden_states"
    try:
        hookpoints = resolve_in(known, skeleton, ["resid_post.*"])
    except HookpointError as error:
        stream = str(error).partition(". Hookpoints are")[0]
        hookpoints = _deepest(known.traced, skeleton)
    if reads == "image" and "pixel_values" not in known.traced.probe.arrays:
        return Row(model_type, reads, stream, "refused", "it reads no pixel_values")
    if not hookpoints:
        why = f"{known.traced.failure!r}" if known.traced.failure else stream
        return Row(model_type, reads, stream, "refused", why)
    causal = reads != "image" and is_causal(config, architecture)
    context = context_length_of(config.get_text_config(), skeleton) or 64
    spec = ModelSpec(
        id="-",
        revision=None,
        architecture=architecture,
        weights_sha256="-",
        config_sha256="-",
        d_model=1,
        n_layers=1,
        context_length=context,
        causal=causal,
        compute_dtype="float32",
        modality="text" if reads == "mixed" else reads,
    )
    longest = min(context, 48)
    try:
        with quiet():
            if reads == "image":
                samples = _images(known.traced, hookpoints)
            else:
                samples = samples_for(model, spec, longest, BUDGET, pad_id=pad_id(config))
            batching, why = decide_batching(model, hookpoints, samples, "cpu")
            if causal:
                check_causal(model, hookpoints)
    except ActlasError as error:
        return Row(model_type, reads, stream, "refused", str(error))
    with quiet():
        if reads == "image":
            _check_images(model, hookpoints, samples, batching, named=stream == "hidden_states")
        else:
            stream = _check_texts(
                model, hookpoints, batching, longest, stream, causal=causal, pad=pad_id(config)
            )
    return Row(model_type, reads, stream, batching, why)


def pad_id(config: Any) -> int:
    pad = getattr(config.get_text_config(), "pad_token_id", None)
    return pad if isinstance(pad, int) and pad >= 0 else 0


def _deepest(traced: Any, model: Any) -> tuple[HookpointSpec, ...]:
    """The last module with one vector per position."""
    for call in sorted(traced.calls, key=lambda call: -call.left):
        try:
            [seen] = observe(traced, [("h", call.path, "output")]).values()
        except HookpointError:
            continue
        if call.path:
            path = call.path
            return (
                HookpointSpec(
                    name=path, module=path, side="output", width=seen.width, layout=seen.layout
                ),
            )
    return ()


def _images(traced: Any, hookpoints: Sequence[HookpointSpec]) -> Samples:
    last = hookpoints[-1]
    [seen] = observe(traced, [("h", last.module, last.side)]).values()
    shape = (3, *traced.probe.arrays["pixel_values"].shape[1:])
    pixels = np.random.default_rng(1).standard_normal(shape, np.float32)
    return image_samples(pixels, seen.n_positions)


def _check_images(
    model: Any,
    hookpoints: Sequence[HookpointSpec],
    samples: Samples,
    batching: Batching,
    *,
    named: bool,
) -> None:
    groups = [[0], [1], [2]] if batching == "single" else [[2, 0, 1]]
    rows: dict[int, dict[str, torch.Tensor]] = {}
    with torch.no_grad(), Capture(model, hookpoints) as capture:
        for group in groups:
            inputs = samples.make(group)
            given = {name: torch.from_numpy(array) for name, array in inputs.arrays.items()}
            found = capture(**given, shape=inputs.shape)
            for place, number in enumerate(group):
                rows[number] = {name: tensor[place] for name, tensor in found.items()}
    for number, found in rows.items():
        pixels = torch.from_numpy(samples.make([number]).arrays["pixel_values"])
        hidden = _hidden(model, {"pixel_values": pixels}) if named else None
        truth = _truth(model, hidden, hookpoints, {k: v.numpy() for k, v in found.items()})
        _compare({k: v.numpy() for k, v in found.items()}, truth, f"image {number}")


def _hidden(model: Any, given: dict[str, torch.Tensor]) -> Any:
    with torch.no_grad():
        return getattr(model(**given, output_hidden_states=True), "hidden_states", None)


def _truth(
    model: Any, hidden: Any, hookpoints: Sequence[HookpointSpec], found: dict[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """The hidden states after each block but the last, which may be after the final norm."""
    if not isinstance(hidden, tuple) or len(hidden) != len(hookpoints) + 1:
        return {}
    states = [state[0].numpy() for state in hidden if isinstance(state, torch.Tensor)]
    rows = [_rows(state, found[hookpoints[0].name].shape) for state in states]
    shift = 0 if model.config.model_type in AFTER_BLOCKS_ALONE else 1
    return {h.name: rows[layer + shift] for layer, h in enumerate(hookpoints[:-1])}


def _rows(state: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """A map [unit, row, column] or [row, column, unit] as rows of units."""
    if state.ndim != 3:
        return state
    last = state.reshape(-1, state.shape[-1])
    return last if last.shape == shape else state.reshape(state.shape[0], -1).T


def _compare(found: dict[str, NDArray[Any]], truth: dict[str, NDArray[Any]], what: str) -> None:
    for name, expected in truth.items():
        if found[name].shape != expected.shape:
            raise WrongError(f"{what}: {name} has {found[name].shape}, expected {expected.shape}")
        off = np.abs(found[name] - expected).max() / max(np.abs(expected).max(), 1e-30)
        if not off < BOUND:
            raise WrongError(f"{what}: {name} is off by {off:.2g} of the largest magnitude")


def _check_texts(
    model: Any,
    hookpoints: Sequence[HookpointSpec],
    batching: Batching,
    longest: int,
    stream: str,
    *,
    causal: bool,
    pad: int,
) -> str:
    own: dict[int, dict[str, NDArray[Any]]] = {}
    texts: list[NDArray[np.int64]] = []
    tokens = np.random.default_rng(5).permutation(probe_ids(model, sum(LENGTHS)))
    with torch.no_grad(), Capture(model, hookpoints) as capture:
        for text in np.split(tokens, list(itertools.accumulate(LENGTHS))[:-1]):
            try:
                rows = capture(torch.from_numpy(text[:longest])[None])
            except RuntimeError:
                continue  # some models run no sequence of a few tokens
            own[len(texts)] = {name: tensor[0].numpy().copy() for name, tensor in rows.items()}
            texts.append(text[:longest])
        found = _batched(capture, texts, batching, causal=causal, pad=pad)
    compared = 0
    for i, text in enumerate(texts):
        _compare(found[i], own[i], f"{len(text)} tokens")
        if stream == "hidden_states":
            hidden = _hidden(model, {"input_ids": torch.from_numpy(text)[None]})
            truth = _truth(model, hidden, hookpoints, own[i])
            compared += len(truth)
            _compare(found[i], truth, f"{len(text)} tokens, hidden_states")
    return stream if compared or stream != "hidden_states" else "no hidden_states to compare with"


def _batched(
    capture: Capture,
    texts: Sequence[NDArray[np.int64]],
    batching: Batching,
    *,
    causal: bool,
    pad: int,
) -> dict[int, dict[str, NDArray[Any]]]:
    """The rows of texts, in the batches of a run."""
    edges = [0, *itertools.accumulate(map(len, texts))]
    spans = [Span(i, a, b, a, b) for i, (a, b) in enumerate(itertools.pairwise(edges))]
    tokens = np.concatenate(texts).astype(np.int32)
    found: dict[int, dict[str, NDArray[Any]]] = {}
    for batch in pack([InputSequence(s, 0, 0) for s in spans], 100, batching=batching):
        inputs = assemble(batch, tokens, 0, prefix_ids=(), suffix_ids=(), pad_id=pad, causal=causal)
        given: dict[str, Any] = {
            name: torch.from_numpy(array) for name, array in inputs.arrays.items()
        }
        for name, rows in capture(**given, shape=inputs.shape).items():
            for place, each in enumerate(batch.sequences):
                at = found.setdefault(each.content.doc_idx, {})
                at[name] = rows[place, : each.length].numpy().copy()
    return found
