"""Look-ups: which addresses in which order, merged queries, and what stands in for an answer that does not come."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from support.waiting import TIMEOUT, at_best

from tcpproxy.network import resolver
from tcpproxy.network.resolver import STALE_AFTER, TTL, Address, Resolver, numeric, resolve

V4, V6 = socket.AF_INET, socket.AF_INET6


def v4(last: int) -> Address:
    return bytes([192, 0, 2, last]), 80, 0


def v6(last: int) -> Address:
    return socket.inet_pton(V6, f"2001:db8::{last}"), 80, 0


def info(family: socket.AddressFamily, *where: str | int) -> tuple[object, ...]:
    return family, socket.SOCK_STREAM, 6, "", where


def answering(monkeypatch: pytest.MonkeyPatch, *found: tuple[object, ...]) -> None:
    """Makes the system's look-up answer this."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: list(found))


# --- one look-up ---


def test_families_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 44: in the system's order within a family, the system's favourite family first (RFC 8305)."""
    six = [info(V6, f"2001:db8::{n}", 80, 0, 0) for n in (1, 2, 3)]
    four = [info(V4, f"192.0.2.{n}", 80) for n in (1, 2)]
    answering(monkeypatch, *six, *four)
    assert resolve("name", 80) == [v6(1), v4(1), v6(2), v4(2), v6(3)]
    answering(monkeypatch, *four, *six)
    assert resolve("name", 80) == [v4(1), v6(1), v4(2), v6(2), v6(3)]
    answering(monkeypatch, *four)
    assert resolve("name", 80) == [v4(1), v4(2)]


def test_repeated_addresses_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 43: each address is one attempt."""
    answering(monkeypatch, *[info(V4, f"192.0.2.{n}", 80) for n in (1, 2, 1, 1, 2)])
    assert resolve("name", 80) == [v4(1), v4(2)]


def test_scope_of_an_answer_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 94: whether or not the system writes it behind the address."""
    answering(monkeypatch, info(V6, "fe80::1%lo", 80, 0, 7), info(V6, "fe80::2", 80, 0, 8))
    expected = [(socket.inet_pton(V6, "fe80::1"), 80, 7), (socket.inet_pton(V6, "fe80::2"), 80, 8)]
    assert resolve("name", 80) == expected


def test_other_families_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family that the proxy cannot speak is no address."""
    answering(monkeypatch, info(socket.AF_UNIX, "/run/socket"), info(V4, "192.0.2.1", 80))
    assert resolve("name", 80) == [v4(1)]


def test_numeric_host_is_its_own_answer() -> None:
    """Row 94."""
    assert resolve("192.0.2.1", 80) == [v4(1)]
    assert resolve("2001:db8::1", 80) == [v6(1)]


@pytest.mark.parametrize("host", ["\u00fc" * 60, "a" * 64, "local\udcffhost"])
def test_name_that_cannot_be_asked_for(host: str) -> None:
    """Row 95: an OSError like that of any other name that does not exist."""
    with pytest.raises(OSError, match="not known"):
        resolve(host, 80)


# --- addresses that are no names ---


@pytest.mark.parametrize(
    ("host", "raw"),
    [
        ("127.0.0.1", bytes([127, 0, 0, 1])),
        ("127.1", bytes([127, 0, 0, 1])),
        ("::1", bytes(15) + b"\1"),
        ("::ffff:192.0.2.1", bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 1])),
    ],
)
def test_numeric(host: str, raw: bytes) -> None:
    """Row 94."""
    assert numeric(host, 80) == [(raw, 80, 0)]


def test_numeric_with_a_scope() -> None:
    """Row 94: an interface's number stays, while its name may get another one, and is looked up like any name."""
    index, name = socket.if_nameindex()[0]
    assert numeric(f"fe80::1%{index}", 80) == [(socket.inet_pton(V6, "fe80::1"), 80, index)]
    assert numeric(f"fe80::1%{name}", 80) is None
    if os.name != "nt":  # Windows knows them by number alone
        assert resolve(f"fe80::1%{name}", 80) == [(socket.inet_pton(V6, "fe80::1"), 80, index)]


