"""Thousands of made-up schedules: through the relay, both ends see what a direct connection shows."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, Phase, given, note, seed, settings

from .driver import Path, Wire, compare, paths
from .schedule import Abort, Frozen, Schedule, Send, Settle, Shut, schedules

HANG = 5.0

CONFIGURATIONS = [
    (mode, workers, narrow) for mode in ("always", "auto") for workers in (1, 2) for narrow in (False, True)
]
NAMES = [f"{mode}-{n}worker{'s' * (n > 1)}-{'narrow' if narrow else 'wide'}" for mode, n, narrow in CONFIGURATIONS]


@contextlib.contextmanager
def configured(mode: str, workers: int, narrow: bool, hang: float = HANG, **popen: object):
    """The paths, direct and relayed, of one configuration."""
    size = "4096" if narrow else "65536"
    options = (f"--zero-copy={mode}", f"--workers={workers}", f"--buffer-size={size}")
    with paths(Wire(narrow), hang, *options, **popen) as both:
        yield both


def explore(direct: Path, relayed: Path, number: int, examples: int, shrink: bool = True) -> int:
    """Plays so many schedules, the same ones for the same number; says how many it was. Raises Violation."""
    played = 0

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
    )
    @given(schedules())
    def play(schedule: Schedule) -> None:
        nonlocal played
        played += 1
        note(f"seed {number}: {schedule}")
        compare(schedule, direct, relayed)

    play()
    return played


@pytest.mark.timeout(900)  # shrinking a schedule that hangs takes long
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=NAMES)
def test_ends_see_what_a_direct_connection_shows(
    configuration: tuple[str, int, bool], request: pytest.FixtureRequest, schedule_seeds: tuple[int, int]
) -> None:
    """Rows 1-10, 14-19, 21, 27, 38, 46-48, 67-72, 78-82, 85-87, 106: in any order and size, in one batch or not."""
    share = max(1, request.config.getoption("--schedules") // len(CONFIGURATIONS) // 2)
    with configured(*configuration) as (direct, relayed):
        for number in schedule_seeds:
            assert explore(direct, relayed, number, share) >= share


FOUND = {
    # splice says "reset" at an urgent mark, with bytes before the reset unread
    "urgent-and-reset": Schedule((Frozen((Send(0, 100), Send(0, 1, urgent=True), Abort(0, reset=True))),)),
    "urgent-and-close": Schedule(
        (Send(1, 10), Frozen((Send(0, 1, urgent=True), Send(0, 100), Abort(0, reset=False))), Send(1, 1))
    ),
    # what the mutants of test_mutants.py stumble over
    "urgent": Schedule((Frozen((Send(0, 100), Send(0, 1, urgent=True), Send(0, 100))), Settle())),
    "slots": Schedule((Frozen((Send(0, 1, times=700),)), Settle())),
    "end": Schedule((Frozen((Send(0, 100_000), Shut(0))),)),
}


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=NAMES)
def test_schedules_that_have_failed(configuration: tuple[str, int, bool]) -> None:
    """Rows 18, 86, 87: each again and both ways round."""
    with configured(*configuration) as (direct, relayed):
        for schedule in FOUND.values():
            for it in (schedule, schedule.swapped()):
                for _ in range(5):
                    compare(it, direct, relayed)
