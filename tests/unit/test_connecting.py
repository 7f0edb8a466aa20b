"""Attempts to connect, with events as a poller may report them."""

from __future__ import annotations

import errno
import socket
from types import ModuleType

import pytest
from networks import Silent


@pytest.mark.parametrize("order", ["bytes first", "connected first", "both at once"])
def test_what_is_reported_before_connected_is_kept(door: ModuleType, order: str) -> None:
    """Row 47: upstream speaks first, and its bytes are told of in an event of their own: nobody would tell again."""
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        attempt = door.ConnectingDoor(b"\x7f\0\0\1", upstream.getsockname()[1])
        if order == "bytes first":
            assert attempt.event(door.IN | door.URGENT) < 0
            assert attempt.event(door.OUT) == 0
            assert attempt.ready == door.IN | door.URGENT | door.OUT
        elif order == "connected first":
            assert attempt.event(door.OUT) == 0
            assert attempt.ready == door.OUT
        else:
            assert attempt.event(door.IN | door.OUT) == 0
            assert attempt.ready == door.IN | door.OUT


def test_error_that_is_used_up(door: ModuleType, silent: Silent) -> None:
    """Row 25: the poller tells of an error, the socket knows of none: it is not connected all the same."""
    attempt = door.ConnectingDoor(b"\x7f\0\0\1", silent.port)
    assert attempt.event(door.IN | door.OUT | door.EOF | door.ERROR) == door.FAILED
    assert attempt.error == errno.ENOTCONN
