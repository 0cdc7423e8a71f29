"""What a person does with a store that a stranger gave: in a process of its own, watched.

The process says of each store which errors there were that are none of ours, which files outside
the store were opened, what was run, and what was read. Its memory is limited.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import sysconfig
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from actlas.jobs.cli import info, show
from actlas.jobs.run import describe, status

LIMIT_BYTES = 300 << 20
"""Of memory above what the process needs for a good store."""
LIMIT_S = 60
_FORBIDDEN = frozenset(
    [
        *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"),
        *("pickle.find_class", "socket.connect", "socket.bind", "ctypes.dlopen"),
    ]
)
_OPENED = frozenset(["open", "os.scandir", "os.listdir", "os.remove", "os.rmdir", "os.rename"])


class Watch:
    """Keeps what the process opens outside of a folder, and what it runs."""

    def __init__(self) -> None:
        self.inside: str | None = None
        self.found: list[str] = []
        code = {sysconfig.get_paths()[k] for k in ("stdlib", "platstdlib", "purelib", "platlib")}
        import actlas

        packages = Path(actlas.__file__).parent
        code |= {os.fspath(packages), *(os.path.realpath(p) for p in packages.iterdir())}
        self._ours = (*code, os.fspath(Path(__file__).parent), sys.prefix, sys.base_prefix)
        self._ours += ("/proc", "/sys")
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.inside is None:
            return
        if event in _FORBIDDEN and not (event.startswith("pickle") and _of_dask()):
            self.found.append(f"{event} {arguments!r:.200}")
        elif event in _OPENED and isinstance(arguments[0], str | bytes | os.PathLike):
            given = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100 - links stay
            if event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_NOFOLLOW:
                folder, name = os.path.split(given)
                path = f"{os.path.realpath(folder)}/{name}"
            else:
                path = os.path.realpath(given)
            if not path.startswith((self.inside, *self._ours)):
                self.found.append(f"{event} {path}")


def _of_dask() -> bool:
    """Whether dask is pickling a graph of its own, in memory: nothing of a store is unpickled."""
    frame = sys._getframe(2)
    for _ in range(20):
        if frame is None or "/dask/" in frame.f_code.co_filename:
            return frame is not None
        frame = frame.f_back  # type: ignore[assignment]
    return False


def uses(path: str, digest: dict[str, str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield everything that reads a store, by name. ``digest`` gets what was read."""
    import numpy as np

    import actlas
    from actlas.analysis.batches.api import batches
    from actlas.analysis.localizer.localize import localize
    from actlas.jobs.cli import status_lines
    from actlas.jobs.monitor import heartbeat as holding
    from actlas.store.ledger.feature_sets import names
    from actlas.store.verify.verify import verify

    store = actlas.open(path)
    plan = store.plan

    def keep(name: str, array: Any) -> None:
        digest[name] = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()

    yield "repr", lambda: (repr(store), store._repr_html_(), str(store.rows))
    yield (
        "status",
        lambda: list(
            status_lines.lines(
                status.status_of(store), holding.observe_holder(store.objects).snapshot
            )
        ),
    )
    yield (
        "info",
        lambda: (
            list(info._lines(describe.info_of(store))),
            describe.info_of(store).to_json(),
        ),
    )
    yield "verify", lambda: [str(damage) for damage in verify(store).damages]
    yield "verify full", lambda: [str(damage) for damage in verify(store, full=True).damages]
    yield "missing", lambda: [len(store.missing(job)) for job in store.jobs]
    yield "documents", lambda: (repr(store.documents), store.documents._repr_html_())
    yield "table", lambda: store.documents.to_pandas()
    some = sorted({0, min(3, plan.n_documents - 1), plan.n_documents - 1} - {-1})
    for doc_idx in some:
        yield (
            f"document {doc_idx}",
            lambda d=doc_idx: keep(
                f"text {d}", np.frombuffer(store.documents.text(d).encode(), np.uint8)
            ),
        )
        yield (
            f"show {doc_idx}",
            lambda d=doc_idx: list(show._lines(describe.show_of(store, d, None))),
        )
        yield (
            f"html {doc_idx}",
            lambda d=doc_idx: (
                repr(store.document(d)),
                store.document(d)._repr_html_(),
                store.document(d).to_pandas(),
            ),
        )
        yield (
            f"context {doc_idx}",
            lambda d=doc_idx: len(store.document(d)) and str(store.context(d, 0)),
        )
    last = plan.n_tokens - 1
    yield "rows", lambda: (store.rows[:10], store.rows.to_pandas(0, 10), store.rows[[0, last]])
    for hookpoint in [h.name for h in plan.hookpoints][:3]:
        array = lambda h=hookpoint: store.activations[h]  # noqa: E731
        yield f"slice {hookpoint}", lambda a=array, h=hookpoint: keep(f"rows {h}", a()[:8])
        yield f"take {hookpoint}", lambda a=array: a()[[0, last, 5 % (last + 1)]]
        yield (
            f"statistics {hookpoint}",
            lambda h=hookpoint: (store.statistics(h).mean, store.statistics(h).between_share),
        )
        yield f"units {hookpoint}", lambda h=hookpoint: _units(store.units(h))
        yield (
            f"batches {hookpoint}",
            lambda h=hookpoint: [
                len(rows)
                for _, rows in zip(range(3), batches(store, h, batch_size=32), strict=False)
            ],
        )
    yield "pooled", lambda: [p[:4] for pools in store.pooled.values() for p in pools.values()]
    yield "localize", lambda: localize(store, "S:N", top="3").summary()
    for name in names(store)[:3]:
        yield f"features {name}", lambda n=name: _features(store.features(n), keep)


