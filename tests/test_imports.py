"""Every module can be the first of actlas that a process imports."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.fresh_imports import WANTS_TORCH

pytestmark = pytest.mark.slow

# None of them loads a part of actlas, which the process asserts.
LOADED = (
    "numpy",
    "pydantic",
    "numcodecs",
    "donfig",
    "yaml",
    "google_crc32c",
    "xxhash",
    "ml_dtypes",
)
ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("store", "pipeline", "analysis", "jobs")


def modules() -> list[str]:
    """Return the name of every module of actlas, from the files that there are.

    ``__main__`` is none of them: to import it is to run it.
    """
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    files = sorted(path for path in files if path.stem != "__main__")
    parts = [("actlas", *path.relative_to(ROOT).with_suffix("").parts) for path in files]
    return ["actlas", *(".".join(names).removesuffix(".__init__") for names in parts)]


def imported(names: list[str], *libraries: str) -> list[dict[str, Any]]:
    """Import each module in a fresh process that has loaded these libraries alone."""
    done = subprocess.run(
        [sys.executable, "-m", "support.fresh_imports", *libraries],
        input="".join(f"{name}\n" for name in names),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}"},
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_module_can_be_imported_first() -> None:
    for library in ("torch", "transformers", "ray", "dask", "scipy", "matplotlib"):
        pytest.importorskip(library)
    names = modules()
    answers = imported(names, *LOADED)
    assert [answer["module"] for answer in answers] == names
    later = [answer["module"] for answer in answers if answer["code"] == WANTS_TORCH]
    assert "actlas.store" not in later and "actlas.jobs.cli.main" not in later
    answers = [a for a in answers if a["code"] != WANTS_TORCH]
    answers += imported(later, *LOADED, "torch")
    assert len(answers) == len(names)
    assert [a["module"] + "\n" + a["error"] for a in answers if a["code"] != 0] == []


def test_a_module_that_cannot_be_imported_is_found(tmp_path: Path) -> None:
    assert importlib.util.find_spec("numpy") is not None
    found = {a["module"]: a for a in imported(["json", "no_such_module", "numpy"], "numpy")}
    assert [found[name]["code"] for name in ("json", "no_such_module", "numpy")] == [0, 1, 0]
    assert "ModuleNotFoundError" in found["no_such_module"]["error"]
