"""Names to addresses, off the relay threads: merged queries, and the last good answer when a look-up fails."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time

Address = tuple[bytes, int, int]
"""(raw IPv4 or IPv6 address, port, IPv6 scope id)"""

FRESH = 5.0
"""Seconds that an answer serves new connections."""

RECENT = 300.0
"""Seconds that a good answer may stand in for look-ups that fail."""

PATIENCE = 1.0
"""Seconds that those who wait are kept waiting for a slow look-up while a recent answer is at hand."""

OUT_OF_MEMORY = os.strerror(errno.ENOMEM)


def resolve(host: str, port: int) -> list[Address]:
    """Asks the system; blocks for as long as that takes (tens of seconds when a DNS server is dead).

    Returns:
        Addresses in the order to try them: the system's (RFC 6724), with the families taking turns (RFC 8305,
        section 4), so that one dead family costs one attempt and not all of them.

    Raises:
        OSError: there is no answer; its text says why.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label that IDNA cannot express
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from error
    families: dict[int, list[Address]] = {}
    for family, _, _, _, where in found:
        if family in (socket.AF_INET, socket.AF_INET6):
            raw = socket.inet_pton(family, str(where[0]).partition("%")[0])
            address = (raw, port, int(where[3]) if len(where) == 4 else 0)
            if address not in families.setdefault(family, []):
                families[family].append(address)
    turns = max(map(len, families.values()), default=0)
    return [line[turn] for turn in range(turns) for line in families.values() if turn < len(line)]


class Resolver:
    """Looks one name up again and again, one query at a time, whoever asks meanwhile waits for the same answer."""

    def __init__(self, host: str, port: int) -> None:
        self._where = (host, port)
        self._changed = threading.Condition()
        self._good: list[Address] = []
        self._good_at = -RECENT
        self._asking = False
        self._answers = 0
        self._closed = False
        self.problem = ""
        """Why the last look-up failed; empty after one that did not."""

    def lookup(self, timeout: float | None = None) -> tuple[list[Address], float]:
        """The addresses, after a look-up that all callers share.

        Args:
            timeout: seconds to wait at most; None: until there is an answer. With a recent good answer at hand
                nobody waits longer than PATIENCE.

        Returns:
            The addresses and the seconds that they may be used. No addresses: the look-up failed or takes too long.
        """
        with self._changed:
            before = self._answers
            if not self._asking and not self._closed:
                self._asking = self._begin()
            recent = time.monotonic() - self._good_at < RECENT
            wait = PATIENCE if recent and (timeout is None or timeout > PATIENCE) else timeout
            if self._asking:
                self._changed.wait_for(lambda: self._answers != before or self._closed, wait)
            if self._answers != before and not self.problem:
                return self._good, FRESH
            recent = time.monotonic() - self._good_at < RECENT
            return (self._good, PATIENCE) if recent else ([], 0.0)

    def _begin(self) -> bool:
        # A thread of its own each time: getaddrinfo cannot be interrupted, and must not hold up an exit.
        try:
            threading.Thread(target=self._ask, name="tcpproxy-lookup", daemon=True).start()
        except (RuntimeError, MemoryError) as error:  # no thread left in this process or machine
            self.problem = str(error) or OUT_OF_MEMORY
            return False
        return True

    def close(self) -> None:
        """Lets go everybody who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _ask(self) -> None:
        found: list[Address] = []
        problem = "the look-up failed"
        try:
            found = resolve(*self._where)
            problem = "" if found else "No address associated with hostname"
        except OSError as error:
            problem = error.strerror or str(error)
        except MemoryError:
            problem = OUT_OF_MEMORY
        finally:  # whatever it was: who waits is told, and the next one may ask again
            with self._changed:
                self._asking = False
                self._answers += 1
                self.problem = problem
                if found:
                    self._good, self._good_at = found, time.monotonic()
                self._changed.notify_all()


def numeric(host: str, port: int) -> list[Address] | None:
    """The address itself where `host` is one already, without asking anybody; None: it is a name."""
    with contextlib.suppress(OSError, UnicodeError):
        flags = socket.AI_NUMERICHOST
        for family, _, _, _, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags):
            raw = socket.inet_pton(family, str(where[0]).partition("%")[0])
            return [(raw, port, int(where[3]) if len(where) == 4 else 0)]
    return None
