"""Clients that come all the time, for what must refuse none of them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from .peers import connect
from .streams import echoes
from .waiting import eventually, in_background

CLIENTS = 6


class Load:
    """Clients that come one after the other, each of which must be served to its end; and those that stay."""

    def __init__(self, address: tuple[str, int], dial: Callable[[tuple[str, int]], socket.socket] = connect) -> None:
        self.address, self.over, self.served = address, False, 0
        self._dial = dial
        self._lock = threading.Lock()

    def _come_and_go(self) -> None:
        while not self.over:
            with self._dial(self.address) as client:
                for _ in range(3):
                    assert echoes(client)
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
            with self._lock:
                self.served += 1

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While the block runs, no client is refused and none is reset."""
        with contextlib.ExitStack() as stack:
            for _ in range(CLIENTS):
                stack.enter_context(in_background(self._come_and_go))
            try:
                yield
            finally:
                self.over = True
        assert self.served > 5 * CLIENTS

    def more(self) -> None:
        """Returns when some more have been served."""
        before = self.served
        eventually(lambda: self.served >= before + 2 * CLIENTS, 60)
