"""The table of relays: an event finds its relay by index and generation, or nobody."""

from __future__ import annotations

import os
from types import ModuleType

import pytest

from tcpproxy._core.worker import LIMITS


def test_a_relay_is_found_by_its_tag_whichever_socket_it_names(door: ModuleType) -> None:
    table = door.TableDoor()
    indices = [table.new()[0] for _ in range(3)]
    assert len(set(indices)) == 3
    for index in indices:
        table.dirty(index, door.RELAYING)
    for index in indices:
        tag = table.tag(index)
        assert tag & 0xF == 0
        assert [table.find(tag + socket) for socket in range(15)] == [index] * 15


@pytest.mark.parametrize("state", ["FREE", "DEAD"])
def test_free_and_dead_relays_are_not_found(door: ModuleType, state: str) -> None:
    """Row 66: what died in this batch gets no more events of it."""
    table = door.TableDoor()
    index = table.new()[0]
    table.dirty(index, door.RELAYING)
    assert table.find(table.tag(index)) == index
    table.dirty(index, getattr(door, state))
    assert table.find(table.tag(index)) is None


@pytest.mark.skipif(os.name == "nt", reason="a SOCKET is larger than a descriptor")
def test_the_size_of_a_relay(door: ModuleType) -> None:
    """An idle connection costs one relay and nothing else: a field more is a decision, and this number is its place."""
    assert door.RELAY_SIZE == 368


def test_a_stale_tag_finds_nobody(door: ModuleType) -> None:
    """Row 65: the slot is used again, by another relay under another tag."""
    table = door.TableDoor()
    index = table.new()[0]
    table.dirty(index, door.RELAYING)
    stale = []
    for generation in range(1, 4):
        stale.append(table.tag(index))
        table.release(index)
        assert table.find(stale[-1]) is None
        assert table.new() == (index, generation, True)
        table.dirty(index, door.RELAYING)
        assert [table.find(tag) for tag in stale] == [None] * generation
        assert table.find(table.tag(index)) == index


def test_the_last_generation_is_followed_by_the_first(door: ModuleType) -> None:
    table = door.TableDoor()
    index = table.new()[0]
    table.set_generation(index, 0xFFFF_FFFF)
    table.dirty(index, door.RELAYING)
    tag = table.tag(index)
    assert tag >> 32 == 0xFFFF_FFFF
    assert table.find(tag) == index
    table.release(index)
    assert table.new()[:2] == (index, 0)
    table.dirty(index, door.RELAYING)
    assert table.find(tag) is None
    assert table.find(table.tag(index)) == index


def test_a_new_relay_is_clean(door: ModuleType) -> None:
    table = door.TableDoor()
    for _ in range(3):
        index, _, clean = table.new()
        assert clean
        table.dirty(index, door.RELAYING)
        table.release(index)


def test_grows_without_moving_anybody(door: ModuleType) -> None:
    table = door.TableDoor()
    places = {}
    for _ in range(20 * door.TABLE_CHUNK + 1):
        index, generation, clean = table.new()
        assert (generation, clean) == (0, True)
        assert index not in places
        places[index] = table.at(index)
        table.dirty(index, door.RELAYING)
    assert len(set(places.values())) == len(places)
    for index, place in places.items():
        assert table.at(index) == place
        assert table.find(table.tag(index)) == index


def test_released_slots_are_used_before_it_grows(door: ModuleType) -> None:
    """Row 106: its size is that of the busiest moment, not that of its whole life."""
    table = door.TableDoor()
    indices = {table.new()[0] for _ in range(door.TABLE_CHUNK)}
    for _ in range(3):
        for index in indices:
            table.release(index)
        assert {table.new()[0] for _ in indices} == indices


def test_an_index_beyond_the_table_finds_nobody(door: ModuleType) -> None:
    table = door.TableDoor()
    assert table.at(0) == 0
    assert table.find(0) is None
    table.new()
    assert table.at(door.TABLE_CHUNK - 1) != 0
    assert table.at(door.TABLE_CHUNK) == 0
    assert table.find(0x0FFF_FFFF << 4) is None


def test_a_full_table_gives_no_relay(door: ModuleType) -> None:
    table = door.TableDoor()
    table.new()
    assert not table.new_at_the_limit()
    assert table.new()[2], "and still works"


def test_one_worker_can_hold_all_connections(door: ModuleType) -> None:
    """Row 64: however they are spread. One that it could not hold would be turned away instead of having to wait."""
    assert LIMITS["connections"] < door.TABLE_ROOM
