"""Busy polling: it is there for who asks, and costs nothing where it gains nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from support.command import Command
from support.machine import cpu_seconds
from support.peers import Echo, Upstream, connect
from support.streams import read_exactly, send_and_shut, talk
from support.waiting import TIMEOUT, at_best, in_background, pause

import tcpproxy

MESSAGE = b"m" * 64


def polls(proxy: tcpproxy.Proxy) -> int:
    stats = proxy.stats()
    return stats.polls_hit + stats.polls_missed


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("busy_poll", ["off", "auto", 1000])
def test_a_conversation(
    upstream: Upstream, make_proxy: Callable[..., tcpproxy.Proxy], busy_poll: str | int, workers: int
) -> None:
    """`off` never polls, a number polls after each event, `auto` at least tries it."""
    if busy_poll == "auto" and os.name == "nt":
        pytest.skip("under wine no event follows another fast enough to try it")
    proxy = make_proxy(upstream.name, busy_poll=busy_poll, workers=workers)
    with connect(proxy.address) as client, upstream.accept() as server:
        # The client is on the same processor as its upstream here, so whether polling pays depends on the machine.
        talk(client, server, 3000)
        if busy_poll == "off":
            assert polls(proxy) == 0
            return
        deadline = time.monotonic() + TIMEOUT
        while busy_poll == "auto" and not polls(proxy):  # on a busy machine gaps are longer than it pays to poll for
            assert time.monotonic() < deadline, "it never tries"
            talk(client, server, 1000)
        assert polls(proxy) > (1000 if busy_poll == 1000 else 0)


@pytest.mark.parametrize("busy_poll", ["auto", 1000])
def test_idle_connections_cost_no_processor_time(
    command: Callable[..., Command], upstream: Upstream, busy_poll: str | int
) -> None:
    """After a conversation the proxy sleeps, however much it polled."""
    proxy = command(upstream.name, "--quiet", f"--busy-poll={busy_poll}")
    with connect(proxy.address) as client, upstream.accept() as server:
        talk(client, server, 1000)

        def used() -> float:
            before = cpu_seconds(proxy.process.pid)
            pause(0.5)
            return cpu_seconds(proxy.process.pid) - before

        at_best(used, 0.01)  # the clock ticks in hundredths


def test_long_pauses_are_slept_through(upstream: Upstream, make_proxy: Callable[..., tcpproxy.Proxy]) -> None:
    """With gaps of a millisecond polling cannot pay, and `auto` does not so much as try."""
    proxy = make_proxy(upstream.name)
    with connect(proxy.address) as client, upstream.accept() as server:
        for _ in range(300):
            for source, sink in ((client, server), (server, client)):
                pause(0.001)
                source.sendall(MESSAGE)
                read_exactly(sink, len(MESSAGE))
        assert polls(proxy) == 0


def test_bulk_is_no_conversation(upstream: Upstream, make_proxy: Callable[..., tcpproxy.Proxy]) -> None:
    """Whoever sends bulk does not wait for an answer: the worker sleeps until there is more."""
    proxy = make_proxy(upstream.name)
    data = bytes(256 << 20)
    with connect(proxy.address) as client, upstream.accept() as server, in_background(send_and_shut, client, data):
        while server.recv(1 << 20):
            pass
        assert polls(proxy) < proxy.stats().wakeups / 10


@pytest.mark.timed
def test_who_needs_the_processor_gets_it(command: Callable[..., Command], echo: Echo) -> None:
    """Beside programs that keep every processor busy, `auto` uses hardly more processor time than no polling."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(len(os.sched_getaffinity(0)))]
    try:
        proxies = [command(echo.name, "--quiet", f"--busy-poll={mode}") for mode in ("auto", "off")]
        clients = [connect(proxy.address) for proxy in proxies]

        def surcharge() -> float:
            used = []
            for proxy, client in zip(proxies, clients, strict=True):
                before = cpu_seconds(proxy.process.pid)
                for _ in range(2000):
                    client.sendall(MESSAGE)
                    read_exactly(client, len(MESSAGE))
                used.append(cpu_seconds(proxy.process.pid) - before)
            return used[0] / max(used[1], 0.02)

        at_best(surcharge, 1.3, tries=2)
        for client in clients:
            client.close()
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
