"""The base of all JSON outputs, and the output of an error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    WithJsonSchema,
    model_serializer,
)


def _string(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"got {type(value).__name__}, expected a string")
    return value


if TYPE_CHECKING:
    Text = str
else:
    Text = Annotated[Any, AfterValidator(_string), WithJsonSchema({"type": "string"})]
    """String that may hold lone surrogates (a path, text of a store), which pydantic refuses."""


class Part(BaseModel):
    """An object inside a JSON output. Fields keep their order; unknown ones are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )


class MayLack(Part):
    """An object whose fields ``MAY_LACK`` are left out of the output while they are empty."""

    MAY_LACK: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        return {k: v for k, v in fields.items() if v or k not in self.MAY_LACK}


class Report(Part):
    """The JSON output of a command: one object on one line."""

    def plain(self) -> dict[str, Any]:
        """Return the report as dictionaries, lists, strings and numbers."""
        return self.model_dump()

    def to_json(self) -> str:
        """Return the line that ``--json`` prints."""
        return json.dumps(self.plain()).replace("\x7f", r"\u007f")  # the rest is escaped as ASCII


class ErrorDetail(Part):
    """An error for programs."""

    kind: str
    """Kind of the error, such as ``config`` or ``lease_held``; it is stable across versions."""
    message: Text
    """Message of the error, for people."""


class ErrorReport(Report):
    """Output of any command with ``--json`` that fails with an error; the exit code is not 0."""

    error: ErrorDetail
    """The error."""
