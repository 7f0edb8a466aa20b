"""Plays a schedule on a connection, direct or relayed, and judges what the ends have seen by what TCP promises.

The rules, for an end that reads to its end:

- What it read is a prefix of what the other end's kernel took, byte for byte.
- An end of file comes after all of it, and only if the other end has said so.
- If nobody has aborted, that end of file does come, and no error.
- If the other end was reset before it had said its end of file, an error comes, never an end of file.
- An abort destroys what is still on its way. But bytes that the peer's kernel had acknowledged have arrived: on Linux
  they can be read, whatever comes behind them. Behind a relay, "the peer" is the relay, which must pass them on, as
  long as the reader takes them (one that rests for 100 ms may lose them) and they come in order: a reset may overtake
  what was sent before it and is lost, or still on its way. Loopback, too, loses segments when a thousand small ones
  come at once, and has a queue for each processor; with all of them busy it came so once in a thousand schedules of
  two megabytes and a reset.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from support.command import Command
from support.machine import fcntl, termios
from support.peers import Upstream, reset
from support.streams import payload
from support.waiting import eventually

from .schedule import Abort, Frozen, Pause, Read, Schedule, Send, Settle, Shut, Step, Talk

STREAM = 24 << 20
"""The most that one end can send."""
PATIENCE = 0.08
"""Seconds; a reader that took longer, since this machine was busy, may have lost acknowledged bytes."""

DISORDER = ("TCPRcvQDrop", "RcvPruned", "TCPBacklogDrop", "TCPOFOQueue")
"""Counters of segments for which a socket had no room (many small ones take it up), or that came out of order."""

_period = payload(1 << 20)
STREAMS = [memoryview(_period * (STREAM >> 20)), memoryview(_period[::-1] * (STREAM >> 20))]
"""What each end sends. A period is as long as a pipe, and so longer than anything that could be lost or come twice."""


class Violation(AssertionError):  # noqa: N818 - not an error of the program's
    """An end has seen what TCP does not show."""


@dataclass(frozen=True)
class Wire:
    """How connections are made: `narrow` ones have small segments and windows, so that little fills them."""

    narrow: bool

    def shape(self, sock: socket.socket) -> None:
        """Before it connects or listens."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.narrow:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)


def disorder() -> int:
    """Segments lost or out of order so far, on any connection; also those for which loopback's queue was full."""
    with open("/proc/net/netstat", encoding="ascii") as file:
        names, values = (line.split() for line in file if line.startswith("TcpExt:"))
    sockets = sum(int(value) for name, value in zip(names, values, strict=True) if name in DISORDER)
    with open("/proc/net/softnet_stat", encoding="ascii") as file:
        return sockets + sum(int(line.split()[1], 16) for line in file)


class Path:
    """A way to upstream: direct, or through the command, which can be put to sleep."""

    def __init__(self, wire: Wire, hang: float, relay: Callable[[str], Command] | None = None) -> None:
        self.wire, self.hang = wire, hang
        self.upstream = Upstream()
        wire.shape(self.upstream.socket)
        self._relay = relay
        self.command = self._start()
        self.asleep = False

    def _start(self) -> Command | None:
        if self._relay is None:
            self.address = (self.upstream.host, self.upstream.port)
            return None
        command = self._relay(self.upstream.name)
        try:
            eventually(lambda: command.stdout or command.process.poll() is not None, 120)  # it may be under valgrind
        except BaseException:
            command.end()
            raise
        self.address = command.address
        self._files = f"/proc/{command.process.pid}/fd"
        self._sockets = self._count()
        return command

    def restart(self) -> None:
        """After a violation: what it has left behind must not spoil the next schedule."""
        self.close()
        self.upstream = Upstream()
        self.wire.shape(self.upstream.socket)
        self.command = self._start()

    def close(self) -> None:
        self.upstream.close()
        if self.command:
            self.command.end()
        self.asleep = False

    def stop(self) -> None:
        """The relay ends as it is told; a sanitizer then looks for leaks."""
        if self.command:
            self.command.signal(signal.SIGTERM)
            assert self.command.wait() == 0, self.command.stderr

    def sleep(self) -> None:
        if self.command and not self.asleep:
            self.command.signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self.command.process.pid, os.WSTOPPED)  # comes once all its threads have stopped
            self.asleep = True

    def wake(self) -> None:
        if self.command and self.asleep:
            self.command.signal(signal.SIGCONT)
            self.asleep = False

    def _count(self) -> int:
        """The relay's sockets; pipes it may keep for later."""
        total = 0
        for number in os.listdir(self._files):
            with contextlib.suppress(OSError):  # closed meanwhile
                total += os.readlink(f"{self._files}/{number}").startswith("socket:")
        return total

    def check_at_rest(self) -> None:
        """No descriptor is left of the connection that was."""
        if not self.command:
            return
        deadline = time.monotonic() + self.hang
        while (count := self._count()) != self._sockets:
            if self.command.process.poll() is not None:
                raise Violation(f"the relay has died: {self.command.process.returncode}")
            if time.monotonic() > deadline:
                raise Violation(f"{count - self._sockets} sockets left open by the relay")
            time.sleep(0.0002)


