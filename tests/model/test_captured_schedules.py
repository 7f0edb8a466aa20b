"""What Wireshark reads of made-up schedules: the bytes and the end of each connection, and nothing wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from support import captures
from support.command import Command
from support.machine import needs, needs_proc

from . import driver
from .driver import STREAMS, Half, Run, Wire
from .schedule import Schedule, schedules
from .test_schedules import FOUND, HANG

MOST = 400_000
"""Bytes that one end sends; more would take tshark long, and show nothing else."""

FINISHED, RESET = 16, 32
"""Bits of tcp.completeness."""


def plays(number: int, count: int) -> list[Schedule]:
    """So many schedules of not too many bytes, with those that have failed once."""
    found = [it for schedule in FOUND.values() for it in (schedule, schedule.swapped())]

    @seed(number)
    @settings(max_examples=4 * count, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(schedules())
    def collect(schedule: Schedule) -> None:
        found.append(schedule)

    collect()
    return found


def check(halves: tuple[Half, Half], completeness: int, followed: tuple[bytes, bytes]) -> str:
    """What is wrong with the captured stream of a connection; empty: nothing."""
    for half, other, data in zip(halves, halves[::-1], followed, strict=True):
        if data != STREAMS[half.number][: len(data)] or not other.received <= len(data) <= half.sent:
            return f"{len(data)} bytes of end {half.number}, which sent {half.sent}; {other.received} were received"
    if not any(half.aborted for half in halves):
        if tuple(map(len, followed)) != tuple(half.sent for half in halves):
            return "bytes are missing, though nobody aborted"
        expected = 31 if any(followed) else 23
        return "" if completeness == expected else f"completeness {completeness} and not {expected}"
    if any(half.seen == "ECONNRESET" for half in halves) and not completeness & RESET:
        return f"completeness {completeness}, though an end was reset"
    return "" if completeness & (FINISHED | RESET) else f"completeness {completeness}: it has no end"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [1, 2], ids=["1worker", "2workers"])
def test_captures_of_schedules(workers: int, schedule_seeds: tuple[int, int], tmp_path: Path) -> None:
    """One proxy captures all of them, and tshark reads the file."""
    needs_proc()
    needs("tshark")
    file = tmp_path / "a.pcapng"

    def relay(upstream: str) -> Command:
        return Command("-q", "--capture", str(file), f"--workers={workers}", upstream)

    path = driver.Path(Wire(False), HANG, relay)
    played = []
    try:
        for schedule in [it for number in schedule_seeds for it in plays(number, 60) if max(it.sends()) <= MOST][:150]:
            run = Run(path, schedule)
            run.play()
            played.append((schedule, run))
        path.stop()
        assert path.command
        assert path.command.stderr[-1].endswith(", nothing left out")
    finally:
        path.close()
    assert len(played) > 100
    assert captures.analysis(file) == []
    completeness, ports = captures.completeness(file), captures.clients(file)
    assert sorted(ports) == sorted(run.port for _, run in played)
    every = captures.follow_all(file, len(ports))
    for schedule, run in played:
        stream = ports.index(run.port)
        assert not (wrong := check(run.halves, completeness[stream], every[stream])), f"{schedule}: {wrong}"
