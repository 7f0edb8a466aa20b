"""Bytes on a connected socket: payloads, reading to a size or to the end, filling a connection, round trips."""

from __future__ import annotations

import contextlib
import hashlib
import select
import socket
import threading
from collections.abc import Callable, Iterator

from .waiting import TIMEOUT, in_background, pause

KIB, MIB = 1 << 10, 1 << 20


def echoes(connection: socket.socket, data: bytes = b"still there") -> bool:
    connection.sendall(data)
    return read_exactly(connection, len(data)) == data


def is_over(connection: socket.socket) -> bool:
    """Reads until the end, by end of file or reset."""
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(1 << 16):
            pass
    return True


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the end of file."""
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = sock.recv(min(size, 1 << 20))
        assert part, f"end of file with {size} bytes missing"
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def payload(size: int, seed: int = 1) -> bytes:
    """Bytes that do not repeat, the same for the same seed."""
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(size)


def send_and_shut(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def talk(client: socket.socket, server: socket.socket, turns: int = 1, thinking: float = 0) -> None:
    """Round trips; the client waits before each."""
    message = b"m" * 64
    for _ in range(turns):
        if thinking:
            pause(thinking)
        client.sendall(message)
        read_exactly(server, len(message))
        server.sendall(message)
        read_exactly(client, len(message))


@contextlib.contextmanager
def bulk(pairs: list[tuple[socket.socket, socket.socket]]) -> Iterator[Callable[[], int]]:
    """Sends on the first and reads on the second of each pair, as one thread can; yields a count of the bytes."""
    stop = threading.Event()
    chunk, scratch = bytes(256 << 10), bytearray(256 << 10)
    sources, sinks = zip(*pairs, strict=True)
    moved = 0

    def run() -> None:
        nonlocal moved
        for end in (*sources, *sinks):
            end.setblocking(False)
        while not stop.is_set():
            readable, writable, _ = select.select(sinks, sources, [], 0.1)
            with contextlib.suppress(BlockingIOError):
                for sink in readable:
                    moved += sink.recv_into(scratch)
                for source in writable:
                    source.send(chunk)

    with in_background(run):
        try:
            yield lambda: moved
        finally:
            stop.set()


def fill(sock: socket.socket, quiet: float = 0.3) -> int:
    """Sends until nothing has been taken for `quiet` seconds. Returns how many bytes went."""
    total = 0
    sock.setblocking(False)
    chunk = bytes(1 << 16)
    while select.select([], [sock], [], quiet)[1]:
        with contextlib.suppress(BlockingIOError):
            total += sock.send(chunk)
    sock.settimeout(TIMEOUT)
    return total


def send_until_full(sock: socket.socket, data: bytes) -> int:
    """Like `fill`, with these bytes, of which there must be enough. Returns how many of them went."""
    sent = 0
    sock.setblocking(False)
    while sent < len(data) and select.select([], [sock], [], 0.3)[1]:
        with contextlib.suppress(BlockingIOError):
            sent += sock.send(data[sent : sent + (1 << 16)])
    sock.settimeout(TIMEOUT)
    assert sent < len(data), "the connection took everything"
    return sent


def choke(sock: socket.socket) -> int:
    """Like `fill`, but to the last byte: also the room that is left when a poller no longer says "writable"."""
    total = refusals = 0
    sock.setblocking(False)
    while refusals < 10:
        try:
            total += sock.send(bytes(1 << 16))
            refusals = 0
        except BlockingIOError:
            refusals += 1
            threading.Event().wait(0.04)  # a window probe, 200 ms later, finds room that was too little to announce
    sock.settimeout(TIMEOUT)
    return total


def unsent_at_rest(sock: socket.socket) -> bool:
    """Does the socket take nothing, for a while?"""
    return all(not select.select([], [sock], [], 0.1)[1] for _ in range(3))


def read_until_reset(sock: socket.socket, size: int = 1 << 20, every: float = 0) -> bytes:
    """What comes before the reset; an end of file is a failure."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while True:
            parts.append(sock.recv(size))
            assert parts[-1], f"end of file after {sum(map(len, parts))} bytes, not a reset"
            pause(every)
    return b"".join(parts)


def hears_of_reset(sock: socket.socket, within: float) -> bool:
    """Does the kernel report an error or hang-up of it? Unlike a read, this works after the end of file too."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(within * 1000))
