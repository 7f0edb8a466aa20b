"""Timers: a list a kind, in arming order, which is the order of their due times."""

from __future__ import annotations

import random
from types import ModuleType

import pytest

A, B, C = 1, 2, 3
"""Three of the kinds."""

LENGTHS = {A: 100, B: 30, C: 1000}

MS = 1_000_000
"""Alarms may be late by up to one, if others are set."""


def test_is_due_its_length_after_it_was_armed(door: ModuleType) -> None:
    """Row 74: not before, and once only."""
    timers = door.TimersDoor(1, LENGTHS)
    timers.arm(0, A, 5000)
    assert timers.pop(5099) is None
    assert timers.pop(5100) == (0, A)
    assert timers.pop(9999) is None


def test_one_kind_comes_in_arming_order(door: ModuleType) -> None:
    timers = door.TimersDoor(4, LENGTHS)
    for number, now in ((2, 10), (0, 20), (3, 20), (1, 30)):
        timers.arm(number, A, now)
    assert [timers.pop(1000) for _ in range(5)] == [(2, A), (0, A), (3, A), (1, A), None]


def test_only_what_is_due_is_popped(door: ModuleType) -> None:
    timers = door.TimersDoor(3, LENGTHS)
    for number in range(3):
        timers.arm(number, A, number * 10)
    assert [timers.pop(110) for _ in range(3)] == [(0, A), (1, A), None]
    assert timers.wait_ns(110) == 10


def test_rearming_moves_it_to_the_end(door: ModuleType) -> None:
    timers = door.TimersDoor(3, LENGTHS)
    for number in range(3):
        timers.arm(number, A, 0)
    timers.arm(0, A, 50)
    assert [timers.pop(100) for _ in range(3)] == [(1, A), (2, A), None]
    assert [timers.pop(150) for _ in range(2)] == [(0, A), None]


def test_rearming_may_change_the_kind(door: ModuleType) -> None:
    timers = door.TimersDoor(2, LENGTHS)
    timers.arm(0, A, 0)
    timers.arm(1, A, 0)
    timers.arm(0, B, 0)
    assert [timers.pop(99) for _ in range(2)] == [(0, B), None]
    assert [timers.pop(100) for _ in range(2)] == [(1, A), None]


@pytest.mark.parametrize("number", [0, 1, 2], ids=["first", "middle", "last"])
def test_cancel(door: ModuleType, number: int) -> None:
    """And the neighbours still find each other."""
    timers = door.TimersDoor(4, LENGTHS)
    for each in range(3):
        timers.arm(each, A, each)
    timers.cancel(number)
    assert timers.kind(number) == 0
    timers.arm(3, A, 10)
    expected = [(each, A) for each in range(4) if each != number]
    assert [timers.pop(1000) for _ in range(4)] == [*expected, None]


def test_cancel_of_what_is_not_armed_is_harmless(door: ModuleType) -> None:
    timers = door.TimersDoor(2, LENGTHS)
    timers.cancel(0)
    timers.arm(1, A, 0)
    for _ in range(2):
        timers.cancel(0)
        timers.cancel(1)
    assert timers.pop(1000) is None
    assert timers.wait_ns(1000) == -1


def test_the_popped_one_is_disarmed_and_may_be_armed_at_once(door: ModuleType) -> None:
    timers = door.TimersDoor(1, LENGTHS)
    timers.arm(0, B, 0)
    assert timers.pop(30) == (0, B)
    assert timers.kind(0) == 0
    timers.arm(0, B, 30)
    assert timers.pop(59) is None
    assert timers.pop(60) == (0, B)


def test_waits_for_the_earliest_of_all_kinds(door: ModuleType) -> None:
    """-1: nothing to wait for; 0: overdue."""
    timers = door.TimersDoor(3, LENGTHS)
    assert timers.wait_ns(1) == -1
    timers.arm(0, C, 1000)
    assert timers.wait_ns(1000) == 1000
    timers.arm(1, A, 1000)
    assert timers.wait_ns(1000) == 100
    timers.arm(2, B, 1050)
    assert timers.wait_ns(1050) == 30
    assert timers.wait_ns(1081) == 0
    timers.cancel(2)
    assert timers.wait_ns(1081) == 19


def test_any_order_of_calls(door: ModuleType) -> None:
    """Rows 74, 75: 20,000 random steps with every kind, against a list that is sorted each time."""
    chance = random.Random(7)
    lengths = {kind: chance.randrange(1, 400) for kind in door.KINDS}
    timers = door.TimersDoor(40, lengths)
    armed: dict[int, tuple[int, int, int]] = {}  # number: due, arming order, kind
    now = 1
    for step in range(20_000):
        number = chance.randrange(40)
        now += chance.randrange(5)
        if chance.random() < 0.8:
            kind = chance.choice(list(door.KINDS))
            timers.arm(number, kind, now)
            armed[number] = (now + lengths[kind], step, kind)
        else:
            timers.cancel(number)
            armed.pop(number, None)
        first = min((due for due, _, _ in armed.values()), default=None)
        assert timers.wait_ns(now) == (-1 if first is None else max(0, first - now))
        if step % 10 == 0:
            popped = []
            while found := timers.pop(now):
                popped.append(found)
            due = {each: it for each, it in armed.items() if it[0] <= now}
            assert len(popped) == len(due)
            for kind in door.KINDS:
                of_kind = [each for each, its_kind in popped if its_kind == kind]
                assert of_kind == sorted((each for each in due if due[each][2] == kind), key=lambda each: due[each][1])
            for each in due:
                del armed[each]
    assert armed


# --- alarms ---


