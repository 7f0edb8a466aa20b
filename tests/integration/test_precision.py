"""How exact the times of faults are."""

from __future__ import annotations

import contextlib
import selectors
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import Command, python, strace
from support.peers import Echo, connect
from support.streams import MIB, echoes, read_exactly
from support.waiting import TIMEOUT, at_best, bounds, eventually, pause

import tcpproxy
from tcpproxy._core.worker import POLLER

ROUNDED_UP = 0.001
"""Seconds by which waits are longer where the kernel only has the old call."""


def late(proxy: tcpproxy.Proxy, latency: float, rounds: int = 100) -> list[float]:
    """How much later than the latency answers arrive, in seconds, sorted."""
    found = []
    with connect(proxy.address) as client:
        for number in range(rounds):
            pause(number % 5 * 0.0003)  # no rhythm that waits of whole milliseconds would fit
            begin = time.monotonic()
            assert echoes(client)
            found.append(time.monotonic() - begin - latency)
    return sorted(found)


@bounds(0.200, 0.001)
def test_latency_is_exact(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo, bound: float) -> None:
    """Never early, and hardly late."""
    found = late(make_proxy(echo.name, faults="latency=50ms"), 0.050)
    assert found[0] >= 0
    assert found[50] < bound


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="not every system can")
def test_latency_is_not_rounded_up(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """A round trip and a delay of 0.1 ms together take less than waits of whole milliseconds allow."""
    proxy = make_proxy(echo.name, faults="latency=100us", workers=1, busy_poll="off")
    at_best(lambda: late(proxy, 0.0001)[50], 0.7 * ROUNDED_UP)


@bounds(0.100, 0.001)
def test_the_first_byte_of_a_slow_line(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo, bound: float) -> None:
    """It comes at once; only what follows has to wait."""
    proxy = make_proxy(echo.name, faults="bandwidth=10MB/s")

    def first_byte() -> float:
        with connect(proxy.address) as client:
            assert echoes(client)
            begin = time.monotonic()
            client.sendall(bytes(MIB // 4))
            read_exactly(client, 1)
            return time.monotonic() - begin

    assert sorted(first_byte() for _ in range(21))[10] < bound


def wakeups_of_many(proxy: tcpproxy.Proxy, least: float) -> int:
    """Returns how often the worker wakes for the answers of 150 connections that are due within some milliseconds."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(proxy.address)) for _ in range(150)]
        begin = time.monotonic()
        for client in clients:
            client.sendall(b"x")
        eventually(lambda: sum(each.held[1] for each in proxy.connections()) == len(clients))
        before = proxy.stats().wakeups
        waiting = selectors.DefaultSelector()
        for client in clients:
            waiting.register(client, selectors.EVENT_READ)
        assert waiting.select(TIMEOUT)
        assert time.monotonic() - begin >= least
        for client in clients:
            assert client.recv(1) == b"x"
        count = proxy.stats().wakeups - before
    eventually(lambda: proxy.stats().active == 0)  # the ends are delayed, too
    return count


def test_many_delays_share_wakeups(make_proxy: Callable[..., tcpproxy.Proxy], echo: Echo) -> None:
    """And none is early. On a busy machine the answers may not be due together."""
    proxy = make_proxy(echo.name, faults="latency=500ms,jitter=10ms", workers=1, busy_poll="off")
    at_best(lambda: wakeups_of_many(proxy, 0.49), 150)


# --- old kernels, and system calls that are forbidden ---

FILTERED = """
import ctypes, struct
steps = ((0x20, 0, 0, 0), (0x15, 0, 1, 441), (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7FFF0000))
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *it) for it in steps))
about = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program)))
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, about, 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP
"""
"""A seccomp filter that ends the process for epoll_pwait2."""


@pytest.mark.skipif(POLLER != "epoll", reason="the call is epoll's")
def test_a_filter_that_does_not_know_the_call(command: Callable[..., Command], echo: Echo) -> None:
    proxy = command("--fault", "both:latency=5ms", echo.name, wrapper=python(FILTERED))
    with connect(proxy.address) as client:
        assert all(echoes(client) for _ in range(5))


@pytest.mark.skipif(POLLER != "epoll", reason="the call is epoll's")
@pytest.mark.parametrize("error", ["ENOSYS", "EPERM"])
def test_a_kernel_without_the_call(command: Callable[..., Command], echo: Echo, tmp_path: Path, error: str) -> None:
    """Before Linux 5.11: it is asked once, and times are rounded up."""
    trace = tmp_path / "trace"
    wrapper = strace("-e", "trace=epoll_pwait2", "-e", f"inject=epoll_pwait2:error={error}", "-o", str(trace))
    proxy = command("--workers=1", "--fault", "both:latency=5ms", echo.name, wrapper=wrapper)
    with connect(proxy.address) as client:
        assert all(echoes(client) for _ in range(5))
    assert trace.read_text().count("INJECTED") == 1


@pytest.mark.skipif(POLLER != "epoll", reason="the call is epoll's")
def test_without_faults_the_call_is_the_usual_one(command: Callable[..., Command], echo: Echo, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    proxy = command(echo.name, wrapper=strace("-e", "trace=epoll_pwait2", "-o", str(trace)))
    with connect(proxy.address) as client:
        assert echoes(client)
    assert "epoll_pwait2" not in trace.read_text()
