"""What a plan says of every kind of model that transformers knows, by default configurations.

Run as a program, it prints ``docs/configurations.md``.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from actlas.pipeline.forward.cost.speed import Speed
from actlas.pipeline.model.config import quiet
from actlas.pipeline.options import PlanOptions
from actlas.pipeline.plan.dry_run import estimate
from actlas.pipeline.plan.estimate import Estimate
from actlas.store.errors import ActlasError

N_LAYERS = 2
"""Blocks of a model, where its configuration can be given fewer than it has by default."""
MAX_BYTES = 1 << 44


class Outcome(NamedTuple):
    """A kind of model, and the reason why no plan is made for it; None where one is."""

    kind: str
    reason: str | None


def kinds() -> list[str]:
    """Every kind of model that transformers has a configuration for."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return sorted(CONFIG_MAPPING)


def default_configuration(kind: str, *, small: bool = True) -> Any:
    """Return the default configuration of a kind of model, with few blocks where that is possible.

    Raises whatever transformers raises where there is no default.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    cls = CONFIG_MAPPING[kind]
    with quiet():
        config = cls()
        for make in (
            lambda: cls(num_hidden_layers=N_LAYERS),
            lambda: cls(text_config=type(config.get_text_config())(num_hidden_layers=N_LAYERS)),
        ):
            try:
                made = make()
                made.to_json_string()
            except Exception:  # noqa: BLE001 - this kind takes no other number of blocks
                continue
            if small and getattr(made.get_text_config(), "num_hidden_layers", None) == N_LAYERS:
                return made
    return config


@contextmanager
def place() -> Iterator[Path]:
    """Yield a folder with a tokenizer of three words and a text."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
        made: Any = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
        made.save_pretrained(folder / "tokenizer")
        (folder / "text.txt").write_text("a b a a b\n")
        yield folder


def plan_of(config: Any, folder: Path, **options: Any) -> Estimate:
    """Plan over a model of this configuration, without drawing or timing any weights."""
    with quiet():
        config.save_pretrained(folder / "model")
    asked = PlanOptions(
        model=str(folder / "model"),
        corpus=str(folder / "text.txt"),
        tokenizer=str(folder / "tokenizer"),
        untrained=0,
        model_dtype="bfloat16",
        **options,
    )
    with (
        mock.patch("actlas.pipeline.model.describe._weights_sha256", return_value="0" * 64),
        mock.patch("actlas.pipeline.plan.estimate.forward_speed", return_value=Speed(None, "-")),
    ):
        return estimate(asked, device="cpu")


def check_plausible(found: Estimate) -> None:
    """Raise where a plan has a number that no model can have."""
    plan, memory = found.plan, found.memory
    assert 1 <= plan.windows.max_length <= 1024
    assert plan.model.context_length is None or plan.model.context_length >= 1
    assert plan.model.d_model > 0 and plan.model.n_layers > 0
    assert all(0 < hookpoint.width < 1 << 20 for hookpoint in plan.hookpoints)
    assert all(0 <= part < MAX_BYTES for part in memory) and memory.batch > 0
    assert memory.weights > 0
    assert 0 < found.stored.n_bytes < MAX_BYTES
    assert str(found)


def outcome(kind: str, folder: Path) -> Outcome:
    """Plan over the default model of a kind: a plausible plan, or one error of ours."""
    reason = ""
    for small in (True, False):
        try:
            config = default_configuration(kind, small=small)
        except Exception as error:  # noqa: BLE001 - transformers' own affair
            name = type(error).__name__
            return Outcome(kind, f"transformers has no default configuration of it ({name})")
        try:
            check_plausible(plan_of(config, folder))
        except ActlasError as error:
            reason = _reason(str(error), folder)
        else:
            return Outcome(kind, None)
        if not reason.startswith("No hookpoint"):
            break  # with all its blocks it may have another pass, and no other configuration
    return Outcome(kind, reason)


_SHORT = (
    (r"encoder-decoder", "It is an encoder-decoder, which reads two sequences."),
    (r"image processor", "It reads images: its folder needs an image processor."),
    (r"names no architecture", "It is a part of another model, without a class of its own."),
    (r"requires the (\w+) library", r"transformers needs \1 for it."),
    (r"cannot be loaded", "transformers cannot build the default configuration."),
    (r"positive (\w+), got", r"Its configuration states no single \1."),
    (
        r"missing \d+ required positional",
        "Its forward pass reads no token ids.",
    ),
    (r"No (stack of \d+|single stack of) blocks", "It has no single stack of blocks."),
    (r"No module of this model gives", "Its forward pass changes the number of positions."),
    (r"has no residual stream", "Its blocks have no residual stream of one vector per position."),
    (r"does not reach", "A forward pass without weights does not reach its blocks."),
)


def _reason(message: str, folder: Path) -> str:
    text = " ".join(message.replace(str(folder), "FOLDER").split())
    return text[:300]


def _short(reason: str) -> str:
    """Return the sentence of the table for a reason."""
    for pattern, sentence in _SHORT:
        if match := re.search(pattern, reason):
            return match.expand(sentence)
    return reason


def table(found: list[Outcome]) -> str:
    """Return the page ``docs/configurations.md``."""
    from transformers import __version__ as version

    groups: dict[str, list[str]] = {}
    for kind, reason in found:
        groups.setdefault("" if reason is None else _short(reason), []).append(f"`{kind}`")
    planned = groups.pop("")
    rows = sorted(groups.items(), key=lambda group: -len(group[1]))
    lines = [
        "# Kinds of models",
        "",
        f"Each of the {len(found)} kinds of models of transformers {version}, by its default",
        "configuration: whether `resid_post.*` is planned, with windows and memory, and the reason",
        "where it is not. Planning says nothing about a loaded model's values, which a run tests",
        "first. This page is generated: `make configurations`.",
        "",
        f"**Planned ({len(planned)}):** {', '.join(planned)}.",
        "",
        "| refused | kinds |",
        "|---|---|",
        *(f"| {reason} ({len(names)}) | {', '.join(names)} |" for reason, names in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the page."""
    with place() as folder:
        found = [outcome(kind, folder) for kind in kinds()]
    sys.stdout.write(table(found))


if __name__ == "__main__":
    main()
