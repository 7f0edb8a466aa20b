"""Checked traffic: conversations of every pattern, each planned by its number, judged as a direct connection would be.

The client's first 8 bytes are the number of the conversation, from which the other end knows the plan: how many bytes
go each way, who waits for whose end of file, who reads late, who resets where.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from support.peers import Upstream
from support.streams import payload

PATIENCE = 6.0
"""Seconds without a byte or an end after which an end of a conversation is hung: the proxy's longest linger is 5."""

HEADER = 8
SIZES = (0, 1, 100, 5_000, 65_536, 65_537, 300_000, 1_000_000)
SMALL = 32_768
"""Receive buffer of who reads late; one of a few segments would take seconds a megabyte."""

BLOCK = payload(4 << 20)
"""All streams are pieces of this; each begins at a place of its own, so that bytes of another one are told apart."""

GONE = {errno.ECONNRESET, errno.EPIPE, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ETIMEDOUT, errno.ENOTCONN}


@dataclasses.dataclass(frozen=True)
class Plan:
    """One conversation; `client` and `server` name its two ends."""

    number: int
    up: bytes
    down: bytes
    waits: str
    """Who sends only after the other's end of file; empty: both send at once."""
    late: str
    """Who reads only after it has sent everything, with a small receive buffer."""
    resets: str
    """Who resets, after `reset_after` of its bytes; empty: both end their directions."""
    reset_after: int
    abrupt: bool = False
    """It does not reset, but closes in the middle: the kernel makes that an end, or a reset where bytes were unread."""

    @classmethod
    def make(cls, number: int, resets: float = 0.2, abrupt: float = 0.0) -> Plan:
        """`resets`: the share of conversations that somebody cuts; `abrupt`: the share of these that are closes."""
        chance = random.Random(number)
        up, down = (cls._piece(chance) for _ in range(2))
        up = struct.pack(">Q", number) + up
        who = chance.choice(["client", "server"]) if chance.random() < resets else ""
        after = chance.randint(HEADER, len(up)) if who == "client" else chance.randint(0, len(down))
        waits = chance.choice(["", "", "client", "server"])
        late = chance.choice(["", "client", "server"]) if not waits else ""
        return cls(number, up, down, waits, late, who, after, bool(who) and chance.random() < abrupt)

    @staticmethod
    def _piece(chance: random.Random) -> bytes:
        size = chance.choice(SIZES)
        start = chance.randrange(len(BLOCK) - size)
        return BLOCK[start : start + size]


@dataclasses.dataclass
class Outcome:
    """What one end saw."""

    received: bytearray = dataclasses.field(default_factory=bytearray)
    end: str = ""
    """`eof`, `reset` or `hung`."""


def converse(sock: socket.socket, plan: Plan, who: str, outcome: Outcome) -> None:
    """Plays one end to its end, and closes the socket. The client's number is sent, and was read, before."""
    out = memoryview(plan.up)[HEADER:] if who == "client" else memoryview(plan.down)
    limit = len(out)
    if plan.resets == who:
        limit = max(0, plan.reset_after - (HEADER if who == "client" else 0))
    with sock:
        try:
            _talk(sock, plan, who, outcome, out, limit)
        except OSError as error:
            if error.errno not in GONE:
                raise
            outcome.end = "reset"
        if plan.resets == who and not plan.abrupt:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _talk(sock: socket.socket, plan: Plan, who: str, outcome: Outcome, out: memoryview, limit: int) -> None:
    sock.setblocking(False)
    sent, shut, ended = 0, False, False
    while not (ended and shut):
        if plan.resets == who and sent >= limit:
            return
        may_send = not shut and (ended or plan.waits != who or plan.resets == who)
        may_read = not ended and (plan.late != who or shut)
        readable, writable, _ = select.select([sock] if may_read else [], [sock] if may_send else [], [], PATIENCE)
        if not readable and not writable:
            outcome.end = "hung"
            return
        with contextlib.suppress(BlockingIOError):
            if readable:
                data = sock.recv(200_000)
                outcome.received += data
                ended = not data
        with contextlib.suppress(BlockingIOError):
            if writable and sent < limit:
                sent += sock.send(out[sent : min(limit, sent + 100_000)])
            if writable and sent == len(out) and plan.resets != who:
                sock.shutdown(socket.SHUT_WR)
                shut = True
    outcome.end = "eof"


def judge(plan: Plan, client: Outcome, server: Outcome | None, fatal: bool) -> str:
    """What is wrong with a conversation; empty: nothing. `fatal`: a fault may have ended it, but only by a reset."""
    for who, seen, expected in (("client", client, plan.down), ("server", server, plan.up)):
        if seen is None:
            if not fatal and plan.resets != "client":
                return f"{plan.number}: it never reached the server"
            continue
        if not expected.startswith(seen.received):
            return f"{plan.number}: the {who} got bytes that were not sent"
        if seen.end == "hung":
            return f"{plan.number}: the {who} hung with {len(seen.received)} of {len(expected)} bytes"
        if plan.resets == who:
            continue
        sent = plan.reset_after if plan.abrupt else len(expected)
        if seen.end == "eof" and (len(seen.received) < sent or (plan.resets and not plan.abrupt)):
            return f"{plan.number}: the {who} got an end of file after {len(seen.received)} of {sent} bytes"
        if seen.end == "reset" and not plan.resets and not fatal:
            return f"{plan.number}: the {who} was reset after {len(seen.received)} of {len(expected)} bytes"
    return ""


