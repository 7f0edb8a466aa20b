"""Networks that delay, lose, double, reorder, damage and refuse packets: what arrives is what was sent."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import select
import socket
import time
from collections.abc import Callable

import pytest
from campaigns import campaign
from networks import Namespace, Wire
from support.command import Command
from support.machine import resident
from support.peers import Echo, Upstream, connect
from support.streams import KIB, MIB, payload, read_all, read_exactly, send_and_shut
from support.waiting import bounds, eventually, in_background
from traffic import Server, Traffic
from wire import Impairment

SEED = int(os.environ.get("FAULTS_SEED", "1"))

# --- a bad cable ---


@pytest.fixture
def plug(
    namespaces: Callable[[], Namespace], stack: contextlib.ExitStack
) -> Callable[..., tuple[Namespace, Namespace, Wire]]:
    """Two namespaces, 10.0.0.1 and 10.0.0.2, and a cable between them."""

    def plug(impairment: Impairment, mtu: int = 1500) -> tuple[Namespace, Namespace, Wire]:
        one, other = namespaces(), namespaces()
        return one, other, stack.enter_context(contextlib.closing(Wire(one, other, impairment, mtu)))

    return plug


RELAYS = [("direct", 0, ""), ("copy", 1, "off"), ("splice", 2, "always")]

ORDERLY = {
    "far": (Impairment(delay=0.03, jitter=0.005), 1500),
    "disorderly": (Impairment(delay=0.005, jitter=0.002, reorder=0.1, duplicate=0.05), 1500),
}
"""Every packet arrives: conversations may be reset."""

LOSING = {
    "lossy": (Impairment(delay=0.002, loss=0.03), 1500),
    "damaging": (Impairment(delay=0.002, corrupt=0.03), 1500),
    "narrow": (Impairment(delay=0.002, rate=3e6, queue=0.05), 300),
    "everything": (Impairment(0.01, 0.003, loss=0.01, duplicate=0.01, reorder=0.03, corrupt=0.001), 1500),
}
"""A reset that is lost is not sent again, so nobody resets here: what would be told is TCP's own silence."""


@pytest.mark.parametrize(("relay", "workers", "zero_copy"), RELAYS, ids=[relay[0] for relay in RELAYS])
@pytest.mark.parametrize("network", [*ORDERLY, *LOSING])
def test_conversations_over_a_bad_cable(
    network: str,
    relay: str,
    workers: int,
    zero_copy: str,
    plug: Callable[..., tuple[Namespace, Namespace, Wire]],
    stack: contextlib.ExitStack,
    command: Callable[..., Command],
    rounds: int,
) -> None:
    """Rows 1 to 10, 15, 18, 88, 89: every pattern of conversation, with both legs of the relay over the cable."""
    impairment, mtu = (ORDERLY | LOSING)[network]
    peers, middle, wire = plug(dataclasses.replace(impairment, seed=SEED), mtu)
    resets = 0.2 if network in ORDERLY else 0.0
    where, host = (peers, "10.0.0.1") if workers else (middle, "10.0.0.2")
    server = stack.enter_context(contextlib.closing(where.call(Server, host, resets)))
    address = (server.host, server.port)
    if workers:
        options = ("-q", "-b", "10.0.0.2", "--workers", str(workers), "--zero-copy", zero_copy, server.name)
        address = command(*options, wrapper=middle.wrapper).address
    traffic = Traffic(server, address)
    for number in range(SEED * 1000, SEED * 1000 + rounds):
        peers.call(traffic.run, range(10 * number, 10 * number + 10))
    fates = wire.unplug()
    campaign(f"{network}, {relay}, {fates}", sum(fates.values()) - fates["packets"], traffic)
    assert traffic.troubles == []
    expected = {name for name in ("loss", "duplicate", "reorder", "corrupt") if getattr(impairment, name) >= 0.01}
    assert expected <= {name for name, count in fates.items() if count}


