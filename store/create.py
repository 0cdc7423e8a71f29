"""Making a store: its metadata, its documents, and the plan, which comes last.

Locally it is made beside its final place and renamed there whole, so a store either is there with
its plan or is not there. A bucket has no renaming: there every object is created once, the root's
metadata with the whole plan in it first and the plan's own object last. What lies between is no
store; the same planning goes on with it, and another one is refused at its first object.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

from actlas.store.arrays import ArraySpec, group_metadata, metadata_bytes
from actlas.store.errors import ConfigError, FormatError, StoreExistsError, run_fault
from actlas.store.metadata import ledger_metadata, root_metadata
from actlas.store.objects import (
    STAGING,
    LocalObjects,
    Objects,
    is_url,
    open_objects,
    sync_folder,
)
from actlas.store.schema import Plan, PlanFile, seal, unseal
from actlas.store.shardfile import ShardWriter
from actlas.store.specs import StoreArrays
from actlas.store.store import PLAN_COPY_KEY, PLAN_KEY, Store, open_store, read_json

READ_BYTES = 1 << 20


class DocumentColumns(Protocol):
    """What a planner hands over: every document, in the plan's order.

    ``token_ids``, ``char_starts``, ``special`` and ``text`` are called for ascending, adjoining
    ranges of at most a few million elements, so they may come from disk.
    """

    n_documents: int
    n_tokens: int
    n_text_bytes: int
    start: NDArray[np.int64]
    """[n_documents + 1] The first kept token of each document."""
    text_start: NDArray[np.int64]
    """[n_documents + 1] The first UTF-8 byte of each document's text."""
    char_stop: NDArray[np.int32]
    """[n_documents] The character of its text at which each document's last kept token ends."""
    source: NDArray[np.int32]
    """[n_documents] Index into ``source_names``."""
    source_names: tuple[str, ...]
    record: NDArray[np.int64]
    """[n_documents] The record's place in its source, from 0."""
    label: NDArray[np.int32] | None
    """[n_documents] Index into ``label_names``, -1 where there is none."""
    label_names: tuple[str, ...]
    token_column_names: Mapping[str, tuple[str, ...]]
    """What the codes of each of the plan's columns of tokens mean, in the plan's order."""

    def token_ids(self, start: int, stop: int) -> NDArray[np.int32]:
        """Return the kept tokens [start, stop)."""

    def char_starts(self, start: int, stop: int) -> NDArray[np.int32]:
        """Return, for the same tokens, the character of the document where each begins."""

    def special(self, start: int, stop: int) -> NDArray[np.bool_] | None:
        """Return, for the same tokens, which the tokenizer added; None where none has a row."""

    def token_column(self, name: str, start: int, stop: int) -> NDArray[np.int32]:
        """Return, for the same tokens, the codes of a column; -1 where there is none."""

    def text(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return bytes [start, stop) of all texts, one after the other."""


class ImageColumns(Protocol):
    """The image files of documents, in the plan's order: their own bytes, as they were found.

    ``image`` is called for ascending, adjoining ranges, as ``text`` is.
    """

    image_start: NDArray[np.int64]
    """[n_documents + 1] The first byte of each document's image; it may have none."""

    def image(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return bytes [start, stop) of all image files, one after the other."""


def create(
    path: str | os.PathLike[str],
    plan: Plan,
    columns: DocumentColumns,
    images: ImageColumns | None = None,
) -> Store:
    """Write a new store's metadata, documents and plan, and open it.

    Parameters
    ----------
    path : path
        Must not exist, or be an empty folder; or a bucket's URL with nothing below it but what an
        interrupted planning of the same plan has left.
    plan : Plan
        What a row is.
    columns : DocumentColumns
        The documents; their counts must be the plan's.
    images : ImageColumns, optional
        Their images, where the plan has a processor for them.

    Raises
    ------
    StoreExistsError
        There is something at ``path``; it is left as it is.
    RunFaultError
        The disk is full or fails, and nothing is left behind. Or the object store does: what is
        there already is gone on with when the same is planned again.
    """
    _check_counts(plan, columns, images)
    refuse_existing(path)
    final = workplace(path)
    _sweep(final)
    if is_url(path):
        write(open_objects(path), plan, columns, images)
        return open_store(path)
    staging = final.with_name(f".{final.name}.{_here()}.{uuid.uuid4().hex[:8]}.planning")
    try:
        try:
            write(LocalObjects(staging), plan, columns, images)
            staging.rename(final)
            sync_folder(final.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        refuse_existing(final)
        fault = run_fault(error, str(final))
        if fault is None:
            raise
        raise fault from error
    return open_store(final)


def refuse_existing(path: str | os.PathLike[str]) -> None:
    """Raise ``StoreExistsError`` where a new store would not be alone."""
    if is_url(path):
        _refuse_objects(open_objects(path))
    else:
        _refuse_files(Path(path).absolute())


def workplace(path: str | os.PathLike[str]) -> Path:
    """Return beside what a planner keeps its files while it works.

    Beside the store's own folder; where it will lie in a bucket, in the folder for temporary files
    (``TMPDIR``).
    """
    if not is_url(path):
        return Path(path).absolute()
    return Path(tempfile.gettempdir()) / os.fspath(path).rstrip("/").rpartition("/")[2]


def _refuse_objects(objects: Objects) -> None:
    if objects.size(PLAN_KEY) is not None:
        raise StoreExistsError(
            f"{objects.url}: there is a store here already, and it is left as it is. `actlas "
            f"extract {objects.url}` goes on with it; give another path for another plan.",
            path=objects.url,
        )
    if next(objects.walk(), None) is None:
        return
    try:
        root = read_json(objects, "zarr.json").get("attributes")
    except (FileNotFoundError, FormatError):
        root = None
    if not isinstance(root, dict) or "actlas" not in root:
        raise StoreExistsError(
            f"{objects.url}: there is something below this prefix, and it is no store. Give a "
            "prefix with nothing below it.",
            path=objects.url,
        )


def _refuse_files(path: Path) -> None:
    above = next((parent for parent in path.parents if parent.exists()), path.parent)
    if not above.is_dir():
        raise StoreExistsError(
            f"{path}: {above} is a file, expected a folder to put the store in.", path=str(path)
        )
    if path.is_symlink() or path.is_file():
        raise StoreExistsError(
            f"{path}: got a file, expected a path for a new folder.", path=str(path)
        )
    if (path / PLAN_KEY).exists():
        raise StoreExistsError(
            f"{path}: there is a store here already, and it is left as it is. `actlas extract "
            f"{path}` goes on with it; give another path for another plan.",
            path=str(path),
        )
    if path.is_dir() and any(path.iterdir()):
        raise StoreExistsError(
            f"{path}: this folder is not empty and is no store. Give a path that is not there yet.",
            path=str(path),
        )


def _here() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def _sweep(final: Path) -> None:
    """Remove what a planner that was killed on this host left beside the store."""
    host = socket.gethostname()
    for left in final.parent.glob(f".{glob.escape(final.name)}.{host}-*.planning"):
        pid = left.name.split(f"{host}-", 1)[1].split(".", 1)[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)


def _check_counts(plan: Plan, columns: DocumentColumns, images: ImageColumns | None) -> None:
    if (plan.processor is None) != (images is None):
        raise ValueError("images: a plan has a processor if and only if documents may have images")
    if tuple(columns.token_column_names) != plan.token_columns:
        raise ValueError(
            f"token_columns: the plan says {plan.token_columns}, its documents "
            f"{tuple(columns.token_column_names)}"
        )
    for name in ("n_documents", "n_tokens", "n_text_bytes"):
        wanted, got = getattr(plan, name), getattr(columns, name)
        if wanted != got:
            raise ValueError(f"{name}: the plan says {wanted:,}, its documents {got:,}")
    edges = {
        "start": (columns.start, plan.n_tokens),
        "text_start": (columns.text_start, plan.n_text_bytes),
    }
    if images is not None:
        edges["image_start"] = images.image_start, plan.n_image_bytes
    for name, (edge, last) in edges.items():
        if edge.shape != (plan.n_documents + 1,) or edge[0] != 0 or edge[-1] != last:
            raise ValueError(f"{name}: must go from 0 to {last:,} in {plan.n_documents + 1} steps")
        if (np.diff(edge) < 0).any():
            raise ValueError(f"{name}: must not fall")


def write(
    objects: Objects, plan: Plan, columns: DocumentColumns, images: ImageColumns | None = None
) -> None:
    """Write every object of a new store, the plan last.

    What an interrupted planning left is gone on with where it is the same to the byte.

    Raises
    ------
    StoreExistsError
        Something else lies there, or somebody else has planned meanwhile.
    """
    labels = columns.label_names if columns.label is not None else None
    arrays = StoreArrays(plan, labels, columns.source_names, columns.token_column_names)
    written: dict[str, tuple[str, int]] = {}

    def put(key: str, parts: Iterable[Buffer]) -> None:
        digest = hashlib.sha256()
        n_bytes = 0

        def passing() -> Iterator[Buffer]:
            nonlocal n_bytes
            for part in parts:
                digest.update(part)
                n_bytes += memoryview(part).nbytes
                yield part

        created = objects.create(key, passing())
        written[key] = digest.hexdigest(), n_bytes
        if not created and _digest(objects, key) != written[key]:
            raise StoreExistsError(
                f"{objects.url}/{key}: the planning of another plan was begun here, and not "
                "finished. Plan with the same options to go on with it; or remove all that lies "
                "below this prefix, or give another.",
                path=objects.url,
                begun=True,
            )

    put("zarr.json", [metadata_bytes(root_metadata(plan))])
    if is_url(objects.url):
        _require_conditions(objects)
    put("ledger/zarr.json", [metadata_bytes(ledger_metadata())])
    for group in arrays.groups:
        put(f"{group}/zarr.json", [metadata_bytes(group_metadata())])
    for spec in arrays.all().values():
        put(spec.metadata_key, [metadata_bytes(spec.metadata())])
    for name, spec in arrays.documents.items():
        for shard in range(spec.n_shards):
            start, stop = spec.shard_range(shard)
            rows = document_rows(columns, images, name, spec, start, stop)
            put(spec.key(shard), ShardWriter(spec, rows).parts())
    plan_file = PlanFile(plan=plan, objects=written, created_unix_s=time.time(), has_copy=True)
    sealed = seal(plan_file)
    if not objects.create(PLAN_COPY_KEY, [sealed]):
        sealed = _begun_plan(objects, plan_file)
    if not objects.create(PLAN_KEY, [sealed]):
        raise StoreExistsError(f"{objects.url}: somebody else planned here.", path=objects.url)


def _require_conditions(objects: Objects) -> None:
    """Raise ``ConfigError`` where an object can be created twice: nothing would be safe there."""
    key = f"{STAGING}/{uuid.uuid4().hex}.probe"
    objects.create(key, [b"first"])
    twice = objects.create(key, [b"second"])
    objects.delete(key)
    if twice:
        raise ConfigError(
            f"{objects.url}: this server ignores `If-None-Match: *`, and puts an object over one "
            "that is there. Two writers could then harm each other. Use a server that heeds it: "
            "docs/object-stores.md names some.",
            field="store",
        )


def _begun_plan(objects: Objects, ours: PlanFile) -> bytes:
    """Return the plan that an interrupted planning was about to finish with."""
    sealed = objects.read(PLAN_COPY_KEY)
    theirs = unseal(sealed, PlanFile, f"{objects.url}/{PLAN_COPY_KEY}")
    if theirs.model_copy(update={"created_unix_s": ours.created_unix_s}) != ours:
        raise StoreExistsError(
            f"{objects.url}/{PLAN_COPY_KEY}: this is another plan. Remove all that lies below "
            "this prefix, or give another.",
            path=objects.url,
            begun=True,
        )
    return sealed


def _digest(objects: Objects, key: str) -> tuple[str, int]:
    digest, n_bytes = hashlib.sha256(), 0
    for piece in objects.pieces(key, READ_BYTES):
        digest.update(piece)
        n_bytes += len(piece)
    return digest.hexdigest(), n_bytes


def document_rows(
    columns: DocumentColumns,
    images: ImageColumns | None,
    name: str,
    spec: ArraySpec,
    start: int,
    stop: int,
) -> NDArray[Any]:
    """Return elements [start, stop) of a column of the documents, in its dtype."""
    readers: dict[str, Callable[[int, int], Any]] = {
        "token_id": columns.token_ids,
        "char_start": columns.char_starts,
        "special": columns.special,
        "text": columns.text,
    }
    for column in columns.token_column_names:
        readers[column] = partial(columns.token_column, column)
    if images is not None:
        readers["image"] = images.image
        readers["image_start"] = lambda start, stop: images.image_start[start:stop]
    rows = readers[name](start, stop) if name in readers else getattr(columns, name)[start:stop]
    rows = np.asarray(rows).astype(spec.numpy_dtype, copy=False)
    if rows.shape != (stop - start,):
        raise ValueError(f"documents/{name}: got {rows.shape} for [{start}, {stop})")
    return rows
