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
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.features import made_store
from support.jobs import wait_until

from actlas.jobs.cli.app import VERBS, main
from actlas.jobs.ray import jobs_api
from actlas.jobs.scheduler import stop
from actlas.pipeline.builtin import builtin_model_path
from actlas.store.ledger import lease

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
CONTROL, IN_LINES = (
    re.compile(f"({'|'.join(re.escape(control) for control in controls)}){END}")
    for controls in (CONTROLS, tuple(control for control in CONTROLS if control != "\n"))
)
"""What may not reach the terminal; where a text has lines of its own, a newline may."""


def evil(field: str) -> str:
    """A name that shows whether it was printed: at its start, before any control."""
    return f"☠{field}{''.join(control + END for control in CONTROLS)}"


def recorded(field: str) -> str:
    """The same with those controls alone that a plan may record."""
    soft = (control for control in CONTROLS if not re.search(r"[\x00-\x1f\x7f-\x9f]", control))
    return f"☠{field}{''.join(control + END for control in soft)}"


N_COLUMNS = 20_000
"""More than the longest line."""


def shown(text: str) -> set[str]:
    """The fields whose names begin somewhere in a text, whatever its colours."""
    return set(re.findall(r"☠([a-z]+)", re.sub(r"\x1b\[[\d;]*m", "", text)))


