"""The command-line options of plans and runs, made from the two models so that none drifts.

The tables give each field its help; names, types and defaults come from the models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from actlas.jobs.config import LISTS, SECTIONS, Asked, Section, resolve, split_names
from actlas.jobs.formatting import parse_count
from actlas.store.errors import ConfigError

if TYPE_CHECKING:
    _IntType = click.ParamType[int]
else:
    _IntType = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])

PLAN_HELP: Mapping[str, tuple[str, str]] = {
    "model": ("A hub id, a local folder, or builtin:NAME.", "none, it must be given"),
    "corpus": (
        "hf:NAME[:SPLIT], builtin:NAME, or local files, folders and globs of .jsonl, .jsonl.gz, "
        ".jsonl.zst, .parquet, .txt, .csv; or a folder of images (DIR/label/*.png).",
        "none, it must be given",
    ),
    "hookpoints": (
        "Where to read: names and globs, comma separated or repeated (resid_post.*, attn_z.3, "
        "mlp_hidden.last, a module's path); `actlas hookpoints MODEL` lists them.",
        "",
    ),
    "max_tokens": ("Stop after the document that reaches this many (2_000_000, 2e6, 2M).", "all"),
    "max_length": (
        "Tokens of a window, special ones included.",
        "the model's context, at most 1,024",
    ),
    "long": (
        "Longer documents: consecutive windows, or cut.",
        "window; truncate for a corpus with labels",
    ),
    "dtype": ("What is stored.", ""),
    "model_dtype": ("What computes; auto is the checkpoint's own.", ""),
    "order": ("Of documents and rows.", "shuffled; corpus for a corpus with labels"),
    "keep_special": ("Give the tokenizer's own special tokens rows too.", ""),
    "revision": ("Of a model on the hub: a commit, tag or branch.", "main"),
    "seed": ("Of every shuffle.", ""),
    "text_field": (
        "The text's field or column; a range of columns (stim2:stim13) is joined with spaces.",
        "text",
    ),
    "label_field": ("The label's field: stim14, or meta.pile_set_name.", "no labels"),
    "lowercase": ("Lowercase the text first.", ""),
    "messages_field": (
        "A field of messages ({role, content}), laid out by the chat template; rows get a role.",
        "none",
    ),
    "span_fields": (
        "Fields that label parts of the text ({start, stop, label}); each becomes a row column.",
        "none",
    ),
    "image_field": ("The field of a record's image.", "none; a folder of images needs none"),
    "pool": ("One row per document too: last, mean, sum.", "none"),
    "pooled_only": ("Store the pooled rows alone, no token's.", ""),
    "with_loss": ("Store the next token's loss for every row; the whole model runs.", ""),
    "untrained": ("Fresh weights of this seed in the model's shape.", "the model's own"),
    "tokenizer": ("Another tokenizer: a hub id or local folder.", "the model's own"),
    "sample": (
        "Which documents under --max-tokens: from all over the corpus, or its beginning.",
        "uniform for local files; head for streams and for corpus order",
    ),
    "compression": (
        "Of the stored activations: dense is the smallest, fast the cheapest to write, none raw.",
        "",
    ),
    "shard_rows": (
        "Rows of a shard, a power of two.",
        "65,536, halved until a shard fits memory and there are 16",
    ),
    "trust_remote_code": ("Run code that comes with the model.", ""),
}

RUN_HELP: Mapping[str, tuple[str, str]] = {
    "executor": ("In this process, or on Ray.", ""),
    "workers": (
        "Workers on Ray, each with its own copy of the model; auto is as many as there is room "
        "for, more as machines join.",
        "",
    ),
    "address": (
        "Of a running Ray cluster; auto finds it.",
        "RAY_ADDRESS, else Ray is started on this machine",
    ),
    "model_path": (
        "Where to load the plan's model from, if it moved.",
        "where the plan found it",
    ),
    "allow_remote_code": (
        "Run the code that comes with the model of a store planned with --trust-remote-code; "
        "giving that option again says the same.",
        "",
    ),
    "device": ("cpu, cuda, cuda:1, mps; auto is the accelerator where there is one.", ""),
    "device_map": ("Spread the model over a worker's GPUs, memory and disk (accelerate).", "none"),
    "max_device_bytes": ("Of weights on each device, with --device-map (8G).", "what is free"),
    "offload_folder": ("Where weights go that fit no memory.", "a temporary folder"),
    "tokens_per_batch": (
        "Token budget of a forward pass, padding included.",
        "2,048 on a CPU, else 8,192",
    ),
    "packing": ("Sequences padded to one length, or packed one behind the other.", ""),
    "threads": ("CPU threads of each worker.", "the machine's, divided by its workers"),
    "cpus_per_worker": ("CPUs that Ray reserves for a worker.", ""),
    "gpus_per_worker": (
        "GPUs that Ray reserves for a worker; may be a fraction.",
        "1 where there are GPUs, or once some join, and the device is not cpu; else 0",
    ),
    "max_memory_bytes": (
        "Of one worker (4G).",
        "what is free on its machine as it starts",
    ),
    "on_nonfinite": ("NaN and infinity: count and report, or an error.", ""),
    "max_task_faults": ("Exceptions and missed deadlines of a shard before quarantine.", ""),
    "max_process_deaths": ("Dead worker processes of a shard before quarantine.", ""),
    "max_node_losses": ("Lost machines of a shard before quarantine.", ""),
    "deadline_floor_s": (
        "On Ray a shard may take 10 times the median so far, and never less than this. Before any "
        "is done, those that take longer are tried again uncharged, with 2, 4 and 8 times this.",
        "",
    ),
    "start_limit_s": (
        "A worker on Ray may take this long to load its model, or --deadline-floor-s if that is "
        "more; from when its process runs, so waiting for a machine does not count.",
        "",
    ),
    "writers_per_machine": (
        "How many shards the workers of one machine may write at once.",
        "any number",
    ),
    "retry_quarantined": ("Take shards out of quarantine and try them again.", ""),
}

HELP: Mapping[Section, Mapping[str, tuple[str, str]]] = {"plan": PLAN_HELP, "run": RUN_HELP}


class Count(_IntType):
    """A whole number, also as 2_000_000, 2e6 or 2M."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse, or fail as click does."""
        try:
            return value if isinstance(value, int) else parse_count(str(value))
        except ConfigError as error:
            self.fail(error.message, param, ctx)


