"""Proxies of a program that accept from sockets that the program has made."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable

import pytest
from support.peers import Echo, connect, relays
from support.streams import echoes
from support.waiting import eventually, pause

from tcpproxy import Proxy, StartError, UsageError

MakeProxy = Callable[..., Proxy]


@pytest.fixture
def listener(stack: contextlib.ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_server(("127.0.0.1", 0)))


def test_all_of_them_are_accepted_from(make_proxy: MakeProxy, echo: Echo, stack: contextlib.ExitStack) -> None:
    """Of both families. They still belong to the caller, also after the proxy has ended."""
    given = [
        stack.enter_context(socket.create_server(("127.0.0.1", 0))),
        stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6)),
    ]
    proxy = make_proxy(echo.name, sockets=given)
    assert proxy.addresses == [each.getsockname()[:2] for each in given]
    for each in given:
        assert relays(each.getsockname()[:2])
    proxy.stop()
    for each in given:
        with connect(each.getsockname()[:2]) as client:
            eventually(lambda listener=each: _accepted(listener, client.getsockname()[:2]))


def _accepted(listener: socket.socket, client: tuple[str, int]) -> bool:
    with contextlib.suppress(BlockingIOError):
        connection, peer = listener.accept()
        connection.close()
        return bool(peer[:2] == client)
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_one_proxy_after_the_other_on_one_socket(
    make_proxy: MakeProxy, echo: Echo, listener: socket.socket, workers: int
) -> None:
    """Row 105: the one that drains lets its connections end, accepts no others, and sleeps while others come."""
    old = make_proxy(echo.name, sockets=[listener], workers=workers)
    with connect(old.address) as before:
        assert echoes(before)
        new = make_proxy(echo.name, sockets=[listener], workers=workers)
        old.drain()
        wakeups = old.stats().wakeups
        for _ in range(20):
            assert relays(new.address)
        pause(0.1)
        assert old.stats().wakeups <= wakeups + 2 * workers
        assert echoes(before)
    assert (old.stats().accepted, new.stats().accepted) == (1, 20)


@pytest.mark.skipif(os.name == "nt", reason="whether a socket blocks is not shared there")
@pytest.mark.parametrize("workers", [1, 2])
def test_others_may_make_them_block(make_proxy: MakeProxy, echo: Echo, listener: socket.socket, workers: int) -> None:
    """As systemd does when it starts another service with the same socket. No worker waits in accept() for a client."""
    proxies = [make_proxy(echo.name, sockets=[listener], workers=workers) for _ in range(2)]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(proxies[0].address)) for _ in range(8)]
        os.set_blocking(listener.fileno(), True)
        for number in range(300):
            clients[number % 8] = stack.enter_context(connect(proxies[0].address))
            assert all(map(echoes, clients))


def test_the_caller_may_close_them(make_proxy: MakeProxy, echo: Echo, listener: socket.socket) -> None:
    proxy = make_proxy(echo.name, sockets=[listener])
    listener.close()
    assert relays(proxy.address)


def test_closed_before_the_start(echo: Echo, listener: socket.socket) -> None:
    proxy = Proxy(echo.name, sockets=[listener])
    assert repr(proxy) == f"<Proxy sockets -> {echo.name}, not started>"
    listener.close()
    with pytest.raises(StartError, match=r"^cannot listen on a socket that was given: "):
        proxy.start()


def test_the_proxy_itself(listener: socket.socket) -> None:
    host, port = listener.getsockname()
    with pytest.raises(UsageError, match="is this proxy's own address"):
        Proxy(f"{host}:{port}", sockets=[listener]).start()


@pytest.mark.skipif(os.name == "nt", reason="another socket may not have the port of [::] on Windows")
def test_ipv6_alone(make_proxy: MakeProxy, echo: Echo, stack: contextlib.ExitStack) -> None:
    """A socket of [::] for IPv6 only may forward to an IPv4 upstream with the same port."""
    given = stack.enter_context(socket.socket(socket.AF_INET6))
    given.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    given.bind(("::", echo.port))
    given.listen()
    make_proxy(echo.name, sockets=[given])
    assert relays(("::1", echo.port))


@pytest.mark.parametrize(
    ("sockets", "problem"),
    [
        ([], "sockets [] are no sockets, expected a list of listening ones"),
        (5, "sockets 5 are no sockets, expected a list of listening ones"),
        (["a"], "sockets ['a'] are no sockets, expected a list of listening ones"),
        ("ab", "sockets 'ab' are no sockets, expected a list of listening ones"),
    ],
    ids=str,
)
def test_what_are_no_sockets(sockets: object, problem: str) -> None:
    with pytest.raises(UsageError) as error:
        Proxy("127.0.0.1:9", sockets=sockets)  # type: ignore[arg-type]
    assert str(error.value) == problem


def test_what_do_not_listen(listener: socket.socket) -> None:
    with contextlib.closing(socket.socket()) as other:
        with pytest.raises(
            UsageError, match=r"^sockets\[1\] does not listen, expected a listening TCP or UNIX socket$"
        ):
            Proxy("127.0.0.1:9", sockets=[listener, other])
        other.close()
        with pytest.raises(UsageError, match=r"^sockets\[0\] is closed, expected a listening TCP or UNIX socket$"):
            Proxy("127.0.0.1:9", sockets=[other])
    with (
        contextlib.closing(socket.socket(type=socket.SOCK_DGRAM)) as other,
        pytest.raises(UsageError, match=r"^sockets\[0\] is a UDP socket, expected a listening TCP or UNIX socket$"),
    ):
        Proxy("127.0.0.1:9", sockets=[other])


@pytest.mark.parametrize("name", ["bind", "port"])
def test_sockets_and_a_place_to_listen(listener: socket.socket, name: str) -> None:
    with pytest.raises(UsageError, match=f"^sockets and {name} are both given, expected one of them$"):
        Proxy("127.0.0.1:9", sockets=[listener], **{name: {"bind": "::1", "port": 0}[name]})  # type: ignore[arg-type]


def test_it_cannot_refuse_clients(make_proxy: MakeProxy, echo: Echo, listener: socket.socket) -> None:
    """Others may have the sockets, too. The proxy goes on."""
    proxy = make_proxy(echo.name, sockets=[listener])
    with pytest.raises(UsageError, match="cannot refuse clients"):
        proxy.down()
    for fault in ("refuse", "refuse,start=1h", "hang"):
        words = "let clients hang" if fault == "hang" else "refuse clients"
        with pytest.raises(UsageError, match=f"^a proxy that was given sockets cannot {words}, expected"):
            proxy.fault(fault)
        with pytest.raises(UsageError, match=f"^a proxy that was given sockets cannot {words}, expected"):
            Proxy(echo.name, sockets=[listener], faults=fault)
    assert relays(proxy.address)
