"""Reaching upstream: one address or several, refused or silent, and a client that waits or leaves meanwhile."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import select
import socket
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from networks import Closed, Namespace, Silent
from support.command import Command, strace
from support.machine import (
    connections_to,
    cpu_while_asleep,
    descriptors,
    limit_descriptors,
    needs,
    private_memory,
    sockets_in_state,
    tells_resets,
)
from support.peers import Echo, Link, Upstream, connect, reset
from support.streams import MIB, payload, read_all, read_exactly, read_until_reset, send_and_shut, unsent_at_rest
from support.waiting import TIMEOUT, at_best, bounds, eventually, in_background, pause

import tcpproxy

STAGGER = 0.25
"""Seconds between two attempts, RFC 8305, section 5."""


@pytest.fixture(params=[1, 2], ids=["1worker", "2workers"])
def proxied(request: pytest.FixtureRequest) -> int:
    """Workers, where a direct connection is no control: there is no proxy to wait for upstream."""
    return request.param


@pytest.fixture
def hosts(tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """The wrapper of a command for which a name has these addresses: it sees an /etc/hosts of its own."""
    needs("unshare", "mount")
    wrapper = (
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        'mount --bind "$0" /etc/hosts && exec "$@"',
    )

    def make(**names: list[str]) -> tuple[str, ...]:
        file = tmp_path / "hosts"
        lines = [f"{address} {name.replace('_', '.')}\n" for name, addresses in names.items() for address in addresses]
        file.write_text("".join(lines))
        tried = subprocess.run([*wrapper, file, "true"], capture_output=True, text=True, check=False)
        if tried.returncode:
            pytest.skip(f"no mount namespaces here: {tried.stderr.strip()}")
        return (*wrapper, str(file))

    return make


def time_to_end(address: tuple[str, int]) -> float:
    """Seconds that a client without an answer is kept until it is reset, perhaps before its own connect returns."""
    start = time.monotonic()
    with pytest.raises(ConnectionResetError), connect(address) as client:
        client.recv(1)
    return time.monotonic() - start


def times_together(address: tuple[str, int], clients: int) -> list[float]:
    """`time_to_end` of clients that come at the same time."""
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(time_to_end, [address] * clients))


def time_to_echo(address: tuple[str, int]) -> float:
    start = time.monotonic()
    with connect(address) as client:
        client.sendall(b"hello")
        assert read_exactly(client, 5) == b"hello"
        took = time.monotonic() - start
        reset(client)
    return took


# --- refused, silent, unreachable ---


def test_an_upstream_hears_of_a_silent_client_at_once(
    upstream: Upstream, make_proxy: Callable[..., tcpproxy.Proxy]
) -> None:
    """The last packet of the handshake does not wait for the client's first bytes."""
    proxy = make_proxy(upstream.name)

    def accepted() -> float:
        start = time.monotonic()
        with connect(proxy.address), upstream.accept():
            return time.monotonic() - start

    at_best(accepted, 0.1, tries=3)


def test_refused(
    closed: Closed, proxied: int, make_proxy: Callable[..., tcpproxy.Proxy], events: list[tcpproxy.Event]
) -> None:
    """Row 40: the client is reset at once, one event tells of it, and the next client finds a proxy that lives."""
    proxy = make_proxy(closed.name, workers=proxied)
    before = descriptors()
    count = len(at_best(lambda: time_to_end(proxy.address), 0.05, tries=10))
    eventually(lambda: sum(event.kind == "failed" for event in events) == count)
    failed = [event for event in events if event.kind == "failed"]
    assert {(event.reason, event.error, event.upstream) for event in failed} == {
        ("connect-refused", errno.ECONNREFUSED, closed.name)
    }
    assert not [event for event in events if event.kind == "end"]
    assert (proxy.stats().failed, proxy.stats().active) == (count, 0)
    eventually(lambda: descriptors() == before)
    closed.listen()
    with connect(proxy.address) as client, closed.accept() as server:
        send_and_shut(client, b"hello")
        assert read_all(server) == b"hello"


