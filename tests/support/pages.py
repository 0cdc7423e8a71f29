"""The pages of the documentation: their code blocks, and the command lines in these."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

ROOT = Path(__file__).resolve().parents[2]

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
"""The pages whose commands are run, or say why not."""

ALL_PAGES = (*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md")

_FENCE = re.compile(r"^( *)```(\S*)")
_MARK = re.compile(r"<!-- not run: (.+) -->")
_SPAN = re.compile(r"`actlas ([^`]+)`")


class Block(NamedTuple):
    """A fenced block of a page; ``why_not`` is the reason of a block that is marked as not run."""

    page: Path
    line: int
    language: str
    text: str
    why_not: str | None

    @property
    def place(self) -> str:
        """The file and the line of the fence."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    lines = page.read_text().splitlines()
    at = 0
    before = ""
    while at < len(lines):
        fence = _FENCE.match(lines[at])
        if fence is None:
            before = lines[at] or before
            at += 1
            continue
        end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
        text = "\n".join(line[len(fence[1]) :] for line in lines[at + 1 : end])
        mark = _MARK.fullmatch(before.strip())
        yield Block(page, at + 1, fence[2], text, mark[1] if mark else None)
        before, at = "", end + 1


class Command(NamedTuple):
    """A command line: its words, and the file that its output goes to."""

    words: list[str]
    output: str | None = None


def command_lines(text: str) -> list[Command]:
    """Return the commands of a shell block: continued lines joined, comments removed, && split."""
    joined = re.sub(r"\\\n\s*", "", text)
    commands: list[Command] = []
    for line in joined.splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words:
            end = next((i for i, word in enumerate(words) if word in ("&&", "|", ";")), len(words))
            at = words[:end].index(">") if ">" in words[:end] else end
            if at:
                commands.append(Command(words[:at], words[at + 1] if at < end else None))
            words = words[end + 1 :]
    return commands


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the click command that a line names, which begins after actlas, and its arguments."""
    from actlas.jobs.cli.app import cli

    command: click.Command = cli
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(click.Context(command), rest.pop(0))
        assert found is not None, f"no such command: actlas {' '.join(words)}"
        command = found
    return command, rest


def spans(page: Path) -> list[list[str]]:
    """Return the command lines in the running text of a page, each without its actlas."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return [shlex.split(" ".join(found.split())) for found in _SPAN.findall(text)]


def options_of(command: click.Command) -> set[str]:
    """Return every option of a command, in all spellings."""
    known = {"--help"}
    for parameter in command.params:
        known.update(parameter.opts, parameter.secondary_opts)
    return known
