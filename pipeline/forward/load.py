"""Loading the model of a plan: only the reached blocks, over several devices, or untrained."""

from __future__ import annotations

import logging
import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actlas.pipeline.hookpoints.reached import unreached
from actlas.pipeline.model.config import (
    auto_class,
    build_skeleton,
    loading,
)
from actlas.pipeline.model.describe import find_model, load_config
from actlas.pipeline.model.filenames import CONFIG_FILE
from actlas.pipeline.model.untrained import fresh_model, state_sha256
from actlas.pipeline.options import RunOptions
from actlas.store.errors import ConfigError, ModelError
from actlas.store.format.schema import HookpointSpec, ModelSpec
from actlas.store.objects.faults import writing
from actlas.store.objects.leftovers import new_folder

if TYPE_CHECKING:
    from torch import nn


def require_code_consent(spec: ModelSpec, run: RunOptions) -> None:
    """Check that the run itself allows the code of a plan's model.

    Parameters
    ----------
    spec : ModelSpec
        The plan's model.
    run : RunOptions
        ``allow_remote_code`` is read.

    Raises
    ------
    ConfigError
        The plan has ``trust_remote_code`` set, and the run does not allow it.
    """
    if spec.trust_remote_code and not run.allow_remote_code:
        raise ConfigError(
            f"this store was planned with --trust-remote-code: Python code that comes with "
            f"{spec.id} would run here, with your rights. Read that code; if you trust it, run the "
            "same command with --allow-remote-code.",
            field="allow_remote_code",
        )


def load_model(
    spec: ModelSpec,
    path_or_id: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    *,
    hookpoints: Sequence[HookpointSpec] = (),
    run: RunOptions | None = None,
    skeleton: nn.Module | None = None,
) -> nn.Module:
    """Load the model of a plan; files of any other model are refused.

    Parameters
    ----------
    spec : ModelSpec
        The plan's model.
    path_or_id : str, optional
        A folder or hub id to load from. Default: the plan's own id.
    device : str
        ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    dtype : str, optional
        The compute dtype. Default: the plan's.
    hookpoints : sequence of HookpointSpec, optional
        The hookpoints that will be read: blocks after the deepest of them are not loaded and stay
        on the meta device. Default: the whole model is loaded.
    run : RunOptions, optional
        ``device_map``, ``max_device_bytes`` and ``offload_folder`` are read.
    skeleton : torch.nn.Module, optional
        The model on the meta device; it is built where it is needed and not given.

    Returns
    -------
    torch.nn.Module
        In evaluation mode, without a key-value cache.

    Raises
    ------
    ModelError
        The files differ from the plan's (``details['field']`` names the field), lack weights, or
        cannot be loaded.
    ConfigError
        A device map is given for an untrained model.
    """
    import torch

    folder = find_model(spec, path_or_id)
    config = load_config(folder, trust_remote_code=spec.trust_remote_code)
    numbers: torch.dtype = getattr(torch, dtype or spec.compute_dtype)
    spread = run is not None and run.device_map is not None
    if spec.untrained_seed is not None:
        return _finished(_untrained(spec, config, spread).to(numbers), device)
    if skeleton is None and (hookpoints or spread):
        code = spec.trust_remote_code
        skeleton = build_skeleton(config, spec.architecture, trust_remote_code=code)
    left_out: tuple[str, ...] = ()
    if skeleton is not None and hookpoints:
        left_out = unreached(skeleton, hookpoints, mixed=spec.modality == "mixed")
    where: dict[str, Any] | None = None
    if spread and run is not None and skeleton is not None:
        where = _device_map(skeleton, _spread(skeleton, run, numbers), left_out)
    elif left_out and skeleton is not None:
        where = _device_map(skeleton, {"": device}, left_out)
    more: dict[str, Any] = {}
    temporary: Path | None = None
    if where is not None:
        users = run.offload_folder if spread and run is not None else None
        temporary = new_folder("offload") if users is None else None
        more = {"device_map": where, "offload_folder": str(temporary or _made(users))}
    try:
        with loading("weights", str(folder)), _without_offload_warnings():
            model, report = auto_class(spec.architecture).from_pretrained(
                str(folder),
                config=config,
                dtype=numbers,
                use_safetensors=True,
                trust_remote_code=spec.trust_remote_code,
                output_loading_info=True,
                **more,
            )
    finally:
        if temporary is not None:
            with suppress(OSError):  # not empty: accelerate reads weights from it
                temporary.rmdir()
    _check_complete(report, folder)
    if temporary is not None:
        weakref.finalize(model, shutil.rmtree, temporary, ignore_errors=True)
    if left_out and not spread:
        from accelerate.hooks import remove_hook_from_module

        remove_hook_from_module(model, recurse=True)  # all loaded modules are on one device
    return _finished(model, None if where is not None else device)


