"""The registry of derived jobs: all kinds, the lookup of a job's kind, and the order of jobs.

A derived job is a kind and a subject. ``encode.sae`` encodes the rows of a store for the set of
features ``sae``; its receipts lie in ``ledger/receipts/encode.sae``. The kinds form a graph by
their inputs::

    extract -> encode -> encoded -> index -> indexed        sets of features
            -> extremes                                     hookpoints

The kinds of features and extremes belong to the store's format and are defined here. Any other job
is one file in the room ``actlas.jobs.derived`` that registers its kind::

    SHUFFLE = register(
        JobKind(
            name="shuffle",
            unit="shard",
            inputs=("extract",),
            folder="shuffled/{subject}/{unit:08d}",
            n_units=lambda store, subject: store.plan.n_shards,
            covers="tokens",
            plain_groups=("shuffled", "shuffled/{subject}"),
            redo=f"{__name__}:redo",
        )
    )

The files of that room are imported when a store has a job or a folder that belongs to no known
kind; `verify`, `status` and `repair` then treat the job like every other.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable
from functools import cache

from actlas.store.errors import CorruptDataError, FormatError
from actlas.store.ledger.feature_sets import read_description, spec_key
from actlas.store.ledger.job_kind import MARK_DIGITS, JobKind, receipts_of
from actlas.store.ledger.receipts import EXTRACT, PlannedStore, Receipts

ROOM = "actlas.jobs.derived"
"""The package whose modules register the kinds of later jobs."""

MAX_UNITS = 10**8
"""The number of units that eight digits, the name of a receipt, can count. It is the limit of a job
of unknown size: its kind is unknown to this version, or its subject's description is damaged."""

_PLANNED = frozenset(
    {"activations", "documents", "ledger", "loss", "pooled", "rows", "statistics", "zarr.json"}
)
"""Names at the top of a store that derived data must not use."""

_FOLDER = r"[A-Za-z0-9_][A-Za-z0-9_.\-]*"

_GROUP = re.compile(rf"({_FOLDER})(?:/{_FOLDER})+-[0-9a-f]{{{MARK_DIGITS}}}", re.ASCII)


_KINDS: dict[str, JobKind] = {}


def register(kind: JobKind) -> JobKind:
    """Register a kind for `verify`, `status` and `repair`, and return it.

    Parameters
    ----------
    kind : JobKind
        The kind.

    Raises
    ------
    ValueError
        Another kind has its name, or its folder is not one for derived data.
    """
    if _KINDS.get(kind.name, kind) != kind:
        raise ValueError(f"job kind {kind.name!r} is registered already, as {_KINDS[kind.name]}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", kind.name) or kind.name in (EXTRACT, "pooled"):
        raise ValueError(f"job kind {kind.name!r}: expected lower-case letters, digits, underlines")
    if kind.root in _PLANNED or "{subject}" not in kind.folder or "{" in kind.root:
        raise ValueError(
            f"job kind {kind.name!r}: got the folder {kind.folder!r}, expected {{subject}} in a "
            f"folder of its own, none of {', '.join(sorted(_PLANNED))}"
        )
    _KINDS[kind.name] = kind
    return kind


def kinds() -> tuple[JobKind, ...]:
    """Return the registered kinds, those of the store's format first."""
    return tuple(_KINDS.values())


def kind_of(job: str) -> tuple[JobKind | None, str]:
    """Return the kind and the subject of a job; the kind is None if no module registers it.

    >>> kind_of("encode.my.sae") == (ENCODE, "my.sae")
    True
    """
    name, _, subject = job.partition(".")
    if name not in _KINDS:
        _import_room()
    return _KINDS.get(name), subject


def is_group(folder: str) -> bool:
    """Whether a folder is a group that an attempt at a derived job may have written.

    >>> is_group("features/sae/tokens/00000003-0123456789ab"), is_group("rows/doc_idx")
    (True, False)
    """
    match = _GROUP.fullmatch(folder)
    return match is not None and is_root(match[1])


def is_root(name: str) -> bool:
    """Whether a folder at the top of a store is for derived data."""
    if name in _PLANNED:
        return False
    if not any(kind.root == name for kind in kinds()):
        _import_room()
    return any(kind.root == name for kind in kinds())


def depth(kind: JobKind) -> int:
    """Return the length of the longest chain of derived jobs that ends with a kind.

    >>> [depth(kind) for kind in (ENCODE, ENCODED, INDEX, INDEXED, EXTREMES)]
    [1, 2, 3, 4, 1]
    """
    derived = [_KINDS[name] for name in kind.inputs if name in _KINDS]
    return 1 + max((depth(before) for before in derived), default=0)