def on_a_terminal(work: Callable[[], object]) -> str:
    """Return what some work prints to a terminal of 40 lines of ``N_COLUMNS`` characters."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, N_COLUMNS, 0, 0))
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
    # A live display asks file descriptors 0 to 2 for the width, which are not the terminal here: a
    # line that it wraps may begin with the END of a control.
    monkeypatch.setenv("COLUMNS", str(N_COLUMNS))
    monkeypatch.setattr(stop, "terminate_as_interrupt", lambda: None)

    def run(*arguments: object, code: int | None = 0, allowed: re.Pattern[str] = CONTROL) -> str:
        ended: list[object] = []

        def call() -> None:
            with pytest.raises(SystemExit) as end:
                main([str(argument) for argument in arguments])
            ended.append(end.value.code)

        text = on_a_terminal(call)
        assert code is None or ended == [code], (arguments, text)
        assert not (found := allowed.search(text)), (arguments[0], found[1], text)
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


def write_sae(folder: Path, d_in: int = 256) -> Path:
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (d_in, 16), "b_enc": (16,), "W_dec": (16, d_in), "b_dec": (d_in,)}
    folder.mkdir()
    weights = {name: rng.standard_normal(of).astype(np.float32) for name, of in shapes.items()}
    save_file(weights, folder / "sae_weights.safetensors")
    hook = {"hook_name": "blocks.0.hook_resid_post", "model_name": evil("saemodel")}
    cfg = {
        "d_in": d_in,
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
    assert labels | {"corpus", "store"} <= shown(
        verb("extract", store, *planned, "--device=cpu", "--verbose")
    )
    assert "store" in shown(verb("plan", store, *planned))
    assert {"model", "corpus", "span", "store"} <= shown(verb("info", store))
    assert {"labeltwo", "text", "file"} <= shown(verb("show", store, "--doc", 0))
    assert "labeltwo" in shown(verb("show", store, "--doc", 0, "--pos", 1))
    assert {"store"} <= shown(verb("status", store))
    verb("doctor", store, code=None)

    contrast = f"{evil('labelone')}:{evil('labeltwo')}"
    found = tmp_path / evil("found")
    out = verb("localize", store, "--contrast", contrast, "--out", found)
    assert {"labelone", "labeltwo", "found"} <= shown(out)
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
    assert shown(out) & {"labelone", "labeltwo"}
    page = tmp_path / evil("page")
    assert "page" in shown(verb("contexts", store, "--sae", "made", "--some", 2, "--html", page))
    assert shown(page.read_text()) & {"labelone", "labeltwo"}
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
        assert any("☠" in text and "\x1b[2J" in text for text in strings(json.loads(json_line)))


def strings(body: Any) -> Iterator[str]:
    if isinstance(body, dict | list):
        for each in body.values() if isinstance(body, dict) else body:
            yield from strings(each)
    elif isinstance(body, str):
        yield body


def test_every_error_with_evil_names(tmp_path: Path, verb: Verb, model: Path) -> None:
    """Names that nothing can record, and files of strangers that are not what they should be."""
    store, name = tmp_path / evil("store"), evil("name")
    made_store(store)
    file = tmp_path / evil("file")
    file.write_text(json.dumps({evil("key"): evil("value")}))
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"plan": {evil("key"): 1}, "run": {}}))
    foreign = tmp_path / evil("foreign")
    foreign.mkdir()
    (foreign / "config.json").write_text(json.dumps({"model_type": evil("kind")}))
    evil_model = tmp_path / evil("model")
    evil_model.symlink_to(builtin_model_path("actlas-6m"))
    new = tmp_path / "new.zarr"
    plan = ("--corpus", "builtin:python-docs", "--hookpoints", "resid_post.0")
    mask = ("--corpus", "builtin:python-docs", "--out", tmp_path / "out")
    train = ("--hookpoint", name, "--out", tmp_path / "sae")
    cases: list[tuple[object, ...]] = [
        (name,),
        ("info", f"--{name}"),
        ("info", tmp_path / name),
        ("hookpoints", name),
        ("hookpoints", foreign),
        ("hookpoints", evil_model),
        ("hookpoints", model, name),
        ("plan", new, "--model", evil_model, *plan),
        ("plan", new, "--model", model, "--corpus", name),
        ("plan", new, "--model", model, *plan, "--tokenizer", evil_model),
        ("plan", new, "--model", model, *plan, "--revision", name),
        ("plan", new, f"plan.{name}=1"),
        ("plan", new, f"{name}=1"),
        ("extract", new, "--config", config),
        ("extract", store, "--model", name),
        ("submit", file),
        ("submit", config, "--address", f"http://{name}"),
        ("status", file),
        ("verify", file),
        ("repair", store, "--findings", file),
        ("show", store, "--doc", 10**9),
        ("localize", store, "--contrast", f"{name}:{name}", "--out", tmp_path / "found"),
        ("ablate", model, "--mask", file, *mask),
        ("ablate", evil_model, "--mask", file, *mask),
        ("sae", "train", store, *train),
        ("sae", "encode", store, "--sae", foreign),
        ("sae", "encode", store, "--sae", write_sae(tmp_path / evil("sae"), 24)),
        ("sae", "index", store, "--sae", name),
        ("export", store, tmp_path / evil("plain"), "--hookpoints", name),
        ("export", tmp_path / name, tmp_path / "plain"),
        ("contexts", store, "--sae", name, "--feature", 1),
        ("contexts", store, "--hookpoint", name, "--unit", 1),
    ]
    for arguments in cases:
        for more in ((), ("--debug",)):
            text = verb(*arguments, *more, code=None, allowed=IN_LINES if more else CONTROL)
            assert shown(text), (arguments, text)
            assert "Traceback" not in text or more, text
    assert {case[0] for case in cases} >= set(VERBS) - {"doctor"}


class Server:
    """A Ray cluster whose job writes what it likes."""

    address = evil("address")

    def __init__(self, _address: str | None) -> None:
        pass

    def submit(self, *_: object, **_more: object) -> str:
        return evil("job")

    def follow(self, job: str, write: Callable[[str], None]) -> int:
        write(f"{evil('log')}\nsecond line\n")
        return 0


def test_a_clusters_log_with_evil_text(
    tmp_path: Path, verb: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_api, "JobServer", Server)
    config = tmp_path / "config.yaml"
    config.write_text("plan: {model: m, corpus: c}")
    out = verb("submit", config, tmp_path / evil("store"), allowed=IN_LINES)
    assert shown(out) == {"address", "job", "log", "store"} and "second line\n" in out


def test_a_running_driver_with_an_evil_name(tmp_path: Path, verb: Verb) -> None:
    """The status of a driver on a host, of workers and of a fault that call themselves anything."""
    store = made_store(tmp_path / "run.zarr")
    worker = {"worker": evil("worker"), "state": evil("state"), "seconds": 1, "shards": []}
    state = {"job": evil("job"), "n_rows": 5, "workers": [worker], "n_workers": 1}
    folder = Path(store.path) / "ledger/lease"
    with lease.hold(store.objects, run_state=lambda: state, heartbeat_s=0.02):
        wait_until((folder / "00000001.beat").exists)
        assert {"job", "worker"} <= shown(verb("status", store.path))
    holder = {"host": evil("host"), "pid": 1, "since": 0, "nonce": evil("nonce")}
    (folder / "00000002.json").write_text(json.dumps(holder))
    assert "host" in shown(verb("status", store.path))


def test_what_libraries_write_is_escaped(tmp_path: Path) -> None:
    """A warning, a log and a traceback of code that knows nothing of us, in another process."""
    code = (
        "import logging, sys, warnings\n"
        "from actlas.jobs.cli import app\n"
        f"name = {evil('library')!r}\n"
        "def command():\n"
        "    warnings.warn(name); logging.error(name); print(name); raise LookupError(name)\n"
        "app.cli.main = lambda **_: command()\n"
        "app.main(['info'])\n"
    )
    text = on_a_terminal(
        lambda: subprocess.run([sys.executable, "-c", code], stdout=sys.stdout, stderr=sys.stderr)
    )
    assert text.count("☠library") >= 4
    assert not (found := IN_LINES.search(text)), found
