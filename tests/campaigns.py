"""What campaigns share: a proxy's descriptors before and after, and the line that sums one up."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from pathlib import Path

from support.command import Command
from support.machine import needs_proc
from support.waiting import eventually
from traffic import Traffic

IDLE_PIPES = 4
"""That a worker keeps for later, two descriptors each."""

HUNG = 5.0
"""Seconds that no conversation may take, but for a machine on which direct ones take as long."""

SUPPRESSIONS = Path(__file__).parents[1] / "tools" / "suppressions" / "valgrind.txt"

totals: Counter[str] = Counter()
"""Of all campaigns of this run."""


class Holdings:
    """Descriptors of a running command, to compare with later ones."""

    def __init__(self, process: Command, workers: int = 2) -> None:
        needs_proc()
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

    @property
    def more(self) -> Counter[str]:
        """What it has more than before."""
        return self._count() - self.before

    def check(self) -> None:
        """It lives, and has what it had; but for pipes, of which it may keep some more."""
        assert self.process.process.poll() is None, f"it died: {self.process.stderr}"
        eventually(self._back, 10, f"descriptors: {self.before}, later {self._count()}")

    def _back(self) -> bool:
        now = self._count()
        return now - self.before == Counter() or (
            set(now - self.before) == {"pipe"} and now["pipe"] <= self.before["pipe"] + 2 * IDLE_PIPES * self.workers
        )


def valgrind() -> tuple[str, ...]:
    """What to put before a command where tools/sanitize.py wants it under valgrind; elsewhere nothing."""
    reports = os.environ.get("VALGRIND_REPORTS")
    if not reports:
        return ()
    log, known = f"--log-file={reports}/report.%p", f"--suppressions={SUPPRESSIONS}"
    return ("valgrind", "--quiet", "--sim-hints=lax-ioctls", log, known, "--error-exitcode=66", "--num-callers=30")


def campaign(name: str, faults: int, traffic: Traffic) -> None:
    """Says what was done; pytest shows it with -rP or -s, and the sum of all at its end."""
    totals.update(campaigns=1, faults=faults, conversations=traffic.ends.total(), trouble=len(traffic.troubles))
    ends = ", ".join(f"{count} {end}" for end, count in sorted(traffic.ends.items()))
    print(
        f"{name}: {faults} faults, {traffic.ends.total()} conversations ({ends}), {traffic.bytes >> 20} MiB, "
        f"slowest {traffic.slowest:.2f} s, {len(traffic.troubles)} in trouble",
        *traffic.troubles,
        sep="\n  ",
    )


def nobody_hung(traffic: Traffic) -> None:
    """No conversation has taken as long as one that waits for a time-out.

    Where one has, some are held without the proxy, as control: a machine on which they take a fifth of that limit is
    too slow for it, and gets five times what they took.
    """
    if traffic.slowest < HUNG:
        return
    control = Traffic(traffic.server, (traffic.server.host, traffic.server.port), traffic.together)
    control.run(range(1, 201))
    bound = max(HUNG, 5 * control.slowest)
    assert traffic.slowest < bound, f"a conversation took {traffic.slowest:.1f} s, a direct one {control.slowest:.1f} s"
