"""A worker sleeps while nothing comes: no state of a connection keeps it busy."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

import pytest
from support.peers import Link
from support.states import STATES
from support.streams import MIB, payload, send_and_shut
from support.waiting import eventually, in_background, pause


def wakeups_while_quiet(link: Link, enough: int) -> int:
    """The fewest in half a second, of up to five: on a busy machine what was under way takes its time to arrive."""
    assert link.proxy
    fewest = sys.maxsize
    for _ in range(5):
        before = link.proxy.stats().wakeups
        pause(0.5)
        fewest = min(fewest, link.proxy.stats().wakeups - before)
        if fewest <= enough:
            break
    return fewest


@pytest.mark.parametrize("workers", [1], ids=["1worker"])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_no_wakeups_in_any_state(link: Link, state: Callable[[socket.socket, socket.socket], None]) -> None:
    """Row 69: a worker sleeps while nothing comes, whatever the state of a connection. At most 20 wake-ups a second."""
    near, far = link.pair()
    with near, far:
        state(near, far)
        assert wakeups_while_quiet(link, 10) <= 10


@pytest.mark.parametrize("workers", [1], ids=["1worker"])
@pytest.mark.parametrize("swapped", [False], ids=["client-to-upstream"])
def test_no_wakeups_when_closed(link: Link) -> None:
    """Row 69: connections that are over in all ways wake nobody."""
    assert link.proxy
    for state in STATES:
        near, far = link.pair()
        state(near, far)
        for end in (near, far):
            end.close()
    eventually(lambda: link.proxy and link.proxy.stats().active == 0, 10)
    assert wakeups_while_quiet(link, 0) == 0  # behind the turn that closes the last one there may be another


@pytest.mark.parametrize("workers", [1, 2], ids=["1worker", "2workers"])
def test_wakeups_for_nothing_while_relaying(link: Link) -> None:
    """Row 71: workers that are woken all the time, without any event, relay as before."""
    assert link.proxy
    near, far = link.pair()
    data = payload(64 * MIB)
    with near, far, in_background(send_and_shut, near, data):
        received = bytearray()
        while part := far.recv(MIB):
            received += part
            assert len(link.proxy.connections()) == 1  # asks the worker, which wakes it
    assert received == data
