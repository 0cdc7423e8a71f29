"""Where a stream of batches stands, and all that its order depends on, as JSON."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from actlas.store.errors import ConfigError


class Position(NamedTuple):
    """The next batch.

    Attributes
    ----------
    epoch : int
    base : int
        Rows of the epoch that were given before the present number of ranks took over.
    batch : int
        Batches that each rank gave since.
    """

    epoch: int
    base: int
    batch: int


class BatchState(BaseModel):
    """What ``state_dict`` holds: the position, and the whole key of the order."""

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
    drop_last: bool
    world_size: int

    @property
    def position(self) -> Position:
        """Where it stands."""
        return Position(self.epoch, self.base, self.batch)

    def require_same_order(self, expected: BatchState) -> None:
        """Raise ``ConfigError`` where a state belongs to batches in another order.

        The number of ranks is no part of this: it may change at a round's end.
        """
        free = {"epoch", "base", "batch", "world_size", "n_shards"}
        for field in type(self).model_fields:
            got, wanted = getattr(self, field), getattr(expected, field)
            if field in free or got == wanted:
                continue
            hint = "Give the same options as then, or begin anew without the state."
            if field == "shards_sha256":
                hint = (
                    f"The store had {self.n_shards} extracted shards then and has "
                    f"{expected.n_shards} now, so the order is another: begin anew without the "
                    "state."
                )
            raise ConfigError(
                f"the state of these batches has {field} {got!r}, expected {wanted!r}. {hint}",
                field=field,
                got=got,
                expected=wanted,
            )


def parse_state(state: Any) -> BatchState:
    """Return a state as it was saved.

    Raises
    ------
    ConfigError
        It is not one. The message names the first field that is wrong.
    """
    try:
        return BatchState.model_validate(state)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise ConfigError(
            f"this is no state of batches: {where}: {first['msg']}. Give what `state_dict()` "
            "returned.",
            field=where,
        ) from error
