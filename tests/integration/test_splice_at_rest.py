"""A splice with nothing to do: no state of a connection keeps its worker busy."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable

import pytest
from support.machine import needs_proc, needs_splice
from support.peers import Link
from support.states import STATES, blocked, blocked_both_ways
from support.streams import MIB
from support.waiting import pause

from .test_wakeups import wakeups_while_quiet

SECONDS = 0.5


def urgent_and_end(near: socket.socket, far: socket.socket) -> None:
    near.sendall(b"before")
    near.send(b"!", socket.MSG_OOB)
    near.shutdown(socket.SHUT_WR)


def urgent_behind_a_slow_reader(near: socket.socket, far: socket.socket) -> None:
    near.sendall(bytes(3 * MIB))  # all of it fits into the kernel, none of it is read
    near.send(b"!", socket.MSG_OOB)
    near.sendall(b"after")


def reset_behind_an_urgent_byte(near: socket.socket, far: socket.socket) -> None:
    near.sendall(b"before")
    near.send(b"!", socket.MSG_OOB)
    near.sendall(b"after")
    near.close()


def more_segments_than_slots(near: socket.socket, far: socket.socket) -> None:
    for _ in range(700):  # in turn, so that the kernel does not merge them
        near.sendall(b"x")
        far.sendall(b"y")


FULL = [blocked, blocked_both_ways]
"""States in which a pipe holds bytes, which shows that splice is at work."""

MORE = [urgent_and_end, urgent_behind_a_slow_reader, reset_behind_an_urgent_byte, more_segments_than_slots]


def pipes() -> int:
    """Ends of pipes that this process has open."""
    needs_proc()
    count = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"/proc/self/fd/{number}").startswith("pipe:")
    return count


def cpu_while_quiet() -> float:
    """Seconds of processor time of this process, and so of the relay in it."""
    before = time.process_time()
    pause(SECONDS)
    return time.process_time() - before


@needs_splice
@pytest.mark.parametrize("workers", [1], ids=["1worker"])
@pytest.mark.parametrize("state", [*STATES, *MORE], ids=lambda state: state.__name__)
def test_splice_does_not_spin(
    make_link: Callable[..., Link], state: Callable[[socket.socket, socket.socket], None]
) -> None:
    """Row 70: with every byte by splice, at most 20 wake-ups a second and 4 % of a processor, in any state."""
    link = make_link(zero_copy="always")
    assert link.proxy
    near, far = link.pair()
    with near, far:
        before = pipes()
        state(near, far)
        pause(0.2)  # what is under way arrives
        if state in FULL:
            assert pipes() > before
        assert wakeups_while_quiet(link, 10) <= 10
        assert any(cpu_while_quiet() <= 0.04 * SECONDS for _ in range(5))
