"""Imports one module after the other, each in a process in which nothing of actlas is loaded.

``python -m support.fresh_imports [LIBRARY ...]`` reads the names of modules from stdin and answers
each with a line of JSON. A new interpreter for each would spend most of its time on numpy and
torch: so each is forked from one that has loaded those libraries and nothing else. None of them
loads a part of actlas, as zarr does, whose data types come through an entry point of ours.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import traceback

WANTS_TORCH = 77
"""The exit code of a module that imports torch where the interpreter has not loaded it."""


class _WithoutTorch:
    """Ends a process that begins to import torch: another, which has it, tries the same module."""

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname == "torch":
            os._exit(WANTS_TORCH)


def answer(name: str) -> dict[str, object]:
    """Import a module in a process of its own; return its exit code, and the traceback if any."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            importlib.import_module(name)
            code = 0
        except BaseException:  # noqa: BLE001 - whatever it is, it is told
            os.write(writing, traceback.format_exc()[-4000:].encode())
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as told:
        error = told.read()
    _, status = os.waitpid(child, 0)
    return {"module": name, "code": os.waitstatus_to_exitcode(status), "error": error}


def main() -> None:
    """Answer each line of stdin."""
    for library in sys.argv[1:]:
        importlib.import_module(library)
    ours = [name for name in sys.modules if name.partition(".")[0] in ("actlas", "zarr")]
    assert not ours, f"{ours[:5]} came with {sys.argv[1:]}"
    gc.disable()  # there is nothing to collect in so short a life
    if "torch" not in sys.argv[1:]:
        sys.meta_path.insert(0, _WithoutTorch())  # type: ignore[arg-type]
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(line.strip())) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
