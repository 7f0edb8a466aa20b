"""Clients and upstreams with real sockets, and links between two of them, direct or proxied."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading

import tcpproxy

from .streams import echoes, read_exactly
from .waiting import TIMEOUT


class Upstream:
    """A listening socket on loopback that hands out the connections it gets."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, backlog: int = 4096) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.create_server((host, port), family=family, backlog=backlog)
        self.socket.settimeout(TIMEOUT)
        self.host, self.port = self.socket.getsockname()[:2]

    @property
    def name(self) -> str:
        """As the command and Proxy want it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def accept(self) -> socket.socket:
        connection, _ = self.socket.accept()
        connection.settimeout(TIMEOUT)
        return connection

    def close(self) -> None:
        self.socket.close()


class Serving(Upstream):
    """Serves each connection in a thread of its own.

    Nothing of that outlives `close`: a descriptor that is closed later would be missing in the next test's count.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(host, port)
        self.socket.settimeout(None)
        self._live: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def serve(self, connection: socket.socket) -> None:
        """One connection, to its end or an OSError; it is closed afterwards."""
        raise NotImplementedError

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                thread = threading.Thread(target=self._run, args=(connection,), daemon=True)
                with self._lock:
                    self._live[connection] = thread
                thread.start()

    def _run(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self.serve(connection)
        with self._lock:  # its number must not be another's when `close` shuts it down
            connection.close()
            del self._live[connection]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        super().close()
        self._acceptor.join(TIMEOUT)
        with self._lock:
            threads = list(self._live.values())
            for connection in self._live:
                with contextlib.suppress(OSError):  # reset meanwhile
                    connection.shutdown(socket.SHUT_RDWR)  # wakes its thread
        for thread in threads:
            thread.join(TIMEOUT)


class Echo(Serving):
    """Sends everything back, and passes an end of file on."""

    def serve(self, connection: socket.socket) -> None:
        while data := connection.recv(65536):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)


class Named(Serving):
    """Says which one it is, and then sends everything back."""

    def serve(self, connection: socket.socket) -> None:
        connection.sendall(f"{self.port:5}".encode())
        while data := connection.recv(65536):
            connection.sendall(data)


class Link:
    """Makes pairs of connected sockets. `near` and `far` are the client's and the upstream's end, or swapped."""

    def __init__(self, upstream: Upstream, proxy: tcpproxy.Proxy | None, swapped: bool) -> None:
        self.upstream, self.proxy, self._swapped = upstream, proxy, swapped

    def pair(self, early: bytes = b"") -> tuple[socket.socket, socket.socket]:
        """`early`: bytes that `near` sends at once; a client does not wait until the upstream has accepted."""
        address = self.proxy.address if self.proxy else (self.upstream.host, self.upstream.port)
        client = connect(address)
        if not self._swapped:
            client.sendall(early)
        server = self.upstream.accept()
        if self._swapped:
            server.sendall(early)
        return (server, client) if self._swapped else (client, server)

    @property
    def direct(self) -> bool:
        return self.proxy is None


def free_port() -> int:
    """A port that nothing uses; not one of those that the kernel gives to tests running at the same time (32768 on)."""
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def connect(address: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(address, timeout=TIMEOUT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def said(address: tuple[str, int]) -> int:
    """The port of the Named that a connection reaches."""
    with connect(address) as client:
        return int(read_exactly(client, 5))


def name_of(sock: socket.socket, *, peer: bool = False) -> str:
    """The address of its own end, or of the other one, as log lines write it."""
    host, port = (sock.getpeername() if peer else sock.getsockname())[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def relays(address: tuple[str, int], data: bytes = b"hello") -> bool:
    with connect(address) as client:
        return echoes(client, data)


def answers(address: tuple[str, int]) -> bool:
    """Does a proxy listen there, and relay?"""
    with contextlib.suppress(ConnectionRefusedError):
        return relays(address)
    return False


def reset(sock: socket.socket) -> None:
    """Closes with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