def test_refused_is_one_line(closed: Closed, command: Callable[..., Command]) -> None:
    """Row 40: one line a client, with the address and the words of the system; the command lives on."""
    process = command(closed.name)
    for number in range(1, 4):
        time_to_end(process.address)
        eventually(lambda number=number: len(process.stderr) >= number)
    assert len(process.stderr) == 3
    for line in process.stderr:
        assert closed.name in line
        assert os.strerror(errno.ECONNREFUSED) in line
    assert process.process.poll() is None


@bounds(5, 1.1)
def test_silent(
    silent: Silent,
    proxied: int,
    make_proxy: Callable[..., tcpproxy.Proxy],
    events: list[tcpproxy.Event],
    bound: float,
) -> None:
    """Row 41: a black hole ends with the connect timeout, never before it, and is called by its name."""
    proxy = make_proxy(silent.name, workers=proxied, connect_timeout=1)
    before = descriptors()
    times = times_together(proxy.address, 8)
    assert min(times) >= 0.99
    assert statistics.median(times) <= bound
    eventually(lambda: sum(event.kind == "failed" for event in events) == 8)
    assert {event.reason for event in events if event.kind == "failed"} == {"connect-timeout"}
    eventually(lambda: descriptors() == before)


@pytest.mark.parametrize("route", ["unreachable", "prohibit", "blackhole", "none"])
def test_no_route(route: str, stack: contextlib.ExitStack, command: Callable[..., Command]) -> None:
    """Row 42: an address that the system cannot reach fails at once, with the system's own reason."""
    error = {
        "unreachable": errno.EHOSTUNREACH,
        "prohibit": errno.EACCES,
        "blackhole": errno.EINVAL,
        "none": errno.ENETUNREACH,
    }[route]
    namespace = stack.enter_context(contextlib.closing(Namespace()))
    if route != "none":
        namespace.ip("route", "add", route, "192.0.2.1/32")
    process = command("192.0.2.1:9", wrapper=namespace.wrapper)
    count = len(at_best(lambda: namespace.call(time_to_end, process.address), 0.05, tries=3))
    eventually(lambda: len(process.stderr) == count)
    assert all(f"{os.strerror(error)} (os error {error})" in line for line in process.stderr)


# --- several addresses ---


def test_first_address_refuses(
    hosts: Callable[..., tuple[str, ...]], command: Callable[..., Command], stack: contextlib.ExitStack
) -> None:
    """Row 43: the next address is tried at once, without waiting for the stagger."""
    closed = stack.enter_context(contextlib.closing(Closed("127.0.0.4")))
    stack.enter_context(contextlib.closing(Echo("127.0.0.5", closed.port)))
    process = command(f"many.test:{closed.port}", wrapper=hosts(many_test=["127.0.0.4", "127.0.0.5"]))
    at_best(lambda: time_to_echo(process.address), STAGGER / 2, tries=5)
    assert process.complaints == []


def test_first_address_is_silent(
    hosts: Callable[..., tuple[str, ...]], command: Callable[..., Command], stack: contextlib.ExitStack
) -> None:
    """Row 43: the second attempt begins 250 ms after the first, and its connection is used."""
    silent = stack.enter_context(contextlib.closing(Silent("127.0.0.4")))
    stack.enter_context(contextlib.closing(Echo("127.0.0.5", silent.port)))
    process = command("-d", f"many.test:{silent.port}", wrapper=hosts(many_test=["127.0.0.4", "127.0.0.5"]))
    times = at_best(lambda: time_to_echo(process.address), STAGGER * 1.3, tries=5)
    assert min(times) >= STAGGER * 0.95
    # What lost is given up: nothing of it is left when the connections are over.
    pid = process.process.pid
    eventually(lambda: sum("Closed" in line for line in process.stderr) == len(times))
    assert sockets_in_state(pid, silent.port, "02") == 0


