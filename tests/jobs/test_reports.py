from __future__ import annotations

import inspect

import click
import jsonschema
import pytest
from support.reports import FOLDER, parsed

from actlas.jobs.cli.app import VERBS, cli
from actlas.jobs.cli.sae import VERBS as SAE_VERBS
from actlas.jobs.run.reports import schemas
from actlas.jobs.run.reports.base import ErrorDetail, ErrorReport, Part


def test_the_schemas_in_docs_are_the_models() -> None:
    made = dict(schemas.schema_files())
    kept = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert kept == made, "run `make schemas`"


def test_every_json_output_has_a_schema() -> None:
    context = click.Context(cli)
    commands = {name: cli.get_command(context, name) for name in VERBS}
    group = commands["sae"]
    assert isinstance(group, click.Group)
    commands |= {f"sae-{name}": group.get_command(context, name) for name in SAE_VERBS}
    with_json = {
        name
        for name, command in commands.items()
        if command is not None and any(param.name == "as_json" for param in command.params)
    }
    assert with_json | {"error"} == set(schemas.REPORTS)


def test_every_field_has_a_description() -> None:
    from actlas.jobs.run.reports import analysis, checks, contents, progress

    parts = [
        part
        for module in (analysis, checks, contents, progress)
        for _, part in inspect.getmembers(module, inspect.isclass)
        if issubclass(part, Part) and part.__module__ == module.__name__
    ]
    assert len(parts) > 20
    for part in parts:
        for name in part.__annotations__.keys() - part.__class_vars__:
            assert part.model_fields[name].description, f"{part.__name__}.{name}"


def test_a_wrong_output_is_refused() -> None:
    right = ErrorReport(error=ErrorDetail(kind="config", message="half a pair: \ud800"))
    assert parsed("error", right.to_json())["error"]["message"] == "half a pair: \ud800"
    with pytest.raises(jsonschema.ValidationError):
        parsed("error", '{"error": {"kind": "config"}}')