def made_from(kind: JobKind) -> frozenset[str]:
    """Return the names of the kinds that a kind's data is made from, directly or indirectly.

    >>> sorted(made_from(INDEX))
    ['encode', 'encoded']
    """
    derived = [_KINDS[name] for name in kind.inputs if name in _KINDS]
    return frozenset({before.name for before in derived}.union(*map(made_from, derived)))


def by_inputs(jobs: Iterable[str]) -> list[str]:
    """Return the jobs of known kinds, each after the jobs that it may be made from.

    >>> by_inputs(["index.sae", "encode.sae"])
    ['encode.sae', 'index.sae']
    """
    known = [(kind, job) for job in jobs if (kind := kind_of(job)[0]) is not None]
    return [job for _, job in sorted(known, key=lambda pair: (depth(pair[0]), pair[1]))]


def job_receipts(store: PlannedStore, job: str) -> Receipts:
    """Return the receipts of a derived job, given its name alone.

    Parameters
    ----------
    store : PlannedStore
        The store.
    job : str
        The name of the job, such as ``encode.sae``.
    """
    kind, subject = kind_of(job)
    n = MAX_UNITS
    if kind is not None:
        try:
            n = kind.n_units(store, subject)
        except (FormatError, CorruptDataError, FileNotFoundError):
            n = MAX_UNITS  # its subject's description is damaged, which another check reports
    return receipts_of(store, job, n)


@cache
def _import_room() -> None:
    room = importlib.import_module(ROOM)
    for module in pkgutil.iter_modules(room.__path__, f"{ROOM}."):
        importlib.import_module(module.name)


def n_features(store: PlannedStore, name: str) -> int:
    """Return the number of features of a set, from its sealed description.

    Parameters
    ----------
    store : PlannedStore
        The store.
    name : str
        The name of the set.

    Raises
    ------
    FileNotFoundError
        The store has no such set.
    CorruptDataError, FormatError
        The description is not the one that was written.
    """
    key = spec_key(name)
    return read_description(store.objects.read(key), name, f"{store.path}/{key}").n_features


def _one(_store: PlannedStore, _subject: str) -> int:
    return 1


ENCODE = register(
    JobKind(
        name="encode",
        unit="shard",
        inputs=(EXTRACT,),
        folder="features/{subject}/tokens/{unit:08d}",
        n_units=lambda store, _: store.plan.n_shards,
        covers="tokens",
        plain_groups=(
            *("features", "features/{subject}"),
            *("features/{subject}/tokens", "features/{subject}/index"),
        ),
        table="encoded",
        of_feature_set=True,
        command=("sae", "encode", "{store}", "--sae", "{subject}"),
        redo=f"{ROOM}.encode:redo",
    )
)
"""The feature activations of every token, a compressed sparse row matrix for each shard."""

ENCODED = register(
    JobKind(
        name="encoded",
        unit="table",
        inputs=(ENCODE.name,),
        folder="features/{subject}/encoded",
        n_units=_one,
        covers="shards",
        of_feature_set=True,
        redo=f"{ROOM}.encode:redo",
    )
)
"""The table over all encoded shards."""

INDEX = register(
    JobKind(
        name="index",
        unit="block",
        inputs=(ENCODED.name,),
        folder="features/{subject}/index/{unit:08d}",
        n_units=n_features,
        covers="features",
        table="indexed",
        sparse=True,
        of_feature_set=True,
        command=("sae", "index", "{store}", "--sae", "{subject}"),
        redo=f"{ROOM}.index:redo",
    )
)
"""The activations of every feature, falling: a compressed sparse column matrix for each block of
features, numbered by the block's first feature."""

INDEXED = register(
    JobKind(
        name="indexed",
        unit="table",
        inputs=(INDEX.name,),
        folder="features/{subject}/indexed",
        n_units=_one,
        covers="features",
        of_feature_set=True,
        redo=f"{ROOM}.index:redo",
    )
)
"""The table over all blocks of an index, with each feature's count, sum and maximum."""

EXTREMES = register(
    JobKind(
        name="extremes",
        unit="table",
        inputs=(EXTRACT,),
        folder="extremes/{subject}",
        n_units=_one,
        covers="units",
        plain_groups=("extremes",),
        command=("contexts", "{store}", "--hookpoint", "{subject}", "--unit", "0"),
        open=f"{ROOM}.extremes:units_of",
    )
)
"""The top and bottom tokens of every raw unit of a hookpoint."""
