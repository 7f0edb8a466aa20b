"""System calls of the workers fail, injected by strace, while checked traffic runs.

Rows 39, 49, 50, 53-55, 63, 80, 81. What strace injects is a call that was not made. So a would-block is injected only
where it promises no edge (accept4); an interrupted connect and a failing close, which both have happened, are the
business of test_shim.py.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from campaigns import Holdings, campaign, nobody_hung
from support.command import Command
from support.machine import needs
from support.peers import Upstream, connect
from support.streams import read_exactly
from support.waiting import TIMEOUT, eventually
from traffic import Server, Traffic

from tcpproxy._core.worker import POLLER

WORKERS = 2

HARMLESS = {
    "accept4": "EAGAIN ECONNABORTED EINTR EMFILE ENETDOWN ENFILE ENOBUFS ENOMEM EPERM EPROTO",
    "recvfrom": "EINTR",
    "sendto": "EINTR",
    "splice": "EINTR EINVAL ENOSYS EOPNOTSUPP EPERM",
    "pipe2": "EMFILE ENFILE ENOMEM EPERM",
    "fcntl": "EBUSY EINVAL ENOMEM EPERM",
    "?epoll_wait,?epoll_pwait,?epoll_pwait2,?poll,?ppoll": "EINTR",
    "setsockopt": "EACCES EDOM EINVAL ENOBUFS ENOMEM ENOPROTOOPT EPERM",
    "ioctl": "EINVAL ENOTTY EPERM",
}
"""Errors that no peer may notice."""

FATAL = {
    "socket": "EACCES EAFNOSUPPORT EMFILE ENFILE ENOBUFS ENOMEM EPERM EPROTONOSUPPORT",
    "connect": "EACCES EADDRNOTAVAIL EAGAIN ECONNREFUSED EHOSTUNREACH ENETUNREACH ENOBUFS EPERM ETIMEDOUT",
    "recvfrom": "ECONNABORTED ECONNRESET EHOSTUNREACH EIO ENETDOWN ENOBUFS ENOMEM EPIPE ETIMEDOUT",
    "sendto": "ECONNRESET EHOSTUNREACH ENETDOWN ENETUNREACH ENOBUFS ENOMEM EPERM EPIPE ETIMEDOUT",
    "splice": "ECONNRESET EIO ENOMEM EPIPE ETIMEDOUT",
    **({"epoll_ctl": "ENOMEM ENOSPC EPERM"} if POLLER == "epoll" else {}),
    "shutdown": "EIO ENOBUFS ENOMEM ENOTCONN EPERM",
}
"""Errors that may end the connection which they hit; then by a reset."""

PATTERNS = ("1+2", "2+3", "3+5", "7+11")
RARE = ("9+40", "20+30", "31+50")
"""For what ends connections: each must get somewhere first."""

SOME = ("1..401+2", "2..602+3", "3..503+5")
"""For waits, which a worker makes all the time: strace must not let go of it amid one that it has changed, or the
worker gets ENOSYS from it, and ends. So traffic goes on until all of these are over."""


class Tracer:
    """strace, attached to the worker threads of a running command."""

    def __init__(self, process: Command, inject: str, record: Path, workers: int = WORKERS) -> None:
        pid = process.process.pid
        # In the order of their start: the main thread, the one that starts the proxy, the workers, others.
        self.threads = sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))[2 : 2 + workers]
        attach = [option for thread in self.threads for option in ("-p", str(thread))]
        calls = inject.partition(":")[0]
        argv = [
            "strace",
            "-qq",
            "-s",
            "0",
            "-o",
            str(record),
            "-e",
            f"trace={calls}",
            "-e",
            f"inject={inject}",
            *attach,
        ]
        self._pid, self._record = pid, record
        self._process = subprocess.Popen(argv, stderr=subprocess.PIPE)

    def __enter__(self) -> Tracer:
        eventually(self._attached, TIMEOUT, "strace does not attach")
        return self

    def _attached(self) -> bool:
        if self._process.poll() is not None:
            assert self._process.stderr
            pytest.skip(f"strace ended: {self._process.stderr.read().decode().strip()}")
        return all(self._tracer(thread) for thread in self.threads)

    def _tracer(self, thread: int) -> bool:
        status = Path(f"/proc/{self._pid}/task/{thread}/status").read_text()
        return "TracerPid:\t0\n" not in status

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)  # it lets go of the threads, which go on
        self._process.communicate(timeout=TIMEOUT)

    def injected(self) -> int:
        return self._record.read_text().count("(INJECTED)")

    def over(self) -> bool:
        """Is nothing injected any more? Asks for many more calls of each thread than there are between two faults."""
        calls: dict[int, list[str]] = {thread: [] for thread in self.threads}
        for line in self._record.read_text().split("\n")[:-1]:
            thread, _, call = line.partition(" ")
            calls[int(thread)].append(call)
        return all(len(made) > 20 and "(INJECTED)" not in "".join(made[-20:]) for made in calls.values())


PIPES = ("splice", "pipe2", "fcntl")
"""Calls that are only made for pipes; few are made at all once a worker has some to keep."""

CASES = [(calls, errors, False) for calls, errors in HARMLESS.items()]
CASES += [(calls, errors, True) for calls, errors in FATAL.items()]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("calls", "errors", "fatal"), CASES, ids=lambda value: str(value).replace("?", "").split(",")[0]
)
def test_calls_that_fail(
    calls: str,
    errors: str,
    fatal: bool,
    command: Callable[..., Command],
    server: Server,
    tmp_path: Path,
    rounds: int,
) -> None:
    """Some calls of a kind fail, with one error after the other."""
    needs("strace")
    zero_copy = "always" if calls in PIPES else "auto"
    proxy = command("--quiet", f"--workers={WORKERS}", f"--zero-copy={zero_copy}", server.name)
    numbers = itertools.count(1)
    traffic = Traffic(server, proxy.address, together=16)
    if calls not in PIPES:
        traffic.run(itertools.islice(numbers, 20))
    holdings = Holdings(proxy)
    injected = 0
    rare = fatal and calls in ("recvfrom", "sendto", "splice", "setsockopt")
    patterns = itertools.cycle(RARE if rare else SOME if "?" in calls else PATTERNS)
    for _ in range(rounds):
        for error in errors.split():
            inject = f"{calls}:error={error}:when={next(patterns)}"
            with Tracer(proxy, inject, tmp_path / "record") as tracer:
                traffic.run(itertools.islice(numbers, 16), fatal)
                deadline = time.monotonic() + 3 * TIMEOUT
                while "?" in calls and not tracer.over():
                    assert time.monotonic() < deadline, "the faults do not end"
                    traffic.run(itertools.islice(numbers, 16), fatal)
            injected += tracer.injected()
    traffic.run(itertools.islice(numbers, 20))
    campaign(f"strace {calls} {'fatal' if fatal else 'harmless'}", injected, traffic)
    holdings.check()
    assert traffic.troubles == [], proxy.stderr
    nobody_hung(traffic)
    if "?" not in calls:
        assert injected


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_header_that_waits(version: str, command: Callable[..., Command], tmp_path: Path) -> None:
    """Upstream's kernel has no room for the PROXY header: it is sent when it has, and the client's bytes behind it."""
    needs("strace")
    with contextlib.closing(Upstream()) as upstream:
        proxy = command("--quiet", "--workers=1", "--send-proxy", version, upstream.name)
        address = proxy.address  # its threads run
        with Tracer(proxy, "sendto:error=EAGAIN:when=1..2", tmp_path / "record", 1) as tracer:
            client = connect(address)
            client.sendall(b"hello")
            server = upstream.accept()
            pushes = 0
            while not select.select([server], [], [], 0.1)[0]:
                server.sendall(b"x")  # makes the poller say that there is room
                pushes += 1
            header = 28
            if version == "v1":
                (_, port), (_, own) = client.getsockname(), client.getpeername()
                header = len(f"PROXY TCP4 127.0.0.1 127.0.0.1 {port} {own}\r\n")
            assert read_exactly(server, header + 5)[header:] == b"hello"
            assert read_exactly(client, pushes) == b"x" * pushes
        assert tracer.injected() == 2
        client.close()
        server.close()


def test_header_that_waits_in_vain(command: Callable[..., Command], tmp_path: Path) -> None:
    """It counts as a part of connecting."""
    needs("strace")
    with contextlib.closing(Upstream()) as upstream:
        options = ["-d", "--workers=1", "--send-proxy", "v1", "--connect-timeout", "500ms"]
        proxy = command(*options, upstream.name)
        address = proxy.address
        with Tracer(proxy, "sendto:error=EAGAIN:when=1+1", tmp_path / "record", 1), connect(address) as client:
            server = upstream.accept()
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b"?"
            server.close()
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        assert [("timed out" in line, "upstream" in line) for line in proxy.complaints] == [(True, True)]


def test_getsockopt_fails(command: Callable[..., Command], tmp_path: Path, rounds: int) -> None:
    """It is asked why a connect has failed, and must not be needed for that."""
    needs("strace")
    with socket.socket() as reserved, contextlib.closing(Server()) as server:
        reserved.bind(("127.0.0.1", 0))  # nobody listens
        proxy = command("--quiet", f"--workers={WORKERS}", f"127.0.0.1:{reserved.getsockname()[1]}")
        traffic = Traffic(server, proxy.address)
        traffic.run(range(20), fatal=True)
        holdings = Holdings(proxy)
        injected = 0
        for error in ("EACCES", "EINVAL", "ENOBUFS", "ENOMEM", "ENOPROTOOPT"):
            with Tracer(proxy, f"getsockopt:error={error}:when=1+2", tmp_path / "record") as tracer:
                traffic.run(range(10 * rounds), fatal=True)
            injected += tracer.injected()
        campaign("strace getsockopt", injected, traffic)
        holdings.check()
        assert traffic.troubles == [], proxy.stderr
        nobody_hung(traffic)
        assert traffic.ends["eof"] == traffic.ends["hung"] == 0
        assert injected
