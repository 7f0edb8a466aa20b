"""Thousands of made-up schedules: through the relay, both ends see what a direct connection shows."""

from __future__ import annotations

import contextlib
import math

import pytest
from campaigns import valgrind
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis.errors import FlakyFailure
from support.machine import needs_proc

from .driver import Path, Violation, Wire, compare, paths
from .schedule import Abort, Frozen, Schedule, Send, Settle, Shut, Talk, schedules

HANG = 5.0

CONFIGURATIONS = [
    (mode, workers, narrow) for mode in ("always", "auto", "off") for workers in (1, 2) for narrow in (False, True)
]
NAMES = [f"{mode}-{n}worker{'s' * (n > 1)}-{'narrow' if narrow else 'wide'}" for mode, n, narrow in CONFIGURATIONS]


FOUND = {
    # splice says "reset" at an urgent mark, with bytes before the reset unread
    "urgent-and-reset": Schedule((Frozen((Send(0, 1, urgent=True), Send(0, 100), Abort(0, reset=True))),)),
    "urgent-and-close": Schedule(
        (Send(1, 10), Frozen((Send(0, 1, urgent=True), Send(0, 100), Abort(0, reset=False))), Send(1, 1))
    ),
    # a short read at an urgent mark
    "urgent": Schedule((Frozen((Send(0, 100), Send(0, 1, urgent=True), Send(0, 100))), Settle())),
    # more segments than a pipe has slots
    "slots": Schedule((Frozen((Talk((1, 1), 600),)), Settle())),
    # an end of file that is known before the bytes are sent
    "end": Schedule((Frozen((Send(0, 100_000), Shut(0))),)),
}
"""Schedules that the relay, or one of the mutants of test_mutants.py, has failed."""


@contextlib.contextmanager
def configured(mode: str, workers: int, narrow: bool, hang: float = HANG, **popen: object):
    """The paths, direct and relayed, of one configuration."""
    needs_proc()
    size = "4096" if narrow else "65536"
    options = (f"--zero-copy={mode}", f"--workers={workers}", f"--buffer-size={size}")
    watched = {"wrapper": wrapper} if (wrapper := valgrind()) else {}
    with paths(Wire(narrow), 10 * hang if watched else hang, *options, **watched, **popen) as both:
        yield both


def explore(direct: Path, relayed: Path, number: int, examples: int, shrink: bool = True) -> int:
    """Plays so many schedules, the same ones for the same number; says how many it was.

    Raises:
        Violation: the first that was found, with `shrink` the smallest.
    """
    played = 0
    found: list[Violation] = []

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
        try:
            compare(schedule, direct, relayed)
        except Violation as violation:
            found.append(Violation(f"schedule {played} of seed {number} {violation}"))
            raise

    try:
        play()
    except (Violation, FlakyFailure):  # a race lost once need not be lost again
        if not shrink:
            raise found[0] from None
        raise
    return played


@pytest.mark.timeout(900)  # shrinking a schedule that hangs takes long
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=NAMES)
def test_ends_see_what_a_direct_connection_shows(
    configuration: tuple[str, int, bool], request: pytest.FixtureRequest, schedule_seeds: tuple[int, int]
) -> None:
    """Rows 1-6, 9, 10, 14-19, 21, 38, 46-48, 65-68, 78, 79, 82, 85-87: in any order and size, in one batch or not."""
    share = math.ceil(request.config.getoption("--schedules") / len(CONFIGURATIONS) / 2)
    with configured(*configuration) as (direct, relayed):
        for number in schedule_seeds:
            assert explore(direct, relayed, number, share) >= share


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=NAMES)
def test_schedules_that_have_failed(configuration: tuple[str, int, bool]) -> None:
    """Rows 18, 86, 87: each again and both ways round."""
    with configured(*configuration) as (direct, relayed):
        for schedule in FOUND.values():
            for it in (schedule, schedule.swapped()):
                for _ in range(5):
                    compare(it, direct, relayed)
