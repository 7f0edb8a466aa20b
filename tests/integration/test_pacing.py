"""Bulk over loopback is not paced: nothing on the way could overflow, and pacing takes a timer for each packet."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
from collections.abc import Callable

import pytest
from networks import Namespace
from support.command import Command
from support.machine import needs
from support.peers import Upstream, connect, name_of
from support.streams import payload, read_exactly
from support.waiting import in_background

HERE, THERE = "192.0.2.1", "192.0.2.2"
BULK = payload(2 << 20)
WORDS = b"some words"


def choose(namespace: Namespace, name: str) -> None:
    """Sets the congestion control of connections to come."""
    try:
        namespace.sysctl("net.ipv4.tcp_congestion_control", name)
    except OSError as error:
        pytest.skip(f"this kernel does not have {name} for namespaces: {error.strerror}")


@pytest.fixture
def here(namespaces: Callable[[], Namespace]) -> Namespace:
    """A network namespace whose connections are paced."""
    needs("ss")
    here = namespaces()
    choose(here, "bbr")
    return here


def control(namespace: Namespace, port: int, peer: str) -> str:
    """The name of the congestion control at the end, from this port to that peer, of a connection."""
    argv = [*namespace.wrapper, "ss", "-tinHO", f"sport = :{port} and dst {peer}"]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    found = re.search(r"\b(bbr|reno|cubic)\b", said)
    assert found, said
    return found[1]


def both_ways(client: socket.socket, server: socket.socket, data: bytes) -> None:
    for source, sink in ((client, server), (server, client)):
        with in_background(source.sendall, data):
            assert read_exactly(sink, len(data)) == data


def controls(here: Namespace, at: Namespace, host: str, command: Callable[..., Command], *options: str) -> list[str]:
    """Of the proxy's two ends, that to the client and that to upstream: at first, after some words, and after bulk."""
    with contextlib.closing(at.call(Upstream, host)) as upstream:
        proxy = command(upstream.name, *options, wrapper=here.wrapper)
        with here.call(connect, proxy.address) as client, upstream.accept() as server:
            ends = [(proxy.address[1], name_of(client)), (server.getpeername()[1], upstream.name)]
            found = []
            for data in (b"x", WORDS, BULK):
                both_ways(client, server, data)
                found.append(" ".join(control(here, *end) for end in ends))
            return found


@pytest.mark.parametrize("zero_copy", ["auto", "off"])
def test_bulk_over_loopback(here: Namespace, command: Callable[..., Command], zero_copy: str) -> None:
    """A conversation keeps what the system has chosen, for the sake of a system call."""
    found = controls(here, here, "127.0.0.1", command, "--zero-copy", zero_copy)
    assert found == ["bbr bbr", "bbr bbr", "reno reno"]


def test_a_network_keeps_its_congestion_control(
    here: Namespace, namespaces: Callable[[], Namespace], command: Callable[..., Command]
) -> None:
    there = namespaces()
    here.join(there)
    here.address("v", f"{HERE}/30")
    there.address("v", f"{THERE}/30")
    assert controls(here, there, THERE, command) == ["bbr bbr", "bbr bbr", "reno bbr"]


@pytest.mark.parametrize("host", ["127.0.0.2", "::1", HERE])
def test_an_address_of_this_machine(here: Namespace, command: Callable[..., Command], host: str) -> None:
    """Whichever it is, packets for it go over loopback."""
    here.address("lo", f"{HERE}/32")
    assert controls(here, here, host, command)[-1] == "reno reno"


def test_another_choice_stays(here: Namespace, command: Callable[..., Command]) -> None:
    """It may have its reasons, and is not paced."""
    choose(here, "cubic")
    assert controls(here, here, "127.0.0.1", command)[-1] == "cubic cubic"
