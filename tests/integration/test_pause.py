"""A pause: nothing crosses while it lasts, and nothing is lost by it."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable

import pytest
from support.peers import Echo, Link, Upstream, connect, reset
from support.states import STATES
from support.streams import MIB, echoes, fill, is_over, payload, read_all, read_exactly, read_until_reset, send_and_shut
from support.waiting import TIMEOUT, eventually, in_background, pause

from tcpproxy import Proxy, UsageError

MakeProxy = Callable[..., Proxy]

QUIET = 0.1
"""Seconds in which nothing may come."""


@pytest.fixture(params=["1", "2", "1 always", "2 always"])
def proxy(request: pytest.FixtureRequest, make_proxy: MakeProxy, upstream: Upstream) -> Proxy:
    """With one worker and two, copying at first and splicing from the first byte."""
    workers, _, mode = request.param.partition(" ")
    return make_proxy(upstream.name, workers=int(workers), **({"zero_copy": mode} if mode else {}))


@pytest.fixture
def ends(proxy: Proxy, upstream: Upstream, swapped: bool, stack: contextlib.ExitStack) -> list[socket.socket]:
    """The ends of a connection that has relayed a byte each way: near and far, client and upstream or swapped."""
    near, far = Link(upstream, proxy, swapped).pair(b"x")
    for end in (near, far):
        stack.enter_context(end)
    far.sendall(read_exactly(far, 1))
    read_exactly(near, 1)
    return [near, far]


@pytest.fixture
def forth(swapped: bool) -> str:
    """The stream from near to far."""
    return "to_client" if swapped else "to_upstream"


@pytest.fixture
def back(swapped: bool) -> str:
    return "to_upstream" if swapped else "to_client"


def is_quiet(*socks: socket.socket, seconds: float = QUIET) -> bool:
    return not select.select(socks, [], [], seconds)[0]


# --- bytes ---


@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
def test_bytes_wait(proxy: Proxy, ends: list[socket.socket], forth: str, both: bool) -> None:
    near, far = ends
    with proxy.pause("both" if both else forth):  # type: ignore[arg-type]
        near.sendall(b"question")
        assert is_quiet(far)
        far.sendall(b"answer")
        if both:
            assert is_quiet(near)
        else:
            assert read_exactly(near, 6) == b"answer"
    assert read_exactly(far, 8) == b"question"
    if both:
        assert read_exactly(near, 6) == b"answer"
    assert repr(proxy).endswith(", listening>")


def test_in_the_middle_of_bulk(proxy: Proxy, ends: list[socket.socket]) -> None:
    """When the call has returned nothing crosses; what was held goes on in order."""
    near, far = ends
    data = {near: payload(24 * MIB, 1), far: payload(24 * MIB, 2)}
    with contextlib.ExitStack() as stack:
        for end in ends:
            stack.enter_context(in_background(send_and_shut, end, data[end]))
        got = [stack.enter_context(in_background(read_all, end)) for end in ends]
        for turn in range(1, 11):
            proxy.wait_for(to_upstream=min(2 * turn, 24) * MIB, to_client=min(2 * turn, 24) * MIB, timeout=TIMEOUT)
            with proxy.pause():
                at = proxy.stats()
                pause(0.02)
                assert proxy.stats().bytes_to_upstream == at.bytes_to_upstream
                assert proxy.stats().bytes_to_client == at.bytes_to_client
    assert (got[0], got[1]) == ([data[far]], [data[near]])


def test_what_the_proxy_holds_already(proxy: Proxy, ends: list[socket.socket], forth: str) -> None:
    """Bytes that it has read before are not delivered either, when the receiver makes room."""
    near, far = ends
    data = payload(32 * MIB)
    with in_background(near.sendall, data):
        eventually(lambda: not proxy.stats().bytes_to_upstream < 1 and _at_rest(proxy))
        with proxy.pause(forth):  # type: ignore[arg-type]
            before = proxy.stats()
            first = _read_what_is_there(far)
            assert proxy.stats().bytes_to_upstream == before.bytes_to_upstream
            assert proxy.stats().bytes_to_client == before.bytes_to_client
        assert first + read_exactly(far, len(data) - len(first)) == data


def _at_rest(proxy: Proxy) -> bool:
    before = proxy.stats()
    pause(0.1)
    after = proxy.stats()
    return (before.bytes_to_upstream, before.bytes_to_client) == (after.bytes_to_upstream, after.bytes_to_client)


def _read_what_is_there(sock: socket.socket) -> bytes:
    parts = []
    while not is_quiet(sock):
        parts.append(sock.recv(MIB))
    return b"".join(parts)


# --- ends ---


def test_an_end_of_file_waits(proxy: Proxy, ends: list[socket.socket], forth: str) -> None:
    near, far = ends
    with proxy.pause(forth):  # type: ignore[arg-type]
        send_and_shut(near, b"last words")
        assert is_quiet(far)
    assert read_all(far) == b"last words"


@pytest.mark.parametrize("both", [False, True], ids=["one", "both"])
def test_a_reset_waits(proxy: Proxy, ends: list[socket.socket], forth: str, both: bool) -> None:
    near, far = ends
    with proxy.pause("both" if both else forth):  # type: ignore[arg-type]
        near.sendall(b"last words")
        reset(near)
        assert is_quiet(far)
        assert proxy.stats().active == 1
    assert read_until_reset(far) in (b"last words", b"")  # the kernel may have dropped them with the reset


def test_a_reset_behind_bytes_in_the_kernel_waits(proxy: Proxy, ends: list[socket.socket]) -> None:
    """The side that failed is closed already; the other one is reset when the kernel has sent what it was given."""
    near, far = ends
    fill(near)
    reset(near)

    def is_closing() -> bool:
        far.recv(1 << 16)  # makes room until the proxy itself holds nothing any more
        return [it.state for it in proxy.connections()] == ["closing"]

    eventually(is_closing, TIMEOUT)
    with proxy.pause():
        _read_what_is_there(far)
        assert proxy.stats().active == 1
    assert read_until_reset(far) == b""


@pytest.mark.parametrize("state", STATES)
def test_each_state_goes_on(proxy: Proxy, ends: list[socket.socket], state: Callable[..., None], swapped: bool) -> None:
    """Paused and resumed, a connection ends as it would have."""
    near, far = ends
    with contextlib.suppress(OSError):
        state(near, far)
    for _ in range(3):
        with proxy.pause():
            pause(0.01)
    for end in ends:
        if end.fileno() >= 0:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_WR)
    with contextlib.ExitStack() as stack:
        for end in ends:  # both at once: between two zero windows Linux may lose the update of one of them
            if end.fileno() >= 0:
                stack.enter_context(in_background(is_over, end))
    proxy.wait_for(active=0, timeout=TIMEOUT)


# --- time ---


def test_time_outs_stand_still(make_proxy: MakeProxy, echo: Echo) -> None:
    proxy = make_proxy(echo.name, idle_timeout="200ms", half_close_timeout="200ms")
    with connect(proxy.address) as client, connect(proxy.address) as half:
        assert echoes(client)
        half.sendall(b"x")
        assert read_exactly(half, 1) == b"x"
        with proxy.pause("to_upstream"):
            half.shutdown(socket.SHUT_WR)
            pause(0.7)
        assert echoes(client)
        assert read_all(half) == b""
        with proxy.pause("to_client"):
            client.sendall(b"y")
            pause(0.7)
        assert read_exactly(client, 1) == b"y"
        with pytest.raises(ConnectionResetError):  # they run again
            client.recv(1)


def test_no_processor_time(proxy: Proxy, ends: list[socket.socket]) -> None:
    """Held bytes, ends of file and resets do not wake a worker again and again."""
    near, far = ends
    with proxy.pause():
        far.sendall(b"bytes")
        send_and_shut(near, b"bytes and an end")
        pause(0.05)
        before = proxy.stats().wakeups
        pause(0.3)
        assert proxy.stats().wakeups - before <= 4
        reset(near)
        pause(0.05)
        before = proxy.stats().wakeups
        pause(0.3)
        assert proxy.stats().wakeups - before <= 4


def test_longer_than_last_bytes_are_waited_for(make_proxy: MakeProxy, upstream: Upstream) -> None:
    """A reset that is held arms a time-out of 5 s."""
    proxy = make_proxy(upstream.name)
    with connect(proxy.address) as client, upstream.accept() as server:
        client.sendall(b"question")
        assert read_exactly(server, 8) == b"question"
        with proxy.pause():
            reset(client)
            assert is_quiet(server, seconds=5.5)
        assert read_until_reset(server) == b""


# --- the call ---


def test_new_connections(make_proxy: MakeProxy, upstream: Upstream) -> None:
    proxy = make_proxy(upstream.name)
    with proxy.pause(), connect(proxy.address) as client, upstream.accept() as server:
        client.sendall(b"hello")
        assert is_quiet(server)
        assert [it.state for it in proxy.connections()] == ["relaying"]
        proxy.resume()
        assert read_exactly(server, 5) == b"hello"


def test_before_the_start(upstream: Upstream) -> None:
    proxy = Proxy(upstream.name)
    proxy.pause("to_upstream")
    with proxy, connect(proxy.address) as client, upstream.accept() as server:
        client.sendall(b"hello")
        server.sendall(b"welcome")
        assert read_exactly(client, 7) == b"welcome"
        assert is_quiet(server)
        assert repr(proxy).endswith(", paused>")
        proxy.resume()
        assert read_exactly(server, 5) == b"hello"
    proxy.pause()
    proxy.resume()


def test_blocks_in_blocks(proxy: Proxy, ends: list[socket.socket], forth: str, back: str) -> None:
    """Each undoes what it has done, and no more."""
    near, far = ends
    with proxy.pause(forth):  # type: ignore[arg-type]
        with proxy.pause(), proxy.pause(back):  # type: ignore[arg-type]
            near.sendall(b"question")
            far.sendall(b"answer")
            assert is_quiet(near, far)
        assert read_exactly(near, 6) == b"answer"
        assert is_quiet(far)
        proxy.pause(forth)  # type: ignore[arg-type]
    assert read_exactly(far, 8) == b"question"
    proxy.resume()
    proxy.resume(back)  # type: ignore[arg-type]


def test_words_that_are_none(proxy: Proxy) -> None:
    for verb in (proxy.pause, proxy.resume):
        with pytest.raises(UsageError, match="stream 'left' is unknown, expected to_upstream, to_client or both"):
            verb("left")  # type: ignore[operator]


@pytest.mark.parametrize("number", [0, 1])
def test_other_words_for_a_direction(proxy: Proxy, ends: list[socket.socket], forth: str, number: int) -> None:
    near, far = ends
    word = {"to_upstream": ("up", "upstream"), "to_client": ("down", "downstream")}[forth][number]
    with proxy.pause(word):  # type: ignore[arg-type]
        near.sendall(b"question")
        far.sendall(b"answer")
        assert read_exactly(near, 6) == b"answer"
        assert is_quiet(far)
        proxy.resume(word)  # type: ignore[arg-type]
        assert read_exactly(far, 8) == b"question"


def test_kill_and_stop_meanwhile(proxy: Proxy, ends: list[socket.socket]) -> None:
    near, far = ends
    proxy.pause()
    near.sendall(b"lost")
    assert proxy.kill("close") == 1
    assert (read_all(far), read_all(near)) == (b"", b"")
    proxy.stop()


def test_again_and_again_from_several_threads(proxy: Proxy, ends: list[socket.socket]) -> None:
    near, far = ends
    data = payload(16 * MIB)

    def blink(stream: str) -> None:
        for _ in range(100):
            with proxy.pause(stream):  # type: ignore[arg-type]
                pass

    with contextlib.ExitStack() as stack:
        stack.enter_context(in_background(send_and_shut, near, data))
        for stream in ("to_upstream", "to_client", "both"):
            stack.enter_context(in_background(blink, stream))
        assert read_all(far) == data
    assert repr(proxy).endswith(", listening>")
