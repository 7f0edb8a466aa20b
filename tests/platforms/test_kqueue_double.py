"""The kqueue double does what the manual pages of kqueue(2) say, as far as the kqueue poller uses it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from support.machine import descriptors
from support.peers import reset
from support.streams import choke
from support.waiting import TIMEOUT, in_background

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux needs a double of kqueue")

READ, WRITE, USER = -1, -2, -11
ADD, DELETE, CLEAR, ERROR, EOF = 0x1, 0x2, 0x20, 0x4000, 0x8000
TRIGGER = 0x01000000
SOON = 2.0
"""Seconds in which an event that is due must have come."""

Pair = tuple[socket.socket, socket.socket]


class Kevent(ctypes.Structure):
    _fields_ = (
        ("ident", ctypes.c_size_t),
        ("filter", ctypes.c_short),
        ("flags", ctypes.c_ushort),
        ("fflags", ctypes.c_uint),
        ("data", ctypes.c_int64),
        ("udata", ctypes.c_size_t),
    )


class Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Event(NamedTuple):
    ident: int
    filter: int
    flags: int = 0
    fflags: int = 0
    udata: int = 0
    data: int = 0


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """kqueue.c as a shared library."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if not shutil.which(compiler):
        pytest.skip(f"needs a C compiler, and there is no {compiler}")
    folder = pathlib.Path(__file__).with_name("kqueue")
    target = tmp_path_factory.mktemp("kqueue") / "kqueue.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", target, folder / "kqueue.c"]
    subprocess.run([*command, "-pthread"], check=True)
    return ctypes.CDLL(str(target), use_errno=True)


class Kqueue:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.number = library.kqueue()
        if self.number < 0:
            raise OSError(ctypes.get_errno(), "kqueue")

    def call(self, changes: list[Event], room: int, timeout: float | None) -> list[Event]:
        """kevent(2)"""
        # Exactly as many as there is room for: what writes beyond is seen by the sanitizers.
        given = (Kevent * len(changes))(*[Kevent(c.ident, c.filter, c.flags, c.fflags, 0, c.udata) for c in changes])
        found = (Kevent * room)()
        limit = None
        if timeout is not None:
            limit = ctypes.byref(Timespec(int(timeout), int(timeout % 1 * 1e9)))
        count = self._library.kevent(self.number, given, len(changes), found, room, limit)
        if count < 0:
            raise OSError(ctypes.get_errno(), "kevent")
        return [Event(e.ident, e.filter, e.flags, e.fflags, e.udata, e.data) for e in found[:count]]

    def change(self, *changes: Event) -> None:
        self.call(list(changes), 0, 0)

    def wait(self, timeout: float | None = SOON, room: int = 64) -> list[Event]:
        return self.call([], room, timeout)

    def wait_for(self, filter: int, flags: int = 0) -> Event:
        """The first event of that filter with these flags; others are passed over."""
        deadline = time.monotonic() + SOON
        while time.monotonic() < deadline:
            for event in self.wait(SOON / 10):
                if event.filter == filter and event.flags & flags == flags:
                    return event
        raise AssertionError(f"no event of filter {filter} with flags {flags:x}")

    def quiet(self) -> bool:
        return self.wait(0.02) == []

    def settle(self) -> None:
        for _ in range(20):
            if self.quiet():
                return
        raise AssertionError("it does not stop reporting")

    def close(self) -> None:
        if self.number >= 0:
            assert self._library.kqueue_double_close(self.number) == 0
        self.number = -1


@pytest.fixture
def kq(library: ctypes.CDLL) -> Iterator[Kqueue]:
    with contextlib.closing(Kqueue(library)) as kq:
        yield kq


@pytest.fixture
def make_pair(stack: contextlib.ExitStack) -> Callable[[], Pair]:
    def make() -> Pair:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            peer = stack.enter_context(socket.create_connection(listener.getsockname(), TIMEOUT))
            ours = stack.enter_context(listener.accept()[0])
        ours.setblocking(False)
        return ours, peer

    return make


