from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any, cast

import click
import pytest
from support.stores import plan_for, words_columns
from support.workers import fake_store

from actlas.jobs import config, formatting
from actlas.jobs.cli import options
from actlas.jobs.cli.options import section_options
from actlas.jobs.config import SECTIONS, Asked, Section, resolve
from actlas.jobs.formatting import parse_count, printable
from actlas.jobs.run.resume import check_same_plan
from actlas.pipeline.options import PlanOptions, RunOptions
from actlas.store.display import text
from actlas.store.errors import ConfigError, PlanMismatchError


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2000000", 2_000_000),
        ("2_000_000", 2_000_000),
        ("2,000,000", 2_000_000),
        ("2e6", 2_000_000),
        ("2E+6", 2_000_000),
        ("2M", 2_000_000),
        ("1.5k", 1500),
        ("4G", 4_000_000_000),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_counts(text: str, number: int) -> None:
    assert parse_count(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2.5",
        "-1",
        "2Q",
        "1e-3",
        "nan",
        "0x10",
        "__import__('os')",
        "1e400",
        "1e308T",
        "9" * 5000,
    ],
)
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a whole number"):
        parse_count(text)


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "plan: {model: builtin:m, corpus: builtin:c, max_tokens: 2e6, seed: 1, dtype: float16}\n"
        "run: {workers: 2, tokens_per_batch: 2_048}\n"
    )
    asked = resolve(
        {"plan": {"seed": 2, "dtype": "float32"}, "run": {"device": "cpu"}},
        ["plan.dtype=bfloat16", "run.workers=8", "plan.hookpoints=resid_post.0, embed"],
        file,
    )
    assert asked.plan == {
        "model": "builtin:m",
        "corpus": "builtin:c",
        "max_tokens": 2_000_000,
        "seed": 2,
        "dtype": "bfloat16",
        "hookpoints": ["resid_post.0", "embed"],
    }
    assert asked.run == RunOptions(workers=8, tokens_per_batch=2048, device="cpu")
    assert asked.origin["plan.dtype"] == "plan.dtype=bfloat16"
    assert asked.origin["plan.seed"] == "--seed"
    assert asked.origin["run.tokens_per_batch"] == str(file)
    assert asked.plan_options().max_tokens == 2_000_000


