"""The ring of what passes: nothing is lost, nothing overtakes, and whoever waits is woken."""

from __future__ import annotations

from types import ModuleType

import pytest
from support.waiting import in_background

SIZE = 4096


def fill(door: ModuleType, tap: object) -> int:
    """Reads until there is no room. Returns how many reads that were."""
    count = 0
    while tap.read(count + 1, b"x" * 200):  # type: ignore[attr-defined]
        count += 1
    assert count > 10
    return count


def test_first_in_first_out(door: ModuleType) -> None:
    tap = door.TapDoor(SIZE)
    assert tap.take() is None
    assert tap.read(7, b"hello", offset=3, side=1)
    tap.note(door.FIN, 7)
    tap.note(door.FIN, 8, b"a body")
    assert tap.take() == (door.DATA, 7, 1, 3, b"hello")
    assert tap.take() == (door.FIN, 7, 1, 0, b"")
    assert tap.take() == (door.FIN, 8, 1, 0, b"a body")
    assert tap.take() is None


def test_claim_that_is_not_used(door: ModuleType) -> None:
    tap = door.TapDoor(SIZE)
    for _ in range(100):
        assert tap.claim(3000)
    assert tap.take() is None
    assert tap.read(1, b"short", most=3000)
    assert tap.read(2, b"also", most=3000), "only what was used is taken from the room"
    assert [tap.take()[4] for _ in range(2)] == [b"short", b"also"]


@pytest.mark.parametrize("size", [1, 16, 100, 160, 2000])
def test_records_stay_in_one_piece_at_the_end_of_the_memory(door: ModuleType, size: int) -> None:
    """However much is left there: nothing, less than a header, or more."""
    tap = door.TapDoor(SIZE)
    for number in range(1, 500):
        assert tap.read(number, bytes([number % 256]) * (size - number % min(size, 40)))
        assert tap.take()[1] == number
        tap.release()


def test_no_room_and_room_again(door: ModuleType) -> None:
    tap = door.TapDoor(SIZE)
    count = fill(door, tap)
    assert tap.take()[1] == 1
    assert not tap.claim(200), "the memory is not given back yet"
    assert not tap.release(), "too little room to wake the worker for"
    while tap.take():
        pass
    assert tap.release(), "the worker waits for room, and there is some"
    assert not tap.release(), "it is woken once"
    assert tap.read(count + 1, b"y")
    assert tap.take()[1] == count + 1


def test_nobody_waits(door: ModuleType) -> None:
    tap = door.TapDoor(SIZE)
    assert tap.read(1, b"x")
    assert tap.take()
    assert not tap.release()


def test_records_that_come_late_stay_in_order(door: ModuleType) -> None:
    """A record that is no data is never refused; data behind it is, until it is in the ring."""
    tap = door.TapDoor(SIZE)
    count = fill(door, tap)
    tap.note(door.FIN, 100)
    tap.note(door.FIN, 101, b"with a body")
    assert not tap.catch_up()
    assert [tap.take()[1] for _ in range(count)] == [*range(1, count + 1)]
    assert tap.take() is None
    assert not tap.claim(1), "that would overtake"
    tap.release()
    assert not tap.claim(1), "that still would"
    assert tap.catch_up()
    assert tap.read(102, b"z")
    assert [tap.take()[1:] for _ in range(3)] == [(100, 1, 0, b""), (101, 1, 0, b"with a body"), (102, 0, 0, b"z")]


def test_reader_takes_late_records_of_a_worker_that_has_ended(door: ModuleType) -> None:
    tap = door.TapDoor(SIZE)
    count = fill(door, tap)
    for number in range(3):
        tap.note(door.FIN, 100 + number)
    tap.close()
    taken = []
    while record := tap.take():
        taken.append(record[1])
    assert taken == [*range(1, count + 1), 100, 101, 102]


def test_late_records_of_a_tap_that_nobody_reads_are_freed(door: ModuleType) -> None:
    tap = door.TapDoor(SIZE)
    fill(door, tap)
    tap.note(door.FIN, 1)


# --- the reader's sleep ---


def test_reader_that_sleeps_is_woken_by_a_record(door: ModuleType) -> None:
    tap = door.TapDoor(SIZE)
    assert tap.sleep(door.SLEEPS)
    assert not tap.woken()
    tap.note(door.FIN, 1)
    assert tap.woken()
    tap.note(door.FIN, 2)
    assert not tap.woken(), "once"


def test_reader_that_gathers_is_woken_when_half_is_full(door: ModuleType) -> None:
    tap = door.TapDoor(SIZE)
    assert tap.sleep(door.GATHERS)
    assert tap.read(1, b"x" * 1500)
    assert not tap.woken()
    assert tap.read(2, b"x" * 600)
    assert tap.read(3, b"x" * 1)
    assert tap.woken()


@pytest.mark.parametrize("how", ["GATHERS", "SLEEPS"])
def test_reader_does_not_sleep_on_records(door: ModuleType, how: str) -> None:
    tap = door.TapDoor(SIZE)
    tap.note(door.FIN, 1)
    assert not tap.sleep(getattr(door, how))
    tap.take()
    assert tap.sleep(getattr(door, how))
    tap.awake()
    tap.note(door.FIN, 2)
    assert not tap.woken()


def test_end_of_the_worker_wakes_the_reader(door: ModuleType) -> None:
    tap = door.TapDoor(SIZE)
    assert tap.sleep(door.SLEEPS)
    tap.close()
    assert tap.woken()


@pytest.mark.parametrize("size", [4096, 65536])
def test_two_threads(door: ModuleType, size: int) -> None:
    tap = door.TapDoor(size)
    count = 200_000
    with in_background(tap.write_many, count):
        assert tap.read_many(count) == 0
