"""The errors of actlas, each with a machine-readable ``kind`` and an exit code.

A message says what was got, what was expected and what to do. Every error also derives from a
built-in exception if one fits, and survives pickling, since errors cross processes.
"""

from __future__ import annotations

import errno
from typing import Any, ClassVar

from actlas.store.voice import spoken

EXIT_DONE = 0
"""Everything is done."""

EXIT_ERROR = 1
"""An error that no other exit code describes."""

EXIT_USAGE = 2
"""The command, its options or its inputs are wrong; the same command will fail again."""

EXIT_QUARANTINE = 3
"""Some shards failed repeatedly and are in quarantine; all others are done."""

EXIT_DAMAGE = 4
"""Stored data is damaged."""

EXIT_RESUME = 75
"""The run is incomplete; the same command resumes it."""


class ActlasError(Exception):
    """The base class of every error that actlas raises on purpose.

    Parameters
    ----------
    message : str
        What was got, what was expected, what to do, in the words of the command line: Python sees
        the arguments and calls that correspond, see :mod:`actlas.store.voice`.
    **details
        The same facts for programs: a path, a field, a row range.
    """

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = EXIT_ERROR

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def __str__(self) -> str:
        return spoken(self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.details)


def _rebuild(cls: type[ActlasError], message: str, details: dict[str, Any]) -> ActlasError:
    return cls(message, **details)


class ConfigError(ActlasError, ValueError):
    """An option, a configuration key, or a combination of them is invalid."""

    kind = "config"
    exit_code = EXIT_USAGE


class CorpusError(ActlasError, ValueError):
    """A corpus is missing or empty, or cannot be read with these options."""

    kind = "corpus"
    exit_code = EXIT_USAGE


class ModelError(ActlasError, ValueError):
    """A model or tokenizer cannot be loaded, or is not the one that the plan names."""

    kind = "model"
    exit_code = EXIT_USAGE


class MissingPackageError(ActlasError, ImportError):
    """An optional package is needed and is not installed. ``details['package']`` names it."""

    kind = "missing_package"
    exit_code = EXIT_USAGE


class HookpointError(ActlasError, LookupError):
    """A hookpoint does not exist in this model or in this store."""

    kind = "hookpoint"
    exit_code = EXIT_USAGE


class MaskError(ActlasError, ValueError):
    """A mask is damaged, or belongs to another model. ``details['field']`` names the field."""

    kind = "mask"
    exit_code = EXIT_USAGE


class SaeError(ActlasError, ValueError):
    """A sparse autoencoder cannot be loaded, or has another width or hookpoint."""

    kind = "sae"
    exit_code = EXIT_USAGE


class FeatureError(ActlasError, LookupError):
    """A set of features, a feature or a unit does not exist, or is not encoded or indexed yet."""

    kind = "feature"
    exit_code = EXIT_USAGE


class StoreNotFoundError(ActlasError, FileNotFoundError):
    """There is no store at this path."""

    kind = "store_not_found"
    exit_code = EXIT_USAGE


class StoreExistsError(ActlasError, FileExistsError):
    """Something exists at this path already; it is left unchanged."""

    kind = "store_exists"
    exit_code = EXIT_USAGE


class FormatError(ActlasError, ValueError):
    """The store was written by another version of the format, or its metadata is malformed."""

    kind = "format"


class PlanMismatchError(ActlasError, ValueError):
    """A command differs from the frozen plan. ``details['field']`` names the field."""

    kind = "plan_mismatch"
    exit_code = EXIT_USAGE


class NotExtractedError(ActlasError, LookupError):
    """Rows were requested whose shard has no receipt yet."""

    kind = "not_extracted"


class CorruptDataError(ActlasError, ValueError):
    """Stored bytes do not have the checksum or the size that was recorded for them."""

    kind = "corrupt"
    exit_code = EXIT_DAMAGE


class ConflictError(ActlasError, RuntimeError):
    """An object exists already under its final name, with other contents than this writer's."""

    kind = "conflict"


class NonFiniteError(ActlasError, ArithmeticError):
    """Activations contain NaN or infinity, and the run is set to refuse them."""

    kind = "non_finite"


class MemoryBudgetError(ActlasError, MemoryError):
    """The projected memory exceeds the budget."""

    kind = "memory_budget"
    exit_code = EXIT_USAGE


class LeaseHeldError(ActlasError, RuntimeError):
    """Another driver holds the lease of this store."""

    kind = "lease_held"
    exit_code = EXIT_RESUME


class RunFaultError(ActlasError, OSError):
    """The environment failed (disk full, I/O error, no answer); no shard is at fault."""

    kind = "run_fault"
    exit_code = EXIT_RESUME


class PlaceError(RunFaultError):
    """A place cannot hold what is to be written: no permission, read-only, no hard links.

    The same command fails again until the place or the command is changed.
    """

    kind = "place"
    exit_code = EXIT_USAGE


class InterruptedRunError(ActlasError, RuntimeError):
    """The run was stopped. The same command resumes it."""

    kind = "interrupted"
    exit_code = EXIT_RESUME


class QuarantineError(ActlasError, RuntimeError):
    """A run ended with units of work in quarantine. ``details['shards']`` lists them."""

    kind = "quarantine"
    exit_code = EXIT_QUARANTINE


class SignalledExit(SystemExit):
    """SIGTERM stopped a run in a Python process, which ends with code 75 unless this is caught.

    It is no ``Exception``, so that ``except Exception`` does not keep a process alive that was told
    to end. After SIGINT it is ``KeyboardInterrupt`` that is raised.

    Parameters
    ----------
    message : str
        How far the run came, and what to do next.
    """

    def __init__(self, message: str) -> None:
        super().__init__(spoken(message))
        self.message = message
        self.code = EXIT_RESUME


def of_one_object(error: RunFaultError) -> bool:
    """Return whether a run fault may concern one object only, while others can be read."""
    return error.details.get("errno") in (errno.EIO, errno.EACCES, errno.EPERM)
