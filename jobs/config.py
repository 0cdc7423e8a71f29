"""Configuration: defaults, a YAML file, command-line options and dotted overrides.

Later sources take precedence, in that order. The result is two strict models. Unknown keys are
refused with the nearest known ones; nothing is evaluated. *Given* values are kept apart from
defaults, because an existing plan is compared only with the given values.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ValidationError

from actlas.jobs.formatting import parse_count
from actlas.pipeline.options import PlanOptions, RunOptions
from actlas.store.errors import ConfigError

Section = Literal["plan", "run"]

SECTIONS: Mapping[str, type[BaseModel]] = {"plan": PlanOptions, "run": RunOptions}

LISTS = frozenset({"hookpoints", "pool", "span_fields"})
"""Fields of the plan that are lists of names, separated by commas on the command line."""

STORE_KEY = "store"
"""Key of a file with the path or URL of the store."""

_REMOTE = ("hf:", "builtin:", "memory:")


@dataclass(frozen=True, slots=True)
class Asked:
    """The resolved options of a command.

    Parameters
    ----------
    plan : mapping
        The given fields of the plan, validated, with absolute local paths.
    run : RunOptions
        All options of the run, with defaults.
    origin : mapping
        Source of each given field (``--max-tokens``, ``run.yaml``), for messages.
    store : str, optional
        Path or URL of the store that a file gives; a command's own argument takes precedence.
    documents : GivenDocuments, optional
        The documents, where Python gave them instead of a corpus's name.
    """

    plan: Mapping[str, Any]
    run: RunOptions
    origin: Mapping[str, str] = field(default_factory=dict)
    store: str | None = None
    documents: Any = None

    def plan_options(self) -> PlanOptions:
        """Return all options of the plan, with defaults.

        Raises
        ------
        ConfigError
            The model or the corpus is not given.
        """
        missing = [name for name in ("model", "corpus") if name not in self.plan]
        if missing:
            wanted = " and ".join(f"--{name}" for name in missing)
            raise ConfigError(
                f"the store has no plan yet, and a plan needs {wanted}: for example "
                "--model builtin:actlas-6m --corpus builtin:python-docs",
                missing=missing,
            )
        return PlanOptions.model_validate(dict(self.plan)).with_documents(self.documents)


def resolve(
    options: Mapping[Section, Mapping[str, Any]],
    overrides: Sequence[str] = (),
    file: str | os.PathLike[str] | None = None,
) -> Asked:
    """Merge the sources and validate the result.

    Parameters
    ----------
    options : mapping of section to mapping
        Given command-line options.
    overrides : sequence of str
        Dotted overrides such as ``plan.seed=1`` or ``run.workers=4``; the value is YAML.
    file : path, optional
        YAML file with the sections ``plan`` and ``run``, and with ``store``, a path or URL.

    Raises
    ------
    ConfigError
        A key is unknown, a value is invalid, or the file cannot be read.
    """
    store: str | None = None
    given: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    origin: dict[str, str] = {}
    layers: list[tuple[str, Mapping[str, Mapping[str, Any]]]] = []
    if file is not None:
        store, sections = read_file(file)
        layers.append((os.fspath(file), sections))
    layers.append(("", {str(name): values for name, values in options.items()}))
    layers.extend((text, read_override(text)) for text in overrides)
    for where, layer in layers:
        for section, values in layer.items():
            for key, value in values.items():
                source = where or f"--{key.replace('_', '-')}"
                _known(key, SECTIONS[section].model_fields, where, f"option of the {section}")
                origin[f"{section}.{key}"] = source
                given[section][key] = _read_value(SECTIONS[section], key, value, source)
    plan = _validate(PlanOptions, {"model": "", "corpus": "", **given["plan"]}, origin)
    run = _validate(RunOptions, given["run"], origin)
    dumped = plan.model_dump(mode="json", include=set(given["plan"]))
    if run.model_path is not None:
        run = run.model_copy(update={"model_path": _absolute(run.model_path)})
    return Asked(_absolute_paths(dumped), run, origin, store)


def read_file(file: str | os.PathLike[str]) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """Read a YAML file safely and check its keys.

    Parameters
    ----------
    file : path
        The file.

    Returns
    -------
    str or None, dict
        The store, and the sections.

    Raises
    ------
    ConfigError
        The file cannot be read, is not YAML, or has an unknown section or key.
    """
    where = os.fspath(file)
    try:
        data = Path(file).read_bytes()
        if any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(data, yaml.SafeLoader)):
            raise ConfigError(
                f"{where}: aliases (*NAME) are not supported, since they can expand to any number "
                "of values. Write the values out.",
                path=where,
            )
        body = _Loader(data).get_single_data()
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror})", path=where) from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where}: not YAML: {reason}", path=where) from error
    body = {} if body is None else body
    if not isinstance(body, dict):
        raise ConfigError(
            f"{where}: got a {type(body).__name__}, expected the sections `plan:` and `run:`",
            path=where,
        )
    store = body.pop(STORE_KEY, None)
    if store is not None and not (isinstance(store, str) and store.strip()):
        raise ConfigError(f"{where}: store: got {store!r}, expected a path or URL", key=STORE_KEY)
    layer: dict[str, dict[str, Any]] = {}
    for section, values in body.items():
        _known(str(section), [*SECTIONS, STORE_KEY], where, "section")
        if not isinstance(values, dict | None):
            raise ConfigError(f"{where}: {section}: got {values!r}, expected keys and values")
        layer[section] = dict(values or {})
        for key in layer[section]:
            _known(str(key), SECTIONS[section].model_fields, where, f"key in `{section}:`")
    return store, layer


def read_override(text: str) -> dict[str, dict[str, Any]]:
    """Parse a dotted override.

    Parameters
    ----------
    text : str
        The override.

    Raises
    ------
    ConfigError
        The text is not of the form ``section.key=value``, or names an unknown key.

    Examples
    --------
    >>> read_override("run.workers=4")
    {'run': {'workers': 4}}
    """
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not equals or not dot:
        raise ConfigError(
            f"got {text!r}, expected an override such as run.workers=4 or plan.seed=1."
            + _instead_of_override(name.strip(), equals)
        )
    _known(section, SECTIONS, text, "section")
    _known(key, SECTIONS[section].model_fields, text, f"key of {section}")
    try:
        return {section: {key: yaml.safe_load(value)}}
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{text}: the value is not YAML: {' '.join(str(error).split())}"
        ) from error


def _instead_of_override(name: str, equals: str) -> str:
    """Return what a trailing argument is likely to be that is no override."""
    if not equals:
        return " A model is given with --model, a corpus with --corpus."
    sections = [section for section, model in SECTIONS.items() if name in model.model_fields]
    return f" Did you mean {sections[0]}.{name}=...?" if sections else ""


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a key that is given twice: only the last would count."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping."""
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                problem = f"the key {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _known(name: str, known: Iterable[str], where: str, what: str) -> None:
    names = list(known)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known are: {', '.join(names)}."
    at = f"{where}: " if where else ""
    raise ConfigError(f"{at}unknown {what}: {name!r}. {hint}", key=name, near=near)