@dataclass
class Half:
    """One end: what it has sent and seen."""

    number: int
    sock: socket.socket | None = None
    queued: int = 0
    """Bytes of its stream that the schedule has sent so far, and those of them that the kernel took."""
    sent: int = 0
    received: int = 0
    shut: bool = False
    """It wants to say its end of file; it has said so."""
    shut_done: bool = False
    seen: str = ""
    """How reading ended: "eof", the name of an error, or "" for not yet."""
    aborted: str = ""
    """How it aborted: "reset", "close", or "" if it did not."""
    acknowledged: int = 0
    """When it aborted, bytes that its peer's kernel was known to have."""
    failed: bool = False
    """A send has failed, which takes the error away: a read may say "end of file" then."""

    def __post_init__(self) -> None:
        self._orders: collections.deque[tuple[int, int]] = collections.deque()  # up to where, with which flags

    def send(self, step: Send) -> None:
        if self.shut or self.seen not in ("", "eof"):
            return
        flags = socket.MSG_OOB if step.urgent else 0
        for _ in range(step.times):
            if self.queued + step.size > STREAM:
                return
            self.queued += step.size
            self._orders.append((self.queued, flags))
            self.flush()

    def flush(self) -> bool:
        """Sends what waits, and the end of file behind it. Did anything go?"""
        if self.sock is None or self.aborted:
            return False
        before = self.sent
        stream = STREAMS[self.number]
        try:
            while self._orders:
                until, flags = self._orders[0]
                self.sent += self.sock.send(stream[self.sent : until], flags)
                if self.sent == until:
                    self._orders.popleft()
            if self.shut and not self.shut_done:
                self.shut_done = True
                self.sock.shutdown(socket.SHUT_WR)
                return True
        except BlockingIOError:
            pass
        except OSError:
            self.failed = True
            self._orders.clear()
            self.shut_done = True
        return self.sent > before

    def read(self, size: int, stream: memoryview) -> bool:
        """Reads once. Was there anything, or an end?"""
        if self.sock is None or self.seen or self.aborted:
            return False
        try:
            data = self.sock.recv(size)
        except BlockingIOError:
            return False
        except OSError as error:
            self.seen = errno.errorcode[error.errno or 0]
            return True
        if data:
            if data != stream[self.received : self.received + len(data)]:
                raise Violation(f"end {self.number} read other bytes than were sent, from byte {self.received} on")
            self.received += len(data)
        else:
            self.seen = "EPIPE" if self.failed else "eof"
        return True

    def abort(self, by_reset: bool) -> None:
        assert self.sock is not None
        self.aborted = "reset" if by_reset else "close"
        unacknowledged = struct.unpack("i", fcntl.ioctl(self.sock, termios.TIOCOUTQ, bytes(4)))[0]
        self.acknowledged = self.sent - unacknowledged
        if by_reset:
            reset(self.sock)
        else:
            self.sock.close()

    @property
    def done(self) -> bool:
        return bool(self.aborted or (self.seen and not self._orders and (self.shut_done or self.failed)))

    def wants(self) -> int:
        bits = 0 if self.seen else select.POLLIN
        return bits | select.POLLOUT if self._orders else bits


@dataclass(frozen=True)
class Outcome:
    """What both ends have seen: bytes received and how it ended, the same for every path if nobody aborts."""

    received: tuple[int, int]
    seen: tuple[str, str]


