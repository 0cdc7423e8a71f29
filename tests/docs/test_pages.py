"""The pages of the documentation: every command line parses, every page is found from the site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.pages import (
    ALL_PAGES,
    PAGES,
    ROOT,
    Block,
    blocks,
    command_lines,
    command_of,
    options_of,
    spans,
)

from actlas.jobs.config import resolve

LANGUAGES = {"sh", "python", "text", "json", "yaml"}
"""``sh`` and ``python`` are run, or marked; the others are shown."""

BLOCKS = [block for page in ALL_PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language == "sh"]


def place(block: Block) -> str:
    return block.place


def test_each_block_says_what_it_is() -> None:
    unknown = [block.place for block in BLOCKS if block.language not in LANGUAGES]
    assert not unknown, f"begin these with ```sh, ```python, ```text, ```json or ```yaml: {unknown}"


def test_no_command_hides_outside_a_fence() -> None:
    for page in ALL_PAGES:
        shown = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        assert not re.search(r"^ {4,}(actlas|\$|pip) ", shown, re.MULTILINE), page


@pytest.mark.parametrize("block", SHELL, ids=place)
def test_each_command_line_has_known_options_and_all_arguments(block: Block) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words, _ in command_lines(block.text):
        if words[0] == "actlas":
            command, rest = command_of(words[1:])
            if rest != ["--help"]:
                command.make_context(command.name, rest).close()
        elif words[0] == "make":
            assert words[1] in targets, f"no such target: {' '.join(words)}"
        elif words[:2] == ["python", "-m"] and words[2].startswith("benchmarks"):
            assert (ROOT / words[2].replace(".", "/")).with_suffix(".py").exists(), words
        else:
            assert block.why_not or block.page.name == "CONTRIBUTING.md", (
                f"{block.place} has a command that no test runs: {' '.join(words)}. Write "
                "<!-- not run: needs ... --> above the block"
            )


@pytest.mark.parametrize("page", [*PAGES, ALL_PAGES[-2]], ids=lambda page: str(page.name))
def test_commands_in_the_text_have_known_options(page: Path) -> None:
    for words in spans(page):
        command, rest = command_of([w for w in words if w not in ("…", "...")])
        unknown = {w.split("=")[0] for w in rest if re.match(r"--?[a-z]", w)} - options_of(command)
        assert not unknown, f"actlas {' '.join(words)}: {unknown}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=place)
def test_each_configuration_has_known_keys(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(block.text)
    assert resolve({"plan": {}, "run": {}}, (), str(file)).plan


def test_the_commands_of_the_demo_parse() -> None:
    demo = (ROOT / "docs" / "demo.sh").read_text()
    lines = re.findall(r"^run (actlas (?:.*\\\n)*.*)$", demo, re.MULTILINE)
    commands = [words for words, _ in command_lines("\n".join(lines))]
    assert len(commands) > 10
    for words in commands:
        command, rest = command_of(words[1:])
        command.make_context(command.name, rest).close()