def _units(units: Any) -> None:
    repr(units)
    units.top(0, 3), units.bottom(len(units) - 1, 3)
    found = units.contexts(0, 3, distinct=True)
    repr(found), found.to_html(), json.dumps(found.to_json()), found.to_pandas()


def _features(features: Any, keep: Callable[[str, Any], None]) -> None:
    repr(features)
    codes = features.codes(0, min(300, features.store.plan.n_tokens))
    keep("codes", codes.data)
    codes.dense(1), features.largest_shard(), features.to_pandas(), features.some(2)
    for feature in (0, 3 % len(features), len(features) - 1):
        features.top(feature, 5), features.bottom(feature, 5)
        if features.count[feature]:
            features.quantile(feature, 0.5)
        found = features.contexts(feature, 2, distinct=True)
        repr(found), found.to_html(), json.dumps(found.to_json())


def use(path: str, watch: Watch) -> dict[str, Any]:
    """Use a store in every way, and return what came of it."""
    from actlas.store.errors import ActlasError

    digest: dict[str, str] = {}
    refused: dict[str, str] = {}
    wrong: dict[str, str] = {}
    began = time.monotonic()
    watch.inside, watch.found = os.path.realpath(path), []

    def attempt(name: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ActlasError as error:
            refused[name] = f"{type(error).__name__}: {error}"[:300]
        except BaseException as error:  # noqa: BLE001 - that is what is looked for
            told = traceback.format_exception(error)
            wrong[name] = "".join(told)[-1500:] or repr(error)
        return None

    everything = uses(path, digest)
    while (one := attempt("open", lambda: next(everything, None))) is not None:
        attempt(*one)
    watch.inside = None
    return {
        "wrong": wrong,
        "refused": refused,
        "outside": watch.found[:10],
        "digest": digest,
        "seconds": time.monotonic() - began,
        "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
    }


def serve(good: str) -> None:
    """Use a good store once, take that memory as the base, then every store that is named."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    watch = Watch()
    use(good, watch)
    use(good, watch)
    with open("/proc/self/status") as file:  # noqa: PTH123
        data = next(int(line.split()[1]) for line in file if line.startswith("VmData:"))
    most = (data << 10) + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        out.write(json.dumps(use(line.rstrip("\n"), watch)) + "\n")
        out.flush()


class Person:
    """The other end: hands stores to a process, and starts another where it died or hangs."""

    def __init__(self, good: Path) -> None:
        self.good = good
        self.n = 0
        self._process: subprocess.Popen[str] | None = None

    def use(self, path: Path) -> dict[str, Any]:
        """Have a store used; what has happened to the process is among the wrong things."""
        self.n += 1
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        hung = threading.Event()

        def end() -> None:
            hung.set()
            process.kill()

        timer = threading.Timer(LIMIT_S, end)
        timer.start()
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        line = process.stdout.readline()
        timer.cancel()
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        self._process = None
        process.communicate()
        how = "hung" if hung.is_set() else f"died with {process.returncode}"
        return {"wrong": {"process": how}, "outside": [], "refused": {}, "digest": {}, "rss": 0}

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def _start(self) -> subprocess.Popen[str]:
        tests = Path(__file__).resolve().parents[1]
        code = f"import sys; sys.path.insert(0, {str(tests)!r}); "
        code += f"from support import hostile_stores; hostile_stores.serve({str(self.good)!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        return self._process
