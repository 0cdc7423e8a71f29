"""Going on with another value of each field: refused by name in a plan, accepted in a run.

The values follow from the models, so that a field that is added is tried too.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError
from support.jobs import attempted, options, plant
from support.runs import Size, planned
from support.stores import create, plan_for, words_columns
from support.workers import make_fake

from actlas.jobs.config import resolve
from actlas.jobs.run.extract import open_or_plan
from actlas.jobs.run.run import run_extraction
from actlas.pipeline.options import PlanOptions, RunOptions
from actlas.store.errors import EXIT_DONE, PlanMismatchError, RunFaultError
from chaos.conftest import Oracles, Start
from chaos.count import NONE, complaints
from chaos.record import Chaos

pytestmark = pytest.mark.chaos

TINY = Size(6, 16)
AS_A_USER = ("workers", "tokens_per_batch", "retry_quarantined")
"""Run fields that the short form gives on a command line of their own; the long one all."""


def others(model: type[BaseModel], name: str, value: Any) -> list[Any]:
    """Return values that a field may have and that are not this one."""
    found = []
    for candidate in candidates(model.model_fields[name].annotation):
        required = {"model": "m", "corpus": "c"} if model is PlanOptions else {}
        try:
            made = model.model_validate({**required, name: candidate})
        except ValidationError:
            continue
        as_json = made.model_dump(mode="json")[name]
        if as_json != value:
            found.append(as_json)
    return found


def candidates(annotation: Any) -> list[Any]:
    """Return values of a type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return candidates(arguments[0])
    if origin in (Union, types.UnionType):
        return [value for each in arguments for value in candidates(each)]
    if origin is Literal:
        return list(arguments)
    if origin is tuple:
        return [(value,) for value in candidates(arguments[0])]
    made: dict[Any, list[Any]] = {
        bool: [True, False],
        int: [3, 64, 128],
        float: [0.5, 77.0],
        str: ["another", ";"],
        type(None): [],
    }
    return made[annotation]


def test_each_field_of_the_plan(chaos: Chaos, start: Start, ground: Path) -> None:
    columns = words_columns(0, 6, 8)
    request = PlanOptions(model="/m", corpus="/c").model_dump(mode="json")
    path = str(ground / "run.zarr")
    plan = plan_for(columns, shard_rows=32, request=request, seed=0)
    create(path, plan, columns)
    before = {p: p.read_bytes() for p in Path(path).rglob("*") if p.is_file()}
    n, accepted = 0, []
    for name in PlanOptions.model_fields:
        values = others(PlanOptions, name, request[name])
        assert values, f"no other value of {name} is known: extend candidates()"
        refused = 0
        for value in values:
            try:
                open_or_plan(path, resolve({"plan": {name: value}}))
            except PlanMismatchError as error:
                refused += error.details["field"] == name and f"planned with {name} =" in str(error)
        if refused < max(1, len(values) - 1):  # one may be what the plan made of a default
            accepted.append(name)
        n += refused
    for option in ("--seed=1", "--max-length=32", "--with-loss", "--pool=mean", "--dtype=float32"):
        driver = start(path, option)
        name = option[2:].partition("=")[0].replace("-", "_")
        if (
            driver.wait() != PlanMismatchError.exit_code
            or f"planned with {name} =" not in driver.said()
        ):
            accepted.append(option)
    after = {p: p.read_bytes() for p in Path(path).rglob("*") if p.is_file()}
    chaos.record(
        "resume with each Plan field changed",
        n,
        fields=len(PlanOptions.model_fields),
        accepted_in_error=", ".join(accepted) or "none",
    )
    assert accepted == []
    assert after == before


def test_each_field_of_the_run(
    chaos: Chaos, start: Start, start_on: Start, oracles: Oracles, ground: Path
) -> None:
    default = RunOptions().model_dump(mode="json")
    n, rows, said, refused = 0, NONE, [], []
    for name in RunOptions.model_fields:
        values = others(RunOptions, name, default[name])
        assert values, f"no other value of {name} is known: extend candidates()"
        store = planned(ground / name, TINY, {2: ["disk"]})
        with pytest.raises(RunFaultError):
            run_extraction(store, options(), make_fake)
        assert 0 < len(store.missing()) < store.plan.n_shards
        plant(ground / name)
        done = len(attempted(ground / name))
        override = f"run.{name}={values[0]}"
        if name in ("executor", "address", "workers"):  # on the Ray that is there
            driver = start_on(store.path, *([override] if name == "workers" else []))
            code, why = driver.wait(), driver.said()
        elif name in AS_A_USER or chaos.form == "long":
            driver = start(store.path, override)
            code, why = driver.wait(), driver.said()
        else:
            asked = resolve({}, [override])
            outcome = run_extraction(open_or_plan(store.path, asked), asked.run, make_fake)
            code, why = outcome.exit_code, outcome.line
        if code != EXIT_DONE:
            refused.append(f"{name}: {why}")
            continue
        assert len(attempted(ground / name)) > done
        n += 1
        rows += oracles(TINY).count(store.path)
        said += complaints(store.path)
    chaos.record(
        "resume with each Run field changed",
        n,
        **rows._asdict(),
        fields=len(RunOptions.model_fields),
        refused_in_error=len(refused),
    )
    assert refused == []
    assert (rows, said) == (NONE, [])
