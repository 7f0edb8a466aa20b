"""A peer: how it is started in front of an upstream, and ended. programs.py knows which there are."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.base import Bench, BenchError
from bench.measure import cpu_seconds, settle
from bench.process import free_port, spawn, wait_listening

STARTS = 3
ROWS, COLUMNS = 40, 120


@dataclass(frozen=True)
class Running:
    """A started peer: where to connect, and whose account to read; no process at all for the direct connection."""

    host: str
    port: int
    pid: int | None = None
    asking: bool = False

    def cpu(self) -> float:
        """Returns the CPU seconds used so far."""
        return cpu_seconds(self.pid) if self.pid else 0.0

    def settle(self) -> None:
        """Returns when it has done what it had to do; at once if it never rests."""
        settle(None if self.asking else self.pid)


@dataclass(frozen=True)
class Way:
    """What a peer is started for: where to listen and to connect, and how many connections.

    `directory` is for what it writes, `programs` where what the bench has compiled is.
    """

    host: str
    port: int
    upstream_host: str
    upstream_port: int
    connections: int
    directory: Path
    programs: Path

    @property
    def upstream(self) -> str:
        """The upstream as HOST:PORT."""
        return f"{self.upstream_host}:{self.upstream_port}"


Command = Callable[[Way], list[str]]


@dataclass(frozen=True)
class Peer:
    """A way from client to upstream.

    Attributes:
        command: gives the argv; None: there is no proxy between the two.
        forks: it has a process for each connection.
        asking: it never sleeps.
        special: only cases that name it measure it.
        terminal: it writes to a terminal, which somebody reads.
        prepare: called when it listens, and before anybody connects.
    """

    name: str
    version: str
    command: Command | None = None
    forks: bool = False
    asking: bool = False
    special: bool = False
    terminal: bool = False
    prepare: Callable[[Way], None] | None = None

    @contextlib.contextmanager
    def run(self, bench: Bench, upstream: int) -> Iterator[Running]:
        """Runs the peer in front of the port `upstream` for the length of the block."""
        if self.command is None:
            yield Running(bench.place.upstream_address, upstream)
            return
        with contextlib.ExitStack() as stack:
            yield self._start(stack, bench, upstream)

    def _start(self, stack: contextlib.ExitStack, bench: Bench, upstream: int) -> Running:
        """Starts it on a free port; again if somebody else took the port in between."""
        assert self.command
        errors, place = bench.scratch / "peer.err", bench.place
        for attempt in range(STARTS):
            host, port = place.proxy_address, free_port()
            way = Way(host, port, place.upstream_address, upstream, bench.connections, bench.scratch, bench.programs)
            argv = [*place.proxy, *self.command(way)]
            output = stack.enter_context(_terminal()) if self.terminal else subprocess.DEVNULL
            process = stack.enter_context(spawn(argv, errors, stdin=subprocess.DEVNULL, stdout=output))
            try:
                wait_listening(process, port, errors)
            except BenchError:
                if attempt == STARTS - 1:
                    raise
                stack.close()
                continue
            if self.prepare:
                self.prepare(way)
            running = Running(host, port, process.pid, self.asking)
            running.settle()
            return running
        raise BenchError("not reached")


@contextlib.contextmanager
def _terminal() -> Iterator[int]:
    """Yields a terminal whose other side a thread reads."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", ROWS, COLUMNS, 0, 0))

    def read() -> None:
        with contextlib.suppress(OSError):  # the program is gone
            while os.read(ours, 65536):
                pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield its
    finally:
        os.close(its)
        reader.join()
        os.close(ours)