class Server(Upstream):
    """The upstream end of conversations."""

    def __init__(self, host: str = "127.0.0.1", resets: float = 0.2, abrupt: float = 0.0) -> None:
        super().__init__(host)
        self.resets, self.abrupt = resets, abrupt
        self.outcomes: dict[int, Outcome] = {}
        self.troubles: list[str] = []
        self._changed = threading.Condition()
        self._under_way: set[int] = set()
        self._pool = ThreadPoolExecutor(256)
        self.socket.settimeout(None)
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def plan(self, number: int) -> Plan:
        return Plan.make(number, self.resets, self.abrupt)

    def _accept(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # closed
            while True:
                connection, _ = self.socket.accept()
                self._pool.submit(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            number = self._number(connection)
            if number is None:
                connection.close()
                return
            with self._changed:
                self._under_way.add(number)
            plan = self.plan(number)
            if plan.late == "server":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            outcome = Outcome(bytearray(plan.up[:HEADER]))
            converse(connection, plan, "server", outcome)
            with self._changed:
                self._under_way.discard(number)
                self.outcomes[number] = outcome
                self._changed.notify_all()
        except Exception as error:  # a thread of a pool keeps it to itself
            self.troubles.append(f"the server failed: {error!r}")
            with self._changed:
                self._under_way.clear()
                self._changed.notify_all()

    def _number(self, connection: socket.socket) -> int | None:
        connection.settimeout(PATIENCE)
        header = b""
        while len(header) < HEADER:
            try:
                part = connection.recv(HEADER - len(header))
            except TimeoutError:
                self.troubles.append("the server got no number")
                return None
            except OSError:
                return None
            if not part:
                self.troubles.append(f"the server got an end of file after {len(header)} bytes of the number")
                return None
            header += part
        return int.from_bytes(header, "big")

    def outcome(self, number: int, expected: bool) -> Outcome | None:
        """What the server saw of this conversation, once it is over; None: it has not come. `expected`: wait for it."""
        with self._changed:
            if expected:
                self._changed.wait_for(lambda: number in self.outcomes, PATIENCE)
            # Not forever: an end that hangs gives up by itself.
            self._changed.wait_for(lambda: number not in self._under_way, 20 * PATIENCE)
            return self.outcomes.pop(number, None)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        super().close()
        self._acceptor.join()
        self._pool.shutdown()


class Traffic:
    """Conversations through an address that leads to `server`, several at a time. Adds up what was wrong."""

    def __init__(self, server: Server, address: tuple[str, int], together: int = 8) -> None:
        self.server, self.address, self.together = server, address, together
        self.troubles: list[str] = []
        self.ends: Counter[str] = Counter()
        self.bytes = 0
        self.slowest = 0.0

    def run(self, numbers: Iterable[int], fatal: bool = False) -> None:
        """Holds the conversations with these numbers. `fatal`: a reset that nobody planned is no trouble."""
        with ThreadPoolExecutor(self.together) as pool:
            held = list(pool.map(lambda number: self._hold(number, fatal), numbers))
        threading.Event().wait(0.1)  # the server may not have heard yet of one that was cut
        for plan, outcome, seen in held:
            if seen is None:
                seen = self.server.outcome(plan.number, False)
            self.ends[outcome.end or "resetting"] += 1
            self.bytes += len(outcome.received) + (len(seen.received) if seen else 0)
            trouble = judge(plan, outcome, seen, fatal)
            self.troubles += [trouble] if trouble else []
        self.troubles += self.server.troubles
        self.server.troubles.clear()

    def _hold(self, number: int, fatal: bool) -> tuple[Plan, Outcome, Outcome | None]:
        plan = self.server.plan(number)
        outcome = Outcome()
        start = time.monotonic()
        self._play(plan, outcome)
        cut = fatal or plan.resets == "client"
        seen = None if cut else self.server.outcome(number, True)
        self.slowest = max(self.slowest, time.monotonic() - start)
        return plan, outcome, seen

    def _play(self, plan: Plan, outcome: Outcome) -> None:
        sock = socket.socket()
        if plan.late == "client":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        sock.settimeout(3 * PATIENCE)  # a SYN that is lost is sent again after 1, 3 and 7 seconds
        try:
            sock.connect(self.address)
            sock.settimeout(PATIENCE)
            sock.sendall(plan.up[:HEADER])
        except OSError as error:
            sock.close()
            outcome.end = "reset" if error.errno in GONE else "hung"
            return
        converse(sock, plan, "client", outcome)
