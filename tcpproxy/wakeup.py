"""Wakeup: wakes a thread that waits, from another thread or from the core."""

from __future__ import annotations

import _socket
import contextlib
import socket


class Wakeup:
    """A socket pair: a byte sent into one end wakes the thread that waits at the other."""

    def __init__(self) -> None:
        # _socket: gevent and eventlet replace socket.socket by a class whose sockets only one thread can wait for.
        self._reader, self._writer = (_socket.socket(fileno=end.detach()) for end in socket.socketpair())
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """Returns the descriptor of the end to send to, for the core, which sends a byte itself."""
        return self._writer.fileno()

    def wake(self) -> None:
        """Wakes the thread. Any thread may call it."""
        with contextlib.suppress(OSError):  # full: the thread is being woken already; closed: no thread waits
            self._writer.send(b"w")

    def wait(self, timeout: float | None = None) -> None:
        """Waits for a wake-up since the last call, or for `timeout` seconds; None: no limit."""
        self._reader.settimeout(timeout)
        with contextlib.suppress(TimeoutError):
            self._reader.recv(4096)

    def close(self) -> None:
        """Closes both ends. No thread may wait any more."""
        self._reader.close()
        self._writer.close()
