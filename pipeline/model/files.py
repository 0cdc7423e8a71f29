"""Files of a model: location, download, hashes and sizes.

Only ``safetensors`` weights are read: they hold tensors and no code.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from actlas.pipeline.model.filenames import CONFIG_FILE, INDEX_FILE, SINGLE_FILE
from actlas.pipeline.model.foreign import missing_weights
from actlas.store.errors import ModelError
from actlas.store.format.validation import check_line

BUILTIN_PREFIX = "builtin:"

_HASH_BLOCK_BYTES = 8 << 20

HASH_LOG_S = 5.0
"""Seconds between two lines while weights are hashed."""

_DOWNLOAD = ("*.json", "*.model", "*.txt", "*.jinja")

_NOT_DOWNLOADED = ("*/*", "consolidated*")

_SAFETENSORS_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


class Located(NamedTuple):
    """The place of a model's files on this machine.

    Attributes
    ----------
    identity : str
        A hub id or ``builtin:NAME`` as given; a local folder as an absolute path.
    folder : Path
        The folder of the files.
    revision : str or None
        The commit of a hub model; None for others.
    """

    identity: str
    folder: Path
    revision: str | None


def locate_model(
    model: str, revision: str | None, *, code: bool = False, weights: bool = True
) -> Located:
    """Find the files of a model or a tokenizer.

    Parameters
    ----------
    model : str
        A local folder, ``builtin:NAME``, or a hub id, which is downloaded where it is not cached.
    revision : str or None
        A commit, tag or branch of a hub model.
    code, weights : bool
        Whether to download the repository's own Python code, and its weights.

    Raises
    ------
    ModelError
        The folder does not exist, or the hub does not provide the model.
    ConfigError
        The name has control characters.
    """
    check_line(model, "the model")
    check_line(revision or "", "the revision")
    folder = Path(model).expanduser()
    option = "--model" if weights else "--tokenizer"
    builtin = model.startswith(BUILTIN_PREFIX)
    if (builtin or folder.is_dir()) and revision is not None:
        raise ModelError(
            f"--revision {revision} was given for {model}: only a hub model has revisions. Leave "
            "it out.",
            model=model,
        )
    if builtin:
        return Located(model, _builtin_folder(model, option), None)
    if folder.is_dir():
        check_line(str(folder.absolute()), "the model")
        return Located(str(folder.absolute()), folder.absolute(), None)
    if _looks_like_path(model):
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise ModelError(
            f"{option} {model}: {what}. Expected a folder with {CONFIG_FILE} and {SINGLE_FILE}, "
            "a hub id such as EleutherAI/pythia-70m, or builtin:NAME.",
            model=model,
        )
    folder = download(model, revision, code=code, weights=weights)
    commit = folder.name if folder.parent.name == "snapshots" else revision
    return Located(model, folder, commit)


def download(model: str, revision: str | None, *, code: bool = False, weights: bool = True) -> Path:
    """Return the local folder of a hub model, from the cache or downloaded now.

    Parameters
    ----------
    model : str
        The hub id.
    revision : str or None
        A commit, tag or branch; None for the default branch.
    code, weights : bool
        Whether to download the repository's own Python code, and its weights.

    Raises
    ------
    ModelError
        The hub cannot be reached, does not know the model or the revision, or refuses it.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [*_DOWNLOAD, *(["*.py"] if code else []), *(["*.safetensors"] if weights else [])]
    try:
        folder = snapshot_download(
            model, revision=revision, allow_patterns=patterns, ignore_patterns=list(_NOT_DOWNLOADED)
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        at = f" at revision {revision}" if revision else ""
        option = "--model" if weights else "--tokenizer"
        raise ModelError(
            f"{option} {model}{at}: no local folder has this name, and the hub provides none "
            f"(tried {constants.ENDPOINT} and the cache {constants.HF_HUB_CACHE}: {reason[0]}). "
            "Check the name; without a network, give a local folder with "
            f"{CONFIG_FILE} and {SINGLE_FILE}, or builtin:NAME; for a gated model, set HF_TOKEN.",
            model=model,
            revision=revision,
        ) from error
    return Path(folder)


def _builtin_folder(model: str, option: str = "--model") -> Path:
    from actlas.pipeline.builtin import builtin_model_path

    try:
        return Path(builtin_model_path(model.removeprefix(BUILTIN_PREFIX)))
    except ValueError as error:
        raise ModelError(
            f"{option} {model}: {error}. Expected one of these after {BUILTIN_PREFIX}, a local "
            "folder, or a hub id.",
            model=model,
        ) from error


def _looks_like_path(model: str) -> bool:
    return (
        model.startswith((".", "~", os.sep))
        or model.count("/") > 1
        or (os.sep != "/" and os.sep in model)
        or Path(model).exists()
    )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the weight files that transformers loads from a folder, sorted by name.

    Raises
    ------
    ModelError
        There are none, or only pickled ones, or one is missing or truncated.
    """
    single = folder / SINGLE_FILE
    files = (single,) if single.is_file() else _indexed_files(folder)
    for file in files:
        tensors(file)  # A truncated file is reported before anything is hashed or loaded.
    return files


def _indexed_files(folder: Path) -> tuple[Path, ...]:
    index = folder / INDEX_FILE
    if not index.is_file():
        raise missing_weights(folder)
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{index}: expected JSON with a weight_map, got {error!r}. Download the model again.",
            path=str(index),
        ) from error
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ModelError(
            f"{index}: expected the names of files next to it, got {names[:3]!r}.", path=str(index)
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise ModelError(
            f"{index} names {len(names)} weight files, of which {len(missing)} are missing "
            f"({', '.join(missing[:3])}). Download the model again.",
            path=str(index),
        )
    return tuple(folder / name for name in names)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, computed once in a process while the file does not change."""
    state = path.stat()
    return _sha256(path.absolute(), state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@lru_cache(maxsize=1024)
def _sha256(path: Path, _n_bytes: int, _changed_ns: int, _touched_ns: int) -> str:
    """Return the sha256 of a file of this size and these times, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def weights_sha256(files: Sequence[Path], log: Callable[[str], None] | None = None) -> str:
    """Return one sha256 over the names and bytes of all weight files.

    It is the sha256 of one line per file, sorted by name: the sha256 of its bytes, a space, its
    name, a line feed. Files are hashed in parallel threads.

    Parameters
    ----------
    files : sequence of Path
        The weight files.
    log : callable, optional
        Receives a line every few seconds of a long pass.
    """
    ordered = sorted(files, key=lambda path: path.name)
    workers = max(1, min(len(ordered), os.cpu_count() or 1))
    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(file_sha256, path) for path in ordered]
        while wait(running, timeout=HASH_LOG_S).not_done:
            if log is not None:
                n_done = sum(future.done() for future in running)
                n_bytes = sum(path.stat().st_size for path in ordered)
                log(
                    f"hashing the weights, {n_bytes / 1e9:.1f} GB: {n_done} of {len(ordered)} files"
                )
        digests = [future.result() for future in running]
    lines = [f"{digest} {path.name}\n" for digest, path in zip(digests, ordered, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def tensors(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the dtype and the shape of every tensor of a safetensors file, from its header.

    Parameters
    ----------
    file : Path
        The file.

    Raises
    ------
    ModelError
        The file is no safetensors file, or is truncated.
    """
    n_bytes = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (n_header,) = struct.unpack("<Q", stream.read(8))
            if n_header > n_bytes:
                raise ValueError(f"a header of {n_header} bytes in a file of {n_bytes}")
            header: dict[str, Any] = json.loads(stream.read(n_header))
        header.pop("__metadata__", None)
        end = 8 + n_header + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if end != n_bytes:
            raise ValueError(f"its header promises {end} bytes, the file has {n_bytes}")
        return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelError(
            f"{file}: expected a complete safetensors file, got {error}. Download the model again.",
            path=str(file),
        ) from error


def checkpoint_dtype(files: Sequence[Path]) -> str | None:
    """Return the dtype of most of a checkpoint's parameters; None where actlas lacks it."""
    n_of: dict[str, int] = {}
    for file in files:
        for dtype, shape in tensors(file).values():
            n_of[dtype] = n_of.get(dtype, 0) + math.prod(shape)
    widest = max(n_of, key=lambda dtype: n_of[dtype], default="")
    return _SAFETENSORS_DTYPES.get(widest)
