"""The names of the sets of feature activations in a store, and the keys of their descriptions."""

from __future__ import annotations

import re

from actlas.store.errors import FormatError
from actlas.store.format.schema import FeaturesSpec
from actlas.store.format.sealing import unseal
from actlas.store.ledger.receipts import PlannedStore

FOLDER = "ledger/features"
"""The folder of the sealed descriptions."""

COPIES = "ledger/features.copies"
"""The folder of the descriptions' copies: without a description its set could not be read."""

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}"
"""The pattern of the name of a set of features."""

_DESCRIPTION = re.compile(rf"({NAME})\.json", re.ASCII)


def spec_key(name: str) -> str:
    """Return the key of a set's sealed description."""
    return f"{FOLDER}/{name}.json"


def copy_key(name: str) -> str:
    """Return the key of the description's copy."""
    return f"{COPIES}/{name}.json"


def names(store: PlannedStore) -> list[str]:
    """Return the names of a store's sets of features."""
    return _described(store, FOLDER)


def copies(store: PlannedStore) -> list[str]:
    """Return the names of the sets whose description has a copy."""
    return _described(store, COPIES)


def read_description(data: bytes, name: str, where: str) -> FeaturesSpec:
    """Return the description of a set from its sealed bytes.

    Parameters
    ----------
    data : bytes
        The sealed record.
    name : str
        The name of the set.
    where : str
        The record's location, for messages.

    Raises
    ------
    CorruptDataError
        The bytes are not the ones that were sealed.
    FormatError
        The record is malformed, or describes another set: the file of one lies in another's place.
    """
    spec = unseal(data, FeaturesSpec, where)
    if spec.name != name:
        raise FormatError(
            f"{where}: got the description of features {spec.name!r}, expected that of {name!r}: "
            "the file was moved. `actlas repair` restores it from its copy.",
            path=where,
            name=name,
        )
    return spec


def _described(store: PlannedStore, folder: str) -> list[str]:
    """Return the names of the sets with a description in a folder; other files are ignored."""
    matches = (_DESCRIPTION.fullmatch(name) for name in store.objects.names(folder))
    return sorted(match[1] for match in matches if match is not None)
