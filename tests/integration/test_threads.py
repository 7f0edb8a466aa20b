"""The relaying threads: interrupted calls, the one owner of a descriptor, forks, exceptions."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import Command, strace
from support.machine import needs_proc
from support.peers import Echo, Link, Upstream, connect, free_port, reset
from support.states import STATES
from support.streams import MIB, fill, payload, read_all, read_exactly, send_and_shut
from support.waiting import eventually, in_background, pause

import tcpproxy
import tcpproxy._core

# --- calls that are interrupted ---


FAULTS = {
    "interrupted": ["recvfrom,sendto,accept,accept4,?epoll_wait,?epoll_pwait,?poll,?ppoll:error=EINTR:when=2+3"],
    # One that another worker was faster for. Streams are left out: an edge-triggered poller never sees a would-block
    # without an edge to follow.
    "nothing-to-accept": ["accept,accept4:error=EAGAIN:when=1+2"],
    # A wait that comes back with nothing, before its time.
    "woken-for-nothing": ["?epoll_wait,?epoll_pwait:retval=0:when=2+3"],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_invisible(command: Callable[..., Command], echo: Echo, tmp_path: Path, fault: str) -> None:
    """Rows 39, 71: every third call fails in a way that means nothing.

    Not connect: what a trace injects is a call that was not made, and an interrupted connect has been.
    """
    trace = tmp_path / "trace"
    inject = [option for rule in FAULTS[fault] for option in ("-e", f"inject={rule}")]
    names = ",".join(rule.partition(":")[0] for rule in FAULTS[fault])
    wrapper = strace("-e", f"trace={names}", *inject, "-s", "0", "-o", str(trace))
    proxy = command(echo.name, "-d", "--workers", "2", wrapper=wrapper)
    data = payload(2 * MIB)
    for _ in range(10):
        with connect(proxy.address) as near, in_background(send_and_shut, near, data):
            assert read_all(near) == data
    whole = f"{2 * MIB} bytes"
    eventually(lambda: sum(whole in line for line in proxy.stderr) == 20)
    assert not [line for line in proxy.stderr if "rror" in line]
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0
    injected = {line.split()[1].partition("(")[0] for line in trace.read_text().splitlines() if "(INJECTED)" in line}
    if fault == "interrupted":
        assert injected >= {"recvfrom", "sendto"}
        assert injected & {"accept", "accept4"}
    if not injected:
        pytest.skip("this build makes none of these calls")


@pytest.mark.parametrize("workers", [1, 2], ids=["1worker", "2workers"])
def test_signals_interrupt_the_workers(link: Link) -> None:
    """Row 39: signals with a handler, sent to the relaying threads all the time."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("tcpproxy-worker")]
    stop = threading.Event()

    def storm() -> None:
        while not stop.is_set():
            for thread in threads:
                signal.pthread_kill(thread.ident or 0, signal.SIGUSR1)
            stop.wait(0.0002)  # or, on a busy machine, a worker would be interrupted before it has done anything

    signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        data = payload(8 * MIB)
        with in_background(storm):
            try:
                for _ in range(5):
                    near, far = link.pair()
                    with near, far, in_background(send_and_shut, near, data):
                        assert read_all(far) == data
            finally:
                stop.set()
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # not what it was: one may still be under way


# --- owners of descriptors ---


def test_one_thread_owns_a_socket(command: Callable[..., Command], echo: Echo, tmp_path: Path) -> None:
    """Row 72: from birth to close, all calls on a connection's socket come from one thread (but the accept itself)."""
    trace = tmp_path / "trace"
    calls = "trace=accept,accept4,socket,recvfrom,sendto,shutdown,close"
    proxy = command(echo.name, "--quiet", "--workers", "3", wrapper=strace("-e", calls, "-s", "0", "-o", str(trace)))
    for _ in range(5):
        nears = [connect(proxy.address) for _ in range(40)]
        for near in nears:
            near.sendall(b"hello")
        for near in nears:
            assert read_exactly(near, 5) == b"hello"
        for near in nears[::2]:
            reset(near)
        for near in nears[1::2]:
            near.close()
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0
    users: dict[int, set[str]] = {}
    seen: list[set[str]] = []
    for line in trace.read_text().splitlines():
        thread, call = line.split(None, 1)
        if born := re.search(r"(?:accept4?|socket)\b.* = (\d+)$", call):
            users[int(born.group(1))] = set()
        elif (used := re.match(r"\w+\((\d+)", call)) and int(used.group(1)) in users:
            users[int(used.group(1))].add(thread)
            if call.startswith("close"):
                seen.append(users.pop(int(used.group(1))))
    assert len(seen) >= 400
    assert all(len(threads) == 1 for threads in seen)
    assert len(set.union(*seen)) >= 3


