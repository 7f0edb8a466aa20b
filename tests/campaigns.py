"""What campaigns share: a proxy's descriptors before and after, and the line that sums one up."""

from __future__ import annotations

import contextlib
import os
from collections import Counter

from support import Command, eventually
from traffic import Traffic

IDLE_PIPES = 4
"""That a worker keeps for later, two descriptors each."""


class Holdings:
    """Descriptors of a running command, to compare with later ones."""

    def __init__(self, process: Command, workers: int = 2) -> None:
        self.process, self.workers = process, workers
        self.before: Counter[str] = Counter()
        eventually(self._settled, 10, "its descriptors do not settle")

    def _settled(self) -> bool:
        self.before, before = self._count(), self.before
        return self.before == before

    def _count(self) -> Counter[str]:
        """How many of each kind."""
        folder = f"/proc/{self.process.process.pid}/fd"
        kinds: Counter[str] = Counter()
        for number in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):
                kinds[os.readlink(f"{folder}/{number}").partition(":")[0]] += 1
        return kinds

    def check(self) -> None:
        """It lives, and has what it had; but for pipes, of which it may keep some more."""
        assert self.process.process.poll() is None, f"it died: {self.process.stderr}"
        eventually(self._back, 10, f"descriptors: {self.before}, later {self._count()}")

    def _back(self) -> bool:
        now = self._count()
        return now - self.before == Counter() or (
            set(now - self.before) == {"pipe"} and now["pipe"] <= self.before["pipe"] + 2 * IDLE_PIPES * self.workers
        )


def campaign(name: str, faults: int, traffic: Traffic) -> None:
    """Says what was done; pytest shows it with -rP or -s."""
    ends = ", ".join(f"{count} {end}" for end, count in sorted(traffic.ends.items()))
    print(
        f"{name}: {faults} faults, {traffic.ends.total()} conversations ({ends}), {traffic.bytes >> 20} MiB, "
        f"slowest {traffic.slowest:.2f} s, {len(traffic.troubles)} in trouble",
        *traffic.troubles,
        sep="\n  ",
    )