class CountOrAuto(Count):
    """A whole number, or auto."""

    name = "count|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse, or fail as click does."""
        try:
            return value if isinstance(value, int) or value == "auto" else parse_count(str(value))
        except ConfigError as error:
            self.fail(f"{error.message}, or auto", param, ctx)


def section_options(section: Section) -> Callable[[F], F]:
    """Return a decorator that gives a command every option of a section."""

    def decorate(function: F) -> F:
        model = SECTIONS[section]
        for name in reversed(list(HELP[section])):
            function = _option(section, name, model)(function)
        return function

    return decorate


def run_options(*names: str) -> Callable[[F], F]:
    """Return a decorator that gives a command these options of the run section."""

    def decorate(function: F) -> F:
        for name in reversed(names):
            function = _option("run", name, SECTIONS["run"])(function)
        return function

    return decorate


def config_options(function: F) -> F:
    """Give a command ``--config`` and trailing dotted overrides."""
    function = click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")(function)
    return click.option(
        "--config",
        metavar="FILE.yaml",
        type=click.Path(),
        help="YAML with the sections plan: and run:. Options and overrides win over it.  "
        "[default: none]",
    )(function)


def asked_for(values: Mapping[str, Any]) -> Asked:
    """Return what a command was asked for, from the values that click gave it.

    Raises
    ------
    ConfigError
        See :func:`actlas.jobs.config.resolve`.
    """
    options: dict[Section, dict[str, Any]] = {"plan": {}, "run": {}}
    for section, given in options.items():
        for name in HELP[section]:
            value = values.get(f"{section}_{name}")
            if value is not None and value != ():
                given[name] = value
    for name in LISTS & set(options["plan"]):
        options["plan"][name] = [
            part for text in options["plan"][name] for part in split_names(text)
        ]
    return resolve(options, values.get("overrides", ()), values.get("config"))


def _option(section: Section, name: str, model: type[BaseModel]) -> Callable[[F], F]:
    text, described = HELP[section][name]
    info = model.model_fields[name]
    default = described or _shown(info.default)
    dashed = name.replace("_", "-")
    kind = _click_type(info.annotation)
    declarations = [f"--{dashed}", f"{section}_{name}"]
    settings: dict[str, Any] = {"default": None, "help": f"{text}  [default: {default}]"}
    if kind is bool:
        declarations[0] = f"--{dashed}/--no-{dashed}"
    elif name in LISTS:
        settings |= {"multiple": True, "metavar": "NAMES"}
    else:
        settings |= {"type": kind}
    return click.option(*declarations, **settings)


def _shown(default: Any) -> str:
    assert default is not PydanticUndefined
    if isinstance(default, tuple):
        return ",".join(default)
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"{default:,}" if isinstance(default, int) else str(default)


def _click_type(annotation: Any) -> Any:
    """Return click's type for a field's annotation, None set aside."""
    if Literal["auto"] in get_args(annotation) and get_origin(annotation) is not Literal:
        return CountOrAuto()
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(arg for arg in get_args(annotation) if arg is not type(None))
    if get_origin(annotation) is Literal:
        return click.Choice([str(arg) for arg in get_args(annotation)])
    return {int: Count(), float: click.FLOAT, bool: bool}.get(annotation, click.STRING)
