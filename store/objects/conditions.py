"""A check that a server honours conditional writes, on which every store in a bucket relies."""

from __future__ import annotations

from actlas.store.errors import ConfigError
from actlas.store.objects.base import Objects, is_url


def require_conditions(objects: Objects, key: str, body: bytes) -> None:
    """Raise ``ConfigError`` if an object that this process has just created can be created again.

    A server that ignores ``If-None-Match: *`` answers that it created the object a second time.
    The object itself is the probe, so that no other one can be left behind. A server that
    ignores the header has then overwritten the object, which is removed. Nothing is asked of a
    file system.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    key : str
        Key of an object for which ``create`` has returned True.
    body : bytes
        Other bytes than the object's: a server that keeps no metadata is told apart by them.

    Raises
    ------
    ConfigError
        The server ignores the condition.
    RunFaultError
        The server does not answer, or refuses a request.
    """
    if not is_url(objects.url) or not objects.create(key, [body]):
        return
    objects.delete(key)
    raise ConfigError(
        f"{objects.url}: this server ignores `If-None-Match: *` and overwrites an object that "
        "exists, so two writers could damage each other's data. Nothing was left there. Use a "
        "server that honours it: docs/object-stores.md names some.",
        field="store",
    )
