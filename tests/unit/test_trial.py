"""Which of two arms pays: a sample at the kept one, a try of the other, a verdict that holds for longer and longer."""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

import pytest

SAMPLE, PROBE = 64, 4
ANY_COST = 10**9
"""Per cent: arm 1 may take so much more processor time."""


@pytest.fixture(autouse=True)
def needs_processor_time(door: ModuleType) -> None:
    if door.processor_time() == 0:
        pytest.skip("wine does not tell the processor time of a thread, so nothing ever pays")


def begun(door: ModuleType, time: int, cost: int = ANY_COST, probe: int = PROBE, busy_batch: int = 0) -> Any:
    trial = door.TrialDoor(SAMPLE, probe, time, cost, busy_batch)
    assert trial.arm() == 0
    return trial


def lengths(trial: Any, pace: tuple[int, int], phases: int) -> list[tuple[int, int]]:
    """(arm, units) of the next phases, where a unit takes `pace[arm]` nanoseconds."""
    found = []
    for _ in range(phases):
        arm, units = trial.arm(), 0
        while not trial.due():
            trial.count(1, pace[arm])
            units += 1
        found.append((arm, units))
    return found


def test_a_way_that_pays_is_kept(door: ModuleType) -> None:
    """A probe is not enough for a change of mind; then samples are ever rarer, and a probe is enough."""
    trial = begun(door, time=80)
    assert lengths(trial, (1000, 700), 8) == [
        (0, SAMPLE),
        (1, PROBE),
        (1, SAMPLE // 4 - PROBE),
        (1, 4 * SAMPLE),
        (1, SAMPLE),
        (0, PROBE),
        (1, 8 * SAMPLE),
        (1, SAMPLE),
    ]


def test_a_way_that_does_not_pay_is_left(door: ModuleType) -> None:
    trial = begun(door, time=80)
    assert lengths(trial, (1000, 900), 5) == [(0, SAMPLE), (1, PROBE), (0, 4 * SAMPLE), (0, SAMPLE), (1, PROBE)]


def test_a_verdict_holds_for_256_looks_at_the_most(door: ModuleType) -> None:
    trial = begun(door, time=80)
    kept = [units for arm, units in lengths(trial, (1000, 900), 40) if units > SAMPLE]
    assert kept == [SAMPLE << n for n in range(2, 9)] + [256 * SAMPLE] * (len(kept) - 7)
    assert len(kept) > 8


def test_times_change(door: ModuleType) -> None:
    """What paid does not for ever."""
    trial = begun(door, time=80)
    lengths(trial, (1000, 700), 4)
    assert trial.arm() == 1
    assert lengths(trial, (1000, 2000), 4) == [(1, SAMPLE), (0, PROBE), (0, SAMPLE // 4 - PROBE), (0, 4 * SAMPLE)]


def test_it_may_take_longer_if_that_is_allowed(door: ModuleType) -> None:
    assert lengths(begun(door, time=110), (1000, 1050), 4)[-1] == (1, 4 * SAMPLE)
    assert lengths(begun(door, time=110), (1000, 1150), 3)[-1] == (0, 4 * SAMPLE)


@pytest.mark.parametrize(("dear", "cost", "expected"), [(1, 150, 0), (0, 150, 1), (0, 50, 1), (1, ANY_COST, 1)])
def test_processor_time(door: ModuleType, dear: int, cost: int, expected: int) -> None:
    """Of the calling thread, whatever else the machine does: 20 ms of it one arm, nearly none the other."""
    trial = begun(door, time=80, cost=cost, probe=SAMPLE)
    for arm, pace in ((0, 1000), (1, 500)):
        assert trial.arm() == arm
        until = time.thread_time() + 0.02
        while arm == dear and time.thread_time() < until:
            pass
        trial.count(SAMPLE, pace * SAMPLE)
    assert trial.arm() == expected


def test_a_busy_batch_is_not_worth_a_probe(door: ModuleType) -> None:
    """Its wake-ups are shared already."""
    trial = begun(door, time=80, busy_batch=SAMPLE // 2)
    trial.count(SAMPLE - 3, 1000)
    trial.count(3, 1000)
    assert trial.arm() == 0
    assert not trial.due()
    assert lengths(trial, (1000, 700), 2) == [(0, 4 * SAMPLE), (0, SAMPLE)]
    assert trial.arm() == 1


def test_a_look_begins_again(door: ModuleType) -> None:
    trial = begun(door, time=80)
    trial.count(SAMPLE - 1, 1000)
    trial.restart()
    assert lengths(trial, (1000, 900), 3) == [(0, SAMPLE), (1, PROBE), (0, 4 * SAMPLE)]


def test_what_is_kept_does_not_begin_again(door: ModuleType) -> None:
    """Or one with many interruptions would never be tried again."""
    trial = begun(door, time=80)
    lengths(trial, (1000, 900), 2)
    trial.arm()
    trial.count(4 * SAMPLE - 1, 1000)
    trial.restart()
    assert lengths(trial, (1000, 900), 1) == [(0, 1)]
