"""The state of a stream of batches as JSON: its position, and the whole key of its order."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from actlas.store.errors import ConfigError


class Position(NamedTuple):
    """The position of a stream: its next batch.

    Attributes
    ----------
    epoch : int
        The epoch, from 0.
    base : int
        Rows of the epoch that were given before the present number of ranks took over.
    batch : int
        Batches that each rank has given since.
    """

    epoch: int
    base: int
    batch: int


class BatchState(BaseModel):
    """The content of a ``state_dict``: the position, and all that the order depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["actlas.batches"] = "actlas.batches"
    version: Literal[1] = 1
    epoch: NonNegativeInt
    base: NonNegativeInt
    batch: NonNegativeInt
    plan_sha256: str
    hookpoint: str
    shards_sha256: str
    n_shards: int
    n_rows: int
    seed: int
    fraction: float
    skip: float
    special: bool
    batch_size: int
    pool_rows: int
    """Rows of the shuffle buffer; saved states have the name that it had first."""
    drop_last: bool
    world_size: int

    @property
    def position(self) -> Position:
        """The position of the stream."""
        return Position(self.epoch, self.base, self.batch)

    def require_same_order(self, expected: BatchState) -> None:
        """Check that this state belongs to batches in the expected order.

        The number of ranks may differ: it may change at the end of a round.

        Parameters
        ----------
        expected : BatchState
            The state of the batches that would go on from this one.

        Raises
        ------
        ConfigError
            The orders differ; ``details["field"]`` names the first field that does.
        """
        free = {"epoch", "base", "batch", "world_size", "n_shards"}
        for field in type(self).model_fields:
            got, wanted = getattr(self, field), getattr(expected, field)
            if field in free or got == wanted:
                continue
            hint = "Give the options that the state was saved with, or start again without it."
            if field == "shards_sha256":
                hint = (
                    f"The store had {self.n_shards} extracted shards then and has "
                    f"{expected.n_shards} now, which changes the order: start again without the "
                    "state."
                )
            raise ConfigError(
                f"the state of these batches has {field} {got!r}, expected {wanted!r}. {hint}",
                field=field,
                got=got,
                expected=wanted,
            )


def parse_state(state: Any) -> BatchState:
    """Check a saved state and return it.

    Parameters
    ----------
    state : object
        The result of ``Batches.state_dict()``, possibly through JSON.

    Raises
    ------
    ConfigError
        The object is no such state; the message names the first wrong field.
    """
    try:
        return BatchState.model_validate(state)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole value"
        raise ConfigError(
            f"not a state of batches: {where}: {first['msg']}. Give a result of `state_dict()`.",
            field=where,
        ) from error
