"""Command-line options made from the option models: names, types, defaults and help texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from actlas.jobs.cli.counts import AtLeast as AtLeast
from actlas.jobs.cli.counts import Count as Count
from actlas.jobs.cli.counts import CountOrAuto as CountOrAuto
from actlas.jobs.config import LISTS, SECTIONS, Asked, Section, resolve, split_names

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULT = " Default: "

_FIELD = re.compile(r"`(\w+)`")


def section_options(section: Section) -> Callable[[F], F]:
    """Return a decorator that adds every option of a section to a command.

    Parameters
    ----------
    section : {"plan", "run"}
        The section of a configuration, and so the model, whose fields become options.
    """
    model = SECTIONS[section]
    return _decorator(model, model.model_fields, f"{section}_")


def run_options(*names: str) -> Callable[[F], F]:
    """Return a decorator that adds some options of the run section to a command.

    Parameters
    ----------
    *names : str
        Fields of :class:`~actlas.pipeline.options.RunOptions`.
    """
    return _decorator(SECTIONS["run"], names, "run_")


def model_options(
    model: type[BaseModel], *names: str, aliases: Mapping[str, str] | None = None
) -> Callable[[F], F]:
    """Return a decorator that adds some fields of a model as options; None if not given.

    Parameters
    ----------
    model : type of BaseModel
        The model.
    *names : str
        The fields, which are the names of the command's parameters too.
    aliases : mapping, optional
        A second name of an option by field, such as ``{"d_sae": "--width"}``.
    """
    return _decorator(model, names, "", aliases)


def _decorator(
    model: type[BaseModel],
    names: Iterable[str],
    prefix: str,
    aliases: Mapping[str, str] | None = None,
) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for name in reversed([*names]):
            alias = (aliases or {}).get(name)
            function = _option(model, name, prefix, alias)(function)
        return function

    return decorate


def config_options(function: F) -> F:
    """Add ``--config`` and trailing dotted overrides to a command."""
    function = click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")(function)
    return click.option(
        "--config",
        metavar="FILE.yaml",
        type=click.Path(),
        help="YAML file with the sections plan: and run:. Options and overrides take precedence.  "
        "[default: none]",
    )(function)


def asked_for(values: Mapping[str, Any]) -> Asked:
    """Return a command's resolved options from the values that click parsed.

    Parameters
    ----------
    values : mapping
        Values by parameter name: ``plan_...`` and ``run_...``, ``overrides`` and ``config``.

    Raises
    ------
    ConfigError
        A value or the file is invalid: see :func:`actlas.jobs.config.resolve`.
    """
    options: dict[Section, dict[str, Any]] = {"plan": {}, "run": {}}
    for section, given in options.items():
        for name in SECTIONS[section].model_fields:
            value = values.get(f"{section}_{name}")
            if value is not None and value != ():
                given[name] = value
    for name in LISTS & set(options["plan"]):
        options["plan"][name] = [
            part for text in options["plan"][name] for part in split_names(text)
        ]
    return resolve(options, values.get("overrides", ()), values.get("config"))


def _option(model: type[BaseModel], name: str, prefix: str, alias: str | None) -> Callable[[F], F]:
    info = model.model_fields[name]
    dashed = name.replace("_", "-")
    kind = _click_type(info.annotation)
    declarations = [f"--{dashed}", *([alias] if alias else []), f"{prefix}{name}"]
    settings: dict[str, Any] = {"default": None, "help": help_of(info)}
    if kind is bool:
        declarations[0] = f"--{dashed}/--no-{dashed}"
    elif name in LISTS:
        settings |= {"multiple": True, "metavar": "NAMES"}
    else:
        settings |= {"type": kind}
    return click.option(*declarations, **settings)


def help_of(info: FieldInfo) -> str:
    """Return a field's description as the help text of its option, with the default at its end.

    Parameters
    ----------
    info : FieldInfo
        A field with a description. Its last sentence, "Default: ...", replaces the value of the
        default; fields named in backquotes become the names of their options.

    Examples
    --------
    >>> from actlas.pipeline.options import RunOptions
    >>> help_of(RunOptions.model_fields["offload_folder"])
    'Folder for weights that --device-map cannot place in memory.  [default: a temporary folder]'
    """
    assert info.description is not None, "a field without a description"
    text, _, default = info.description.partition(_DEFAULT)
    shown = default.removesuffix(".") or _shown(info.default)
    return _FIELD.sub(_as_option, f"{text}  [default: {shown}]")


def _as_option(match: re.Match[str]) -> str:
    known = any(match[1] in model.model_fields for model in SECTIONS.values())
    return "--" + match[1].replace("_", "-") if known else match[0]


def _shown(default: Any) -> str:
    assert default is not PydanticUndefined
    if isinstance(default, tuple):
        return ",".join(default)
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"{default:,}" if isinstance(default, int) else str(default)


def _click_type(annotation: Any) -> Any:
    """Return click's type for a field's annotation, disregarding None."""
    if Literal["auto"] in get_args(annotation) and get_origin(annotation) is not Literal:
        return CountOrAuto()
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(arg for arg in get_args(annotation) if arg is not type(None))
    if get_origin(annotation) is Literal:
        return click.Choice([str(arg) for arg in get_args(annotation)])
    return {int: Count(), float: click.FLOAT, bool: bool}.get(annotation, click.STRING)
