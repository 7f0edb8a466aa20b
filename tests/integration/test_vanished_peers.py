"""Peers that vanish without a word, and what is not taken for that."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import time
from collections.abc import Callable

import pytest
from networks import Namespace
from support.command import Command
from support.machine import tells_resets
from support.peers import Upstream, connect, reset
from support.streams import KIB, fill, read_all
from support.waiting import TIMEOUT, bounds, eventually, pause

import tcpproxy

pytestmark = pytest.mark.skipif(not tells_resets(), reason="needs a system that tells a later reader of a reset")


HERE, THERE = "192.0.2.1", "192.0.2.2"
TCP_RTO_MAX_MS = 44
"""Of Linux 6.15 and later, and missing from Python."""


@pytest.fixture
def here(namespaces: Callable[[], Namespace]) -> Namespace:
    """A network namespace for the proxy and the peers that stay, so that the machine's own network is left alone."""
    return namespaces()


@pytest.fixture
def there(namespaces: Callable[[], Namespace], here: Namespace) -> Namespace:
    """A network namespace for the peers that vanish, linked to `here`."""
    there = namespaces()
    here.join(there)
    here.address("v", f"{HERE}/30")
    there.address("v", f"{THERE}/30")
    return there


def across(
    here: Namespace, there: Namespace, stack: contextlib.ExitStack, command: Callable[..., Command], keepalive: int
) -> tuple[list[Command], list[socket.socket]]:
    """A connection from `there`, one to there, and one to there of a proxy without keepalive, as control.

    Returns the first two proxies, and of all three connections the end that is here.
    """
    upstream = stack.enter_context(contextlib.closing(here.call(Upstream)))
    far_away = stack.enter_context(contextlib.closing(there.call(Upstream, THERE)))
    seconds = str(keepalive)
    from_there = command("-d", "--keepalive", seconds, "-b", HERE, upstream.name, wrapper=here.wrapper)
    to_there = command("-d", "--keepalive", seconds, far_away.name, wrapper=here.wrapper)
    control = command("--keepalive", "off", far_away.name, wrapper=here.wrapper)
    here_is = []
    for process, client_from, at in (
        (from_there, there, upstream),
        (to_there, here, far_away),
        (control, here, far_away),
    ):
        client = stack.enter_context(client_from.call(connect, process.address))
        server = stack.enter_context(at.accept())
        client.sendall(b"x")
        assert server.recv(1) == b"x"
        here_is.append(server if client_from is there else client)
    return [from_there, to_there], here_is


def check_reasons(from_there: Command, to_there: Command) -> None:
    """Who is there has vanished, and each proxy says which side that was."""
    for process, reason in ((from_there, "client-reset"), (to_there, "upstream-reset")):
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert f": {reason} #" in process.complaints[-1]


def test_vanished_peer(
    here: Namespace, there: Namespace, stack: contextlib.ExitStack, command: Callable[..., Command]
) -> None:
    """Row 24: a client and an upstream vanish without a word; keepalive finds out, and the others are told.

    A connection of a proxy without keepalive, as control, stays.
    """
    proxies, (server, client, unaware) = across(here, there, stack, command, keepalive=1)
    pause(2.5)
    # They have answered the first questions, so nothing has happened.
    assert not select.select([server, client, unaware], [], [], 0)[0]
    there.ip("link", "set", "v", "down")  # whatever is sent there is lost from now on
    begin = time.monotonic()
    for sock in (server, client):
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert time.monotonic() - begin < 15
    assert not select.select([unaware], [], [], 0)[0]
    check_reasons(*proxies)


@bounds(15, 8.5)
@pytest.mark.parametrize("window", ["open", "closed"])
def test_vanished_peer_that_owes_an_answer(
    here: Namespace,
    there: Namespace,
    stack: contextlib.ExitStack,
    command: Callable[..., Command],
    window: str,
    bound: float,
) -> None:
    """Row 24: with bytes on their way to it keepalive is silent; a peer that vanishes is found as soon all the same.

    A connection of a proxy without keepalive, as control, stays.
    """
    proxies, here_is = across(here, there, stack, command, keepalive=2)
    if window == "closed":
        for sock in here_is:
            fill(sock)
    begin = time.monotonic()
    there.ip("link", "set", "v", "down")  # whatever is sent there is lost from now on
    if window == "open":
        for sock in here_is:
            sock.sendall(b"to nobody")
    for sock in here_is[:2]:
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    # Two seconds and three times one; ticks of a second, and questions at growing intervals.
    assert 3.5 < time.monotonic() - begin < bound
    assert not select.select([here_is[2]], [], [], 0)[0]
    check_reasons(*proxies)


# Behind a window that shrank the kernel itself gives up after two seconds without an answer, at this keepalive.
@pytest.mark.parametrize("room", [None, pytest.param(2048, id="window that shrinks", marks=pytest.mark.timed)])
def test_a_peer_that_does_not_read_is_not_dead(
    here: Namespace, there: Namespace, stack: contextlib.ExitStack, command: Callable[..., Command], room: int | None
) -> None:
    """Rows 24 and 30: one that answers every probe of its closed window is kept, for longer than a dead one would be.

    When it dies then, probes have become rare, and it is found all the same.
    """
    far_away = stack.enter_context(contextlib.closing(there.call(Upstream, THERE)))
    process = command("-d", "--keepalive", "1", far_away.name, wrapper=here.wrapper)
    pairs = []
    for _ in range(2):
        client = stack.enter_context(here.call(connect, process.address))
        server = stack.enter_context(far_away.accept())
        if room:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        pairs.append((client, server, fill(client)))
    assert not select.select([client for client, _, _ in pairs], [], [], 9)[0]  # a dead one has four seconds
    client, server, stuck = pairs[0]
    client.shutdown(socket.SHUT_WR)
    assert read_all(server) == bytes(stuck)
    try:
        client.setsockopt(socket.IPPROTO_TCP, TCP_RTO_MAX_MS, 120000)
    except OSError:
        return  # probes cannot be bounded by this kernel: the dead peer would have minutes
    there.ip("link", "set", "v", "down")
    begin = time.monotonic()
    with pytest.raises(ConnectionResetError):
        pairs[1][0].recv(1)
    assert time.monotonic() - begin < 15


def test_reset_of_the_one_that_is_waited_for(
    upstream: Upstream, make_proxy: Callable[..., tcpproxy.Proxy], stack: contextlib.ExitStack
) -> None:
    """Rows 19, 21: a peer has reset, and what it had sent waits in the proxy's kernel for the other one, which does not
    read, and then resets too: nothing waits any more, and the relay ends long before its time is over.
    """
    upstream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * KIB)  # what it accepts inherits it
    proxy = make_proxy(upstream.name, workers=2)
    for swapped in (False, True):
        client = socket.socket()
        client.settimeout(TIMEOUT)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * KIB)
        client.connect(proxy.address)
        server = stack.enter_context(upstream.accept())
        near, far = (server, stack.enter_context(client)) if swapped else (stack.enter_context(client), server)
        near.sendall(bytes(512 * KIB))
        eventually(lambda: [it.to_upstream + it.to_client for it in proxy.connections()] == [512 * KIB])
        reset(near)
        eventually(lambda: [it.state for it in proxy.connections()] == ["closing"])
        reset(far)
        eventually(lambda: proxy.stats().active == 0, within=4)