@bounds(5, 1.1)
def test_all_addresses_are_silent(
    hosts: Callable[..., tuple[str, ...]], command: Callable[..., Command], stack: contextlib.ExitStack, bound: float
) -> None:
    """Row 43: the connect timeout holds for all addresses together."""
    silent = stack.enter_context(contextlib.closing(Silent("127.0.0.4")))
    for host in ("127.0.0.5", "127.0.0.6"):
        stack.enter_context(contextlib.closing(Silent(host, silent.port)))
    wrapper = hosts(many_test=["127.0.0.4", "127.0.0.5", "127.0.0.6"])
    process = command("--connect-timeout", "1s", f"many.test:{silent.port}", wrapper=wrapper)
    times = times_together(process.address, 5)
    assert min(times) >= 0.99
    assert statistics.median(times) <= bound
    eventually(lambda: len(process.stderr) == 5)
    assert all(os.strerror(errno.ETIMEDOUT) in line for line in process.stderr)


def test_a_later_address_refuses(
    hosts: Callable[..., tuple[str, ...]], command: Callable[..., Command], stack: contextlib.ExitStack
) -> None:
    """Row 43: an attempt under way is not given up because a later one failed."""
    silent = stack.enter_context(contextlib.closing(Silent("127.0.0.4")))
    stack.enter_context(contextlib.closing(Closed("127.0.0.5", silent.port)))
    process = command(f"many.test:{silent.port}", wrapper=hosts(many_test=["127.0.0.4", "127.0.0.5"]))
    with connect(process.address) as client:
        client.sendall(b"hello")
        # Both have been tried when the proxy has been connecting for longer than the stagger.
        assert not select.select([client], [], [], STAGGER * 2)[0]
        silent.let_in()
        with silent.accept() as server:
            assert read_exactly(server, 5) == b"hello"
    assert process.complaints == []


def test_each_address_is_tried_once(
    hosts: Callable[..., tuple[str, ...]],
    command: Callable[..., Command],
    stack: contextlib.ExitStack,
    tmp_path: Path,
) -> None:
    """Rows 43, 52: no retry loop. A client costs one attempt an address, and the failure of all is one line."""
    closed = stack.enter_context(contextlib.closing(Closed("127.0.0.4")))
    addresses = ["127.0.0.4", "127.0.0.5", "127.0.0.6"]
    trace = tmp_path / "trace"
    wrapper = (*strace("-o", str(trace), "-e", "trace=connect"), *hosts(many_test=addresses))
    process = command(f"many.test:{closed.port}", wrapper=wrapper)
    count = len(at_best(lambda: time_to_end(process.address), 0.1, tries=4))
    eventually(lambda: len(process.stderr) == count)
    assert all(f"127.0.0.6:{closed.port}" in line for line in process.stderr)

    def attempts() -> list[str]:
        # Attempts of getaddrinfo to sort its answers are on datagram sockets, and succeed.
        pattern = rf'connect\(.*htons\({closed.port}\).*"([\d.]+)".* = -1 (?:EINPROGRESS|ECONNREFUSED)'
        return re.findall(pattern, trace.read_text())

    eventually(lambda: len(attempts()) >= 3 * count)
    process.end()
    assert attempts() == addresses * count


@pytest.mark.parametrize("listening", ["127.0.0.1", "::1"])
def test_localhost(
    listening: str,
    hosts: Callable[..., tuple[str, ...]],
    command: Callable[..., Command],
    stack: contextlib.ExitStack,
) -> None:
    """Row 44: a name of both families reaches an upstream of either, at once."""
    upstream = stack.enter_context(contextlib.closing(Echo(listening)))
    process = command(f"localhost:{upstream.port}", wrapper=hosts(localhost=["127.0.0.1", "::1"]))
    at_best(lambda: time_to_echo(process.address), STAGGER / 2, tries=5)
    assert process.complaints == []


def test_ipv6_is_silent(
    hosts: Callable[..., tuple[str, ...]], command: Callable[..., Command], stack: contextlib.ExitStack
) -> None:
    """Row 44: IPv6 that leads nowhere costs 250 ms, not the connect timeout; once, and not each connection."""
    silent = stack.enter_context(contextlib.closing(Silent("::1")))
    stack.enter_context(contextlib.closing(Echo("127.0.0.1", silent.port)))
    process = command(f"localhost:{silent.port}", wrapper=hosts(localhost=["127.0.0.1", "::1"]))
    first, *others = (time_to_echo(process.address) for _ in range(5))
    assert first >= STAGGER * 0.95
    assert min(others) < STAGGER / 2