def _read_value(model: type[BaseModel], key: str, value: Any, source: str) -> Any:
    """Convert ``2e6`` and ``2M`` for integer fields, names for lists, and numbers for strings."""
    wanted = set(get_args(model.model_fields[key].annotation)) or {
        model.model_fields[key].annotation
    }
    if int in wanted and isinstance(value, str) and Literal[value] not in wanted:
        try:
            return parse_count(value)
        except ConfigError as error:
            words = [word for one in wanted for word in get_args(one)]  # of a Literal
            message = ", or ".join([str(error), *words])
            raise ConfigError(f"{source}: {key}: {message}", key=key) from error
    if key in LISTS and isinstance(value, str):
        return split_names(value)
    if str in wanted and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value


def split_names(text: str) -> list[str]:
    """Return the names in a comma-separated list.

    Parameters
    ----------
    text : str
        The list.

    Examples
    --------
    >>> split_names("resid_post.*, embed")
    ['resid_post.*', 'embed']
    """
    return [name.strip() for name in text.split(",") if name.strip()]


def _validate(model: type[Any], values: Mapping[str, Any], origin: Mapping[str, str]) -> Any:
    section = "plan" if model is PlanOptions else "run"
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # fields that contradict each other
            named = [name for name in values if name in first["msg"].split()]
            sources = dict.fromkeys(origin.get(f"{section}.{name}", section) for name in named)
            reason = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{' and '.join(sources)}: {reason}.", fields=named) from error
        key = str(first["loc"][0])
        where = origin.get(f"{section}.{key}", section)
        prefix = "" if where == f"--{key.replace('_', '-')}" else f"{key}: "
        got = repr(first.get("input"))[:80]
        raise ConfigError(
            f"{where}: {prefix}got {got}, {_wanted(first['msg'])}", key=key
        ) from error


def _wanted(message: str) -> str:
    """Return what pydantic expected, as the other messages say it.

    >>> _wanted("Input should be greater than 0"), _wanted("Input should be 'last' or 'mean'")
    ('expected a value greater than 0', "expected 'last' or 'mean'")
    """
    what = re.sub(r"^(Value error, )?(Input )?should be ", "", message)
    if what == message:
        return message.removeprefix("Value error, ")
    return f"expected {'a value ' if what.startswith(('greater', 'less')) else ''}{what}"


def _absolute(value: str) -> str:
    if value.startswith(_REMOTE) or not Path(value).expanduser().exists():
        return value
    return os.path.abspath(Path(value).expanduser())  # noqa: PTH100 - keep links


def _absolute_paths(plan: dict[str, Any]) -> dict[str, Any]:
    """Make local paths absolute, because workers run elsewhere and a store outlives its shell."""
    result = dict(plan)
    for key in ("model", "tokenizer"):
        if result.get(key):
            result[key] = _absolute(result[key])
    corpus = result.get("corpus")
    if corpus and not corpus.startswith(_REMOTE):
        result["corpus"] = os.path.abspath(Path(corpus).expanduser())  # noqa: PTH100 - and globs
    return result
