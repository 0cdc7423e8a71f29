"""The table of architectures in the documentation: written by a survey, read back by the tests."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from actlas.pipeline.model.config import tower_of
from support.tiny_models import NotTinyError, time_limit, tiny_config
from support.tiny_models_survey import Row, WrongError, examine

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "architectures.md"
BEGIN, END = "<!-- survey: begin -->", "<!-- survey: end -->"
LIMIT_S = 60.0  # of processor time for one architecture

_BATCHES = {
    "padded": "Any sequences share a pass",
    "equal": "Only sequences of equal length share a pass: padding changes rows",
    "single": "One sequence at a time: rows depend on neighbours of equal length too",
    "refused": "Refused",
}

# The first pattern that an error fits says in a few words what is refused or missing, and why.
_REASONS: tuple[tuple[str, str], ...] = (
    (r"is not the input of", "it has no list of blocks that chain"),
    (r"No (stack|single stack)", "it has no list of as many blocks as layers"),
    (r"no residual stream of one vector", "its blocks have no [batch, position, unit] stream"),
    (r"different numbers of positions", "its stages have different numbers of positions"),
    (r"runs \d+ times", "its blocks run several times in a pass"),
    (r"not its input plus something", "a block's output is not its input plus something added"),
    (r"when it runs again", "it gives the same sequence other rows when it runs again"),
    (r"is causal, but", "its configuration does not say that it is not causal"),
    (r"expected a tensor of shape", "inside, its sequences have another length than outside"),
    (r"tensor of shape|units\]", "its modules give no [batch, position, unit] tensor"),
    (
        r"meta|Cannot copy|item\(\)|nonzero|data-dependent",
        "its pass cannot be traced without numbers",
    ),
    (
        r"missing \d+ required|NoneType|have to (specify|be)|[Pp]rovide|[Mm]ust (be|specify)|"
        r"exactly one|[Ii]nput|bbox|unpack|reads no|runs no sequence|unexpected keyword|not-None",
        "it does not run on token ids or pixels alone",
    ),
)
_TOWER = "Its image tower alone is run, an architecture of its own"
_NOT_BUILT = "no tiny model of it can be built here"


def outcome(model_type: str) -> tuple[str, str]:
    """The heading that an architecture stands under, and the full reason.

    Raises
    ------
    WrongError
        Rows that were accepted are not transformers' own.
    """
    try:
        with time_limit(LIMIT_S):
            config = tiny_config(model_type)
            if getattr(config, "is_encoder_decoder", False):
                return f"{_BATCHES['refused']}: it is an encoder-decoder", ""
            if tower_of(config) is not config:
                return _TOWER, tower_of(config).model_type
            row = examine(model_type)
    except (WrongError, KeyboardInterrupt):
        raise
    except NotTinyError as error:
        return f"Not tried: {_NOT_BUILT}", str(error)
    except Exception as error:  # noqa: BLE001 - the survey tells any failure
        return f"Not tried: {_NOT_BUILT}", f"{type(error).__name__}: {error}"
    return heading(row), row.why or row.stream


def heading(row: Row) -> str:
    """The heading of a row: what shares a pass, and whether the residual stream has names."""
    if row.batching == "refused":
        return f"{_BATCHES['refused']}: {reason(row.why)}"
    if row.stream == "hidden_states":
        stream = "`resid_post.L` is `hidden_states[L + 1]`"
    elif row.stream.startswith("no hidden_states"):
        stream = "`resid_post.L` has no hidden state to be compared with"
    elif "does not reach" in row.stream:
        stream = "module paths alone: a pass without weights does not reach its blocks"
    else:
        stream = f"module paths alone: {reason(row.stream)}"
    return f"{_BATCHES[row.batching]}; {stream}"


def reason(text: str) -> str:
    """A reason in a few words, without numbers and names."""
    return next(
        (words for pattern, words in _REASONS if re.search(pattern, text)),
        "a pass of the model without weights fails",
    )


def render(found: Iterable[tuple[str, str]]) -> str:
    """The table's text, from pairs of a model type and its heading."""
    groups: dict[str, list[str]] = {}
    for model_type, title in found:
        groups.setdefault(title, []).append(model_type)
    order = [*_BATCHES.values(), _TOWER, "Not tried"]

    def key(title: str) -> tuple[int, int, str]:
        place = next(i for i, start in enumerate(order) if title.startswith(start))
        return place, -len(groups[title]), title

    parts = []
    for title in sorted(groups, key=key):
        names = ", ".join(f"`{name}`" for name in sorted(groups[title]))
        parts.append(
            f"**{title}** ({len(groups[title])}):\n"
            + textwrap.fill(names, 110, break_on_hyphens=False)
        )
    return "\n\n".join(parts)


def read() -> dict[str, str]:
    """The heading of every model type in the document."""
    text = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    found = {}
    for part in re.findall(r"^\*\*.*?(?=\n\n|\Z)", text.strip(), re.DOTALL | re.MULTILINE):
        match = re.search(r"\*\*(.*?)\*\* \(\d+\):\n(.*)", part, re.DOTALL)
        assert match is not None, part[:200]
        title, names = match.groups()
        found.update(dict.fromkeys(re.findall(r"`([^`]+)`", names), title))
    return found


def write(found: Iterable[tuple[str, str]], versions: dict[str, Any]) -> None:
    """Put a survey's result into the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    DOCUMENT.write_text(
        f"{head}{BEGIN}\n\n{said}:\n\n{render(found)}\n\n{END}{tail}", encoding="utf-8"
    )
