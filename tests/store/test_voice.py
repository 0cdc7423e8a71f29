"""Messages name options and commands as the one who reads them does."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
from pathlib import Path

import pytest

import actlas
from actlas.pipeline.options import PlanOptions, RunOptions
from actlas.store.errors import ConfigError
from actlas.store.voice import FLAGS, VALUES, in_python, shell, spoken, unworded

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        ("a plan needs --model and --corpus: for", "a plan needs model= and corpus: for"),
        ("--long is for texts: --top is not", "long= is for texts: top= is not"),
        (
            "for example --model builtin:actlas-6m --corpus builtin:x",
            'for example model="builtin:actlas-6m", corpus="builtin:x"',
        ),
        ("Name it with --text-field (a range).", "Name it with text_field= (a range)."),
        ("--model foo: no local folder", 'model="foo": no local folder'),
        ("--model foo bar: none, or --x", 'model="foo bar": none, or --x'),
        ("--shard-rows 5: expected", "shard_rows=5: expected"),
        ("--pool last,mean: each once", 'pool=["last", "mean"]: each once'),
        ("give --device-map auto.", 'give device_map="auto".'),
        ("use `--executor inline`", 'use `executor="inline"`'),
        ("--executor ray requires Ray", 'executor="ray" requires Ray'),
        ("an --lr smaller than 0.1", "an lr= smaller than 0.1"),
        ("was planned with --pooled-only: it", "was planned with pooled_only=True: it"),
        ("give --no-lowercase", "give lowercase=False"),
        ("--prompt 'a b' has", "prompts='a b' has"),
        ("now asked for 6 (--max-tokens).", "now asked for 6 (max_tokens=)."),
        ("`ray start --head`, --shm-size=2g", "`ray start --head`, --shm-size=2g"),
        ("`actlas extract 'my run' --seed 1`", '`actlas.extract("my run", seed=1)`'),
        ("`actlas sae encode a.zarr --sae DIR`", '`actlas.encode_sae("a.zarr", DIR)`'),
        ("`actlas sae index a.zarr --sae x`", '`actlas.index_sae("a.zarr", "x")`'),
        (
            "`actlas contexts a.zarr --hookpoint h.1 --unit 0`",
            '`actlas.open("a.zarr").units("h.1")`',
        ),
        ("`actlas verify --full` lists", "`actlas.verify(full=True)` lists"),
        ("`actlas status a.zarr` shows", '`actlas.open("a.zarr")` shows'),
        ("it belongs to `actlas ablate --mask`", "it belongs to `actlas.ablate`"),
        ("`actlas doctor` looks", "`actlas doctor` looks"),
        ("run the same command again", "repeat the same call"),
    ],
)
def test_options_and_commands_become_arguments_and_calls(words: str, ours: str) -> None:
    assert in_python(words) == ours
    assert in_python(ours) == ours, "what is translated stays"
    with shell():
        assert spoken(words) == words


def test_one_error_speaks_to_both() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("give --max-length 64", field="max_length")))
    assert str(error) == "give max_length=64"
    with shell():
        assert str(error) == "give --max-length 64"
    assert str(error) == "give max_length=64"
    with unworded():
        assert str(error) == "give --max-length 64", "a record is the same, whoever made it"


def test_options_are_those_of_the_public_functions() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    ours = FLAGS | VALUES.keys()
    models = {**PlanOptions.model_fields, **RunOptions.model_fields}
    assert models.keys() <= ours
    public = (getattr(actlas, name) for name in actlas.__all__ if name != "__version__")
    functions = [each for each in public if inspect.isfunction(each)]
    parameters = {name for each in functions for name in inspect.signature(each).parameters}
    assert ours <= models.keys() | parameters
    assert {name for name, field in models.items() if field.annotation is bool} <= FLAGS


FOREIGN = frozenset({"shm-size", "head", "object-store-memory", "include-dashboard", "upgrade"})
"""Options of other programs."""

OF_VERBS = frozenset(
    {"dry-run", "ray", "unit", "json", "findings", "some", "feature", "format", "address"}
)
"""Options that the command line alone has."""


def test_every_option_in_a_message_is_known() -> None:
    """Whoever writes a message with an option of another name adds it to ``store/voice.py``."""
    known = {name.replace("_", "-") for name in FLAGS | VALUES.keys()}
    known |= {"prompt", "no-prepend-bos"} | FOREIGN | OF_VERBS
    strangers = []
    rooms = ("store", "analysis", "pipeline", "jobs/run", "jobs/derived", "jobs/executors")
    for path in (file for room in rooms for file in (ROOT / room).rglob("*.py")):
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if path.name == "voice.py" or id(node) in docstrings:
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = re.findall(r"(?<![\w-])--([a-z][a-z-]+)", node.value)
                strangers += [f"{path.name}:{node.lineno} --{x}" for x in {*found} - known]
    assert not strangers, "\n".join(strangers)
