"""The kinds of derived jobs: what a unit of work is, where its data lies, what it is made from.

A derived job is a kind and a subject. ``encode.sae`` encodes the rows of a store for the set of
features ``sae``; its receipts lie in ``ledger/receipts/encode.sae``. The kinds form a graph by
their inputs::

    extract -> encode -> encoded -> index -> indexed        sets of features
            -> extremes                                     hookpoints

The kinds of features and extremes are part of the store's format, and are defined here. A later
job is one file in the room ``actlas.jobs.derived`` that registers its kind::

    SHUFFLE = register(
        JobKind(
            name="shuffle",
            unit="shard",
            inputs=("extract",),
            folder="shuffled/{subject}/{unit:08d}",
            n_units=lambda store, subject: store.plan.n_shards,
            covers="rows",
            plain_groups=("shuffled", "shuffled/{subject}"),
            redo=f"{__name__}:redo",
        )
    )

The files of that room are imported when a job or a folder is found in a store that none of the
known kinds explains; `verify`, `status` and `repair` then know the job like every other.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from actlas.store.errors import ActlasError
from actlas.store.format.schema import FeaturesSpec
from actlas.store.format.sealing import unseal
from actlas.store.ledger.feature_sets import spec_key
from actlas.store.ledger.receipts import EXTRACT, PlannedStore, Receipts

ROOM = "actlas.jobs.derived"
"""The package whose modules register the kinds of later jobs."""

MARK_DIGITS = 12
"""Hexadecimal digits of the mark that ends the name of an attempt's group."""

MAX_UNITS = 10**8
"""Units that a receipt's name of eight digits can number: the limit where a job's size is not
known, because its kind is a later version's or the description of its subject is damaged."""

_PLANNED = frozenset(
    {"activations", "documents", "ledger", "loss", "pooled", "rows", "statistics", "zarr.json"}
)
"""Names at the top of a store that are not for derived data."""

_FOLDER = r"[A-Za-z0-9_][A-Za-z0-9_.\-]*"

_GROUP = re.compile(rf"({_FOLDER})(?:/{_FOLDER})+-[0-9a-f]{{{MARK_DIGITS}}}", re.ASCII)


class Unit(NamedTuple):
    """One unit of work of a derived job.

    Attributes
    ----------
    job : str
        The job's name, such as ``encode.sae``, which is the folder of its receipts.
    number : int
        The unit's number, which names its receipt.
    n : int
        The limit of unit numbers: they are in [0, n).
    folder : str
        The folder of the unit's group without the attempt's mark:
        ``features/sae/tokens/00000003``.
    start, stop : int
        The range [start, stop) that the unit covers, counted in what the kind says.
    """

    job: str
    number: int
    n: int
    folder: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class JobKind:
    """A kind of derived job, the same for every subject.

    Attributes
    ----------
    name : str
        The part of a job's name before the first dot: ``encode``.
    unit : str
        The noun for one unit of work: ``shard``, ``block``, ``table``.
    inputs : tuple of str
        The kinds of the jobs, or ``extract``, whose receipts a unit's receipt names as inputs.
    folder : str
        The folder of a unit's group without the attempt's mark, with ``{subject}``, and with
        ``{unit:08d}`` where there may be several units.
    n_units : callable of (store, subject)
        Returns the limit of unit numbers: they are in [0, n).
    covers : str
        What the range [start, stop) of a receipt counts: ``tokens``, ``features``, ``units``.
    plain_groups : tuple of str
        The folders of the groups above the units' own, created before the first unit is.
    table : str or None
        The kind of the one-unit job that is committed last, over all units: without its receipt
        the job is not complete.
    sparse : bool
        Whether a unit's number is the start of its range, so that not every number in [0, n) is a
        unit; how many units there are is then known once the table is written.
    of_feature_set : bool
        Whether a subject is the name of a set of features, which has a sealed description.
    command : tuple of str
        The command line after ``actlas`` that begins the job or goes on with it, with ``{store}``
        and ``{subject}``; empty where another kind's command does.
    redo : str or None
        ``module:function`` that makes again what is missing of a subject's jobs, for `repair`; see
        :data:`actlas.jobs.run.repair_derived.Redo`. None where the data is made again when it is
        next asked for.
    """

    name: str
    unit: str
    inputs: tuple[str, ...]
    folder: str
    n_units: Callable[[PlannedStore, str], int]
    covers: str
    plain_groups: tuple[str, ...] = ()
    table: str | None = None
    sparse: bool = False
    of_feature_set: bool = False
    command: tuple[str, ...] = ()
    redo: str | None = None

    @property
    def root(self) -> str:
        """The folder at the top of the store that the kind's data lies in."""
        return self.folder.partition("/")[0]

    def job(self, subject: str) -> str:
        """Return the name of a subject's job.

        >>> ENCODE.job("sae")
        'encode.sae'
        """
        return f"{self.name}.{subject}"

    def receipts(self, store: PlannedStore, subject: str) -> Receipts:
        """Return the receipts of a subject's job."""
        return receipts_of(store, self.job(subject), self.n_units(store, subject))

    def unit_of_work(
        self, store: PlannedStore, subject: str, number: int, start: int, stop: int
    ) -> Unit:
        """Return a unit of a subject's job.

        Parameters
        ----------
        store : Store
        subject : str
        number : int
            The unit's number.
        start, stop : int
            The range [start, stop) that the unit covers.
        """
        folder = self.folder.format(subject=subject, unit=number)
        return Unit(self.job(subject), number, self.n_units(store, subject), folder, start, stop)

    def groups(self, subject: str) -> tuple[str, ...]:
        """Return the folders of the plain groups above a subject's data."""
        return tuple(folder.format(subject=subject) for folder in self.plain_groups)

    def parent(self, subject: str) -> str:
        """Return the folder that the groups of a subject's units lie in."""
        return self.folder.rpartition("/")[0].format(subject=subject)

    def unit_in(self, name: str, subject: str) -> int | None:
        """Return the number of the unit whose attempt wrote a group of this name.

        Returns None where no attempt at a unit of this kind gives a group such a name.

        >>> ENCODE.unit_in("00000003-0123456789ab", "sae"), ENCODE.unit_in("zarr.json", "sae")
        (3, None)
        """
        last = self.folder.rpartition("/")[2]
        stem, dash, mark = name.rpartition("-")
        if not dash or not re.fullmatch(rf"[0-9a-f]{{{MARK_DIGITS}}}", mark):
            return None
        if "{unit" not in last:
            return 0 if stem == last.format(subject=subject) else None
        return int(stem) if re.fullmatch(r"[0-9]{8}", stem, re.ASCII) else None