# --- the client, meanwhile ---


def test_client_resets_while_connecting(
    silent: Silent, proxied: int, make_proxy: Callable[..., tcpproxy.Proxy], events: list[tcpproxy.Event]
) -> None:
    """Row 45: nobody is left to connect for; the attempt ends at once and gives its descriptors back."""
    proxy = make_proxy(silent.name, workers=proxied)
    before = descriptors()
    half_closes = itertools.cycle([False, True])

    def time_to_give_back() -> float:
        client = connect(proxy.address)
        if next(half_closes):
            client.shutdown(socket.SHUT_WR)
        eventually(lambda: [it.state for it in proxy.connections()] == ["connecting"])
        start = time.monotonic()
        reset(client)
        eventually(lambda: proxy.stats().active == 0 and descriptors() == before)
        return time.monotonic() - start

    count = len(at_best(time_to_give_back, 0.1, tries=5))
    eventually(lambda: sum(event.kind == "end" for event in events) == count)
    assert {event.reason for event in events if event.kind == "end"} == {"client-reset"}
    assert proxy.stats().failed == 0


@pytest.mark.parametrize("last", ["close", "shutdown", "bytes and reset"])
def test_client_ends_while_connecting(
    last: str,
    silent: Silent,
    proxied: int,
    make_proxy: Callable[..., tcpproxy.Proxy],
    events: list[tcpproxy.Event],
    stack: contextlib.ExitStack,
) -> None:
    """Rows 41, 45: the connect timeout holds for a client that has ended, too, and nothing is left of either."""
    proxy = make_proxy(silent.name, workers=proxied, connect_timeout=1)
    before = descriptors()
    clients = [stack.enter_context(connect(proxy.address)) for _ in range(20)]
    eventually(lambda: [it.state for it in proxy.connections()] == ["connecting"] * 20)
    for client in clients:
        end(client, last)
    eventually(lambda: proxy.stats().active == 0)
    eventually(lambda: sum(event.kind == "failed" for event in events) == 20)
    for client in clients:
        client.close()
    eventually(lambda: descriptors() == before)
    failed = [event for event in events if event.kind == "failed"]
    assert {event.reason for event in failed} == {"connect-timeout"}
    assert all(0.99 < event.duration < 5 for event in failed)


def test_workers_hear_of_each_other(silent: Silent, make_proxy: Callable[..., tcpproxy.Proxy]) -> None:
    """Row 45: what one worker hands to another, or Python asks of it, arrives at once, not with the next timer."""
    for _ in range(30):
        proxy = make_proxy(silent.name, workers=2, connect_timeout=30)
        with contextlib.ExitStack() as clients:
            for _ in range(20):
                clients.enter_context(connect(proxy.address))
            eventually(lambda proxy=proxy: len(proxy.connections()) == 20)
        proxy.stop()


@pytest.mark.parametrize("last", ["close", "shutdown", "bytes and reset"])
@pytest.mark.parametrize("request_", [b"", b"request"], ids=["silent", "request"])
def test_end_while_connecting(
    last: str, request_: bytes, silent: Silent, proxied: int, make_proxy: Callable[..., tcpproxy.Proxy]
) -> None:
    """Row 45: whatever a client sent before it ended arrives, and it gets the answer if it still listens."""
    proxy = make_proxy(silent.name, workers=proxied)
    with connect(proxy.address) as client:
        client.sendall(request_)
        end(client, last)
        pause(1.2)  # upstream's first SYN was lost, and the second one comes after a second
        assert [it.state for it in proxy.connections()] == ["connecting"]
        silent.let_in()
        with silent.accept() as server:
            if last == "bytes and reset":
                assert read_until_reset(server) == request_ + b"bytes"
                return
            assert read_all(server) == request_
            if last == "shutdown":
                send_and_shut(server, b"answer")
                assert read_all(client) == b"answer"
    eventually(lambda: proxy.stats().active == 0)


