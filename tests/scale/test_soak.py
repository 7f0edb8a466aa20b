"""A proxy that works for long, with peers that behave badly: it is as it was before."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable

from campaigns import Holdings, campaign, nobody_hung
from support.command import Command
from support.machine import cpu_seconds, resident
from support.streams import MIB
from traffic import Server, Traffic

MINUTE = 60
SHARE = 0.4
"""Of one processor, for proxy and peers together; the rest is for the others on the machine."""


class Pace:
    """Keeps a load at its share of a processor."""

    def __init__(self, pid: int) -> None:
        self.pid, self.begin = pid, time.monotonic()
        self._used_before = self._used()

    def _used(self) -> float:
        return cpu_seconds(self.pid) + time.process_time()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.begin

    @property
    def used(self) -> float:
        """Seconds of processor time since the beginning."""
        return self._used() - self._used_before

    def wait(self) -> None:
        threading.Event().wait(max(0.0, self.used / SHARE - self.elapsed))


def test_soak(stack: contextlib.ExitStack, command: Callable[..., Command], rounds: int) -> None:
    """Row 106: a minute a round, with 15 % resets and 10 % abrupt closes.

    Descriptors are those of before, and memory has grown by at most 1 MiB since the first minute; of one round, since
    its first third: by then a thousand conversations have had every buffer at its largest.
    """
    seconds, seed = MINUTE * rounds, int(os.environ.get("FAULTS_SEED", "1"))
    server = stack.enter_context(contextlib.closing(Server(resets=0.25, abrupt=0.4)))
    process = command("--quiet", "--workers=2", server.name)
    traffic = Traffic(server, process.address)
    holdings = Holdings(process)
    pid = process.process.pid
    pace = Pace(pid)
    numbers = itertools.count(seed * 1_000_000)
    memory = []
    while pace.elapsed < seconds:
        traffic.run(itertools.islice(numbers, 40))
        memory.append((pace.elapsed, resident(pid)))
        pace.wait()
    first = next(size for when, size in memory if when >= min(MINUTE, seconds / 3))
    growth = memory[-1][1] - first
    campaign(f"soak, {pace.elapsed:.0f} s, {pace.used:.0f} s of processor time, seed {seed}", 0, traffic)
    print(f"  memory: {memory[0][1]} at first, {first} then, {memory[-1][1]} at the end ({growth:+} bytes)")
    assert traffic.troubles == []
    nobody_hung(traffic)
    holdings.check()
    print(f"  descriptors: {dict(holdings.more) or 'none'} more, of pipes that workers keep for later")
    assert growth <= MIB
    assert process.complaints == []
