"""Bucket: a rate in one word, the time until which it is used up."""

from __future__ import annotations

import threading
from types import ModuleType

import pytest

S = 10**9
START = 1000 * S


def drain(bucket: object, size: int, now: int, late: int = 0, most: int = 65536) -> tuple[int, list[int]]:
    """Sends `size` bytes. Returns when the last has gone, and how many went at a time. `late`: of each wake-up."""
    pieces = []
    while size:
        due = bucket.due_ns(size, now)  # type: ignore[attr-defined]
        if due > now:
            assert bucket.room(due) >= 1, "what is due has room"  # type: ignore[attr-defined]
            now = due + late
        piece = min(size, bucket.room(now), most)  # type: ignore[attr-defined]
        bucket.charge(piece, now)  # type: ignore[attr-defined]
        size -= piece
        pieces.append(piece)
    return now, pieces


@pytest.mark.parametrize("rate", [1, 3, 64_000, 200_000, 10**7, 1_234_567_890, 10**10])
def test_rate(door: ModuleType, rate: int) -> None:
    """Never above it, but for the burst at the start; within 0.1 % of it."""
    bucket = door.BucketDoor(rate)
    size = 5 * rate
    end, pieces = drain(bucket, size, START)
    burst = bucket.burst_ns
    assert 5 * S - burst <= end - START <= 5 * S * 1.001
    assert len(pieces) <= 1100 + size // 65536


def test_first_byte_at_once(door: ModuleType) -> None:
    bucket = door.BucketDoor(10**7)
    assert bucket.due_ns(1, START) <= START
    assert bucket.room(START) == 100_000, "10 ms"


@pytest.mark.parametrize("late", [0, 1_000_000, 4_900_000])
def test_wakeups_that_come_late_lose_nothing(door: ModuleType, late: int) -> None:
    end, _ = drain(door.BucketDoor(10**6), 5 * 10**6, START, late)
    assert end - START <= 5 * S + late


def test_nothing_is_saved_up_but_the_burst(door: ModuleType) -> None:
    bucket = door.BucketDoor(10**6, 50_000)
    drain(bucket, 10**6, START)
    assert bucket.room(START + 3600 * S) == 50_000
    bucket.charge(50_000, START + 3600 * S)
    assert bucket.room(START + 3600 * S) == 0


def test_burst(door: ModuleType) -> None:
    """Two bytes at least, and up to a gigabyte at any rate."""
    assert door.BucketDoor(10**6).burst_ns == S // 100
    assert door.BucketDoor(10).burst_ns == S // 5
    assert door.BucketDoor(10, 1).burst_ns == S // 5
    assert door.BucketDoor(1, 10**9).burst_ns == 10**18
    assert door.BucketDoor(10**12, 10**9).room(START) == 10**9
    assert door.BucketDoor(10**12).room(START) == 10**10


def test_debt_is_waited_for(door: ModuleType) -> None:
    bucket = door.BucketDoor(1000)
    bucket.charge(5010, START)
    assert bucket.room(START + 5 * S) == 0
    assert bucket.due_ns(1, START) == START + 5 * S + S // 1000
    assert bucket.room(START + 5 * S + S // 1000) == 1


def test_a_clock_that_has_just_begun(door: ModuleType) -> None:
    bucket = door.BucketDoor(1000, 1000)
    assert bucket.room(S // 2) == 500
    bucket.charge(1000, S // 2)
    assert bucket.due_ns(1, S // 2) == S + S // 1000


def test_shared_by_threads(door: ModuleType) -> None:
    """No charge is lost, though all charge at once."""
    bucket = door.BucketDoor(10**9, 10**9)
    bucket.charge(S, START)
    before = bucket.used_up_ns
    threads = [threading.Thread(target=bucket.charge_often, args=(3, START, 100_000)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bucket.used_up_ns - before == 4 * 100_000 * 3


def test_reserved_in_turn(door: ModuleType) -> None:
    """Each gets the time behind what was reserved before; a first one at once, and what was saved up counts."""
    bucket = door.BucketDoor(10**6, 20_000)
    assert bucket.reserve(20_000, START) == START - S // 50
    assert [bucket.reserve(4000, START) for _ in range(3)] == [START, START + S // 250, START + S // 125]
    assert bucket.reserve(4000, START + S) == START + S - S // 50


def test_reserved_by_threads(door: ModuleType) -> None:
    """No two get the same time, though all reserve at once."""
    bucket = door.BucketDoor(10**9, 10**9)
    bucket.reserve(S, START)
    found: list[list[int]] = [[] for _ in range(4)]
    threads = [
        threading.Thread(target=lambda own=own: own.extend(bucket.reserve_often(3, START, 20_000))) for own in found
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(start for own in found for start in own) == list(range(START, START + 4 * 20_000 * 3, 3))