def end(client: socket.socket, last: str) -> None:
    """Ends it in one of several ways."""
    if last == "close":
        client.close()
    elif last == "shutdown":
        client.shutdown(socket.SHUT_WR)
    elif tells_resets():
        client.sendall(b"bytes")
        reset(client)
    else:
        pytest.skip("needs a system that keeps bytes with a reset behind them")


@pytest.mark.parametrize("lost", [1, 2])
@pytest.mark.parametrize(("workers", "mode"), [("0", ""), ("1", "off"), ("2", "always")])
def test_half_close_before_a_banner(
    lost: int,
    workers: str,
    mode: str,
    namespaces: Callable[[], Namespace],
    command: Callable[..., Command],
    stack: contextlib.ExitStack,
) -> None:
    """Row 45: an end without a byte may be a client that only listens. It gets its banner when the SYN gets through."""
    here = namespaces()
    upstream = stack.enter_context(contextlib.closing(here.call(Upstream)))
    process = command("--workers", workers, "--zero-copy", mode, upstream.name, wrapper=here.wrapper) if mode else None
    address = process.address if process else (upstream.host, upstream.port)
    here.nft("add table ip test; add chain ip test in { type filter hook input priority 0; }")
    syn = f"ip daddr {upstream.host} tcp dport {upstream.port} tcp flags & (syn | ack) == syn"
    here.nft(f"add rule ip test in {syn} limit rate 1/day burst {lost} packets counter drop")
    begin = time.monotonic()
    with here.call(connect, address) as client:
        client.shutdown(socket.SHUT_WR)
        with upstream.accept() as server:
            assert read_all(server) == b""
            send_and_shut(server, b"banner")
            assert read_all(client) == b"banner"
    assert time.monotonic() - begin > 0.9 * lost
    assert not process or process.complaints == []


def test_bytes_before_upstream_is_connected(silent: Silent, command: Callable[..., Command]) -> None:
    """Row 46: what a client sends meanwhile waits in the kernel, not in the proxy, and arrives whole and in order."""
    process = command("--connect-timeout", "60s", silent.name)
    data = payload(12 * MIB)
    with connect(process.address) as client:
        eventually(lambda: sockets_in_state(process.process.pid, silent.port, "02") == 1)
        memory = private_memory(process.process.pid)
        with in_background(send_and_shut, client, data) as sent:
            eventually(lambda: unsent_at_rest(client), what="nothing stopped the client")
            assert not sent
            assert private_memory(process.process.pid) - memory < MIB // 2
            at_best(lambda: cpu_while_asleep(process.process.pid, 0.5), 0.025)
            silent.let_in()
            with silent.accept() as server:
                received = read_all(server)
                assert received == data
                send_and_shut(server, b"answer")
                assert read_all(client) == b"answer"


# --- upstream's first moment ---


def test_upstream_speaks_first(link: Link) -> None:
    """Row 47: with the link turned round, it is the client that does."""
    near, far = link.pair()
    with near, far:
        far.sendall(b"banner")
        assert read_exactly(near, 6) == b"banner"
        near.sendall(b"hello")
        assert read_exactly(far, 5) == b"hello"


@pytest.mark.parametrize("workers", [0, 1, 2], ids=["direct", "1worker", "2workers"])
def test_upstream_closes_at_once(
    upstream: Upstream,
    workers: int,
    make_proxy: Callable[..., tcpproxy.Proxy],
    events: list[tcpproxy.Event],
) -> None:
    """Row 48: the client sees the end of file; upstream sees one connection a client, not a second try."""
    proxy = make_proxy(upstream.name, workers=workers) if workers else None
    link = Link(upstream, proxy, False)
    for _ in range(50):
        client, server = link.pair()
        server.close()
        with client:
            assert client.recv(1) == b""
    assert_no_further_connection(upstream)
    if proxy:
        eventually(lambda: sum(event.kind == "end" for event in events) == 50)
        assert {event.reason for event in events if event.kind == "end"} == {"upstream-eof"}
        assert proxy.stats().failed == 0


