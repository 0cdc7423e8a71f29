"""Checks of this machine: packages, accelerators, memory, processes, the model cache."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from actlas.jobs.doctor.check import Check, ok, problem, warning
from actlas.jobs.formatting import n_bytes
from actlas.pipeline.model.host import n_cpus

MIN_SHM_BYTES = 1 << 30
"""Shared memory below which a warning is given."""

MIN_OPEN_FILES = 4096
"""Limit of open files below which a warning is given."""


def packages() -> Iterator[Check]:
    """Compare the installed packages with actlas's requirements."""
    yield ok("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    required, missing, old, seen = metadata.requires("actlas") or [], [], [], set[str]()
    for line in required:
        match = re.match(r"([\w.-]+)(?:\[[^]]*])?(?:>=([\d.]+))?", line)
        extra = re.search(r"extra == [\"'](\w+)[\"']", line)
        if match is None or match[1] == "actlas" or match[1] in seen:
            continue
        group = extra[1] if extra else ""
        if group not in ("", "extract", "analysis", "cloud"):
            continue
        seen.add(match[1])
        try:
            version = metadata.version(match[1])
        except metadata.PackageNotFoundError:
            missing.append((match[1], group))
            continue
        if match[2] and _numbers(version) < _numbers(match[2]):
            old.append(f"{match[1]} {version} (needs {match[2]})")
    if old:
        yield problem(
            "packages", f"too old: {', '.join(old)}", "pip install --upgrade these packages"
        )
    base = [name for name, group in missing if not group]
    if base:
        yield problem("packages", f"missing: {', '.join(base)}", "pip install actlas")
    for group in ("extract", "analysis", "cloud"):
        if names := [name for name, of in missing if of == group]:
            found = f"not installed: {', '.join(names)}"
            yield warning(group, found, f"if you need it: pip install 'actlas[{group}]'")
    if not old and not base:
        yield ok(
            "packages", f"{len(seen) - len(missing)} of {len(seen)} installed, all recent enough"
        )


def accelerators() -> Iterator[Check]:
    """Compare the machine's GPUs with those that torch can use."""
    n_devices = len(list(Path("/dev").glob("nvidia[0-9]*")))
    try:
        import torch
    except ImportError:
        yield warning("gpu", "torch is not installed", "to extract: pip install 'actlas[extract]'")
        return
    n_seen = torch.cuda.device_count()
    if n_seen < n_devices and "CUDA_VISIBLE_DEVICES" not in os.environ:
        yield problem(
            "gpu",
            f"{n_devices} in the machine, torch {torch.__version__} can use {n_seen} (CUDA of "
            f"torch: {torch.version.cuda or 'none'})",
            "install a torch build for the driver's CUDA version, which `nvidia-smi` shows",
        )
    if not n_seen:
        yield ok("gpu", f"none; torch {torch.__version__} computes on {n_cpus()} CPUs")
    for index in range(n_seen):
        device = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found = f"{index}: {device.name}, {n_bytes(free)} of {n_bytes(total)} free"
        if device.major < 8:
            yield warning("gpu", f"{found}, no bfloat16", "use --model-dtype float32 or float16")
        else:
            yield ok("gpu", f"{found}, bfloat16")


def memory() -> Iterator[Check]:
    """Compare the machine's memory and CPUs with the limits of its control group."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory_limit()
    if limit is not None and limit < total:
        yield warning(
            "memory",
            f"{n_bytes(limit)} allowed to this container, of {n_bytes(total)}",
            "Ray counts the machine's memory: set --max-memory-bytes, or raise the limit",
        )
    else:
        yield ok("memory", f"{n_bytes(total)}")
    cpus = cpu_limit()
    if cpus is not None and cpus < n_cpus():
        found = f"{cpus:g} allowed to this container, but {n_cpus()} are visible"
        yield warning("cpus", found, f"set OMP_NUM_THREADS={max(1, int(cpus))}")
    else:
        threads = os.environ.get("OMP_NUM_THREADS")
        yield ok("cpus", f"{n_cpus()}" + (f", OMP_NUM_THREADS={threads}" if threads else ""))
    shm = Path("/dev/shm")
    if shm.is_dir():
        free = shutil.disk_usage(shm).free
        if free < MIN_SHM_BYTES:
            remedy = "in a container: --shm-size=2g, or an emptyDir of medium Memory"
            yield warning("shared memory", f"{n_bytes(free)} free in /dev/shm", remedy)
        else:
            yield ok("shared memory", f"{n_bytes(free)} free in /dev/shm")


def processes() -> Iterator[Check]:
    """Check the limit of open files per process."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < MIN_OPEN_FILES:
        yield warning("open files", f"{soft:,} at most", f"ulimit -n {min(65536, hard)}")
    else:
        yield ok("open files", f"{soft:,} at most")


def hub() -> Iterator[Check]:
    """Check the cache of hub models."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    offline = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)]
    place = home
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        yield warning("models", f"{home} cannot be written", "set HF_HOME to a writable folder")
    else:
        free = n_bytes(shutil.disk_usage(place).free)
        yield ok("models", f"cache {home}, {free} free" + (", offline" if offline else ""))


def memory_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the memory limit of the control group (v2 or v1) in bytes; None without a limit.

    Parameters
    ----------
    root : Path
        Folder of the control group.
    """
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _read(root / name)
        if text is not None and text.isdigit():
            return int(text) if int(text) < 1 << 60 else None
    return None


def cpu_limit(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the CPU limit of the control group (v2 or v1); None without a limit.

    Parameters
    ----------
    root : Path
        Folder of the control group.
    """
    words: Iterable[str | None] = (_read(root / "cpu.max") or "").split()
    if not words:
        words = [_read(root / f"cpu/cpu.cfs_{name}_us") for name in ("quota", "period")]
    numbers = [int(word) for word in words if word is not None and word.isdigit()]
    return numbers[0] / numbers[1] if len(numbers) == 2 and numbers[1] else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])
