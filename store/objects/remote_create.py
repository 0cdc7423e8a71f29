"""Creating an object in a bucket: by one conditional PUT (``If-None-Match: *``), never by parts.

Each object carries a mark of who wrote it, so that a writer whose answer was lost knows its own
object again.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING

from typing_extensions import Buffer

from actlas.store.errors import RunFaultError
from actlas.store.objects.remote_errors import Trouble, trouble
from actlas.store.objects.remote_requests import Requests

if TYPE_CHECKING:
    from obstore.store import ObjectStore

MAX_PUT_BYTES = 5 << 30
"""What S3 takes in one PUT."""

MARK = "actlaswrite"
"""The metadata that names the attempt: one word, since each vendor forbids other signs."""


def create(requests: Requests, key: str, parts: Iterable[Buffer]) -> bool:
    """Put an object if there is none; False if there was one.

    Raises
    ------
    RunFaultError
        The store does not answer, refuses, or takes no object of this size.
    """
    import obstore

    body, n_bytes = _body(f"{requests.url}/{key}", parts)
    mark = uuid.uuid4().hex
    asked_twice = False

    def put(store: ObjectStore) -> bool:
        nonlocal asked_twice
        # Whoever asks twice looks first: the first answer may be what was lost.
        if asked_twice and (found := _written_by(store, key, mark, body)) is not None:
            return found
        asked_twice = True
        obstore.put(store, key, body, mode="create", use_multipart=False, attributes={MARK: mark})
        return True

    def settle(found: Trouble) -> bool | None:
        if found.kind != "exists":
            return None
        # obstore itself asks again after a 500, and its second try may meet our own object;
        # and a 409 says only that another write was under way: then nothing may be there.
        return requests.ask(key, lambda store: _written_by(store, key, mark, body))

    return requests.ask(key, put, n_sent=n_bytes, settle=settle)


def _body(where: str, parts: Iterable[Buffer]) -> tuple[list[memoryview], int]:
    body, n_bytes = [], 0
    for part in parts:
        view = memoryview(part).cast("B")
        n_bytes += view.nbytes
        if n_bytes > MAX_PUT_BYTES:
            raise RunFaultError(
                f"{where}: this object has more than {MAX_PUT_BYTES >> 30} GiB, the most that one "
                "conditional PUT takes. Plan with fewer rows per shard (--shard-rows).",
                path=where,
            )
        if view.nbytes:
            body.append(view)
    return body, n_bytes


def _written_by(store: ObjectStore, key: str, mark: str, body: list[memoryview]) -> bool | None:
    """Whether the object at a key is ours; None where there is none."""
    import obstore

    try:
        found = obstore.get(store, key, options={"head": True})
    except FileNotFoundError as error:
        if trouble(error).kind == "missing":
            return None
        raise
    theirs = found.attributes.get(MARK)
    if theirs is not None:
        return bool(theirs == mark)
    # A store that keeps no metadata: the same bytes are as good as ours.
    if found.meta["size"] != sum(part.nbytes for part in body):
        return False
    return obstore.get(store, key).bytes().to_bytes() == b"".join(body)