def test_alarm_is_due_when_it_says(door: ModuleType) -> None:
    """Beside the timers, and once only."""
    timers = door.TimersDoor(3, {A: 100 * MS})
    timers.set(0, 500 * MS)
    timers.arm(1, A, 300 * MS)
    timers.set(2, 350 * MS)
    assert timers.wait_ns(300 * MS) == 50 * MS
    assert timers.pop(350 * MS - 1) is None
    assert timers.pop(350 * MS) == (2, door.SHAPER)
    assert timers.wait_ns(350 * MS) == 50 * MS
    assert timers.pop(400 * MS - 1) is None
    assert [timers.pop(500 * MS) for _ in range(3)] == [(0, door.SHAPER), (1, A), None]
    assert timers.wait_ns(500 * MS) == -1


def test_alarm_that_is_set_anew(door: ModuleType) -> None:
    """Earlier and later, as the first one and behind others."""
    timers = door.TimersDoor(3, LENGTHS)
    for number, due in ((0, 100), (1, 200), (2, 300), (2, 50), (0, 400), (1, 1000)):
        timers.set(number, due * MS)
    assert timers.pop(50 * MS - 1) is None
    assert [timers.pop(1000 * MS) for _ in range(4)] == [(number, door.SHAPER) for number in (2, 0, 1)] + [None]


def test_alarm_before_the_earliest_that_was_known(door: ModuleType) -> None:
    """A batch has looked and found nothing due; then an earlier one is set."""
    timers = door.TimersDoor(2, LENGTHS)
    timers.set(0, 1000 * MS)
    assert timers.pop(500 * MS) is None
    timers.set(1, 600 * MS)
    assert timers.pop(600 * MS) == (1, door.SHAPER)


@pytest.mark.parametrize("number", range(5))
def test_alarm_that_is_cancelled(door: ModuleType, number: int) -> None:
    """Root, first child, last child, and one that was never set; twice."""
    timers = door.TimersDoor(5, LENGTHS)
    for each, due in enumerate((10, 20, 30, 40)):
        timers.set(each, due * MS)
    for _ in range(2):
        timers.unset(number)
    expected = [each for each in range(4) if each != number]
    assert [timers.pop(100 * MS) for _ in range(4)] == ([(each, door.SHAPER) for each in expected] + [None] * 4)[:4]


@pytest.mark.parametrize("count", [3, 30, 300])
def test_any_order_of_alarms(door: ModuleType, count: int) -> None:
    """50,000 random steps against a dictionary: in a gap none comes, else all that are due, in order of due time."""
    chance = random.Random(11)
    timers = door.TimersDoor(count, LENGTHS)
    due: dict[int, int] = {}
    now, served, popped = door.GAP_MOST, 0, 0
    for _ in range(50_000):
        number = chance.randrange(count)
        if chance.random() < 0.7:
            due[number] = now + chance.choice([1, chance.randrange(1, 50), chance.randrange(1, 2 * door.GAP_MOST)])
            timers.set(number, due[number])
        else:
            timers.unset(number)
            due.pop(number, None)
        first = max(min(due.values()), served + min(len(due) * door.GAP, door.GAP_MOST)) if due else None
        assert timers.wait_ns(now) == (-1 if first is None else max(0, first - now))
        if chance.random() < 0.05:
            now += chance.choice([1, chance.randrange(100), chance.randrange(door.GAP_MOST)])
            served_now = first is not None and first <= now
            expected = sorted(each for each in due.values() if each <= now) if served_now else []
            order = []
            while found := timers.pop(now):
                order.append(due.pop(found[0]))
            assert order == expected
            served = now if order else served
            popped += len(order)
    assert popped > 1000


def test_a_lone_alarm_is_exact(door: ModuleType) -> None:
    timers = door.TimersDoor(1, LENGTHS)
    for due in (5 * door.GAP, 6 * door.GAP, 7 * door.GAP):
        timers.set(0, due)
        assert timers.pop(due - 1) is None
        assert timers.pop(due) == (0, door.SHAPER)


def test_many_alarms_are_gathered(door: ModuleType) -> None:
    """The first one is exact. Those that follow it closely come together, a gap later; timers do not wait for them."""
    timers = door.TimersDoor(1000, LENGTHS)
    begin = 10 * door.GAP_MOST
    for number in range(1000):
        timers.set(number, begin + number * door.GAP_MOST // 10)
    assert timers.wait_ns(begin - 5) == 5
    assert timers.pop(begin) == (0, door.SHAPER)
    assert timers.wait_ns(begin) == door.GAP_MOST
    timers.arm(0, A, begin)
    assert timers.wait_ns(begin) == 100
    assert timers.pop(begin + 100) == (0, A)
    assert timers.pop(begin + door.GAP_MOST - 1) is None
    gathered = [timers.pop(begin + door.GAP_MOST) for _ in range(11)]
    assert gathered == [*((number, door.SHAPER) for number in range(1, 11)), None]


def test_many_alarms_with_time_between_are_exact(door: ModuleType) -> None:
    timers = door.TimersDoor(200, LENGTHS)
    for number in range(200):
        timers.set(number, (number + 2) * door.GAP_MOST)
    for number in range(200):
        now = (number + 2) * door.GAP_MOST
        assert timers.pop(now - 1) is None
        assert timers.pop(now) == (number, door.SHAPER)
        assert timers.wait_ns(now) == (door.GAP_MOST if number < 199 else -1)


def test_alarms_in_order_and_against_it(door: ModuleType) -> None:
    """Chains of children: no recursion, so no depth of them matters."""
    count = 200_000
    timers = door.TimersDoor(count, LENGTHS)
    for order in (range(count), range(count - 1, -1, -1)):
        for number in order:
            timers.set(number, number + 1)
        assert [timers.pop(count + door.GAP_MOST)[0] for _ in range(count)] == list(range(count))
