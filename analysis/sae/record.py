"""``actlas.json``: the record of a folder that actlas trained, with the SHA-256 of its files.

The record is JSON whose last field, ``sha256``, is over all that precedes it. It is written last.
Folders of earlier versions have a record without that field: it holds the SHA-256 of the weights
alone, and the configuration is compared with the options that it names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from actlas.store.errors import SaeError
from actlas.store.format.sealing import too_deep

CONFIG_FILE = "cfg.json"

WEIGHTS_FILE = "sae_weights.safetensors"

OWN_FILE = "actlas.json"

CHECKPOINT_FILE = "checkpoint.safetensors"
"""The checkpoint of a training, which is removed when the training has finished."""

MAX_RECORD_BYTES = 1 << 24

READ_BYTES = 1 << 20

_TAIL = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n\}\n\Z')


class Record(NamedTuple):
    """The record of a folder.

    Attributes
    ----------
    values : dict
        All fields.
    sha256 : dict of str to str
        The SHA-256 of each file of the folder that has one, by name.
    sealed : bool
        Whether the record ends with its own SHA-256; those of earlier versions do not.
    """

    values: dict[str, Any]
    sha256: dict[str, str]
    sealed: bool


def write_record(folder: Path, values: Mapping[str, Any], names: Iterable[str]) -> None:
    """Write the record of a folder, with the size and the SHA-256 of files in it.

    Parameters
    ----------
    folder : Path
        The folder, whose files are complete.
    values : mapping
        Plain values for JSON.
    names : iterable of str
        The files to record; the weights are among them.
    """
    files = {}
    for name in names:
        n_bytes, digest = file_sha256(folder / name)
        files[name] = {"n_bytes": n_bytes, "sha256": digest}
        sync(folder / name)
    weights = files[WEIGHTS_FILE]["sha256"]
    body = json.dumps({**values, "sae_weights_sha256": weights, "files": files}, indent=1).encode()
    digest = hashlib.sha256(body).hexdigest()
    (folder / OWN_FILE).write_bytes(body[:-2] + f',\n "sha256": "{digest}"\n}}\n'.encode())
    sync(folder / OWN_FILE)


def read_record(folder: Path) -> Record | None:
    """Return the record of a folder; None where it has none, as SAELens's folders do.

    Parameters
    ----------
    folder : Path
        The folder.

    Raises
    ------
    SaeError
        The record is damaged.
    """
    path = folder / OWN_FILE
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_RECORD_BYTES:
            raise damaged(path, f"expected a plain file of at most {MAX_RECORD_BYTES >> 20} MiB")
        data = path.read_bytes()
        values = json.loads(data)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"expected JSON ({error})") from error
    except OSError as error:
        raise SaeError(f"{path}: cannot be read ({error.strerror}).", path=str(path)) from error
    if not isinstance(values, dict) or too_deep(values):
        raise damaged(path, "expected a JSON object that is not deeply nested")
    tail = _TAIL.search(data)
    if tail is not None:
        if hashlib.sha256(data[: tail.start()] + b"\n}").hexdigest() != tail[1].decode():
            raise damaged(path, "its SHA-256 is not the one that it ends with")
        return Record(values, _recorded(values.get("files"), path), sealed=True)
    if "files" in values:
        raise damaged(path, "it does not end with its own SHA-256")
    return Record(values, _recorded_earlier(values, path), sealed=False)


def _recorded(files: Any, path: Path) -> dict[str, str]:
    entries = files.items() if isinstance(files, dict) else ()
    found = {
        name: str(entry["sha256"])
        for name, entry in entries
        if isinstance(entry, dict) and "sha256" in entry and Path(name).name == name
    }
    if not {CONFIG_FILE, WEIGHTS_FILE} <= found.keys():
        raise damaged(path, f"it has no SHA-256 of {CONFIG_FILE} and {WEIGHTS_FILE}")
    return found


def _recorded_earlier(values: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Return what a record of an earlier version says: the SHA-256 of the weights."""
    digest = values.get("sae_weights_sha256")
    if digest is None and "options" not in values:
        return {}
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise damaged(path, f"sae_weights_sha256 is {digest!r}, expected 64 hexadecimal digits")
    return {WEIGHTS_FILE: digest}


def check_files(folder: Path, record: Record) -> list[SaeError]:
    """Return an error for each file of a folder that is not as its record says.

    Parameters
    ----------
    folder : Path
        The folder.
    record : Record
        Its record.
    """
    found = []
    for name, expected in record.sha256.items():
        path = folder / name
        try:
            n_bytes, digest = file_sha256(path)
        except OSError as error:
            found.append(damaged(path, f"cannot be read ({error.strerror})"))
            continue
        if digest != expected:
            found.append(
                damaged(
                    path,
                    f"its {n_bytes:,} bytes have the SHA-256 {digest[:16]}…, and {OWN_FILE} says "
                    f"{expected[:16]}…",
                )
            )
    return found


def damaged(path: Path, why: str) -> SaeError:
    """Return the error for a file that is not as it was written.

    Parameters
    ----------
    path : Path
        The file.
    why : str
        What was found, and what was expected.
    """
    return SaeError(
        f"{path}: damaged, or changed after it was written: {why}. Restore the folder from a copy, "
        "or train again with another --out.",
        path=str(path),
        field="sha256",
    )


def file_sha256(path: Path) -> tuple[int, str]:
    """Return the size of a plain file in bytes and its SHA-256.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    OSError
        The file cannot be read, or is not a plain file (a pipe would be waited for).
    """
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise OSError(0, "not a plain file")
    n_bytes, digest = 0, hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
            n_bytes += len(block)
    return n_bytes, digest.hexdigest()


def sync(path: Path) -> None:
    """Write a file's data through to the disk.

    Parameters
    ----------
    path : Path
        A file or a folder.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
