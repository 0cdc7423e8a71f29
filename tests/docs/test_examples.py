"""Every command and every Python block of the pages runs, or says why not.

Pages are read in order, each in a folder of its own: what one block makes, the next one finds. A
page that begins with something ready names it in ``READY``. So that this takes seconds, corpora,
steps and models are replaced by the smaller ones of ``SMALLER``.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.pages import PAGES, ROOT, Block, blocks, command_lines

from actlas.jobs.cli.app import cli

MODEL = "builtin:actlas-6m"

SMALLER = (
    (r"builtin:python-docs", "texts.jsonl"),
    (r"--corpus builtin:language", "--corpus language.jsonl --label-field label"),
    (r'corpus="builtin:language"', 'corpus="language.jsonl", label_field="label"'),
    (r"--max-tokens 100000\b|--max-tokens 82M|--max-tokens 10000\b", "--max-tokens 1500"),
    (r"--batch-size 1024 --steps 2400", ""),
    (r"\bmax_tokens: 200000", "max_tokens: 1500"),
    (r"\bMODEL\b|\bgpt2\b", MODEL),
    (r"workers: 2\b", "workers: 1"),
    (r" run\.workers=4", " run.workers=1"),
    (r"batch_size=\d+", "batch_size=64"),
    (r"1000, 2000\)", "1000, 1500)"),
    (r"skip=", "batch_size=64, skip="),
    (r"random=20\)", "random=2, max_tokens=200, new_tokens=2)"),
)
"""What the test replaces, in commands and in Python: a pattern, and the text instead."""

FASTER = {
    ("sae", "train"): ["--steps", "20", "--d-sae", "64", "--k", "8", "--batch-size", "256"],
    ("ablate",): ["--max-tokens", "200", "--new-tokens", "2", "--random", "2"],
}
"""Options that the test adds, by verb; the last of two equal ones counts."""

READY = {
    "docs/batches.md": ("run.zarr",),
    "docs/extraction.md": ("run.zarr", "stimuli"),
    "docs/features.md": ("run.zarr", "my-sae"),
    "docs/guide.md": ("run.zarr", "stimuli"),
    "docs/guides/read-without-actlas.md": ("run.zarr",),
    "docs/localizer.md": ("stimuli", "texts.jsonl"),
    "docs/python.md": ("encoded/run.zarr",),
    "docs/repair.md": ("run.zarr", "my-sae"),
    "docs/sae.md": ("run.zarr",),
    "docs/store-format.md": ("run.zarr",),
}
"""What a page takes to be there: parts of the folder of the fixture ``ready``."""

STORE = "import actlas\nstore = actlas.open('run.zarr')\n"
BEFORE = {
    "docs/batches.md": "train = print\n",
    "docs/extraction.md": STORE,
    "docs/features.md": "import actlas\n",
}
"""Python that runs before a page's first Python block."""


def runnable(page: Path) -> list[Block]:
    """The blocks of a page that are run, and the files that it shows."""
    return [b for b in blocks(page) if b.why_not is None and b.language in ("sh", "python", "yaml")]


EXAMPLES = [page for page in PAGES if {b.language for b in runnable(page)} & {"sh", "python"}]


def smaller(text: str) -> str:
    for pattern, instead in SMALLER:
        text = re.sub(pattern, instead, text)
    return text


def actlas(words: list[str], output: str | None = None) -> None:
    """Run a command line in this process, with the options that make it fast."""
    verb = next((verb for verb in FASTER if tuple(words[: len(verb)]) == verb), ())
    result = CliRunner().invoke(cli, [*words, *FASTER.get(verb, [])])
    assert result.exit_code == 0, f"actlas {' '.join(words)}\n{result.output}\n{result.exception!r}"
    if output is not None:
        Path(output).write_text(result.stdout)


def write_corpora(folder: Path) -> None:
    """Write small texts in place of the corpora that come with actlas."""
    pages = "\n\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    texts = [part for part in pages.split("\n\n") if len(part) > 200 and part[0].isalpha()]
    records = [json.dumps({"text": text}) for text in texts[:60]]
    (folder / "texts.jsonl").write_text("\n".join(records))
    sentences = ["the boat came back to the harbour", "a child slept in the warm kitchen"]
    strings = ["tuv golf pado frem ilk", "sog blat yun kepo dra mib"]
    labelled = [
        json.dumps({"text": f"{text} {i}", "label": label})
        for i in range(8)
        for label, both in (("S", sentences), ("N", strings))
        for text in both
    ]
    (folder / "language.jsonl").write_text("\n".join(labelled))


def write_stimuli(folder: Path) -> None:
    """Write files of the form of the published stimuli, under both names that pages use."""
    folder.mkdir()
    for name in ("stimuli", "langloc_stimuli"):
        (folder / name).mkdir()
        for run in (1, 2):
            with (folder / name / f"langloc_{run}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow([f"stim{i}" for i in range(1, 15)])
                for i in range(6):
                    words = ["the", "dog", "ran"] * 4 if i % 2 else ["blick", "dax", "wug"] * 4
                    writer.writerow([i, *words, "S" if i % 2 else "N"])


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pages begin with, made once."""
    folder = tmp_path_factory.mktemp("ready")
    write_corpora(folder)
    write_stimuli(folder / "stimuli")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        plan = ["--model", MODEL, "--corpus", "texts.jsonl", "--max-tokens", "1500", "--with-loss"]
        actlas(["extract", "run.zarr", *plan])
        actlas(["sae", "train", "run.zarr", "--hookpoint", "resid_post.3", "--out", "my-sae"])
        shutil.copytree("run.zarr", "encoded/run.zarr")
        actlas(["sae", "encode", "encoded/run.zarr", "--sae", "my-sae"])
        actlas(["sae", "index", "encoded/run.zarr", "--sae", "my-sae"])
    return folder


def bring(ready: Path, names: tuple[str, ...], folder: Path) -> None:
    """Put the corpora and some of what is ready into a page's folder."""
    for name in ("texts.jsonl", "language.jsonl"):
        shutil.copy(ready / name, folder)
    for name in names:
        if name == "stimuli":
            shutil.copytree(ready / name, folder, dirs_exist_ok=True)
        elif (ready / name).is_dir():
            shutil.copytree(ready / name, folder / Path(name).name)


@pytest.mark.slow
@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_examples_of_a_page_run_in_order(
    page: Path, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = page.relative_to(ROOT).as_posix()
    bring(ready, READY.get(name, ()), tmp_path)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    before = BEFORE.get(name, "")
    for block in runnable(page):
        text = smaller(block.text)
        if block.language == "yaml":
            named = re.match(r"# (\S+\.yaml)\n", text)
            if named is not None:
                Path(named[1]).write_text(text)
        elif block.language == "python":
            exec(compile(before, name, "exec"), namespace)
            before = ""
            code = "\n" * (block.line) + text  # so that a traceback has the page's lines
            exec(compile(code, str(page), "exec"), namespace)
        else:
            for words, output in command_lines(text):
                if words[0] == "actlas":
                    actlas(words[1:], output)


def test_python_blocks_that_do_not_run_are_python_all_the_same() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python":
                compile(block.text, block.place, "exec")