def receipts_of(store: PlannedStore, job: str, n: int) -> Receipts:
    """Return the receipts of a derived job whose units are numbered in [0, n)."""
    return Receipts(store.objects, job, n, store.plan_sha256)


_KINDS: dict[str, JobKind] = {}


def register(kind: JobKind) -> JobKind:
    """Make a kind known to `verify`, `status` and `repair`, and return it.

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
    """Return the kinds that are registered so far, those of the store's own format first."""
    return tuple(_KINDS.values())


def kind_of(job: str) -> tuple[JobKind | None, str]:
    """Return a job's kind and its subject; the kind is None where no module registers it.

    >>> kind_of("encode.my.sae") == (ENCODE, "my.sae")
    True
    """
    name, _, subject = job.partition(".")
    if name not in _KINDS:
        _import_room()
    return _KINDS.get(name), subject


def is_group(folder: str) -> bool:
    """Whether an attempt at a derived job gives its group such a name.

    >>> is_group("features/sae/tokens/00000003-0123456789ab"), is_group("rows/doc_idx")
    (True, False)
    """
    match = _GROUP.fullmatch(folder)
    return match is not None and is_root(match[1])


def is_root(name: str) -> bool:
    """Whether derived data lies in this folder at the top of a store."""
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
    """Return the names of the kinds that a kind's data is made from, at first or second hand.

    >>> sorted(made_from(INDEX))
    ['encode', 'encoded']
    """
    derived = [_KINDS[name] for name in kind.inputs if name in _KINDS]
    return frozenset({before.name for before in derived}.union(*map(made_from, derived)))


def by_inputs(jobs: Iterable[str]) -> list[str]:
    """Return jobs of known kinds, each behind those that it may be made from.

    >>> by_inputs(["index.sae", "encode.sae"])
    ['encode.sae', 'index.sae']
    """
    known = [(kind, job) for job in jobs if (kind := kind_of(job)[0]) is not None]
    return [job for _, job in sorted(known, key=lambda pair: (depth(pair[0]), pair[1]))]


def job_receipts(store: PlannedStore, job: str) -> Receipts:
    """Return the receipts of a derived job by its name alone."""
    kind, subject = kind_of(job)
    n = MAX_UNITS
    if kind is not None:
        try:
            n = kind.n_units(store, subject)
        except (ActlasError, FileNotFoundError):
            n = MAX_UNITS  # its subject's description is damaged: a check of its own says so
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
    store : Store
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
    return unseal(store.objects.read(key), FeaturesSpec, f"{store.path}/{key}").n_features


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
    )
)
"""The top and bottom tokens of every raw unit of a hookpoint."""