@pytest.mark.parametrize("host", ["localhost", "example.org", "1.2.3.4.5", "::g", "\u00fc" * 60, "local\udcffhost", ""])
def test_names_are_not_numeric(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 94: no address, whatever else it may be; nobody is asked."""
    real = socket.getaddrinfo

    def without_questions(*args: object, flags: int = 0, **options: object) -> object:
        assert flags & socket.AI_NUMERICHOST
        return real(*args, flags=flags, **options)  # type: ignore[arg-type,call-overload]

    monkeypatch.setattr(socket, "getaddrinfo", without_questions)
    assert numeric(host, 80) is None


# --- look-ups that are shared ---


class System:
    """Stands for the system's look-up: answers when it is told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.answer: list[Address] | BaseException = [v4(1)]
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Semaphore(0)

    def __call__(self, host: str, port: int) -> list[Address]:
        assert (host, port) == ("name", 80)
        self.calls += 1
        self.asked.release()
        assert self.open.wait(TIMEOUT)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def await_question(self) -> None:
        assert self.asked.acquire(timeout=TIMEOUT)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    system = System()
    monkeypatch.setattr(resolver, "resolve", system)
    yield system
    system.open.set()


@pytest.fixture
def shared(system: System) -> Iterator[Resolver]:
    shared = Resolver("name", 80)
    yield shared
    shared.close()


@contextlib.contextmanager
def waiting(count: int, function: Callable[[], object]) -> Iterator[list[object]]:
    """That many threads in one function; yields their results, all there when the block is over."""
    results: list[object] = []
    ready = threading.Barrier(count + 1)

    def run() -> None:
        ready.wait(TIMEOUT)
        results.append(function())

    threads = [threading.Thread(target=run, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    ready.wait(TIMEOUT)
    yield results
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    assert len(results) == count


NO_SUCH_NAME = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_good_answer(system: System, shared: Resolver) -> None:
    """Row 91: it serves for 5 seconds, and each look-up asks anew."""
    assert shared.lookup() == ([v4(1)], TTL)
    system.answer = [v4(2)]
    assert shared.lookup() == ([v4(2)], TTL)
    assert system.calls == 2
    assert shared.lookup_error == ""
    assert TTL == 5


def test_queries_are_merged(system: System, shared: Resolver) -> None:
    """Row 92: whoever asks while a look-up is under way gets its answer."""
    system.open.clear()
    with waiting(20, shared.lookup) as results:
        system.await_question()
        while not shared._query or len(shared._query._waiters) < 20:
            threading.Event().wait(0.001)
        system.open.set()
    assert results == [([v4(1)], TTL)] * 20
    assert system.calls == 1


@pytest.mark.parametrize("answer", [NO_SUCH_NAME, []])
def test_no_answer_ever(system: System, shared: Resolver, answer: list[Address] | OSError) -> None:
    """Row 92: nothing to use, and a reason."""
    system.answer = answer
    assert shared.lookup() == ([], 0.0)
    assert shared.lookup_error
    system.answer = [v4(1)]
    assert shared.lookup() == ([v4(1)], TTL)
    assert shared.lookup_error == ""


def test_reason_is_the_systems(system: System, shared: Resolver) -> None:
    """Row 92."""
    system.answer = NO_SUCH_NAME
    shared.lookup()
    assert shared.lookup_error == "Name or service not known"
    system.answer = OSError("no number")
    shared.lookup()
    assert shared.lookup_error == "no number"


def test_recent_answer_stands_in_for_a_failure(system: System, shared: Resolver) -> None:
    """Row 92: for a short while each time, so that a recovery is noticed soon."""
    shared.lookup()
    system.answer = NO_SUCH_NAME
    for _ in range(3):
        assert shared.lookup() == ([v4(1)], STALE_AFTER)
    assert shared.lookup_error == "Name or service not known"
    system.answer = [v4(2)]
    assert shared.lookup() == ([v4(2)], TTL)


def test_old_answer_stands_in_no_more(system: System, shared: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 92: an answer is not used for ever."""
    shared.lookup()
    monkeypatch.setattr(resolver, "MAX_STALE", 0.0)
    system.answer = NO_SUCH_NAME
    assert shared.lookup() == ([], 0.0)


def test_recent_answer_stands_in_for_a_slow_look_up(system: System, shared: Resolver) -> None:
    """Row 92: nobody waits long for a silent server while there is something to use; one question is enough for all."""
    shared.lookup()
    system.open.clear()
    system.answer = [v4(2)]
    for _ in range(2):
        began = time.monotonic()
        assert shared.lookup() == ([v4(1)], STALE_AFTER)
        assert STALE_AFTER * 0.9 < time.monotonic() - began < STALE_AFTER + 5

    def time_to_look_up() -> float:
        began = time.monotonic()
        assert shared.lookup(0.05) == ([v4(1)], STALE_AFTER)
        return time.monotonic() - began

    at_best(time_to_look_up, STALE_AFTER)
    assert system.calls == 2
    with waiting(1, shared.lookup) as results:
        system.open.set()
    assert results in ([([v4(2)], TTL)], [([v4(1)], STALE_AFTER)])
    assert shared.lookup() == ([v4(2)], TTL)


def test_patience_of_the_caller(system: System, shared: Resolver) -> None:
    """Row 92: nothing to use and no answer in time."""
    system.open.clear()
    began = time.monotonic()
    assert shared.lookup(0.2) == ([], 0.0)
    assert 0.18 < time.monotonic() - began < 5
    assert shared.lookup_error == "", "it has not failed, it is only slow"


def test_close_lets_everybody_go(system: System, shared: Resolver) -> None:
    """Rows 92, 97: a look-up that hangs holds up no end, and nothing is asked afterwards."""
    system.open.clear()
    with waiting(5, shared.lookup) as results:
        system.await_question()
        shared.close()
    assert results == [([], 0.0)] * 5
    assert shared.lookup() == ([], 0.0)
    assert system.calls == 1


def test_look_up_that_cannot_start(system: System, shared: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 92: the machine has no thread left for it: that look-up fails, the next one is made again."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert shared.lookup(0.1) == ([], 0.0)
    assert shared.lookup(5) == ([v4(1)], TTL)


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_look_up_that_cannot_start_keeps_nobody_waiting(
    system: System, shared: Resolver, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Row 92: nor does anybody wait who would wait for ever; a recent answer stands in for it."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "tcpproxy-lookup":
            raise error
        start(thread)

    def refused() -> object:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with waiting(1, shared.lookup) as results:
                pass
        return results[0]

    assert refused() == ([], 0.0)
    assert shared.lookup_error
    assert shared.lookup() == ([v4(1)], TTL)
    assert refused() == ([v4(1)], STALE_AFTER)


@pytest.mark.parametrize("error", [MemoryError(), ZeroDivisionError()])
def test_look_up_that_fails_as_none_should(
    system: System, shared: Resolver, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Row 92: it has failed, with a reason, and the next one is made again."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # which would report it
    system.answer = error
    with waiting(3, shared.lookup) as results:
        pass
    assert results == [([], 0.0)] * 3
    assert shared.lookup_error
    system.answer = [v4(1)]
    assert shared.lookup() == ([v4(1)], TTL)
