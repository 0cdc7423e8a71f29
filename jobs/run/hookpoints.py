"""Hookpoints of a model, found from its configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from actlas.jobs.run.reports.contents import (
    HookpointEntry,
    HookpointsReport,
    ModuleEntry,
    PatternMatch,
)
from actlas.store.format.dtypes import numpy_dtype

if TYPE_CHECKING:
    from torch import nn

    from actlas.pipeline.hookpoints.names import Survey
    from actlas.store.format.schema import HookpointSpec


def hookpoints_of(
    model: str,
    patterns: Sequence[str] = (),
    *,
    dtype: str = "bfloat16",
    revision: str | None = None,
    trust_remote_code: bool = False,
    modules: bool = False,
) -> HookpointsReport:
    """Return the hookpoints of a model; its weights are not read.

    Parameters
    ----------
    model : str
        A hub id, a local folder, or ``builtin:NAME``.
    patterns : sequence of str
        Patterns as a plan takes them; none for all named hookpoints.
    dtype : str
        Data type of a store, which the byte counts assume.
    revision : str, optional
        Revision of a hub model: a commit, tag or branch.
    trust_remote_code : bool
        Execute Python code shipped with the model.
    modules : bool
        Whether to list the modules that give one vector per position as well.

    Raises
    ------
    ModelError
        The model cannot be found or built.
    HookpointError
        A pattern matches nothing, or a module that cannot be stored.
    """
    from actlas.pipeline.hookpoints.names import resolve_in, specs, survey
    from actlas.pipeline.model.config import architecture_of, build_skeleton
    from actlas.pipeline.model.describe import load_config
    from actlas.pipeline.model.files import locate_model

    located = locate_model(model, revision, code=trust_remote_code, weights=False)
    config = load_config(located.folder, trust_remote_code=trust_remote_code)
    architecture = architecture_of(config)
    skeleton = build_skeleton(config, architecture, trust_remote_code=trust_remote_code)
    known = survey(skeleton)
    n_bytes = numpy_dtype(dtype).itemsize
    matches = [_match(p, resolve_in(known, skeleton, [p]), n_bytes) for p in patterns]
    chosen = resolve_in(known, skeleton, patterns) if patterns else specs(known, known.named)
    return HookpointsReport(
        model=located.identity,
        revision=located.revision,
        architecture=architecture,
        reads=known.traced.probe.what,
        blocks=known.blocks or None,
        n_layers=known.n_layers,
        dtype=dtype,
        patterns=matches,
        hookpoints=[_entry(known, hookpoint, n_bytes) for hookpoint in chosen],
        bytes_per_token=sum(hookpoint.width for hookpoint in chosen) * n_bytes,
        absent=dict(known.absent),
        modules=_modules(known, skeleton) if modules else None,
    )


def _match(pattern: str, found: Sequence[HookpointSpec], n_bytes: int) -> PatternMatch:
    return PatternMatch(
        pattern=pattern,
        hookpoints=[hookpoint.name for hookpoint in found],
        bytes_per_token=sum(hookpoint.width for hookpoint in found) * n_bytes,
    )


def _entry(known: Survey, hookpoint: HookpointSpec, n_bytes: int) -> HookpointEntry:
    from actlas.pipeline.hookpoints.shapes import observe

    seen = observe(known.traced, [(hookpoint.name, hookpoint.module, hookpoint.side)])
    images = known.traced.probe.shape[1] is None
    return HookpointEntry(
        **hookpoint.model_dump(),
        positions=seen[hookpoint.name].n_positions if images else None,
        bytes_per_token=hookpoint.width * n_bytes,
    )


def _modules(known: Survey, model: nn.Module) -> list[ModuleEntry]:
    """Return the modules that run once and give one vector per position."""
    from actlas.pipeline.hookpoints.shapes import measure

    found = []
    for path, _ in model.named_modules():
        calls = known.traced.of(path)
        seen = measure(known.traced, calls[0].gave_shape) if len(calls) == 1 and path else None
        if seen is not None:
            found.append(ModuleEntry(module=path, width=seen.width, positions=seen.n_positions))
    return found