def both(sock: socket.socket, udata: int = 7, flags: int = ADD | CLEAR) -> list[Event]:
    return [Event(sock.fileno(), READ, flags, 0, udata), Event(sock.fileno(), WRITE, flags, 0, udata)]


# --- EV_ADD, EV_DELETE, EV_CLEAR ---


def test_reading_and_writing_are_two_events(kq: Kqueue, make_pair: Callable[[], Pair]) -> None:
    """Manual: "An event is uniquely identified by an (ident, filter) tuple", and each comes back with its udata."""
    ours, peer = make_pair()
    peer.sendall(b"x")
    ours.recv(1, socket.MSG_PEEK)
    kq.change(*both(ours, udata=0xFFFF_FFFE_0123_4567))
    events = kq.wait()
    assert {event.filter for event in events} == {READ, WRITE}
    assert {(event.ident, event.udata) for event in events} == {(ours.fileno(), 0xFFFF_FFFE_0123_4567)}
    assert not any(event.flags & (EOF | ERROR) for event in events)


def test_the_order_of_filters_is_not_to_be_relied_on(kq: Kqueue, make_pair: Callable[[], Pair]) -> None:
    first = set()
    for _ in range(4):
        ours, peer = make_pair()
        peer.sendall(b"x")
        ours.recv(1, socket.MSG_PEEK)
        kq.change(*both(ours))
        first.add(kq.wait()[0].filter)
        kq.settle()
    assert first == {READ, WRITE}


def test_without_ev_clear_it_is_a_level(kq: Kqueue, make_pair: Callable[[], Pair]) -> None:
    ours, peer = make_pair()
    kq.change(Event(ours.fileno(), READ, ADD))
    assert kq.quiet()
    peer.sendall(b"x")
    for _ in range(3):
        assert [event.filter for event in kq.wait()] == [READ]
    assert ours.recv(10) == b"x"
    assert kq.quiet()


def test_with_ev_clear_an_event_is_over_once_it_was_retrieved(kq: Kqueue, make_pair: Callable[[], Pair]) -> None:
    ours, peer = make_pair()
    kq.change(Event(ours.fileno(), READ, ADD | CLEAR))
    for _ in range(3):
        peer.sendall(b"x")
        assert [event.filter for event in kq.wait()] == [READ]
        assert kq.quiet()


def test_each_filter_has_an_edge_of_its_own(kq: Kqueue, make_pair: Callable[[], Pair]) -> None:
    """Bytes that come say nothing of room to send, and room nothing of bytes that lie there unread."""
    ours, peer = make_pair()
    kq.change(*both(ours))
    kq.wait_for(WRITE)
    peer.sendall(b"unread")
    assert [event.filter for event in kq.wait()] == [READ]
    assert kq.quiet()
    sent = choke(ours)
    kq.settle()
    while sent:
        sent -= len(peer.recv(1 << 20))
    filters = {event.filter for event in kq.wait()}
    while events := kq.wait(0.05):
        filters |= {event.filter for event in events}
    assert filters == {WRITE}


