"""The campaigns' traffic without a fault: the control. It is what the sanitizers and valgrind watch, too."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable

import pytest
from campaigns import campaign, valgrind
from support.command import Command
from support.machine import sockets
from support.waiting import eventually
from traffic import Server, Traffic

import tcpproxy

SEED = int(os.environ.get("FAULTS_SEED", "1"))


@pytest.mark.parametrize("zero_copy", ["off", "always"])
def test_conversations(
    workers: int, zero_copy: str, make_proxy: Callable[..., tcpproxy.Proxy], server: Server, rounds: int
) -> None:
    """Every pattern of conversation, directly and through a proxy in this process."""
    address = (server.host, server.port)
    if workers:
        address = make_proxy(server.name, workers=workers, zero_copy=zero_copy).address
    traffic = Traffic(server, address)
    numbers = itertools.count(SEED * 1_000_000)
    traffic.run(itertools.islice(numbers, 25 * rounds))
    campaign(f"steady, {workers} workers, zero-copy {zero_copy}, seed {SEED}", 0, traffic)
    assert traffic.troubles == []


def test_starts_and_stops(server: Server, rounds: int) -> None:
    """Proxies that are stopped while connections come, relay and end leave nothing behind; row 31."""
    before = sockets()
    numbers = itertools.count(SEED * 1_000_000)
    over = threading.Event()
    address = [(server.host, server.port)]
    traffics = [Traffic(server, address[0], together=1) for _ in range(8)]

    def load(traffic: Traffic) -> None:
        while not over.is_set():
            traffic.address = address[0]
            traffic.run([next(numbers)], fatal=True)

    threads = [threading.Thread(target=load, args=(traffic,), daemon=True) for traffic in traffics]
    for number in range(20 * rounds):
        with tcpproxy.Proxy(server.name, workers=1 + number % 2, zero_copy="always", on_event=lambda _: None) as proxy:
            address[0] = proxy.address
            if number == 0:
                for thread in threads:
                    thread.start()
            eventually(lambda proxy=proxy: proxy.stats().ended >= 5, 20)
            assert len(proxy.connections()) <= proxy.stats().accepted
    over.set()
    for thread in threads:
        thread.join()
    assert [trouble for traffic in traffics for trouble in traffic.troubles] == []
    eventually(lambda: sockets() == before, 10, "sockets stay open")


def test_under_valgrind(server: Server, command: Callable[..., Command], rounds: int) -> None:
    """Fifty conversations through a command that valgrind watches."""
    wrapper = valgrind()
    if not wrapper:
        pytest.skip("runs by tools/sanitize.py valgrind")
    for workers, zero_copy in (("1", "off"), ("2", "always")):
        proxy = command("--quiet", f"--workers={workers}", f"--zero-copy={zero_copy}", server.name, wrapper=wrapper)
        eventually(lambda proxy=proxy: proxy.stdout or proxy.process.poll() is not None, 120)
        traffic = Traffic(server, proxy.address, together=4)
        numbers = itertools.count(SEED * 1_000_000)
        traffic.run(itertools.islice(numbers, 25 * rounds))
        campaign(f"valgrind, {workers} worker(s), zero-copy {zero_copy}", 0, traffic)
        proxy.signal(signal.SIGTERM)
        assert proxy.wait(60) == 0
        assert traffic.troubles == []
