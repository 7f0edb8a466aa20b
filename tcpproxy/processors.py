"""The processors that this process may use: its affinity, and the CPU quota of its control groups (Linux)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator


def usable_cpus() -> int:
    """The processors that this process can keep busy: by its affinity and its CPU quota, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cpu_quota(root: str = "/") -> float | None:
    """The CPU quota in processors: 0.5 is half of one. None: there is none.

    A quota of a parent group also limits its children, so the lowest quota counts.

    Args:
        root: where /proc and /sys are, for tests.
    """
    found = [quota for file in _quota_files(root) if (quota := _read_quota(file)) is not None]
    return min(found, default=None)


def _quota_files(root: str) -> Iterator[str]:
    """The quota files of this process's groups and of their parents, in both versions of cgroups."""
    try:
        with open(os.path.join(root, "proc/self/cgroup"), encoding="utf-8") as lines:
            groups = [line.rstrip("\n").split(":", 2) for line in lines]
    except (OSError, UnicodeError):
        return
    for group in groups:
        if len(group) != 3:
            continue
        _, controllers, path = group
        if controllers == "":
            places, name = ("sys/fs/cgroup", "sys/fs/cgroup/unified"), "cpu.max"
        elif "cpu" in controllers.split(","):
            places, name = ("sys/fs/cgroup/cpu", f"sys/fs/cgroup/{controllers}"), "cpu.cfs_quota_us"
        else:
            continue
        # In a container the path may be the host's, and only its last part or nothing of it may be mounted. The files
        # at the top of the mount are then those of the container's group.
        parts = [part for part in path.split("/") if part]  # without pathlib, whose import takes 2 ms
        steps = [parts[:count] for count in range(len(parts), -1, -1)]
        yield from (os.path.join(root, place, *step, name) for place in places for step in steps)


def _read_quota(file: str) -> float | None:
    """The quota in a file, in processors; None: there is no file, it has no quota, or it cannot be parsed."""
    try:
        with open(file, encoding="utf-8") as text:
            words = text.read().split()
        if not file.endswith("cpu.max"):
            with open(file.replace("cpu.cfs_quota_us", "cpu.cfs_period_us"), encoding="utf-8") as text:
                words += text.read().split()
        quota, period = (int(word) for word in words)
    except (OSError, ValueError):  # "max" is no number
        return None
    return quota / period if quota > 0 and period > 0 else None