def test_a_restless_one_reports_room_to_send_with_every_byte(
    library: ctypes.CDLL, make_pair: Callable[[], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where every acknowledgement is an edge of the write filter."""
    monkeypatch.setenv("KQUEUE_DOUBLE", "restless")
    ours, peer = make_pair()
    with contextlib.closing(Kqueue(library)) as kq:
        kq.change(*both(ours))
        kq.settle()
        for _ in range(3):
            peer.sendall(b"x")
            assert [event.filter for event in kq.wait()] == [READ, WRITE]
            assert kq.quiet()
        peer.sendall(b"x")
        assert [event.filter for event in kq.wait(room=1)] == [READ]


def test_a_listener_is_readable_as_long_as_a_connection_waits(kq: Kqueue, stack: contextlib.ExitStack) -> None:
    """Manual: "return when there is an incoming connection pending"."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    kq.change(Event(listener.fileno(), READ, ADD, 0, 1))
    assert kq.quiet()
    stack.enter_context(socket.create_connection(listener.getsockname(), TIMEOUT))
    for _ in range(3):
        assert [(event.filter, event.udata) for event in kq.wait()] == [(READ, 1)]
    stack.enter_context(listener.accept()[0])
    assert kq.quiet()


def test_adding_again_changes_udata_and_looks_again(kq: Kqueue, make_pair: Callable[[], Pair]) -> None:
    """Manual: "Re-adding an existing event will modify the parameters of the original event"; no duplicate."""
    ours, peer = make_pair()
    peer.sendall(b"x")
    kq.change(Event(ours.fileno(), READ, ADD | CLEAR, 0, 1))
    assert [event.udata for event in kq.wait()] == [1]
    kq.change(Event(ours.fileno(), READ, ADD | CLEAR, 0, 2))
    assert [event.udata for event in kq.wait()] == [2]
    assert kq.quiet()


def test_a_deleted_filter_is_silent(kq: Kqueue, make_pair: Callable[[], Pair]) -> None:
    ours, peer = make_pair()
    kq.change(*both(ours))
    kq.settle()
    peer.sendall(b"x")
    kq.change(Event(ours.fileno(), READ, DELETE))
    assert kq.quiet()
    kq.change(Event(ours.fileno(), READ, ADD))
    assert [event.filter for event in kq.wait()] == [READ]


# --- changes that fail ---


@pytest.mark.parametrize(
    ("flags", "filter", "fflags", "error"),
    [
        (DELETE, READ, 0, errno.ENOENT),
        (0, WRITE, 0, errno.ENOENT),
        (0, USER, TRIGGER, errno.ENOENT),
        (ADD, 5, 0, errno.EINVAL),
        (ADD | 0x10, READ, 0, errno.EINVAL),  # EV_ONESHOT, which the double has not
    ],
)
def test_a_change_that_fails(
    kq: Kqueue, make_pair: Callable[[], Pair], flags: int, filter: int, fflags: int, error: int
) -> None:
    """Without room for it kevent fails; with room it is an event, with EV_ERROR and the errno in data."""
    ours, _ = make_pair()
    change = Event(ours.fileno(), filter, flags, fflags, 3)
    with pytest.raises(OSError, match="kevent") as raised:
        kq.change(change)
    assert raised.value.errno == error
    events = kq.call([change], 1, None)
    assert [(e.ident, e.filter, e.flags, e.data, e.udata) for e in events] == [(ours.fileno(), filter, ERROR, error, 3)]


def test_a_descriptor_that_is_not_open(kq: Kqueue) -> None:
    with socket.socket() as gone:
        number = gone.fileno()
    with pytest.raises(OSError, match="kevent") as raised:
        kq.change(Event(number, READ, ADD))
    assert raised.value.errno == errno.EBADF


def test_changes_behind_one_that_fails(kq: Kqueue, make_pair: Callable[[], Pair]) -> None:
    """With room they are made all the same; without they are left out."""
    ours, _ = make_pair()
    wrong = Event(ours.fileno(), READ, DELETE)
    right = Event(ours.fileno(), WRITE, ADD | CLEAR, 0, 9)
    with pytest.raises(OSError, match="kevent"):
        kq.change(wrong, right)
    assert kq.quiet()
    assert [event.flags for event in kq.call([wrong, right], 2, 0)] == [ERROR]
    assert [(event.filter, event.udata) for event in kq.wait()] == [(WRITE, 9)]


def test_no_kqueue_of_that_number(library: ctypes.CDLL) -> None:
    kq = Kqueue(library)
    number = kq.number
    kq.close()
    kq.number = number
    with pytest.raises(OSError, match="kevent") as raised:
        kq.wait(0)
    assert raised.value.errno == errno.EBADF
    kq.number = -1


# --- EV_EOF ---


def test_an_end_of_file_sets_ev_eof_with_bytes_still_there(kq: Kqueue, make_pair: Callable[[], Pair]) -> None:
    ours, peer = make_pair()
    kq.change(*both(ours))
    kq.settle()
    peer.sendall(b"last")
    peer.shutdown(socket.SHUT_WR)
    assert kq.wait_for(READ, EOF).fflags == 0
    assert ours.recv(10) == b"last"
    assert ours.recv(10) == b""
    kq.settle()


def test_ones_own_shutdown_sets_ev_eof_on_the_write_filter(kq: Kqueue, make_pair: Callable[[], Pair]) -> None:
    ours, peer = make_pair()
    kq.change(*both(ours))
    kq.settle()
    ours.shutdown(socket.SHUT_WR)
    assert kq.wait_for(WRITE, EOF).fflags == 0
    kq.settle()
    peer.sendall(b"still")
    event = kq.wait_for(READ)
    assert not event.flags & EOF


def test_a_reset_sets_ev_eof_and_the_error_on_both_filters(kq: Kqueue, make_pair: Callable[[], Pair]) -> None:
    """Manual: "... sets EV_EOF in flags, and returns the socket error (if any) in fflags", until it was taken."""
    ours, peer = make_pair()
    kq.change(*both(ours))
    kq.settle()
    reset(peer)
    seen: set[int] = set()
    while seen != {READ, WRITE}:
        for event in kq.wait():
            assert event.flags & EOF
            assert event.fflags
            seen.add(event.filter)
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
    kq.settle()
    kq.change(*both(ours))
    assert all(event.flags & EOF and not event.fflags for event in kq.wait())


def test_a_connect_that_fails_is_an_end_with_an_error(kq: Kqueue, stack: contextlib.ExitStack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    client = stack.enter_context(socket.socket())
    client.setblocking(False)
    client.connect_ex(address)
    kq.change(*both(client))
    event = kq.wait_for(WRITE)
    assert event.flags & EOF
    assert event.fflags


# --- EVFILT_USER ---


def test_a_user_event_waits_for_its_trigger(kq: Kqueue) -> None:
    kq.change(Event(1, USER, ADD | CLEAR, 0, 5))
    assert kq.quiet()
    kq.change(Event(1, USER, 0, TRIGGER, 5))
    assert [(event.ident, event.filter, event.udata) for event in kq.wait()] == [(1, USER, 5)]
    assert kq.quiet()


def test_triggers_before_a_wait_are_one_event(kq: Kqueue) -> None:
    kq.change(Event(1, USER, ADD | CLEAR))
    for _ in range(100):
        kq.change(Event(1, USER, 0, TRIGGER))
    assert len(kq.wait()) == 1
    assert kq.quiet()


def test_without_ev_clear_a_user_event_stays(kq: Kqueue) -> None:
    kq.change(Event(1, USER, ADD))
    kq.change(Event(1, USER, 0, TRIGGER))
    for _ in range(3):
        assert len(kq.wait()) == 1
    kq.change(Event(1, USER, DELETE))
    assert kq.quiet()


def test_a_trigger_takes_over_udata(kq: Kqueue) -> None:
    kq.change(Event(1, USER, ADD | CLEAR, 0, 5))
    kq.change(Event(1, USER, 0, TRIGGER, 6))
    assert [event.udata for event in kq.wait()] == [6]


def test_a_trigger_ends_a_wait_of_another_thread(kq: Kqueue) -> None:
    kq.change(Event(1, USER, ADD | CLEAR))
    with in_background(kq.wait, None) as result:
        kq.change(Event(1, USER, 0, TRIGGER))
    assert [event.filter for event in result[0]] == [USER]  # type: ignore[attr-defined]


# --- descriptors that go away ---


def test_closing_a_descriptor_removes_its_filters(kq: Kqueue, make_pair: Callable[[], Pair]) -> None:
    """Manual: "close() on a file descriptor will remove any kevents that reference the descriptor", copies or not."""
    ours, peer = make_pair()
    kq.change(*both(ours))
    kq.settle()
    with ours.dup():
        ours.close()
        peer.sendall(b"x")
        assert kq.quiet()


def test_a_number_that_is_used_again_is_another_ident(kq: Kqueue, make_pair: Callable[[], Pair]) -> None:
    ours, _ = make_pair()
    number = ours.fileno()
    kq.change(*both(ours, udata=1))
    kq.settle()
    other, other_peer = make_pair()
    ours.close()
    os.dup2(other.fileno(), number)
    try:
        with pytest.raises(OSError, match="kevent"):
            kq.change(Event(number, READ, DELETE))
        kq.change(Event(number, READ, ADD | CLEAR, 0, 2))
        other_peer.sendall(b"x")
        assert [(event.filter, event.udata) for event in kq.wait()] == [(READ, 2)]
    finally:
        os.close(number)


def test_a_forked_child_has_no_kqueue(kq: Kqueue, make_pair: Callable[[], Pair]) -> None:
    """Manual: "The queue is not inherited by a child created with fork(2)", and the parent's goes on."""
    ours, peer = make_pair()
    kq.change(*both(ours))
    kq.settle()
    child = os.fork()
    if child == 0:
        try:
            kq.wait(0)
        except OSError as error:
            gone = not os.path.exists(f"/proc/self/fd/{kq.number}")
            os._exit(0 if error.errno == errno.EBADF and gone else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    peer.sendall(b"x")
    assert [event.filter for event in kq.wait()] == [READ]


def test_a_closed_kqueue_leaves_nothing(library: ctypes.CDLL) -> None:
    before = descriptors()
    for _ in range(10):
        Kqueue(library).close()
    assert descriptors() == before


# --- waiting ---


@pytest.mark.parametrize("timeout", [0.0, 0.0005, 0.02])
def test_a_time_out_is_never_early(kq: Kqueue, timeout: float) -> None:
    start = time.monotonic()
    assert kq.wait(timeout) == []
    assert time.monotonic() - start >= timeout


def test_no_more_events_than_there_is_room(kq: Kqueue, make_pair: Callable[[], Pair]) -> None:
    pairs = [make_pair() for _ in range(4)]
    for number, (ours, _) in enumerate(pairs):
        kq.change(Event(ours.fileno(), WRITE, ADD | CLEAR, 0, number))
    batches = [kq.wait(room=3), kq.wait(room=3)]
    assert [len(batch) for batch in batches] == [3, 1]
    assert sorted(event.udata for batch in batches for event in batch) == [0, 1, 2, 3]
    assert kq.quiet()


def test_without_room_it_returns_at_once(kq: Kqueue, make_pair: Callable[[], Pair]) -> None:
    """Manual: "When nevents is zero, kevent() will return immediately even if there is a timeout specified"."""
    ours, _ = make_pair()
    start = time.monotonic()
    assert kq.call([Event(ours.fileno(), READ, ADD)], 0, 10) == []
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("timeout", [-1.0, 1e9], ids=["negative", "longer than three years"])
def test_a_time_out_that_cannot_be(kq: Kqueue, timeout: float) -> None:
    with pytest.raises(OSError, match="kevent") as raised:
        kq.wait(timeout)
    assert raised.value.errno == errno.EINVAL


def test_a_signal_interrupts_a_wait(kq: Kqueue, stack: contextlib.ExitStack) -> None:
    stack.callback(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, lambda *_: None))
    stack.callback(signal.setitimer, signal.ITIMER_REAL, 0)
    assert threading.current_thread() is threading.main_thread()
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    with pytest.raises(OSError, match="kevent") as raised:
        kq.wait(SOON)
    assert raised.value.errno == errno.EINTR