@bounds(0.1, 0.9)
def test_narrow_way_out(
    plug: Callable[..., tuple[Namespace, Namespace, Wire]],
    stack: contextlib.ExitStack,
    command: Callable[..., Command],
    bound: float,
) -> None:
    """Row 90: a fast sender, and 20 Mbit/s to the receiver: they are used, and nothing piles up in the relay."""
    rate = 20e6 / 8
    peers, middle, _ = plug(Impairment(delay=0.005, rate=rate))
    upstream = stack.enter_context(contextlib.closing(peers.call(Upstream, "10.0.0.1")))
    process = command("-q", "--workers", "1", upstream.name, wrapper=middle.wrapper)
    data = payload(5 * MIB)
    with middle.call(connect, process.address) as client, upstream.accept() as server:
        client.sendall(b"!")
        assert read_exactly(server, 1) == b"!"
        before = resident(process.process.pid)
        begin = time.monotonic()
        with in_background(send_and_shut, client, data):
            received = read_exactly(server, 1)
            flowing = time.monotonic()
            received += read_exactly(server, len(data) // 2)
            growth = resident(process.process.pid) - before
            received += read_all(server)
            end = time.monotonic()
    assert received == data
    assert growth <= 256 * KIB
    assert len(data) / (end - begin) < rate
    assert len(data) / (end - flowing) > bound * rate


# --- a firewall ---

TABLE = "add table ip test; add chain ip test in {{ type filter hook input priority 0; }}; add rule ip test in {}"

REJECTS = [
    ("tcp reset", errno.ECONNREFUSED),
    ("icmp type port-unreachable", errno.ECONNREFUSED),
    ("icmp type host-unreachable", errno.EHOSTUNREACH),
    ("icmp type admin-prohibited", errno.EHOSTUNREACH),
    ("icmp type net-unreachable", errno.ENETUNREACH),
    ("icmp type prot-unreachable", errno.ENOPROTOOPT),
]


@pytest.mark.parametrize(("reject", "error"), REJECTS, ids=[reject for reject, _ in REJECTS])
def test_upstream_behind_a_firewall_that_rejects(
    reject: str,
    error: int,
    namespaces: Callable[[], Namespace],
    stack: contextlib.ExitStack,
    command: Callable[..., Command],
) -> None:
    """Rows 40, 42: the client is told at once, the log says what the system said; the others and the next ones live."""
    here = namespaces()
    echo = stack.enter_context(contextlib.closing(here.call(Echo)))
    process = command("-q", echo.name, wrapper=here.wrapper)
    with here.call(connect, process.address) as settled:
        talk(settled)
        here.nft(TABLE.format(f"tcp dport {echo.port} tcp flags syn reject with {reject}"))
        begin = time.monotonic()
        here.call(be_turned_away, process.address)
        assert time.monotonic() - begin < 5  # less than the connect timeout
        eventually(lambda: process.stderr)
        assert f"{os.strerror(error)} (os error {error})" in process.stderr[0]
        talk(settled)
        here.nft("delete table ip test")
        with here.call(connect, process.address) as client:
            talk(client)
    assert len(process.stderr) == 1


def test_upstream_behind_a_firewall_that_drops(
    namespaces: Callable[[], Namespace], stack: contextlib.ExitStack, command: Callable[..., Command]
) -> None:
    """Row 41: the client is told when the connect timeout is over; one that waits gets in when the firewall opens."""
    here = namespaces()
    echo = stack.enter_context(contextlib.closing(here.call(Echo)))
    process = command("-q", "--connect-timeout", "1", echo.name, wrapper=here.wrapper)
    patient = command("-q", echo.name, wrapper=here.wrapper)
    with here.call(connect, process.address) as settled:
        talk(settled)
        here.nft(TABLE.format(f"tcp dport {echo.port} tcp flags syn drop"))
        begin = time.monotonic()
        with here.call(connect, process.address) as client, here.call(connect, patient.address) as waiting:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            assert 0.99 < time.monotonic() - begin < 5
            talk(settled)
            here.nft("delete table ip test")
            talk(waiting)
    eventually(lambda: process.stderr)
    assert os.strerror(errno.ETIMEDOUT) in process.stderr[0]
    assert len(process.stderr) == 1
    assert patient.complaints == []


@pytest.mark.parametrize("rule", ["drop", "reject with icmp type host-unreachable", "reject with tcp reset"])
@pytest.mark.parametrize("swapped", [False, True], ids=["client-to-upstream", "upstream-to-client"])
def test_firewall_amid_a_connection(
    rule: str,
    swapped: bool,
    namespaces: Callable[[], Namespace],
    stack: contextlib.ExitStack,
    command: Callable[..., Command],
) -> None:
    """Rows 16, 17, 42: what is filtered for a while arrives later; only a reset ends the connection."""
    here = namespaces()
    upstream = stack.enter_context(contextlib.closing(here.call(Upstream)))
    process = command("-q", "--workers", "1", upstream.name, wrapper=here.wrapper)
    client = stack.enter_context(here.call(connect, process.address))
    server = stack.enter_context(upstream.accept())
    near, far = (server, client) if swapped else (client, server)
    near.sendall(b"before")
    assert read_exactly(far, 6) == b"before"
    # Only what the proxy sends to the far end, not what the near end sends to the proxy.
    ports = far.getpeername()[1], far.getsockname()[1]
    here.nft(TABLE.format(f"tcp sport {ports[0]} tcp dport {ports[1]} {rule}"))
    data = payload(3 * MIB)
    if "tcp" in rule:
        near.sendall(b"refused")
        with pytest.raises(ConnectionResetError):
            near.recv(1)
        return
    with in_background(send_and_shut, near, data):
        assert not select.select([far], [], [], 0.5)[0]
        here.nft("delete table ip test")
        assert read_all(far) == data


def be_turned_away(address: tuple[str, int]) -> None:
    """By a reset, which may come before connect() has returned."""
    with pytest.raises(ConnectionResetError), connect(address) as client:
        client.recv(1)


def talk(client: socket.socket) -> None:
    client.sendall(b"hello")
    assert read_exactly(client, 5) == b"hello"
