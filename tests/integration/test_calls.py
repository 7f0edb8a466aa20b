"""System calls: how many a connection and a round trip cost, without waits. Counts do not depend on the machine."""

from __future__ import annotations

import collections
import contextlib
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import Command, strace
from support.peers import Echo, connect, free_port
from support.streams import read_exactly
from support.waiting import TIMEOUT, eventually

MESSAGE = b"m" * 64
BORN = re.compile(r"(?:<\.\.\. )?(accept4?|socket)\b.* = (\d+)$")  # a call that another thread cuts in two is "resumed"
CALL = re.compile(r"(\w+)\((?:\d+, EPOLL_CTL_\w+, )?(\d+)")


@pytest.fixture
def traced(
    command: Callable[..., Command], stack: contextlib.ExitStack, tmp_path: Path
) -> Callable[..., collections.Counter[str]]:
    """Runs an exchange with a traced command, and counts what calls name a socket of its connections: no wait does."""
    # Not one of the ports of outgoing connections, for which there is one call more: see test_meets_itself.py.
    echo = stack.enter_context(contextlib.closing(Echo(port=free_port())))

    def count(exchange: Callable[[tuple[str, int]], None], *options: str) -> collections.Counter[str]:
        trace = tmp_path / "trace"
        wrapper = strace("-s", "0", "-e", "trace=%network,%desc", "-o", str(trace))
        proxy = command(echo.name, "--workers", "1", *(options or ["--quiet"]), wrapper=wrapper)
        if "json" in options:
            eventually(lambda: proxy.stdout, TIMEOUT)
            proxy.stdout[0] = "Listening on " + json.loads(proxy.stdout[0])["listener"]
        exchange(proxy.address)
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        alive: set[str] = set()
        calls: collections.Counter[str] = collections.Counter()
        for line in trace.read_text().splitlines():
            text = line.split(None, 1)[1]
            if (call := CALL.match(text)) and (call[1].startswith("accept") or call[2] in alive):
                calls[call[1]] += 1
                if call[1] == "close":
                    alive.discard(call[2])
            if (born := BORN.match(text)) and (alive or born[1] != "socket"):  # not those of Python
                alive.add(born[2])
                calls["socket"] += born[1] == "socket"
        return calls

    return count


@pytest.mark.parametrize(
    ("options", "names"),
    [(["-q"], 0), (["--sandbox", "off"], 0), (["-d"], 1), (["--log-format", "json"], 1)],
    ids=["quiet", "plain", "debug", "json"],
)
def test_a_connection(traced: Callable[..., collections.Counter[str]], options: list[str], names: int) -> None:
    """One request and its answer: 15 calls. Two to move each of two messages, two to hear of two ends, one to pass an
    end on; eight to begin and end two sockets, one of them a setsockopt. What prints the proxy's own address asks for
    it, and nothing else does.
    """
    connections = 50

    def one_by_one(address: tuple[str, int]) -> None:
        for _ in range(connections):
            with connect(address) as client:
                client.sendall(MESSAGE)
                assert read_exactly(client, len(MESSAGE)) == MESSAGE

    calls = traced(one_by_one, *options)
    assert calls["recvfrom"] >= 4 * connections, "the trace does not show what it should"
    assert calls["getsockname"] == names * connections
    assert calls.total() <= (15.2 + names) * connections, calls


def test_a_connection_with_a_header(traced: Callable[..., collections.Counter[str]]) -> None:
    """--send-proxy costs one send more and nothing else, whoever speaks first."""
    connections, header = 50, 28

    def one_by_one(address: tuple[str, int]) -> None:
        for number in range(connections):
            with connect(address) as client:
                if number % 2:
                    assert len(read_exactly(client, header)) == header  # which the server sends back
                else:
                    client.sendall(MESSAGE)
                    assert read_exactly(client, header + len(MESSAGE)).endswith(MESSAGE)
                for _ in range(2):
                    client.sendall(MESSAGE)
                    assert read_exactly(client, len(MESSAGE)) == MESSAGE

    calls = traced(one_by_one, "-q", "--send-proxy", "v2")
    assert calls["sendto"] >= 3 * connections, "the trace does not show what it should"
    assert calls["getsockname"] == 0
    # The first of three messages costs 15 calls, each of the others 4, and TCP_NODELAY one. A header that comes back
    # alone costs two calls. It stands for the first message here.
    silent = connections // 2
    assert calls.total() <= (15.2 + 2 * 4 + 1 + 1) * connections - 2 * silent, calls


def test_a_round_trip(traced: Callable[..., collections.Counter[str]]) -> None:
    """On busy connections a round trip costs four calls, and never one to change what is watched.

    A connection that has lived for a second gets its keepalive: some more calls, once.
    """
    turns, width = 100, 20

    def busy(address: tuple[str, int]) -> None:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(address)) for _ in range(width)]
            for _ in range(turns):
                for client in clients:
                    client.sendall(MESSAGE)
                for client in clients:
                    assert read_exactly(client, len(MESSAGE)) == MESSAGE

    calls = traced(busy)
    assert calls["recvfrom"] + calls["sendto"] >= 4 * turns * width, "the trace does not show what it should"
    assert calls["epoll_ctl"] <= 2 * width
    assert calls.total() <= (4 * turns + 30) * width, calls
