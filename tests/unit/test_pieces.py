"""Pieces for a dump: each byte is told or counted, in order, within a bound of memory; nobody waits."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from types import ModuleType
from typing import Any

import pytest

READ = b"x" * 60_000


def fill(door: ModuleType, pieces: Any, id: int = 1) -> int:
    """Reads until one is missing. Returns the bytes."""
    offset = 0
    while not pieces.remembered:
        pieces.add(door.KINDS["data"], id, offset=offset, body=READ)
        offset += len(READ)
    assert door.SIZE - 2 * len(READ) < offset < door.SIZE + len(READ)
    return offset


def drain(pieces: Any) -> list[Any]:
    taken = []
    while piece := pieces.take():
        taken.append(piece)
    pieces.release()
    return taken


def test_what_is_told(door: ModuleType) -> None:
    """The first bytes of each read, ends, and nothing else."""
    pieces = door.PiecesDoor(5)
    pieces.add(door.KINDS["data"], 7, 1, 30, b"hello world")
    for kind in door.OTHERS:
        pieces.add(kind, 7)
    pieces.add(door.KINDS["fin"], 7, 1, 41)
    pieces.add(door.KINDS["rst"], 7, 0, 3)
    pieces.add(door.KINDS["end"], 7, reason=2)
    assert drain(pieces) == [
        ("data", 7, 1, 30, 11, b"hello"),
        ("fin", 7, 1, 41, 0, b""),
        ("rst", 7, 0, 3, 0, b""),
        ("end", 7, 0, 0, 2, b""),
    ]
    assert pieces.total == 11


def test_a_gap_is_told_once_half_is_free(door: ModuleType) -> None:
    """And until then all that comes is part of it."""
    pieces = door.PiecesDoor(len(READ))
    size = fill(door, pieces)
    kept = size - len(READ)
    while kept and pieces.take()[3] < size // 4:
        pass
    assert not pieces.release(), "there is room, but too little to be woken for"
    pieces.catch_up()
    pieces.add(door.KINDS["data"], 1, offset=size, body=b"more")
    pieces.add(door.KINDS["data"], 1, 1, 0, b"answer")
    pieces.add(door.KINDS["fin"], 1, 0, size + 4)
    while pieces.take():
        pass
    assert pieces.release(), "the reader of the tap has to be woken"
    assert drain(pieces) == []
    pieces.catch_up()
    pieces.add(door.KINDS["data"], 1, 1, 6, b"again")
    assert drain(pieces) == [
        ("gap", 1, 0, kept, len(READ) + 4, b""),
        ("fin", 1, 0, size + 4, 0, b""),
        ("gap", 1, 1, 0, 6, b""),
        ("data", 1, 1, 6, 5, b"again"),
    ]
    assert pieces.remembered == 0


def test_memory_of_connections_that_ended_meanwhile(door: ModuleType) -> None:
    """Some are told one by one, the others as a sum; live ones are all remembered."""
    pieces = door.PiecesDoor(len(READ))
    fill(door, pieces)
    for id in range(2, door.KEPT + 502):
        pieces.add(door.KINDS["data"], id, body=b"hello")
        if id % 2:
            pieces.add(door.KINDS["rst"], id, 1, 0)
            pieces.add(door.KINDS["end"], id, reason=3)
    for id in range(5000, 5000 + door.KEPT):
        pieces.add(door.KINDS["end"], id, reason=4)
    ended = (door.KEPT + 500) // 2
    assert pieces.remembered == 1 + ended + door.KEPT
    drain(pieces)
    pieces.catch_up()
    told = drain(pieces)
    assert Counter(kind for kind, *_ in told) == {
        "gap": 1 + 2 * ended,
        "rst": ended,
        "end": door.KEPT,
        "lost": 1,
    }
    assert told[-1] == ("lost", 0, 0, ended, 0, b"")
    assert pieces.remembered == 0


@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_lost_silently(door: ModuleType, seed: int) -> None:
    """Whatever comes, and whenever it is taken: offsets follow each other, and all adds up."""
    choose = random.Random(seed)
    pieces = door.PiecesDoor(choose.choice([1, 4096, 65536]))
    sent: dict[tuple[int, int], int] = defaultdict(int)
    told: dict[tuple[int, int], int] = defaultdict(int)
    ends: Counter[int] = Counter()
    lost_ends = lost_bytes = 0
    live, next_id = [1, 2, 3], 4

    def take(most: int) -> None:
        nonlocal lost_ends, lost_bytes
        for _ in range(most):
            piece = pieces.take()
            if piece is None:
                break
            kind, id, side, offset, size, _ = piece
            if kind == "lost":
                lost_ends, lost_bytes = lost_ends + offset, lost_bytes + size
            elif kind == "end":
                ends[id] += 1
            else:
                assert ends[id] == 0, "something comes behind the end"
                assert offset == told[id, side], "a hole, or a piece out of order"
                told[id, side] += size
        pieces.release()
        pieces.catch_up()

    for _ in range(4000):
        id, side = choose.choice(live), choose.randrange(2)
        if choose.random() < 0.8:
            body = READ[: choose.choice([1, 100, 5000, 60_000])]
            pieces.add(door.KINDS["data"], id, side, sent[id, side], body)
            sent[id, side] += len(body)
        elif choose.random() < 0.5:
            pieces.add(door.KINDS["end"], id, reason=1)
            live[live.index(id)] = next_id
            next_id += 1
        if choose.random() < 0.02:
            take(choose.choice([1, 10, 1000, 100_000]))
    while pieces.remembered or lost_ends + sum(ends.values()) < next_id - 4:
        take(100_000)
    take(100_000)
    assert all(count == 1 for count in ends.values())
    assert lost_ends + len(ends) == next_id - 4
    assert sum(told.values()) + lost_bytes == sum(sent.values()) == pieces.total
