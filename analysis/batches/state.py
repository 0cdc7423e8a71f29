"""The state of a stream of batches as JSON: its position, and the whole key of its order."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from actlas.store.errors import ConfigError


class Position(NamedTuple):
    """The position of a stream: its next batch; the same on all ranks.

    Attributes
    ----------
    epoch : int
        The epoch, from 0.
    step : int
        Batches given in this epoch.
    """

    epoch: int
    step: int


class BatchState(BaseModel):
    """The content of a ``state_dict``: the position, and all that the order depends on.

    The number of ranks is not in it: the order is the same for any number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["actlas.batches"] = "actlas.batches"
    version: Literal[2] = 2
    epoch: NonNegativeInt
    step: NonNegativeInt
    hookpoint: str
    """The hookpoint; of several, their number and a digest of their names."""
    rows: str
    """A digest of the store's plan and of the shards that were extracted."""
    shards: int
    """The number of those shards."""
    seed: int
    fraction: float
    skip: float
    special: bool
    batch_size: int
    buffer_rows: int
    drop_last: bool

    @property
    def position(self) -> Position:
        """The position of the stream."""
        return Position(self.epoch, self.step)

    def require_same_order(self, expected: BatchState) -> None:
        """Check that this state belongs to batches in the expected order.

        Parameters
        ----------
        expected : BatchState
            The state of the batches that would go on from this one.

        Raises
        ------
        ConfigError
            The orders differ; ``details["field"]`` names the first field that does.
        """
        free = {"epoch", "step", "shards"}
        for field in type(self).model_fields:
            got, wanted = getattr(self, field), getattr(expected, field)
            if field in free or got == wanted:
                continue
            hint = "Give the options that the state was saved with, or start again without it."
            if field == "rows" and self.shards != expected.shards:
                hint = (
                    f"The store had {self.shards} extracted shards then and has "
                    f"{expected.shards} now, which changes the order: start again without the "
                    "state."
                )
            elif field == "rows":
                hint = "The state belongs to another store: give the store that it was saved of."
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
        The object is no such state, and the message names the first wrong field; or an earlier
        version of actlas saved it, whose order of batches was another one.
    """
    if isinstance(state, dict) and state.get("version") == 1:
        raise ConfigError(
            "the state of these batches is of version 1, expected version 2: an earlier actlas "
            "saved it, which gave the rows in another order. Finish with that actlas, or start "
            "again without the state.",
            field="version",
            got=1,
            expected=2,
        )
    try:
        return BatchState.model_validate(state)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole value"
        raise ConfigError(
            f"not a state of batches: {where}: {first['msg']}. Give a result of `state_dict()`.",
            field=where,
        ) from error
