"""Units of work that repeat exactly, to be counted: a round trip, a connection, a megabyte.

What a proxy does for one depends on how its events fall together. So one thread holds both ends, does one step at a
time, and waits after each until the proxy has finished it and sleeps.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.base import BenchError
from bench.measure import cpu_seconds

MESSAGE = b"e" * 64
PIECES = 16
PATIENCE = 60.0
QUIET = 0.0005

Unit = Callable[[], None]


@dataclass(frozen=True)
class Stage:
    """A proxy between a client and an upstream that are both here.

    Attributes:
        port: where it listens.
        pid: its process.
        upstream: the listener of the upstream.
        metrics: the port of its metrics, if it has any.
        header: the size of the header that it sends upstream on each connection, in bytes.
    """

    port: int
    pid: int
    upstream: socket.socket
    metrics: int
    header: int

    def rest(self) -> None:
        """Returns when the proxy has used no CPU time for a moment."""
        deadline, before = time.monotonic() + PATIENCE, -1.0
        while (now := cpu_seconds(self.pid)) != before:
            if time.monotonic() > deadline:
                raise BenchError("the proxy does not come to rest")
            before = now
            time.sleep(QUIET)

    @contextlib.contextmanager
    def connection(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Yields both ends of a connection that stands; both are closed at the end, the client's last."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as client:
            server, _ = self.upstream.accept()
            with server:
                for end in (client, server):
                    end.settimeout(PATIENCE)
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                receive(server, self.header)
                self.rest()
                yield client, server
            self.rest()

    def pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        """Passes one message through."""
        source.sendall(MESSAGE)
        receive(sink, len(MESSAGE))
        self.rest()


def receive(end: socket.socket, size: int) -> None:
    """Receives so many bytes."""
    while size:
        if not (got := len(end.recv(size))):
            raise BenchError("the proxy closed the connection")
        size -= got


@contextlib.contextmanager
def round_trip(stage: Stage) -> Iterator[Unit]:
    """64 bytes there and back on a connection that stands."""
    with stage.connection() as (client, server):

        def once() -> None:
            stage.pass_on(client, server)
            stage.pass_on(server, client)

        yield once


@contextlib.contextmanager
def connection(stage: Stage) -> Iterator[Unit]:
    """A connection, a round trip in it, and its end, which the client begins."""

    def once() -> None:
        with stage.connection() as (client, server):
            stage.pass_on(client, server)
            stage.pass_on(server, client)
            client.shutdown(socket.SHUT_WR)
            if server.recv(1):
                raise BenchError("bytes from nowhere")
            stage.rest()

    yield once


@contextlib.contextmanager
def megabyte(stage: Stage) -> Iterator[Unit]:
    """A megabyte up, in pieces that are one segment each over loopback, and so one event."""
    piece = bytes(10**6 // PIECES)
    with stage.connection() as (client, server):

        def once() -> None:
            for _ in range(PIECES):
                client.sendall(piece)
                receive(server, len(piece))
                stage.rest()

        yield once


@contextlib.contextmanager
def scrape(stage: Stage) -> Iterator[Unit]:
    """A GET of the metrics."""

    def once() -> None:
        asking = http.client.HTTPConnection("127.0.0.1", stage.metrics, timeout=PATIENCE)
        asking.request("GET", "/metrics")
        if (answer := asking.getresponse()).status != 200:
            raise BenchError(f"no metrics: {answer.status}")
        answer.read()
        asking.close()
        stage.rest()

    yield once
