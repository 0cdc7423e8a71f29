"""CPUs and memory of this machine, within the limits of its container. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path


def n_cpus() -> int:
    """Return the CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gib(n_bytes: int) -> str:
    """Write a number of bytes for a person, as ``1.50 GiB``."""
    return f"{n_bytes / (1 << 30):.2f} GiB"


def free_host_bytes() -> int | None:
    """Return the bytes free for a new process, within a container's limit; None if unknown."""
    limit, used = _container_bytes() or (None, 0)
    left = None if limit is None else max(0, limit - used)
    return min((n for n in (_available_bytes(), left) if n is not None), default=None)


def total_host_bytes() -> int | None:
    """Return the bytes of this machine's memory, or a container's limit; None if unknown."""
    limit, _ = _container_bytes() or (None, 0)
    known = "SC_PHYS_PAGES" in os.sysconf_names
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else None
    return min((n for n in (there, limit) if n is not None), default=None)


def _available_bytes() -> int | None:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if "SC_PHYS_PAGES" in os.sysconf_names:  # macOS reports the total alone.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return None


def _container_bytes(root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int] | None:
    """Return the control group's limit and usage in bytes; None without a limit.

    The page cache does not count as used, since the kernel frees it on demand.
    """
    for folder, limit_name, used_name, prefix in (
        (root, "memory.max", "memory.current", ""),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        limit, used, stat = folder / limit_name, folder / used_name, folder / "memory.stat"
        if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
            lines = stat.read_text().splitlines() if stat.exists() else []
            counts = {name: int(n) for name, n in (line.split() for line in lines)}
            kept = ("active_file", "inactive_file")
            n_kept = sum(counts.get(prefix + name, 0) for name in kept)
            return int(text), max(0, int(used.read_text()) - n_kept)
    return None
