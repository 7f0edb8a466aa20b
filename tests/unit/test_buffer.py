"""Buffer: what a half keeps of a read that its sink would not take."""

from __future__ import annotations

from types import ModuleType

import pytest
from support.streams import payload


def test_keeps_a_copy_until_all_of_it_was_sent(door: ModuleType) -> None:
    """Row 38: what is dropped is gone from the front, the rest stays in order."""
    buffer = door.BufferDoor()
    assert buffer.content is None
    data = payload(100_000)
    assert buffer.fill(data) == 0
    assert buffer.content == data
    for sent in (1, 999, 65_536):
        buffer.drop(sent)
        data = data[sent:]
        assert buffer.content == data
    buffer.drop(len(data))
    assert buffer.content is None


def test_owns_nothing_when_empty_and_can_be_filled_again(door: ModuleType) -> None:
    """Row 27."""
    buffer = door.BufferDoor()
    for number in range(3):
        assert buffer.fill(b"some bytes %d" % number) == 0
        assert buffer.bounds == (0, 12)
        buffer.drop(12)
        assert buffer.content is None
        assert buffer.bounds == (0, 0)


def test_clear_forgets_the_rest(door: ModuleType) -> None:
    buffer = door.BufferDoor()
    buffer.fill(b"lost")
    buffer.drop(1)
    for _ in range(2):  # an empty one too
        buffer.clear()
        assert buffer.content is None
        assert buffer.bounds == (0, 0)


@pytest.mark.usefixtures("short_of_memory")
def test_without_memory_it_stays_empty(door: ModuleType) -> None:
    buffer = door.BufferDoor()
    data = bytes(1 << 20)
    assert buffer.fill(data, without_memory=True) == -1
    assert buffer.content is None
    assert buffer.fill(data) == 0
