"""Checks of a store's location (disk or bucket), and of the store itself."""

from __future__ import annotations

import os
import shutil
import statistics
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from actlas.jobs.doctor.check import Check, ok, problem, warning
from actlas.jobs.doctor.clock import file_clock, server_clock
from actlas.jobs.formatting import command as shell
from actlas.jobs.formatting import counted, n_bytes
from actlas.store.errors import ActlasError, StoreNotFoundError
from actlas.store.ledger import lease
from actlas.store.objects.base import is_url, open_objects
from actlas.store.objects.leftovers import temporary_folder
from actlas.store.objects.local import LocalObjects
from actlas.store.store import open_store

PROBE_BYTES, PROBE_S = 256 << 20, 2.0
"""Limits of the speed test in bytes and seconds."""

PIECE_BYTES = 8 << 20
"""Bytes of one write of the speed test."""

SLOW_BYTES_PER_S = 50e6
"""Write rate below which a disk is reported as slow."""

SYNC_BYTES, N_SYNCS = 4096, 20
"""Size and number of the synced writes."""

TOO_FAST_S = 5e-6
"""Shortest plausible sync in seconds. Measured: 165 us or more on disks, 0.3 us on a tmpfs, and
0.2 us with an fsync that does nothing."""

CREDENTIALS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
           "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT"),
    "az": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_CLIENT_ID", "AZURE_STORAGE_SAS_TOKEN"),
}  # fmt: skip


def place(where: str) -> Iterator[Check]:
    """Test the operations that a store needs of its disk or bucket, then check the store.

    Test files are removed. The store is not checked if its bucket cannot be reached.

    Parameters
    ----------
    where : str
        Path or URL of a store, or of the folder for one.
    """
    if not is_url(where):
        yield from _disk(Path(where.removeprefix("file://")))
        yield from store(where)
        return
    out = False
    for check in _bucket(where):
        out = out or check.name == "bucket"
        yield check
    if not out:
        yield from store(where)


def _disk(where: Path) -> Iterator[Check]:
    folder = where.absolute()
    while not folder.is_dir():  # the store does not exist yet: check its future disk
        folder = folder.parent
    if (folder / "ledger").is_dir():
        folder = folder.parent  # do not write into a store
    usage, counts = shutil.disk_usage(folder), os.statvfs(folder)
    yield ok("space", f"{n_bytes(usage.free)} of {n_bytes(usage.total)} free on the disk")
    if counts.f_files and counts.f_favail < 100_000:
        yield warning("inodes", f"{counts.f_favail:,} left", "free some: each shard is a few files")
    try:
        with temporary_folder("doctor", folder) as scratch:
            yield from _links(scratch)
            yield _speed(scratch, usage.free)
            yield _syncs(scratch)
            yield file_clock(scratch)
    except OSError as error:
        yield problem(
            "disk", f"{folder}: {error.strerror or error}", "give a folder that can be written"
        )


def _links(folder: Path) -> Iterator[Check]:
    objects = LocalObjects(folder / "probe")
    try:
        first, second = objects.create("probe", [b"1"]), objects.create("probe", [b"2"])
    except ActlasError as error:
        yield problem("create once", str(error), "use a file system with hard links")
        return
    if first and not second and objects.read("probe") == b"1":
        yield ok("create once", "a second writer is refused")
    else:
        found = "a second writer was not refused"
        yield problem("create once", found, "use another file system: this one can lose data")


