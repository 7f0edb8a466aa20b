"""A double of a service manager: passes sockets, hears what it is told, keeps descriptors."""

from __future__ import annotations

import contextlib
import socket
import threading

from .command import python
from .waiting import TIMEOUT, eventually

HAND_OVER = """
import fcntl
high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 200) for fd in {descriptors}]
for fd in set({descriptors}):
    os.close(fd)
for number, fd in enumerate(high):
    os.dup2(fd, 3 + number)
    os.close(fd)
os.environ.update({environ})
os.environ["LISTEN_PID"] = str(os.getpid() + {pid_off_by})
"""
"""What runs before the command, in its process."""


class Manager:
    """Has a socket for messages, an address of which is in `environ`, and a store.

    Args:
        address: of the socket: a path, or an abstract name with an '@'.
    """

    def __init__(self, address: str) -> None:
        self.environ = {"NOTIFY_SOCKET": address}
        self.messages: list[dict[str, str]] = []
        self.store: dict[str, socket.socket] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._address())
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _address(self) -> str:
        address = self.environ["NOTIFY_SOCKET"]
        return f"\0{address[1:]}" if address.startswith("@") else address

    def _listen(self) -> None:
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._socket, 4096, 16)
            if data == b"the end":
                return
            message = dict(line.split("=", 1) for line in data.decode().split("\n"))
            received = [socket.socket(fileno=each) for each in descriptors]
            if "FDSTORE" in message:
                self.store[message["FDNAME"]] = received.pop()
            if "FDSTOREREMOVE" in message:
                self.store.pop(message["FDNAME"]).close()
            for each in received:  # of a barrier
                each.close()
            self.messages.append(message)

    def told(self, key: str, within: float = TIMEOUT) -> dict[str, str]:
        """The first message with this key, once it has come."""
        eventually(lambda: any(key in each for each in list(self.messages)), within, f"no {key}")
        return next(each for each in self.messages if key in each)

    def count(self, key: str) -> int:
        return sum(key in each for each in list(self.messages))

    def close(self) -> None:
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as own:
            own.sendto(b"the end", self._address())
        self._thread.join(TIMEOUT)
        for each in (self._socket, *self.store.values()):
            each.close()


def passing(
    sockets: dict[str, socket.socket] | list[socket.socket], pid_off_by: int = 0, **environ: str
) -> dict[str, object]:
    """Arguments for `Command`, so that it has these sockets as systemd passes them: with names, or without.

    Args:
        sockets: what it has from descriptor 3 on.
        pid_off_by: the sockets are for the process with the number of the command and this.
        environ: further variables, or others in place of those that are right.
    """
    given = list(sockets.values() if isinstance(sockets, dict) else sockets)
    if given:
        environ.setdefault("LISTEN_FDS", str(len(given)))
    if isinstance(sockets, dict):
        environ.setdefault("LISTEN_FDNAMES", ":".join(sockets))
    descriptors = [each.fileno() for each in given]
    code = HAND_OVER.format(descriptors=descriptors, environ=environ, pid_off_by=pid_off_by)
    return {"wrapper": python(code), "pass_fds": descriptors}