class Run:
    """One connection, and one schedule played on it."""

    def __init__(self, path: Path, schedule: Schedule) -> None:
        self.path, self.schedule = path, schedule
        self.halves = (Half(0), Half(1))
        self.aborted_at = 0.0
        self.port = 0  # the client's
        self.disorder_before = disorder()

    def play(self) -> Outcome:
        """Raises Violation if an end sees what it should not."""
        try:
            self._connect()
            for step in self.schedule.steps:
                self._step(step)
            self._arrive()
            if self.schedule.settled:
                self._wait_until_quiet()
            self._finish()
            self._check_rules()
        finally:
            self.path.wake()
            for half in self.halves:
                if half.sock:
                    half.sock.close()
        self.path.check_at_rest()
        return Outcome(*zip(*((half.received, half.seen or half.aborted) for half in self.halves), strict=True))

    def _connect(self) -> None:
        if self.schedule.early:
            self.path.sleep()
        client = socket.socket()
        self.halves[0].sock = client
        self.path.wire.shape(client)
        client.settimeout(self.path.hang)
        client.connect(self.path.address)
        self.port = client.getsockname()[1]
        client.setblocking(False)
        if not self.schedule.early:
            self._arrive()

    def _arrive(self) -> None:
        """Upstream has the connection from now on."""
        if self.halves[1].sock is None:
            self.path.wake()
            try:
                self.halves[1].sock = self.path.upstream.accept()
            except TimeoutError:
                raise Violation("no connection to upstream") from None
            self.halves[1].sock.setblocking(False)

    def _step(self, step: Step) -> None:
        if not (isinstance(step, Send | Shut | Read) and step.end == 0):
            self._arrive()
        if isinstance(step, Frozen):
            self.path.sleep()
            for inner in step.steps:
                self._step(inner)
            self.path.wake()
        elif isinstance(step, Settle):
            self._wait_until_quiet()
        elif isinstance(step, Pause):
            time.sleep(0.001)
        elif isinstance(step, Talk):
            for _ in range(step.times):
                for half, size in zip(self.halves, step.sizes, strict=True):
                    if not half.aborted:
                        half.send(Send(half.number, size))
        elif not self.halves[step.end].aborted:
            self._act(self.halves[step.end], step)

    def _act(self, half: Half, step: Send | Read | Shut | Abort) -> None:
        if isinstance(step, Send):
            half.send(step)
        elif isinstance(step, Read):
            half.flush()
            half.read(step.size, STREAMS[1 - half.number])
        elif isinstance(step, Shut):
            half.shut = True
            half.flush()
        else:
            self.aborted_at = time.monotonic()
            half.abort(step.reset)

    # --- until ---

    def _until(self, met: Callable[[], bool], what: str) -> None:
        """Both ends send what waits, and read, until it is so."""
        deadline = time.monotonic() + self.path.hang
        while not met():
            moved = False
            for half in self.halves:
                moved |= half.flush()
                moved |= half.read(1 << 20, STREAMS[1 - half.number])
            if moved:
                deadline = time.monotonic() + self.path.hang
            elif not met() and not self._wait(deadline):
                raise Violation(f"hung {what}: {self._facts()}")

    def _wait(self, deadline: float) -> bool:
        poll = select.poll()
        for half in self.halves:
            if not half.aborted and half.wants():
                assert half.sock
                poll.register(half.sock, half.wants())
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))

    def _wait_until_quiet(self) -> None:
        if any(half.aborted for half in self.halves):
            return
        one, other = self.halves
        self._until(
            lambda: bool(
                (
                    one.received == other.queued
                    and other.received == one.queued
                    and not one._orders
                    and not other._orders
                )
                or one.seen not in ("", "eof")
                or other.seen not in ("", "eof")
            ),
            "before all had come",
        )

    def _finish(self) -> None:
        for half in self.halves:
            half.shut = True
        self._until(lambda: all(half.done for half in self.halves), "at the end")
        self.took = time.monotonic() - self.aborted_at

    # --- rules ---

    def _facts(self) -> str:
        return "; ".join(
            f"end {half.number} sent {half.sent} of {half.queued}{', shut' * half.shut_done}, "
            f"received {half.received}, saw {half.seen or half.aborted or 'no end'}"
            for half in self.halves
        )

    def _check_rules(self) -> None:
        for half, other in (self.halves, self.halves[::-1]):
            if not half.aborted:
                trouble = self._trouble(half, other)
                if trouble:
                    raise Violation(f"end {half.number} {trouble}: {self._facts()}")

    def _trouble(self, half: Half, other: Half) -> str:
        if half.received > other.sent:
            return "received more than was sent"
        if half.seen == "eof" and not other.shut_done and other.aborted != "close":
            return "saw an end of file that nobody had sent"
        if half.seen == "eof" and half.received < other.sent:
            return "saw an end of file before all bytes"
        if not other.aborted and half.seen != "eof":
            return "saw an error though nobody had aborted"
        in_order = self.took < PATIENCE and disorder() == self.disorder_before
        if other.aborted and half.received < other.acknowledged and in_order:
            return f"missed some of {other.acknowledged} bytes that had been acknowledged before the abort"
        return ""


def compare(schedule: Schedule, direct: Path, relayed: Path) -> Outcome:
    """Plays it on both, and says what the relayed one showed.

    Raises:
        Violation: a rule was broken, or, where nobody aborts, the two have shown different things.
    """
    control = _played(direct, schedule, "directly, without a relay")
    outcome = _played(relayed, schedule, "through the relay")
    if not schedule.aborts() and outcome != control:
        relayed.restart()
        raise Violation(f"{schedule}: {outcome} through the relay, {control} directly")
    return outcome


def _played(path: Path, schedule: Schedule, how: str) -> Outcome:
    try:
        return Run(path, schedule).play()
    except Violation as violation:
        path.restart()
        raise Violation(f"{how}: {violation}\n{schedule}") from None


@contextlib.contextmanager
def paths(wire: Wire, hang: float, *options: str, **popen: object) -> Iterator[tuple[Path, Path]]:
    """A direct path and one through the command with these options."""

    def relay(upstream: str) -> Command:
        return Command("--quiet", *options, upstream, **popen)

    direct = Path(wire, hang)
    relayed = Path(wire, hang, relay)
    try:
        yield direct, relayed
        relayed.stop()
    finally:
        direct.close()
        relayed.close()
