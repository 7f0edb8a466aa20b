"""The protocols of systemd: passed sockets, notifications, the watchdog, the descriptor store.

They are those of sd_listen_fds(3) and sd_notify(3); systemfd, s6 and podman use them, too. Variables of the environment
ask for them, and are removed from it, so that children do not get them. Without them this module does nothing.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import sys
import threading
from collections.abc import Mapping, MutableMapping, Sequence

from .._core.worker import hang
from ..config.config import Config
from ..errors import StartError, TcpProxyError, UsageError
from ..native import monotonic
from ..network.forwarding import places_of
from ..network.given import EXPECTED, check_given
from ..proxy import Proxy
from ..text import count, quoted
from .pulse import Pulse

FIRST, MOST = 3, 1000
"""The first descriptor that is passed, and the most that are looked at; far fewer can be accepted from."""

SEND_WITHIN = 5.0
"""Seconds that messages about descriptors and a failed start may wait, all together: while systemd is busy, its queue
may be full."""

RETRY_AFTER = 0.1
"""Seconds after which another message, for which there was no room in the queue, is sent again."""

EXTEND_EVERY, EXTEND_TO = 5.0, 15.0
"""Seconds. While connections end, every EXTEND_EVERY systemd is asked to wait for EXTEND_TO more before it kills."""

BEATS = 4
"""How many messages are sent to the watchdog in its period, so that a late one, on a busy machine, does no harm."""

SHORTEST, LONGEST = 0.05, 3600.0
"""Seconds from one message to the watchdog to the next: each costs a wake-up of all workers, and a wait of centuries is
an error in Python."""


class Service:
    """The connection between the command and systemd. Without systemd its methods do nothing.

    Args:
        environ: the environment; variables of systemd are removed from it.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._socket, self._patience = _connected(environ.pop("NOTIFY_SOCKET", "")), SEND_WITHIN
        watched, pid = _number(environ.pop("WATCHDOG_USEC", "")), environ.pop("WATCHDOG_PID", "")
        is_watched = watched > 0 and pid in ("", str(os.getpid()))
        self._period = max(SHORTEST, min(watched / 1e6 / BEATS, LONGEST)) if is_watched else 0.0
        self._room = _number(environ.pop("FDSTORE", ""))
        self._passed, unused = _passed(environ)
        self.warnings = [unused] if unused else []
        if self._socket and is_watched and watched < SHORTEST * BEATS * 1e6:
            told = f"systemd is told {1 / SHORTEST:.0f} times a second"
            self.warnings.append(f"WATCHDOG_USEC is {watched}, expected at least {SHORTEST * BEATS * 1e6:.0f}: {told}")
        self._prefix = ""  # of names in the descriptor store; empty: nothing is stored
        self._thread: threading.Thread | None = None
        self._news = threading.Event()
        self._grace_ends = 0.0  # of `monotonic`; 0: the proxy is not being stopped
        self._over = False

    # --- sockets ---

    def sockets(self, config: Config, given: Mapping[str, object]) -> list[socket.socket] | None:
        """Returns the sockets to accept from; None: the proxy makes its own.

        Sockets of the descriptor store are used if they are those that the proxy would make; else they are removed from
        the store.

        Args:
            config: the configuration of the proxy.
            given: the options of the command line, by the names of their rows; None: an option was not given.

        Raises:
            UsageError: a descriptor is no listening socket, or a place to listen at was given, too.
        """
        # A name of the store cannot have a ':'.
        prefix = f"{config.listening.bind} {config.listening.port} ".replace(":", ".")
        stored = [each for each in self._passed if re.fullmatch(r".+ \d+ \d+ of \d+", each[0], re.ASCII)]
        others = [fd for name, fd in self._passed if (name, fd) not in stored]
        if others:
            self._forget(stored)
            for name in ("bind", "port"):
                if given.get(name) is not None:
                    label = config.labels[name]
                    text = f"systemd passes sockets to listen on and {label} is given, expected one of them"
                    raise UsageError(f"{text}: remove {label}, or the socket unit")
            if config.listening.forwards:
                label = config.labels["forwards"]
                raise UsageError(f"systemd passes sockets to listen on and {label} is given, expected REMOTE")
            return _sockets(others)
        keeps = not config.listening.forwards and not config.forwards[0].listener.path
        if stored and not keeps:
            self._forget(stored)
        elif stored:
            wanted = [f"{prefix}{number + 1} of {len(stored)}" for number in range(len(stored))]
            by_name = dict(stored)  # fewer, and so not what is wanted, if two have one name
            if by_name.keys() == set(wanted):
                for descriptor in by_name.values() if sys.platform.startswith("linux") else ():
                    hang(descriptor, False)  # ends a fault of the process before
                return _sockets([by_name[name] for name in wanted])
            self._forget(stored)
        if len(prefix) < 240 and prefix.isascii() and keeps:
            self._prefix = prefix
        return None

    def _forget(self, stored: Sequence[tuple[str, int]]) -> None:
        """Removes sockets from the store, and waits until systemd has done it: until then their ports are taken."""
        if not stored:
            return
        for _, descriptor in stored:
            os.close(descriptor)
        for name in dict(stored):
            self.tell("FDSTOREREMOVE=1", f"FDNAME={name}")
        reader, writer = socket.socketpair()
        with reader:
            with writer:
                self.tell("BARRIER=1", descriptors=[writer.fileno()])
            reader.settimeout(SEND_WITHIN)
            with contextlib.suppress(OSError):
                reader.recv(1)  # the end of file: systemd has closed its copy

    def keep(self, listeners: list[socket.socket]) -> None:
        """Puts listeners that the proxy has made into systemd's store, for the next start of the service."""
        if self._prefix and len(listeners) <= self._room:
            for number, listener in enumerate(listeners):
                name = f"FDNAME={self._prefix}{number + 1} of {len(listeners)}"
                self.tell("FDSTORE=1", name, descriptors=[listener.fileno()])

    # --- notifications ---

    def tell(self, *lines: str, descriptors: list[int] | None = None, waits: bool = True) -> bool:
        """Sends systemd one message. Never raises: the proxy works as well if systemd does not get it.

        Args:
            lines: of the message.
            descriptors: what systemd gets with it.
            waits: until there is room in systemd's queue; all messages together wait for SEND_WITHIN at most.

        Returns:
            False if there was no room.
        """
        if not self._socket:
            return True
        message = "\n".join(line.replace("\n", " ") for line in lines)
        self._socket.settimeout(self._patience if waits else 0)
        since, has_room = monotonic(), True
        try:
            socket.send_fds(self._socket, [message.encode(errors="replace")], descriptors or [])
        except (BlockingIOError, TimeoutError):
            has_room = False
        except OSError:  # nobody listens any more, and the like
            pass
        if waits:
            self._patience = max(0.0, self._patience - (monotonic() - since))
        return has_room

    def started(self, proxy: Proxy) -> None:
        """To be called when the proxy listens and its workers run.

        Raises:
            StartError: the system refuses a thread.
        """
        if self._socket:
            places = places_of(proxy._forwards)
            ready = ["READY=1", f"STATUS=Listening on {places}, forwarding to {proxy.config.targets}"]
            rest = [] if self.tell(*ready, waits=False) else ready
            self._thread = threading.Thread(target=self._run, args=(proxy, rest), name="tcpproxy-service", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:
                raise StartError.because("cannot start a thread that tells systemd", error) from error

    def stopping(self, grace: float) -> None:
        """To be called when the proxy stops, with the seconds that connections may take. Does not wait for systemd."""
        self._grace_ends = monotonic() + grace
        self._news.set()

    def failed(self, error: TcpProxyError) -> None:
        """To be called when the command ends with an error."""
        number = getattr(error, "errno", None)
        self.tell(f"STATUS={error}", *([f"ERRNO={number}"] if number else []))

    def close(self) -> None:
        """To be called when the proxy has ended."""
        self._over = True
        self._news.set()
        if self._thread:
            self._thread.join(SEND_WITHIN)

    def _run(self, proxy: Proxy, ready: list[str]) -> None:
        """Notifies the watchdog while all workers answer, and systemd when the proxy stops. Runs in its own thread.

        Args:
            proxy: the proxy.
            ready: lines about its start that could not be sent yet.
        """
        crew = proxy._crew
        pulse = Pulse(crew.sync) if crew and self._period else None
        next_beat, next_message = monotonic() if pulse else math.inf, 0.0 if ready else math.inf
        stops, stopping = False, ["STOPPING=1"]  # until it was sent
        while True:
            self._news.clear()  # before the state is read: what changes later sets it again
            over, now = self._over, monotonic()
            if pulse and now >= next_beat:
                beats = pulse.beats(self._period)
                sent = not beats or self.tell("WATCHDOG=1", waits=False)
                next_beat = now + (self._period if sent else min(self._period, RETRY_AFTER))
            if self._grace_ends and not stops:
                stops, next_message = True, 0.0
            if now >= next_message:
                lines = [*stopping, *_waits_for(proxy, self._grace_ends - now)] if stops else ready
                sent = self.tell(*lines, waits=False)
                stopping = [] if sent and stops else stopping
                next_message = now + (RETRY_AFTER if not sent else EXTEND_EVERY if stops else math.inf)
            if over:
                return
            rest = min(next_beat, next_message) - monotonic()
            self._news.wait(None if math.isinf(rest) else max(0.0, rest))


def _waits_for(proxy: Proxy, rest: float) -> list[str]:
    """Returns the lines of a message about the connections, which may go on for `rest` seconds."""
    active = proxy.stats().active
    if not active or rest <= 0:
        return ["STATUS=Stopping"]
    status = f"STATUS=Waiting for {count(active, 'connection')} to end, {rest:.0f} s at most"
    return [status, f"EXTEND_TIMEOUT_USEC={EXTEND_TO * 1e6:.0f}"]


# --- the environment ---


def _number(text: str) -> int:
    """Returns the value of a number of at most 18 digits; 0 for any other text."""
    return int(text) if re.fullmatch(r"\d{1,18}", text, re.ASCII) else 0


def _connected(place: str) -> socket.socket | None:
    """Returns a socket that is connected to systemd; the sandbox may forbid that later. None: there is no address."""
    if place[:1] not in ("/", "@") or not hasattr(socket, "AF_UNIX"):
        return None  # vsock: is for virtual machines
    with contextlib.suppress(OSError), contextlib.ExitStack() as undo:
        connection = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        connection.setblocking(False)
        connection.connect(f"\0{place[1:]}" if place[0] == "@" else place)
        undo.pop_all()
        return connection
    return None


def _passed(environ: MutableMapping[str, str]) -> tuple[list[tuple[str, int]], str]:
    """Returns name and number of each descriptor passed to this process, and a warning about those of another one."""
    pid, number, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    environ.pop("LISTEN_PIDFDID", "")
    own, found = str(os.getpid()), _number(number)
    if not found:
        return [], ""
    if pid != own:
        whose = f"LISTEN_PID is {quoted(pid)} and this is process {own}" if pid else "there is no LISTEN_PID"
        return [], f"{count(found, 'passed socket')} not used: {whose}; start tcpproxy directly, or by exec"
    descriptors = range(FIRST, FIRST + min(found, MOST))
    given = names.split(":")
    named = given if len(given) == len(descriptors) else ["unknown"] * len(descriptors)
    return list(zip(named, descriptors, strict=True)), ""


def _sockets(descriptors: list[int]) -> list[socket.socket]:
    """Returns sockets of these descriptors. UsageError: one is no listening socket."""
    sockets = []
    for descriptor in descriptors:
        try:
            os.set_inheritable(descriptor, False)
            sockets.append(socket.socket(fileno=descriptor))
        except OSError:
            text = f"descriptor {descriptor}, passed by systemd, is no socket, {EXPECTED}"
            raise UsageError(text) from None
    return check_given(sockets, lambda index: f"descriptor {descriptors[index]}, passed by systemd,")
