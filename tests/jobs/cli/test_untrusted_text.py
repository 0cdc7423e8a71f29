"""Whatever a name contains, no verb lets it control the terminal.

Every field that a stranger writes is filled with control characters, and every verb is run on a
pseudo-terminal: through a pipe, click itself would strip what the test looks for.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from actlas.jobs.cli.app import main
from actlas.jobs.scheduler import stop
from actlas.pipeline.builtin import builtin_model_path

pytestmark = pytest.mark.slow

CONTROLS = (
    *("\x1b]0;title\x07", "\x1b[2J", "\x1b[31m", "\x1b[2K", "\x1b[1A", "\x1bc", "\x9b2J", "\x9d0;"),
    *("\x07", "\x08", "\x0b", "\x0c", "\x0e", "\r", "\n", "\x7f", "\x85", "\u2028", "\u2029"),
    *("\u202a", "\u202b", "\u202c", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u2069"),
    *("\u200e", "\u200f", "\u061c", "\U000e0041"),
)
END = "~"
"""Follows each control, which tells it from rich's own."""
LAST = b"\0last"
CONTROL = re.compile("(" + "|".join(map(re.escape, CONTROLS)) + ")" + END)


def evil(field: str) -> str:
    """A name that shows whether it was printed: at its start, before any control."""
    return f"☠{field}{''.join(control + END for control in CONTROLS)}"


def recorded(field: str) -> str:
    """The same with those controls alone that a plan may record."""
    soft = (control for control in CONTROLS if not re.search(r"[\x00-\x1f\x7f-\x9f]", control))
    return f"☠{field}{''.join(control + END for control in soft)}"


def shown(text: str) -> set[str]:
    return set(re.findall(r"☠([a-z-]+)", text))