@pytest.mark.parametrize("workers", [2, 4], ids=["2workers", "4workers"])
def test_streams_beside_connections_that_come_and_go(link: Link, workers: int) -> None:
    """Row 72: descriptors that are closed and reused all the time never carry bytes of another connection."""
    assert link.proxy
    streams = [link.pair() for _ in range(4)]
    chance = random.Random(3)
    with contextlib.ExitStack() as stack:
        data = [payload(16 * MIB, seed) for seed in range(4)]
        results = []
        for (near, far), bytes_ in zip(streams, data, strict=True):
            stack.enter_context(near)
            stack.enter_context(far)
            stack.enter_context(in_background(send_and_shut, near, bytes_))
            results.append(stack.enter_context(in_background(read_all, far)))
        for number in range(300):
            near, far = link.pair()
            near.sendall(b"%d" % number)
            assert far.recv(100) == b"%d" % number
            for end in chance.sample([near, far], 2):
                chance.choice([reset, socket.socket.close])(end)
    assert [result[0] for result in results] == data


def test_descriptors_close_on_exec(command: Callable[..., Command], echo: Echo) -> None:
    """Row 73: no descriptor but the standard ones would be inherited by a program that is started."""
    needs_proc()
    proxy = command(echo.name, "--quiet", "--workers", "2")
    with connect(proxy.address) as near:
        near.sendall(b"x")
        assert near.recv(1) == b"x"
        kept = []
        for number in map(int, os.listdir(f"/proc/{proxy.process.pid}/fd")):
            info = Path(f"/proc/{proxy.process.pid}/fdinfo/{number}").read_text()
            flags = int(re.search(r"flags:\s+(\d+)", info).group(1), 8)  # type: ignore[union-attr]
            if number > 2 and not flags & os.O_CLOEXEC:
                kept.append(os.readlink(f"/proc/{proxy.process.pid}/fd/{number}"))
    assert kept == []


FORKING = """
import os, sys, tcpproxy, time
with tcpproxy.Proxy(sys.argv[1], workers=2, port=sys.argv[2]) as proxy:
    print(proxy.address[1], flush=True)
    sys.stdin.readline()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(writer)
        os.read(reader, 1)      # until the parent is gone
        os._exit(0)
    print("forked", flush=True)
    sys.stdin.readline()
    while proxy.stats().active:
        time.sleep(0.01)
    time.sleep(0.1)             # behind the turn that closes the last one there may be another
    before = proxy.stats().wakeups
    print("idle", flush=True)
    sys.stdin.readline()
    print(proxy.stats().active, proxy.stats().wakeups - before, flush=True)
    proxy.stop()
    print("stopped", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_child_process_holds_nothing_back(upstream: Upstream, stack: contextlib.ExitStack) -> None:
    """Row 73: a program forks; its child, which lives on, neither keeps connections alive nor the listener."""
    program = subprocess.Popen(
        [sys.executable, "-c", FORKING, upstream.name, str(free_port())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    stack.callback(program.communicate)
    stack.callback(program.kill)
    assert program.stdin
    assert program.stdout

    def go_on() -> None:
        program.stdin.write("\n")
        program.stdin.flush()

    address = ("127.0.0.1", int(program.stdout.readline()))
    pairs = [(connect(address), upstream.accept()) for _ in range(10)]
    go_on()
    assert program.stdout.readline() == "forked\n"
    for number, (near, far) in enumerate(pairs):
        near.sendall(b"%d" % number)
        assert far.recv(10) == b"%d" % number
    for near, far in pairs[:5]:
        near.close()
        assert far.recv(1) == b""
        far.close()
    for near, far in pairs[5:]:
        reset(far)
        with pytest.raises(ConnectionResetError):
            near.recv(1)
        near.close()
    go_on()
    assert program.stdout.readline() == "idle\n"
    pause(0.3)
    go_on()
    active, wakeups = map(int, program.stdout.readline().split())
    assert active == 0
    assert wakeups <= 5
    assert program.stdout.readline() == "stopped\n"
    with pytest.raises(ConnectionRefusedError):
        connect(address)


# --- exceptions ---


def test_no_exception_is_swallowed_in_the_command(command: Callable[..., Command], upstream: Upstream) -> None:
    """Row 77: after connections of every kind and end, in development mode, stderr is empty.

    An exception that nobody can catch, in a thread or in compiled code, would be printed there.
    """
    env = {**os.environ, "PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error,ignore::ResourceWarning"}
    proxy = command(upstream.name, "--quiet", "--workers", "2", "--grace", "100ms", env=env)
    for state in STATES:
        for swapped in (False, True):
            client, server = connect(proxy.address), upstream.accept()
            near, far = (server, client) if swapped else (client, server)
            state(near, far)
            far.close()
            near.close()
    stuck = connect(proxy.address), upstream.accept()
    fill(stuck[0])
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0
    assert proxy.complaints == []
    for end in stuck:
        end.close()


@pytest.mark.parametrize("name", sorted(module.name for module in pkgutil.iter_modules(tcpproxy._core.__path__)))
def test_compiled_code_cannot_swallow_an_exception(name: str) -> None:
    """Row 77: no module of the core contains the call by which compiled code drops an exception it cannot raise."""
    module = importlib.import_module(f"tcpproxy._core.{name}")
    assert b"PyErr_WriteUnraisable" not in Path(module.__file__ or "").read_bytes()
