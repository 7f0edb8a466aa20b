"""States of a connection, as functions that bring about each of them from a new pair of sockets."""

from __future__ import annotations

import socket

from .peers import reset
from .streams import MIB, fill, read_all

QUIET = 0.05
"""Seconds without a byte that count as full here: a few bytes more or less make no other state."""


def nothing_yet(near: socket.socket, far: socket.socket) -> None:
    pass


def half_closed(near: socket.socket, far: socket.socket) -> None:
    near.sendall(b"last")
    near.shutdown(socket.SHUT_WR)
    assert read_all(far) == b"last"


def blocked(near: socket.socket, far: socket.socket) -> None:
    fill(near, QUIET)


def blocked_both_ways(near: socket.socket, far: socket.socket) -> None:
    fill(near, QUIET)
    fill(far, QUIET)


def end_behind_a_full_reader(near: socket.socket, far: socket.socket) -> None:
    fill(near, QUIET)
    near.shutdown(socket.SHUT_WR)


def both_ends_behind_full_readers(near: socket.socket, far: socket.socket) -> None:
    blocked_both_ways(near, far)
    near.shutdown(socket.SHUT_WR)
    far.shutdown(socket.SHUT_WR)


def gone_behind_a_full_reader(near: socket.socket, far: socket.socket) -> None:
    fill(near, QUIET)
    near.close()


def reset_behind_a_full_reader(near: socket.socket, far: socket.socket) -> None:
    fill(near, QUIET)
    reset(near)


def reset_behind_a_slow_reader(near: socket.socket, far: socket.socket) -> None:
    near.sendall(bytes(3 * MIB))  # all of it fits into the kernel, none of it is read
    reset(near)


def reset_after_half_close(near: socket.socket, far: socket.socket) -> None:
    half_closed(near, far)
    fill(far, QUIET)
    reset(near)


def urgent(near: socket.socket, far: socket.socket) -> None:
    near.sendall(b"before")
    near.send(b"!", socket.MSG_OOB)


STATES = [
    nothing_yet,
    half_closed,
    blocked,
    blocked_both_ways,
    end_behind_a_full_reader,
    both_ends_behind_full_readers,
    gone_behind_a_full_reader,
    reset_behind_a_full_reader,
    reset_behind_a_slow_reader,
    reset_after_half_close,
    urgent,
]
