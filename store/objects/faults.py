"""Errors of the operating system in reading and writing: who must act, and with which exit code.

Exit code 75 promises that the same command goes on as soon as the environment is well again: the
disk has room, the file server answers. Where a place itself cannot hold what is to be written (no
permission, no hard links, a name that is too long), the same command fails again until the user
changes the place or the command: exit code 2. Both stop a run, and charge no shard.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from actlas.store.errors import ActlasError, PlaceError, RunFaultError

_RIGHT = "give this user the rights to read and write there, or give another path"
_WAY = "a file has the name of a folder that is needed, or a folder that of a file: give another"
_LACKS = (
    "this file system lacks what a store needs (hard links, syncing of folders): use one that has "
    "it (ext4, xfs, NFS, Lustre)"
)
_SERVER = "look at the network and at the file server"
_DEVICE = "attach the device again"
_CREDENTIAL = "renew the credential for the file server (kinit)"
_BUSY = "wait, or stop what uses it"
_DAMAGED = "the file system is damaged: have it checked (fsck)"

_AGAIN = {
    "ENOSPC": "free some space",
    "EDQUOT": "free some space or raise the quota",
    "EIO": "look at the disk",
    "EMFILE": "raise the limit of open files (ulimit -n)",
    "ENFILE": "raise the limit of open files of the machine",
    "ENOMEM": "free some memory",
    "ENOBUFS": "free some memory",
    **dict.fromkeys(("EAGAIN", "EINTR", "EBUSY", "EDEADLK", "ENOLCK", "ECANCELED"), _BUSY),
    **dict.fromkeys(("ENODEV", "ENXIO", "ENOMEDIUM"), _DEVICE),
    **dict.fromkeys(("ENOKEY", "EKEYEXPIRED", "EKEYREVOKED", "EKEYREJECTED"), _CREDENTIAL),
    **dict.fromkeys(
        (
            *("ESTALE", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
            *("ENETRESET", "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "ENOTCONN"),
            *("ESHUTDOWN", "EREMOTEIO", "ENOLINK", "ECOMM", "EPROTO", "ENONET"),
        ),
        _SERVER,
    ),
}

_PLACE = {
    "EACCES": _RIGHT,
    "EPERM": _RIGHT,
    "EROFS": "mount it writable, or give another path",
    "ENOENT": "the folder was removed meanwhile, or this file system takes no new files: give "
    "another path",
    **dict.fromkeys(("ENOTDIR", "EISDIR", "EEXIST", "ENOTEMPTY"), f"{_WAY} path"),
    "ENAMETOOLONG": "give a shorter path",
    "EILSEQ": "this file system cannot hold this name: give a path of plain letters",
    "ELOOP": "a symbolic link leads back to itself: give another path",
    "EXDEV": "all folders of a store must lie on one file system: give another path",
    "EMLINK": "this file system allows a file no second name: give another path",
    **dict.fromkeys(("EINVAL", "ENOSYS", "EOPNOTSUPP", "ENOTSUP", "ENOTTY"), _LACKS),
    "EFBIG": "raise the limit of a file's size (ulimit -f), or use a file system with larger files",
    "EOVERFLOW": "use a file system with larger files",
    "ETXTBSY": "a running program uses this file: give another path",
    **dict.fromkeys(("EUCLEAN", "EBADMSG"), _DAMAGED),
}

_OF_ANY_ACCESS = ("EACCES", "EPERM", "EROFS", "EUCLEAN", "EBADMSG")
"""Errors of a place that are none of the file that is read: ENOENT and others are."""


class Rule(NamedTuple):
    """What follows from an error of the operating system.

    Attributes
    ----------
    again : bool
        Whether the same command goes on once the environment is well: exit code 75, not 2.
    remedy : str
        What to do.
    """

    again: bool
    remedy: str


def _numbered(names: dict[str, str], again: bool) -> dict[int, Rule]:
    known = {name: getattr(errno, name, None) for name in names}
    return {code: Rule(again, names[name]) for name, code in known.items() if code is not None}


RULES: dict[int, Rule] = {**_numbered(_PLACE, False), **_numbered(_AGAIN, True)}
"""The rule of each error, by its number on this platform."""

_OTHER = Rule(False, "this file system refuses it: give another path")
_NAMELESS = Rule(True, "look at the disk, and whether it is full")
_ANY_ACCESS = {code for name in _OF_ANY_ACCESS if (code := getattr(errno, name, None)) is not None}


def write_fault(error: OSError, path: str | os.PathLike[str]) -> RunFaultError:
    """Return the error to raise where a write failed: every error of a write has a rule.

    Parameters
    ----------
    error : OSError
        The error of the operating system.
    path : path
        The path that the user gave, or the final one of what was written: never a temporary one.
    """
    if error.errno is None:
        return _fault(error, os.fspath(path), _NAMELESS)
    return _fault(error, os.fspath(path), RULES.get(error.errno, _OTHER))


def run_fault(error: OSError, path: str | os.PathLike[str]) -> RunFaultError | None:
    """Return the error to raise where a read failed, or None if the environment is not at fault.

    The environment is not at fault where a file does not exist, or is not what was expected.

    Parameters
    ----------
    error : OSError
        The error of the operating system; or of a library, of unknown origin.
    path : path
        The file or folder that was being read.
    """
    rule = RULES.get(error.errno or 0)
    if isinstance(error, ActlasError) or rule is None:
        return None
    known = rule.again or error.errno in _ANY_ACCESS
    return _fault(error, os.fspath(path), rule) if known else None


def writing(path: str | os.PathLike[str]) -> AbstractContextManager[None]:
    """Turn errors of the operating system into those of :func:`write_fault`.

    Parameters
    ----------
    path : path
        The path that messages name.
    """
    return _turned(path, write_fault)


def reading(path: str | os.PathLike[str]) -> AbstractContextManager[None]:
    """Turn errors of the operating system into those of :func:`run_fault`; others pass.

    Parameters
    ----------
    path : path
        The path that messages name.
    """
    return _turned(path, run_fault)


@contextmanager
def _turned(
    path: str | os.PathLike[str],
    fault_of: Callable[[OSError, str | os.PathLike[str]], RunFaultError | None],
) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        fault = None if isinstance(error, ActlasError) else fault_of(error, path)
        if fault is None:
            raise
        raise fault from error


def _fault(error: OSError, path: str, rule: Rule) -> RunFaultError:
    reason = error.strerror or str(error) or type(error).__name__
    number = "" if error.errno is None else f" (errno {error.errno})"
    harmless = "Nothing already written is harmed"
    details = {"path": path, "errno": error.errno}
    if rule.again:
        then = f"{harmless}: {rule.remedy}, then run the same command again."
        return RunFaultError(f"{path}: {reason}{number}. {then}", **details)
    return PlaceError(f"{path}: {reason}{number}. {harmless}; {rule.remedy}.", **details)