def _finished(model: Any, device: str | None) -> nn.Module:
    for part in (model.config, model.config.get_text_config()):
        if hasattr(part, "use_cache"):
            part.use_cache = False
    finished: nn.Module = model.eval()
    return finished if device is None else finished.to(device)


def _untrained(spec: ModelSpec, config: Any, spread: bool) -> nn.Module:
    assert spec.untrained_seed is not None
    if spread:
        raise ConfigError(
            "--device-map is for weights in files, and the weights of an untrained model are "
            "initialized in memory. Leave the option out.",
            field="device_map",
        )
    model = fresh_model(
        config, spec.architecture, spec.untrained_seed, trust_remote_code=spec.trust_remote_code
    )
    found = state_sha256(model)
    if found != spec.weights_sha256:
        raise ModelError(
            f"The initial weights of seed {spec.untrained_seed} differ from the plan's: their "
            f"sha256 is {found[:16]}…, expected {spec.weights_sha256[:16]}…. They depend on the "
            "versions of torch and transformers: use the versions that the plan was made with.",
            field="model.weights_sha256",
            found=found,
            expected=spec.weights_sha256,
        )
    return model


def _device_map(
    skeleton: nn.Module, spread: Mapping[str, Any], left_out: Sequence[str]
) -> dict[str, Any]:
    """Return the device of each part of a model, in the largest parts that share a device.

    Parameters
    ----------
    skeleton : torch.nn.Module
        The model on the meta device.
    spread : mapping of str to device
        Devices by module path, ``""`` for the whole model; the paths cover all of the model.
    left_out : sequence of str
        Paths of modules that are not loaded; they get the device "disk".
    """
    where: dict[str, Any] = {}
    cut = (*spread, *left_out)

    def place(path: str, module: nn.Module, device: Any) -> None:
        prefix = f"{path}." if path else ""
        device = "disk" if path in left_out else spread.get(path, device)
        if not any(other != path and other.startswith(prefix) for other in cut):
            where[path] = device
            return
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        where.update((f"{prefix}{name}", spread.get(f"{prefix}{name}", device)) for name, _ in own)
        for name, child in module.named_children():
            place(f"{prefix}{name}", child, device)

    place("", skeleton, None)
    return where


def _spread(skeleton: nn.Module, run: RunOptions, dtype: Any) -> dict[str, Any]:
    """Return the devices by module path, as accelerate distributes a model."""
    import torch
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    limits: dict[int | str, int] | None = None
    if run.max_device_bytes is not None:
        gpus = range(torch.cuda.device_count())
        limits = dict.fromkeys(gpus, run.max_device_bytes) or {"cpu": run.max_device_bytes}
        if gpus:
            from actlas.pipeline.model.host import free_host_bytes

            limits["cpu"] = free_host_bytes() or 0
    whole = list(getattr(skeleton, "_no_split_modules", None) or [])
    if run.device_map in ("auto", "balanced"):
        limits = get_balanced_memory(skeleton, limits, no_split_module_classes=whole, dtype=dtype)
    found: Mapping[str, Any] = infer_auto_device_map(
        skeleton, limits, no_split_module_classes=whole, dtype=dtype
    )
    return dict(found)


def _made(folder: str | None) -> Path:
    """Return the user's folder for weights that fit no device; it is created if it is absent."""
    assert folder is not None
    made = Path(folder)
    with writing(made):
        made.mkdir(parents=True, exist_ok=True)
    return made


@contextmanager
def _without_offload_warnings() -> Iterator[None]:
    """Silence accelerate's warnings about offloading, which is intended."""
    logger = logging.getLogger("accelerate.big_modeling")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_complete(report: dict[str, Any], folder: Path) -> None:
    """Check that a checkpoint had all weights: transformers initializes missing ones randomly."""
    # A pooler on top of the last block is often left out of a checkpoint; no hookpoint reads it.
    missing = sorted(key for key in report["missing_keys"] if "pooler." not in key)
    mismatched = sorted(str(key) for key in report["mismatched_keys"])
    if missing or mismatched:
        raise ModelError(
            f"{folder}: the weight files lack {len(missing)} parameters ({', '.join(missing[:3])}) "
            f"and have {len(mismatched)} of another shape ({', '.join(mismatched[:3])}). "
            f"Download the model again, or check that {CONFIG_FILE} belongs to these weights.",
            path=str(folder),
        )
