"""Wakeup: how a thread that sleeps is woken."""

from __future__ import annotations

import _socket
import contextlib
import socket


class Wakeup:
    """A socket pair: a byte sent to its writer wakes the thread that waits at its reader."""

    def __init__(self) -> None:
        # _socket: gevent and eventlet replace socket.socket by one that only the thread which made it can wait for.
        self._reader, self._writer = (_socket.socket(fileno=end.detach()) for end in socket.socketpair())
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """The writer's descriptor, for the core, which sends a byte itself."""
        return self._writer.fileno()

    def wake(self) -> None:
        """Wakes the thread, from any other one. A full socket wakes as well; a closed one wakes nobody."""
        with contextlib.suppress(OSError):
            self._writer.send(b"w")

    def wait(self, timeout: float | None = None) -> None:
        """Returns when it has been woken since the last call, or after `timeout` seconds."""
        self._reader.settimeout(timeout)
        with contextlib.suppress(TimeoutError):
            self._reader.recv(4096)

    def close(self) -> None:
        """Closes both ends. Nobody may wait for it any more."""
        self._reader.close()
        self._writer.close()