def _speed(folder: Path, n_free: int) -> Check:
    """Write, sync and read a file, with at most ``PROBE_S`` seconds of writing."""
    piece, n, file = os.urandom(PIECE_BYTES), 0, folder / "speed"
    limit = min(PROBE_BYTES, n_free // 4)
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        began = time.perf_counter()
        while n < limit and time.perf_counter() - began < PROBE_S:
            n += os.write(fd, piece)
            os.fdatasync(fd)
        wrote = n / (time.perf_counter() - began)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    began = time.perf_counter()
    with file.open("rb", buffering=0) as opened:
        while opened.read(PIECE_BYTES) and time.perf_counter() - began < PROBE_S:
            pass
        read = opened.tell() / (time.perf_counter() - began)
    found = f"writes {n_bytes(wrote)}/s, synced; reads {n_bytes(read)}/s ({n_bytes(n)} tried)"
    if wrote < SLOW_BYTES_PER_S:
        return warning("disk speed", found, "writing will limit extraction: use a faster disk")
    return ok("disk speed", found)


def _syncs(folder: Path) -> Check:
    """Measure the sync of a small write, and warn if it is implausibly fast.

    It is so if a library or a mount option skips syncs, or if the disk is memory. A plausible time
    proves nothing: a device may report writes as done that are still in its memory.
    """
    piece, seconds = os.urandom(SYNC_BYTES), []
    fd = os.open(folder / "sync", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        for _ in range(N_SYNCS):
            os.write(fd, piece)
            began = time.perf_counter()
            os.fsync(fd)
            seconds.append(time.perf_counter() - began)
    finally:
        os.close(fd)
    median_s = statistics.median(seconds)
    found = f"{SYNC_BYTES:,} bytes in {1000 * median_s:.2g} ms (median of {N_SYNCS})"
    if median_s < TOO_FAST_S:
        remedy = "acceptable if a power failure may destroy the store; else use a disk that syncs"
        return warning(
            "disk sync", f"{found}: faster than any device, so nothing is synced", remedy
        )
    return ok("disk sync", found)


def _bucket(where: str) -> Iterator[Check]:
    kind = {"s": "s3", "g": "gs", "a": "az"}[where[0].lower()]
    if any(os.environ.get(name) for name in CREDENTIALS[kind]):
        yield ok("credentials", "found in the environment")
    else:
        found = "none in the environment"
        if kind == "s3" and (Path.home() / ".aws" / "credentials").exists():
            found += "; ~/.aws is not read"
        remedy = (
            "not needed with a role of the machine or pod; else export the output of "
            "`aws configure export-credentials --format env`"
            if kind == "s3"
            else "not needed with a role of the machine or pod; else set them in the environment"
        )
        yield warning("credentials", found, remedy)
    if kind == "s3":
        yield server_clock()
    objects = open_objects(where)
    key = f"ledger/staging/doctor-{uuid.uuid4().hex}"
    began = time.perf_counter()
    try:
        try:
            first, second = objects.create(key, [b"1"]), objects.create(key, [b"2"])
        finally:
            objects.delete(key)
    except (ActlasError, OSError) as error:
        yield problem(
            "bucket",
            str(error).splitlines()[0],
            "check the endpoint, the credentials and the bucket",
        )
        return
    took = f"{(time.perf_counter() - began) / 3:.2f} s per request"
    if first and not second:
        yield ok("create once", f"a second writer is refused; {took}")
    else:
        found = "conditional writes are not supported"
        yield problem("create once", found, "use a service with If-None-Match on PUT")


def store(where: str) -> Iterator[Check]:
    """Check a store, if there is one: format, plan, lease, space for the missing shards.

    Parameters
    ----------
    where : str
        Path or URL of the store.
    """
    try:
        found = open_store(where)
    except StoreNotFoundError:
        yield ok("store", "none yet")
        return
    except ActlasError as error:
        remedy = f"{shell('verify', where)}, then {shell('repair', where)}"
        yield problem("store", str(error).splitlines()[0], remedy)
        return
    n_missing = sum(len(found.missing(job)) for job in found.jobs)
    n_all = sum(found.n_shards(job) for job in found.jobs)
    done = f"{n_all - n_missing:,} of {counted(n_all, 'shard')}"
    yield ok("store", f"{found.plan.model.id}: {done} done")
    held = lease.holder(found.objects)
    yield ok(
        "lease", "free" if held is None else f"held by {held.get('pid')} on {held.get('host')}"
    )
    if n_missing and not is_url(where):
        plan = found.plan
        widths = sum(h.width for h in plan.hookpoints) * (4 if plan.dtype == "float32" else 2)
        need = min(plan.n_tokens, len(found.missing()) * plan.shard_rows) * (widths + 16)
        free = shutil.disk_usage(where.removeprefix("file://")).free
        if need > free:
            words = f"{n_bytes(need)} to write before compression, {n_bytes(free)} free"
            yield problem("room", words, "free space, or plan fewer tokens or hookpoints")
        else:
            yield ok("room", f"{n_bytes(need)} to write at most, {n_bytes(free)} free")
