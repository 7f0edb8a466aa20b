"""The table of sources: counts, limits, displaced entries, hostile numbers of them, several workers."""

from __future__ import annotations

import ipaddress
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def test_one_source_too_many(door: ModuleType) -> None:
    """Row 59."""
    table = door.SourcesDoor(10, 3)
    assert [table.enter(packed("192.0.2.1")) for _ in range(5)] == [True, True, True, False, False]
    assert table.enter(packed("192.0.2.2"))
    table.leave(packed("192.0.2.1"))
    assert table.enter(packed("192.0.2.1"))
    assert not table.enter(packed("192.0.2.1"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("192.0.2.1", "::ffff:192.0.2.2", False),
        ("192.0.2.1", "::192.0.2.1", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::1", "::1", True),
        ("0.0.0.0", "::", False),
    ],
)
def test_what_a_source_is(door: ModuleType, one: str, other: str, same: bool) -> None:
    """Row 59: an IPv4 address, also behind a dual-stack listener, or the /64 of an IPv6 address."""
    table = door.SourcesDoor(10, 1)
    assert table.enter(packed(one))
    assert table.enter(packed(other)) is not same


@pytest.mark.parametrize("secret", [0, 1, 0x0123456789ABCDEF])
def test_like_a_dictionary(door: ModuleType, secret: int) -> None:
    """As full as it gets, with sources that come and go in any order: who is displaced is found, nothing stays."""
    chance = random.Random(secret)
    limit, most = 32, 3
    table = door.SourcesDoor(limit, most, secret)
    assert table.slots == 64
    addresses = [chance.randbytes(4) for _ in range(40)]
    alive: Counter[bytes] = Counter()
    for _ in range(20_000):
        if alive.total() < limit and chance.random() < 0.6:
            address = chance.choice(addresses)
            admitted = table.enter(address)
            assert admitted == (alive[address] < most)
            alive[address] += admitted
        elif alive.total():
            address = chance.choice([*alive.elements()])
            table.leave(address)
            alive[address] -= 1
        assert sorted(table.counts) == sorted(count for count in alive.values() if count)
    for address in [*alive.elements()]:
        table.leave(address)
    assert table.counts == []


def test_a_flood_from_everywhere(door: ModuleType) -> None:
    """A hundred thousand sources leave nothing behind, and take no more room than the limit of connections."""
    table = door.SourcesDoor(1000, 1, random.getrandbits(64))
    slots = table.slots
    for start in range(0, 100_000, 1000):
        addresses = [number.to_bytes(4, "big") for number in range(start, start + 1000)]
        assert all(map(table.enter, addresses))
        assert not any(list(map(table.enter, addresses)))
        assert len(table.counts) == 1000
        for address in addresses:
            table.leave(address)
        assert table.counts == []
    assert table.slots == slots


def test_several_workers(door: ModuleType) -> None:
    """Threads that share sources: no count is lost, none is too many."""
    table = door.SourcesDoor(64, 1000)
    with ThreadPoolExecutor(4) as pool:
        refused = list(pool.map(lambda number: table.come_and_go(number % 2, 200_000), range(4)))
    assert refused == [0, 0, 0, 0]
    assert table.counts == []