@pytest.mark.parametrize("workers", [0, 1, 2], ids=["direct", "1worker", "2workers"])
def test_upstream_resets_at_once(
    upstream: Upstream,
    workers: int,
    make_proxy: Callable[..., tcpproxy.Proxy],
    events: list[tcpproxy.Event],
) -> None:
    """Row 48: also when it closes with a reset, perhaps before the proxy has seen that it is connected."""
    proxy = make_proxy(upstream.name, workers=workers) if workers else None
    address = proxy.address if proxy else (upstream.host, upstream.port)

    def serve() -> None:
        for _ in range(100):
            reset(upstream.accept())

    with in_background(serve):
        for _ in range(100):
            time_to_end(address)
    assert_no_further_connection(upstream)
    if proxy:
        eventually(lambda: sum(event.kind == "end" for event in events) == 100)
        assert {event.reason for event in events if event.kind == "end"} == {"upstream-reset"}
        assert proxy.stats().failed == 0


def assert_no_further_connection(upstream: Upstream) -> None:
    upstream.socket.settimeout(0.1)
    with pytest.raises(TimeoutError):
        upstream.socket.accept()


# --- when this machine has no port or no descriptor for it ---


def test_no_local_port(stack: contextlib.ExitStack, command: Callable[..., Command]) -> None:
    """Row 49: without a free port one client is closed, the others live, and a port that is free again is used."""
    namespace = stack.enter_context(contextlib.closing(Namespace()))
    upstream = stack.enter_context(contextlib.closing(namespace.call(Echo)))
    process = command(upstream.name, wrapper=namespace.wrapper)
    address = process.address
    namespace.sysctl("net.ipv4.ip_local_port_range", "20000 20003")
    ports = iter(range(10000, 10100))  # for the clients: the namespace's, so nobody else has them

    def client() -> socket.socket:
        return stack.enter_context(socket.create_connection(address, TIMEOUT, ("127.0.0.1", next(ports))))

    def talk(connection: socket.socket) -> None:
        connection.sendall(b"hello")
        assert read_exactly(connection, 5) == b"hello"

    served = []
    for _ in range(4):
        served.append(namespace.call(client))
        talk(served[-1])
    for number in range(1, 3):
        start = time.monotonic()
        with pytest.raises(ConnectionResetError):
            namespace.call(client).recv(1)
        assert time.monotonic() - start < 5
        eventually(lambda number=number: len(process.stderr) == number)
    for line in process.stderr:
        assert os.strerror(errno.EADDRNOTAVAIL) in line
    for connection in served:
        talk(connection)
    reset(served.pop())
    eventually(lambda: namespace.call(connections_to, upstream.port) == 3)
    talk(namespace.call(client))
    assert len(process.stderr) == 2


@pytest.mark.parametrize("workers", ["1", "2"], ids=["1worker", "2workers"])
def test_no_descriptor_for_upstream(workers: str, echo: Echo, command: Callable[..., Command]) -> None:
    """Row 50: with one descriptor left the client gets it and upstream none: the client is closed, the others live."""
    process = command("--workers", workers, echo.name)
    pid = process.process.pid

    def failures() -> list[str]:
        # A second worker may find no descriptor for a client either, and say that.
        return [line for line in process.stderr if line.startswith("Error establishing upstream connection")]

    with connect(process.address) as settled:
        settled.sendall(b"hello")
        assert read_exactly(settled, 5) == b"hello"
        limit_descriptors(pid, 1)
        for number in range(1, 4):
            assert time_to_end(process.address) < 5
            eventually(lambda number=number: len(failures()) == number)
        assert all(os.strerror(errno.EMFILE) in line for line in failures())
        settled.sendall(b"hello")
        assert read_exactly(settled, 5) == b"hello"
        limit_descriptors(pid, 2)
        time_to_echo(process.address)
    assert len(failures()) == 3
