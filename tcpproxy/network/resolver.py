"""Looks names up outside the worker threads: callers share a query, and use the last good answer if it fails."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Collection

from ..native import Event, Lock, getaddrinfo, make_thread, monotonic

Address = tuple[bytes, int, int]
"""(raw IPv4 or IPv6 address, port, IPv6 scope id)"""

TTL = 5.0
"""Seconds for which an answer is used for new connections."""

MAX_STALE = 300.0
"""Seconds for which a good answer is used while lookups fail."""

STALE_AFTER = 1.0
"""Seconds that a caller waits for a slow query before it gets the last good answer."""

OUT_OF_MEMORY = os.strerror(errno.ENOMEM)


def resolve(host: str, port: int) -> list[Address]:
    """Asks the system. Blocks until there is an answer: tens of seconds when a DNS server is dead.

    Returns:
        Addresses in the order of attempts: that of the system (RFC 6724), with alternating families (RFC 8305, section
        4), so that an unreachable family delays only every second attempt.

    Raises:
        OSError: there is no answer; its text says why.
    """
    try:
        found = getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        if host.rstrip(".").lower() != "localhost":
            raise
        # Without /etc/hosts the C library asks the network. RFC 6761 defines the addresses of localhost.
        return [(b"\x7f\0\0\1", port, 0), (bytes(15) + b"\1", port, 0)]
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
    """Resolves one name. At most one query is in flight; concurrent callers share its answer.

    Args:
        host: the name.
        port: is added to each address.
        lengths: the lengths of raw addresses that can be used: 4 (IPv4), 16 (IPv6) or both.
    """

    def __init__(self, host: str, port: int, lengths: Collection[int] = (4, 16)) -> None:
        self._where = (host, port)
        self._lengths = lengths
        self._lock = Lock()
        self._good: list[Address] = []
        self._good_at = -MAX_STALE
        self._query: Event | None = None  # is set when the query in flight has an answer, or the resolver is closed
        self._answers = 0
        self._closed = False
        self._is_own: Callable[[Address], bool] = lambda _address: False
        self.lookup_error = ""
        """Why the last lookup failed; empty if it succeeded."""

    def ask(self) -> int:
        """Begins a query without waiting. Returns the argument `asked` for the `lookup` that waits for the answer."""
        with self._lock:
            before = self._answers
            self._query = self._query or (None if self._closed else self._begin())
        return before

    def lookup(self, timeout: float | None = None, asked: int | None = None) -> tuple[list[Address], float]:
        """Returns the addresses, after a query that all concurrent callers share.

        Args:
            asked: from `ask`; None: begins a query now, or joins the one in flight.
            timeout: seconds to wait at most; None: until there is an answer. If the last good answer is younger than
                MAX_STALE, the wait is at most STALE_AFTER.

        Returns:
            The addresses, and the seconds for which they may be used. No addresses: the query failed or takes too long.
        """
        with self._lock:
            before = self._answers if asked is None else asked
            if not self._query and not self._closed and self._answers == before:
                self._query = self._begin()
            query = self._query
            if query and self._closed:  # by `close`, before it could see the query
                query.set()
            recent = monotonic() - self._good_at < MAX_STALE
        if query:
            query.wait(STALE_AFTER if recent and (timeout is None or timeout > STALE_AFTER) else timeout)
        with self._lock:
            if self._answers != before and not self.lookup_error:
                return self._good, TTL
            recent = monotonic() - self._good_at < MAX_STALE
            return (self._good, STALE_AFTER) if recent else ([], 0.0)

    def leave_out(self, is_own: Callable[[Address], bool]) -> None:
        """From now on answers lack the addresses of the proxy itself, because a connection there would be a loop."""
        with self._lock:
            self._is_own = is_own
            self._good = [address for address in self._good if not is_own(address)]

    def _begin(self) -> Event | None:
        # A thread for each query: getaddrinfo cannot be interrupted, and must not delay an exit.
        query = Event()
        try:
            make_thread("tcpproxy-lookup", self._ask, query).start()
        except (RuntimeError, MemoryError) as error:  # no thread left in this process or machine
            self.lookup_error = str(error) or OUT_OF_MEMORY
            return None
        return query

    def close(self) -> None:
        """Wakes all waiters; no query begins any more. Takes no lock: a signal handler may call it at any time."""
        self._closed = True
        if query := self._query:
            query.set()

    def _ask(self, query: Event) -> None:
        found: list[Address] = []
        lookup_error = "the lookup failed"
        try:
            known = resolve(*self._where)
            usable = [address for address in known if len(address[0]) in self._lengths]
            found = [address for address in usable if not self._is_own(address)]
            none = "No address associated with hostname" if not known else "no address of the family of the source"
            own = "it is this proxy's own address"
            lookup_error = "" if found else own if usable else none
        except OSError as error:
            lookup_error = error.strerror or str(error)
        except MemoryError:
            lookup_error = OUT_OF_MEMORY
        finally:  # on every outcome: wake all waiters and allow the next query
            with self._lock:
                self._query = None
                self._answers += 1
                self.lookup_error = lookup_error
                if found:
                    self._good, self._good_at = found, monotonic()
            query.set()


def numeric(host: str, port: int) -> list[Address] | None:
    """Returns the address of a numeric `host`, without a query. None: it is a name, or has the name of an interface.

    Such a host is looked up each time: a tunnel's or a virtual machine's interface may go and come back, and then has
    another number (scope id).
    """
    scope = host.partition("%")[2]
    if scope and not scope.isdecimal():
        return None
    for family in (socket.AF_INET, socket.AF_INET6):  # getaddrinfo imports the codec for IDNA: a millisecond
        with contextlib.suppress(OSError, ValueError):
            return [(socket.inet_pton(family, host), port, 0)]
    with contextlib.suppress(OSError, UnicodeError):
        flags = socket.AI_NUMERICHOST
        for family, _, _, _, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags):
            raw = socket.inet_pton(family, str(where[0]).partition("%")[0])
            return [(raw, port, int(where[3]) if len(where) == 4 else 0)]
    return None