def on_a_terminal(work: Callable[[], object]) -> str:
    """Return what some work prints to a terminal of 40 lines of 4,000 characters."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 4000, 0, 0))
    read = bytearray()

    def collect() -> None:
        while not read.endswith(LAST):
            read.extend(os.read(master, 1 << 16))

    reader = threading.Thread(target=collect)
    reader.start()
    before = sys.stdout, sys.stderr
    with os.fdopen(slave, "w", encoding="utf-8", newline="") as stream:
        try:
            sys.stdout = sys.stderr = stream
            work()
        finally:
            sys.stdout, sys.stderr = before
            stream.write(LAST.decode())
            stream.flush()
            reader.join()
    os.close(master)
    return read.removesuffix(LAST).decode().replace("\r\n", "\n")


Verb = Callable[..., str]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Verb:
    """Run a verb on a terminal; check that no control reached it; return the output."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(stop, "terminate_as_interrupt", lambda: None)

    def run(*arguments: object, code: int | None = 0) -> str:
        def call() -> None:
            with pytest.raises(SystemExit) as ended:
                main([str(argument) for argument in arguments])
            assert code is None or ended.value.code == code, arguments

        text = on_a_terminal(call)
        assert not (found := CONTROL.search(text)), (arguments[0], found[1], text)
        return text

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / recorded("model")
    folder.symlink_to(builtin_model_path("actlas-6m"))
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A file with two labels and a column of spans, and a broken line; its name is evil too."""
    folder = tmp_path / recorded("corpus")
    folder.mkdir()
    records = [
        {
            "text": f"{evil('text')} a b c {i}",
            "lab": evil("labelone" if i % 2 else "labeltwo"),
            "ent": [{"start": 0, "stop": 3, "label": evil("span")}],
        }
        for i in range(8)
    ]
    body = "\n".join(map(json.dumps, records)) + '\n{"text": 3}\n'
    (folder / f"{evil('file')}.jsonl").write_text(body)
    return folder


def write_sae(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (128, 16), "b_enc": (16,), "W_dec": (16, 128), "b_dec": (128,)}
    folder.mkdir()
    weights = {name: rng.standard_normal(of).astype(np.float32) for name, of in shapes.items()}
    save_file(weights, folder / "sae_weights.safetensors")
    hook = {"hook_name": "blocks.0.hook_resid_post", "model_name": evil("saemodel")}
    cfg = {
        "d_in": 128,
        "d_sae": 16,
        "dtype": "float32",
        "device": "cpu",
        "architecture": "standard",
    }
    cfg |= {"apply_b_dec_to_input": True, "normalize_activations": "none"}
    (folder / "cfg.json").write_text(json.dumps({**cfg, "metadata": hook}))
    return folder


def test_every_verb_with_evil_names(
    tmp_path: Path, verb: Verb, model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / evil("store")
    names = {"label-field": "lab", "span-fields": "ent", "max-length": 64, "shard-rows": 256}
    planned = [f"--{name}={value}" for name, value in names.items()]
    planned += [f"--model={model}", f"--corpus={corpus}", "--hookpoints=resid_post.0"]
    labels = {"labelone", "labeltwo", "span"}

    assert shown(verb("hookpoints", model)) == {"model"}
    assert labels - {"span"} <= shown(verb("plan", store, *planned, "--dry-run"))
    assert labels | {"corpus", "store"} <= shown(verb("extract", store, *planned, "--device=cpu"))
    assert "store" in shown(verb("plan", store, *planned))
    assert {"model", "corpus", "span", "store"} <= shown(verb("info", store))
    assert {"labeltwo", "text", "file"} <= shown(verb("show", store, "--doc", 0))
    assert "text" in shown(verb("show", store, "--doc", 0, "--pos", 1))
    assert {"store"} <= shown(verb("status", store))
    verb("doctor", store, code=None)

    contrast = f"{evil('labelone')}:{evil('labeltwo')}"
    found = tmp_path / evil("found")
    out = verb("localize", store, "--contrast", contrast, "--out", found)
    assert {"labelone", "labeltwo", "found", "model"} <= shown(out)
    out = verb(
        *(
            "ablate",
            model,
            "--mask",
            found,
            "--corpus",
            corpus,
            "--out",
            tmp_path / evil("ablated"),
        ),
        *("--random", 1, "--new-tokens", 1, "--prompt", evil("prompt"), "--device", "cpu"),
    )
    assert {"prompt", "ablated"} <= shown(out)

    sae = write_sae(tmp_path / recorded("sae"))
    made = ("--sae", sae, "--name", "made", "--device", "cpu")
    assert "store" in shown(verb("sae", "encode", store, *made))
    assert "store" in shown(verb("sae", "index", store, "--sae", "made"))
    out = verb("contexts", store, "--sae", "made", "--some", 2, "-k", 2)
    assert {"text", "labelone"} <= shown(out)
    page = tmp_path / evil("page")
    assert "page" in shown(verb("contexts", store, "--sae", "made", "--some", 2, "--html", page))
    assert {"text", "labelone"} <= shown(page.read_text())
    html = page.read_text().replace("\n~", "~")  # a line of a text
    assert not (control := CONTROL.search(html)), control
    trained = tmp_path / evil("trained")
    train = ("--width", 4, "--k", 1, "--steps", 2, "--batch-size", 16, "--device", "cpu")
    out = verb("sae", "train", store, "--hookpoint", "resid_post.0", "--out", trained, *train)
    assert {"trained", "store"} <= shown(out)

    (store / evil("orphan")).write_text("x")
    report = verb("verify", store, code=4)
    assert {"orphan", "store"} <= shown(report)
    assert {"orphan", "store"} <= shown(verb("repair", store, code=4))
    for arguments in (["info"], ["status"], ["verify"], ["show", "--doc=0"]):
        json_line = verb(arguments[0], store, *arguments[1:], "--json", code=None)
        assert evil("store") in "".join(strings(json.loads(json_line)))


def strings(body: Any) -> Iterator[str]:
    if isinstance(body, dict | list):
        for each in body.values() if isinstance(body, dict) else body:
            yield from strings(each)
    elif isinstance(body, str):
        yield body
