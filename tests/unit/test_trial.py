"""Which of two ways pays: a look at the kept one, a try of the other, a verdict that holds for longer and longer."""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

import pytest

LOOK, GLANCE = 64, 4
ANY_COST = 10**9
"""Per cent: way 1 may take so much more processor time."""


@pytest.fixture(autouse=True)
def needs_processor_time(door: ModuleType) -> None:
    if door.processor_time() == 0:
        pytest.skip("wine does not tell the processor time of a thread, so nothing ever pays")


def begun(door: ModuleType, time: int, cost: int = ANY_COST, glance: int = GLANCE, crowd: int = 0) -> Any:
    trial = door.TrialDoor(LOOK, glance, time, cost, crowd)
    assert trial.way() == 0
    return trial


def lengths(trial: Any, pace: tuple[int, int], phases: int) -> list[tuple[int, int]]:
    """(way, units) of the next phases, where a unit takes `pace[way]` nanoseconds."""
    found = []
    for _ in range(phases):
        way, units = trial.way(), 0
        while not trial.due():
            trial.count(1, pace[way])
            units += 1
        found.append((way, units))
    return found


def test_a_way_that_pays_is_kept(door: ModuleType) -> None:
    """A glance is not enough for a change of mind; then looks are ever rarer, and a glance is enough."""
    trial = begun(door, time=80)
    assert lengths(trial, (1000, 700), 8) == [
        (0, LOOK),
        (1, GLANCE),
        (1, LOOK // 4 - GLANCE),
        (1, 4 * LOOK),
        (1, LOOK),
        (0, GLANCE),
        (1, 8 * LOOK),
        (1, LOOK),
    ]


def test_a_way_that_does_not_pay_is_left(door: ModuleType) -> None:
    trial = begun(door, time=80)
    assert lengths(trial, (1000, 900), 5) == [(0, LOOK), (1, GLANCE), (0, 4 * LOOK), (0, LOOK), (1, GLANCE)]


def test_a_verdict_holds_for_256_looks_at_the_most(door: ModuleType) -> None:
    trial = begun(door, time=80)
    kept = [units for way, units in lengths(trial, (1000, 900), 40) if units > LOOK]
    assert kept == [LOOK << n for n in range(2, 9)] + [256 * LOOK] * (len(kept) - 7)
    assert len(kept) > 8


def test_times_change(door: ModuleType) -> None:
    """What paid does not for ever."""
    trial = begun(door, time=80)
    lengths(trial, (1000, 700), 4)
    assert trial.way() == 1
    assert lengths(trial, (1000, 2000), 4) == [(1, LOOK), (0, GLANCE), (0, LOOK // 4 - GLANCE), (0, 4 * LOOK)]


def test_it_may_take_longer_if_that_is_allowed(door: ModuleType) -> None:
    assert lengths(begun(door, time=110), (1000, 1050), 4)[-1] == (1, 4 * LOOK)
    assert lengths(begun(door, time=110), (1000, 1150), 3)[-1] == (0, 4 * LOOK)


@pytest.mark.parametrize(("dear", "cost", "expected"), [(1, 150, 0), (0, 150, 1), (0, 50, 1), (1, ANY_COST, 1)])
def test_processor_time(door: ModuleType, dear: int, cost: int, expected: int) -> None:
    """Of the calling thread, whatever else the machine does: 20 ms of it one way, nearly none the other."""
    trial = begun(door, time=80, cost=cost, glance=LOOK)
    for way, pace in ((0, 1000), (1, 500)):
        assert trial.way() == way
        until = time.thread_time() + 0.02
        while way == dear and time.thread_time() < until:
            pass
        trial.count(LOOK, pace * LOOK)
    assert trial.way() == expected


def test_a_crowd_is_not_worth_a_try(door: ModuleType) -> None:
    """Its wake-ups are shared already."""
    trial = begun(door, time=80, crowd=LOOK // 2)
    trial.count(LOOK - 3, 1000)
    trial.count(3, 1000)
    assert trial.way() == 0
    assert not trial.due()
    assert lengths(trial, (1000, 700), 2) == [(0, 4 * LOOK), (0, LOOK)]
    assert trial.way() == 1


def test_a_look_begins_again(door: ModuleType) -> None:
    trial = begun(door, time=80)
    trial.count(LOOK - 1, 1000)
    trial.again()
    assert lengths(trial, (1000, 900), 3) == [(0, LOOK), (1, GLANCE), (0, 4 * LOOK)]


def test_what_is_kept_does_not_begin_again(door: ModuleType) -> None:
    """Or one with many interruptions would never be tried again."""
    trial = begun(door, time=80)
    lengths(trial, (1000, 900), 2)
    trial.way()
    trial.count(4 * LOOK - 1, 1000)
    trial.again()
    assert lengths(trial, (1000, 900), 1) == [(0, 1)]