def test_several_workers_are_rays(tmp_path: Path) -> None:
    given: dict[str, dict[str, object]] = {"several": {"workers": 3}, "auto": {"workers": "auto"}}
    given |= {"cluster": {"address": "auto"}, "named": {"workers": 1, "executor": "ray"}}
    for run in given.values():
        assert resolve({"run": run}).run.executor == "ray"
        assert RunOptions(**run).executor == "ray"  # type: ignore[arg-type]
    for run in ({}, {"workers": 1}, {"executor": "inline"}, {"executor": "inline", "workers": 1}):
        assert resolve({"run": run}).run.executor == "inline"
    file = tmp_path / "run.yaml"
    file.write_text("run: {workers: 2}\n")
    assert resolve({"plan": {}}, [], file).run.executor == "ray"
    assert resolve({"run": {"executor": "inline"}}, ["run.workers=1"], file).run.workers == 1
    with pytest.raises(ConfigError, match=r"run\.yaml and executor: executor inline is one p"):
        resolve({"run": {"executor": "inline"}}, [], file)
    with pytest.raises(ConfigError, match=r"^workers= and executor: .*set workers to 1"):
        resolve({"run": {"workers": 3, "executor": "inline"}})
    with pytest.raises(ConfigError, match="Ray cluster, or leave address out"):
        resolve({"run": {"executor": "inline", "address": "auto"}})


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    asked = resolve({"plan": {"model": "model", "corpus": "data/*.jsonl"}})
    assert asked.plan == {"model": f"{tmp_path}/model", "corpus": f"{tmp_path}/data/*.jsonl"}
    hub = resolve({"plan": {"model": "openai-community/gpt2", "corpus": "hf:some/name:train"}})
    assert hub.plan == {"model": "openai-community/gpt2", "corpus": "hf:some/name:train"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.worker=4", "unknown key of run: 'worker'. Did you mean workers"),
        ("run.max_tokens=4", "unknown key of run: 'max_tokens'"),
        ("plam.seed=4", "unknown section: 'plam'. Did you mean plan?"),
        ("workers=4", "expected an override such as run.workers=4"),
        ("run.workers", "expected an override such as run.workers=4"),
        ("run.workers=0", "greater than or equal to 1"),
        ("run.workers=many", "run.workers=many: workers: got 'many', expected a whole number"),
        ("run.workers=many", ", 2e6 or 2M, or auto"),
        ("run.executor=dask", "'inline' or 'ray'"),
        ("plan.dtype=float64", "'bfloat16', 'float16' or 'float32'"),
        ("plan.seed=[1", "not YAML"),
        ("run.device=!!python/object/apply:os.getpid []", "not YAML"),
    ],
)
def test_bad_overrides(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({}, [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("plan: {modle: x}", "unknown key in `plan:`: 'modle'. Did you mean model"),
        ("seed: 3", "unknown section: 'seed'"),
        ("- plan", "expected the sections"),
        ("plan: 3", "expected keys and values"),
        ("plan: [", "not YAML"),
        ("run: !!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_bad_files(tmp_path: Path, body: str, message: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(body)
    with pytest.raises(ConfigError) as caught:
        resolve({}, [], file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        resolve({}, [], tmp_path / "none.yaml")


def test_a_plan_needs_model_and_corpus() -> None:
    with pytest.raises(ConfigError, match="a plan needs model= and corpus:"):
        resolve({}).plan_options()
    with pytest.raises(ConfigError, match="a plan needs corpus:"):
        resolve({"plan": {"model": "builtin:m"}}).plan_options()


def test_every_field_is_an_option() -> None:
    for section, model in SECTIONS.items():

        @click.command()
        @section_options(cast(Section, section))
        def command(**_: object) -> None: ...

        made = {option.name: option for option in command.params}
        assert set(made) == {f"{section}_{name}" for name in model.model_fields}
        for name, info in model.model_fields.items():
            option = made[f"{section}_{name}"]
            assert info.description and isinstance(option, click.Option) and option.help
            assert "[default: " in option.help


PLANNED = PlanOptions(model="/m", corpus="/c", max_tokens=100, hookpoints=("resid_post.*",))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"model": "/m", "corpus": "/c"},
        {"max_tokens": 100},
        {"hookpoints": ["resid_post.*"]},
        {"hookpoints": ["resid_post.0", "mlp.1"]},  # what it was resolved to
        {"max_length": 64, "long": "window", "order": "shuffled", "shard_rows": 256},
        {"seed": 0, "dtype": "bfloat16", "keep_special": False},
    ],
)
def test_the_same_again_is_accepted(given: dict[str, Any]) -> None:
    plan = plan_for(words_columns(0, 5, 5), request=PLANNED.model_dump(mode="json"), seed=0)
    check_same_plan(plan, resolve({"plan": given}), "run.zarr")


@pytest.mark.parametrize(
    ("field", "value", "planned"),
    [
        ("model", "builtin:other", "/m"),
        ("corpus", "builtin:other", "/c"),
        ("max_tokens", 101, 100),
        ("max_length", 128, 64),
        ("long", "truncate", "window"),
        ("hookpoints", ["resid_post.1"], ["resid_post.*"]),
        ("order", "corpus", "shuffled"),
        ("dtype", "float32", "bfloat16"),
        ("model_dtype", "float16", "auto"),
        ("seed", 1, 0),
        ("keep_special", True, False),
        ("compression", "none", "dense"),
        ("shard_rows", 512, 256),
        ("lowercase", True, False),
        ("revision", "abc", None),
        ("tokenizer", "builtin:other", "made-up"),
        ("text_field", "body", "text"),
        ("label_field", "label", None),
        ("sample", "head", "all"),
        ("trust_remote_code", True, False),
    ],
)
def test_a_difference_is_refused_by_name(field: str, value: Any, planned: Any) -> None:
    plan = plan_for(words_columns(0, 5, 5), request=PLANNED.model_dump(mode="json"), seed=0)
    with pytest.raises(PlanMismatchError) as caught:
        check_same_plan(plan, resolve({"plan": {field: value}}), "run.zarr")
    assert caught.value.details == {"field": field, "planned": planned, "asked": value}
    assert f"planned with {field} = {planned!r}, now asked for {value!r}" in str(caught.value)


def test_printable_text_steers_no_terminal() -> None:
    assert printable("a\x1b[2Jb\r\n\u202e") == "a\\x1b[2Jb\\r\\n\\u202e"
    assert printable("naïve 日本語 🙂") == "naïve 日本語 🙂"


@pytest.mark.parametrize("module", [config, options, text, formatting])
def test_the_examples_hold(module: Any) -> None:
    assert doctest.testmod(module) == (0, doctest.testmod(module).attempted)


TURNED_ON: dict[str, object] = {
    "pool": ["mean"],
    "pooled_only": True,
    "with_loss": True,
    "untrained": 3,
    "span_fields": ["entity"],
    "messages_field": "messages",
    "image_field": "image",
    "keep_special": True,
    "prepend_bos": True,
    "lowercase": True,
    "trust_remote_code": True,
    "max_tokens": 100,
}


@pytest.mark.parametrize("field", TURNED_ON)
def test_turning_an_option_of_the_plan_off_is_refused(tmp_path: Path, field: str) -> None:
    store = fake_store(tmp_path)
    planned = PlanOptions.model_validate({"model": "", "corpus": "", field: TURNED_ON[field]})
    request = planned.model_dump(mode="json")
    model = store.plan.model
    if field in type(model).model_fields:  # what a plan made of it lies beside its request
        model = model.model_copy(update={field: TURNED_ON[field]})
    plan = store.plan.model_copy(update={"request": request, "model": model})
    default = PlanOptions(model="", corpus="").model_dump(mode="json")[field]
    with pytest.raises(PlanMismatchError, match=field):
        check_same_plan(plan, Asked({field: default}, RunOptions()), "run.zarr")
    check_same_plan(plan, Asked({field: request[field]}, RunOptions()), "run.zarr")
    open_plan = store.plan.model_copy(update={"request": {}})  # of a version without the option
    check_same_plan(open_plan, Asked({field: default}, RunOptions()), "run.zarr")
    with pytest.raises(PlanMismatchError, match=field):
        check_same_plan(open_plan, Asked({field: request[field]}, RunOptions()), "run.zarr")


@pytest.mark.parametrize(("section", "key"), [("run", "worker"), ("plan", "shard_row")])
def test_options_that_no_section_has_are_refused(section: Section, key: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown option of the {section}.*Did you mean {key}s"):
        resolve({section: {key: 1}})
