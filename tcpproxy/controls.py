"""Controls: what a program or test does to a proxy while it runs. A part of Proxy."""

from __future__ import annotations

import contextlib
import functools
import socket
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from . import awaiting, lifetime
from .config.config import Config
from .config.endpoints import Remote
from .config.urls import with_address
from .crew import LOG_DRAIN, Crew
from .errors import CANNOT_REFUSE, StartError, UsageError, WaitTimeout
from .native import Event as Signal
from .native import Lock, monotonic
from .network.forwarding import Forwarding, listen
from .report.reporter import Reporter
from .report.table import measure, table
from .text import quoted
from .values import parse_limit, parse_number
from .views import Connection, Stats

if TYPE_CHECKING:
    from .faults import Fault
    from .handles import Faults, Handle

Stream = Literal["both", "upstream", "downstream"]
"""Which way bytes go: upstream is what the client sends, downstream what the client gets."""

STREAMS: dict[Stream, int] = {"upstream": 1, "downstream": 2, "both": 3}
"""The bits STREAM_ of _core/plan.pxd, and both."""


class Controls:
    """The methods that change a running proxy or wait for it. Any thread may call them.

    A change is in force when its method returns; repeating a call does no harm. `on_event` may call them, too: then
    they do not wait for the delivery of events, which needs `on_event` to return. A signal handler or a `__del__` gets
    a RuntimeError if it calls one in the middle of a start, a stop or another change of the same proxy.
    """

    config: Config
    _crew: Crew | None
    _reporter: Reporter
    _forwards: list[Forwarding]
    _given: list[socket.socket] | None
    _lock: Lock
    _busy: set[int]
    _stopping: Signal
    _paused: int
    _is_down: bool
    _refuses: bool
    _hangs: bool
    _is_closed: bool
    _bent: Faults | None = None  # made for the first fault: its import takes milliseconds
    _seed: int | None

    if TYPE_CHECKING:  # Proxy has them

        @property
        def address(self) -> Any: ...
        def _tcp_address(self, what: str) -> tuple[str, int]: ...
        def stats(self) -> Stats: ...
        def connections(self, ended: bool = False) -> list[Connection]: ...
        def _not_nested(self) -> contextlib.AbstractContextManager[None]: ...
        def _find_targets(self, forwards: list[Forwarding]) -> None: ...
        def _leave_out_circles(self, forwards: list[Forwarding]) -> None: ...

    @contextlib.contextmanager
    def _held(self) -> Iterator[Crew | None]:
        """Holds the proxy's lock: no start and no other change runs. Gives the crew, started; None: there is none.

        Raises:
            RuntimeError: the calling thread would wait for itself.
        """
        crew = self._crew
        if threading.get_ident() in self._busy:  # a signal handler, or a __del__
            raise RuntimeError("called in the middle of a start, a stop or another change of the same proxy")
        if crew and crew.is_own_thread() and not crew.may_ask():  # a __del__, called where garbage was collected
            raise RuntimeError("called in a thread of the proxy, expected any other one, or on_event")
        with self._not_nested(), self._lock:
            yield self._crew

    def _flush(self) -> None:
        """Waits until `on_event` has had all events up to now; does not wait in the thread that calls `on_event`."""
        crew = self._crew
        if crew and not crew.is_own_thread():
            self._reporter.flush(LOG_DRAIN)

    # --- connections ---

    def kill(
        self, end: Literal["reset", "close"] = "reset", *, only: int | Callable[[Connection], object] | None = None
    ) -> int:
        """Ends connections. When it returns, none of their bytes pass any more, and `on_event` has had their `end`.

        Connections that clients have made before the call are ended, too, if the proxy has not accepted them yet. With
        "close", bytes that the proxy has given to its kernel still reach the peer.

        Args:
            end: reset: both peers get a reset (RST); close: an end of file (FIN). What they send then is discarded.
            only: the id of one connection, or a function that returns for a Connection whether to end it; None: all.

        Returns:
            How many connections it has ended.

        Raises:
            UsageError: `end` is neither, or `only` neither an id nor a function.
        """
        if end not in ("reset", "close"):
            raise UsageError(f"end {quoted(end)} is unknown, expected reset or close")
        with self._held() as crew:
            pass
        if not crew:
            return 0
        ids = None
        if callable(only):
            crew.accept_waiting()
            ids = [it.id for it in self.connections() if only(it)]
        elif only is not None:
            if not isinstance(only, int) or isinstance(only, bool):
                raise UsageError(f"only {quoted(only)} is no id, expected a whole number or a function of a Connection")
            ids = [only] if 0 < only < 2**64 else []
        killed = crew.kill(ids, self._flush, reset=end == "reset") if ids != [] else 0
        self._flush()
        return killed

    def pause(self, stream: Stream = "both") -> contextlib.AbstractContextManager[object]:
        """Reads and delivers nothing in one direction or both, until `resume`. Nothing is lost.

        Ends and resets are held, too, and time-outs stand still. New connections are accepted and connected. Before
        the start of the proxy, the pause begins with the start.

        Args:
            stream: upstream: what clients send; downstream: what they receive; or both.

        Returns:
            A context manager, which resumes what this call has paused.

        Raises:
            UsageError: there is no such stream.
        """
        bits = _stream_bits(stream)
        with self._held() as crew:
            paused = bits & ~self._paused
            self._set_paused(crew, self._paused | bits)
        return _undoing(lambda: self._resume(paused))

    def resume(self, stream: Stream = "both") -> None:
        """Ends a pause: what was held is delivered, in order.

        Args:
            stream: as for `pause`.

        Raises:
            UsageError: there is no such stream.
        """
        self._resume(_stream_bits(stream))

    def _resume(self, bits: int) -> None:
        with self._held() as crew:
            self._set_paused(crew, self._paused & ~bits)

    def _set_paused(self, crew: Crew | None, paused: int) -> None:
        self._paused = paused
        if crew:
            crew.pause(paused)

    # --- clients and upstream ---

    def down(self, live: Literal["close", "reset", "keep"] = "close") -> contextlib.AbstractContextManager[object]:
        """Refuses new connections, as if no server listened, until `up`. No other process can take the port.

        Before the start of the proxy, it starts so.

        Args:
            live: what happens to the connections that are open: close and reset as for `kill`; keep: nothing.

        Returns:
            A context manager, which calls `up` unless the proxy was down before.

        Raises:
            UsageError: `live` is none of these, or the proxy accepts from `sockets`: clients would wait in them.
            StartError: the system cannot keep the port; never on Linux.
        """
        if live not in ("close", "reset", "keep"):
            raise UsageError(f"live {quoted(live)} is unknown, expected close, reset or keep")
        if self._given:
            raise UsageError(CANNOT_REFUSE)
        was_down = self._set_down(True)
        if live != "keep":
            self.kill(live)
        return _undoing((lambda: None) if was_down else self.up)

    def up(self) -> None:
        """Listens again, after `down`.

        Raises:
            StartError: the port is taken, or there are no descriptors.
        """
        self._set_down(False)

    def _set_down(self, down: bool) -> bool:
        """Keeps what the program wants, and opens or closes the ports. Returns what it wanted before."""
        with self._held() as crew:
            was_down, self._is_down = self._is_down, down
            try:
                self._open_or_close(crew)
            except BaseException:
                self._is_down = was_down  # a call that was interrupted is repeated
                raise
        return was_down

    def _shut(self, crew: Crew | None, kinds: Collection[str]) -> None:
        """Faults make the ports refuse clients or let them hang, or do not any more."""
        hangs = "hang" in kinds
        if hangs != self._hangs:
            if crew:
                crew.hang(hangs)
            for each in self._forwards:  # for listeners to come
                each.hang(hangs)
            self._hangs = hangs
        before, self._refuses = self._refuses, "refuse" in kinds
        try:
            self._open_or_close(crew)
        except BaseException:
            self._refuses = before
            with contextlib.suppress(StartError):  # not on Linux: listeners are closed before their port is kept
                self._open_or_close(crew)
            raise

    def _impossible(self) -> dict[str, str]:
        """Why the proxy cannot have faults of these kinds."""
        if self._given:
            return {"refuse": CANNOT_REFUSE, "hang": CANNOT_REFUSE.replace("refuse clients", "let clients hang")}
        if not sys.platform.startswith("linux"):
            return {"hang": "this system cannot let clients hang, expected Linux; blackhole accepts, and does no more"}
        if any(it.listener.path for it in self.config.forwards):
            return {"hang": "clients of UNIX sockets cannot hang, expected a proxy that listens on TCP ports only"}
        return {}

    def _open_or_close(self, crew: Crew | None) -> None:
        """Closes the ports if the program (`down`) or a fault (`refuse`) wants that, else opens them."""
        closed = self._is_down or self._refuses
        if crew and closed != self._is_closed and not self._stopping.is_set():
            with lifetime.no_fork:
                if closed:
                    crew.replace_listeners([])
                    self._is_closed = True  # also if a port cannot be kept
                    for each in self._forwards:
                        each.keep()
                else:
                    self._listen_again(crew)
        self._is_closed = closed

    def _listen_again(self, crew: Crew) -> None:
        with contextlib.ExitStack() as stack:
            listeners = [listen(each, stack) for each in self._forwards]
            try:
                crew.replace_listeners(listeners)
            except OSError as error:
                raise StartError.because(f"cannot listen again for {self.config.targets}", error) from error

    @property
    def upstream(self) -> str:
        """Where new connections go, as `HOST:PORT`. It may be set to any target that `Proxy` takes.

        Setting looks a name up, which may take seconds. Connections that are connecting or connected keep their
        upstream.

        Raises:
            UsageError: on setting, no such address can exist, or it is the proxy's own.
            StartError: on setting, the system refuses memory, or a thread for the look-ups.
            RuntimeError: the proxy has several forwards; on setting, also if there are several targets.
        """
        self._check_single("upstream")
        return self.config.remote

    @upstream.setter
    def upstream(self, remote: Remote) -> None:
        self._check_single("upstream")
        config = self.config.with_remote(remote)
        if len(self.config.forwards[0].targets) > 1 or len(config.forwards[0].targets) > 1:
            raise RuntimeError("a proxy with several targets keeps them: upstream can be set where there is one")
        with self._held() as crew:
            if not crew:
                self.config = config
                return
            port = self._forwards[0].port
        new = Forwarding(config.forwards[0])
        self._find_targets([new])  # without the lock: it may take seconds
        new.port = port
        self._leave_out_circles([new])
        with self._held() as crew:
            if crew and not self._stopping.is_set():
                try:
                    crew.set_upstream(new)
                except (MemoryError, RuntimeError) as error:
                    raise StartError.because(f"cannot forward to {config.remote}", error) from error
            self.config = config

    def _check_single(self, what: str) -> None:
        """Raises RuntimeError if there are several forwards, so that `what` is ambiguous."""
        if (count := len(self.config.forwards)) > 1:
            raise RuntimeError(f"{what} is of a proxy with one forward, and this one has {count}: see `forwards`")

    def restore(self) -> None:
        """Removes all faults, and ends `pause` and `down`. It ends no connection."""
        if self._bent:
            self._bent.remove()
        self.resume()
        self.up()

    # --- faults ---

    def fault(self, *faults: Fault | str) -> Handle:
        """Puts faults in force, all at once: for all connections, new and open ones, when it returns.

        Args:
            faults: of `tcpproxy.faults`, or texts like "up:latency=100ms".

        Returns:
            A handle, which removes and changes them and knows what they have done; a context manager, which removes
            them.

        Raises:
            UsageError: a fault is invalid or contradicts another one; nothing has changed.
            StartError: the system does not let a port refuse clients, or hang them; nothing has changed.
        """
        return (self._bent or self._bend()).install(faults)

    @property
    def faults(self) -> tuple[Handle, ...]:
        """The faults that are in force, each with its own handle."""
        return self._bent.handles if self._bent else ()

    @property
    def _every_fault(self) -> tuple[Handle, ...]:
        """The faults in force, and those that were removed."""
        return self._bent.every if self._bent else ()

    @property
    def seed(self) -> int:
        """The seed of the random numbers of faults."""
        return (self._bent or self._bend()).seed

    @property
    def _seed_text(self) -> str:
        """The seed as it is printed: with the version of the dice."""
        return (self._bent or self._bend()).seed_text

    def _warn(self, text: str) -> None:
        self._reporter.note("warning", text)

    def _bend(self, faults: Fault | str | Iterable[Fault | str] = ()) -> Faults:
        from .handles import Faults

        made = Faults(self._held, self._shut, faults, self._seed, self._impossible(), self._warn, self._is_over)
        found: Faults = vars(self).setdefault("_bent", made)  # another thread may be here, too
        self._reporter.faults = found
        return found

    # --- seeing ---

    def url(self, url: str) -> str:
        """Returns a URL or connection string with the proxy's address in place of the server's.

        Args:
            url: `scheme://user@HOST:PORT/...`, libpq's `host=HOST port=PORT ...`, or `HOST:PORT`.

        Raises:
            UsageError: `url` has no host.
            RuntimeError: the proxy has not been started.
        """
        return with_address(url, *self._tcp_address("port"))

    def wait_for(
        self,
        *,
        accepted: int | None = None,
        active: int | None = None,
        ended: int | None = None,
        to_upstream: int | None = None,
        to_client: int | None = None,
        since: Stats | None = None,
        timeout: float | str | None = 5.0,
    ) -> Stats:
        """Waits until the proxy's numbers have reached all of the given ones at the same time.

        Args:
            accepted: connections accepted, at least.
            active: connections alive, exactly.
            ended: connections that have ended, at least.
            to_upstream: bytes delivered to upstream, at least.
            to_client: bytes delivered to clients, at least.
            since: subtract these numbers first, except `active`; None: count from the start of the proxy.
            timeout: seconds, or a text like `250ms`; None: no limit.

        Returns:
            The numbers at that time.

        Raises:
            WaitTimeout: the time is over, or the proxy has ended; the text shows numbers and connections.
            UsageError: the timeout is no duration, or a number is invalid.
        """
        wanted = _Wanted(accepted, active, ended, to_upstream, to_client, since)
        limit = parse_limit("timeout", timeout)
        deadline = monotonic() + limit
        __tracebackhide__ = True
        return awaiting.poll(functools.partial(self._look, wanted, deadline, limit))

    async def wait_for_async(
        self,
        *,
        accepted: int | None = None,
        active: int | None = None,
        ended: int | None = None,
        to_upstream: int | None = None,
        to_client: int | None = None,
        since: Stats | None = None,
        timeout: float | str | None = 5.0,
    ) -> Stats:
        """`wait_for` without blocking the event loop."""
        wanted = _Wanted(accepted, active, ended, to_upstream, to_client, since)
        limit = parse_limit("timeout", timeout)
        deadline = monotonic() + limit
        __tracebackhide__ = True
        return await awaiting.poll_async(functools.partial(self._look, wanted, deadline, limit))

    def _is_over(self) -> bool:
        """Has it ended, or failed to start?"""
        crew = self._crew
        return self._stopping.is_set() and not (crew and crew.running)

    def _look(self, wanted: _Wanted, deadline: float, limit: float) -> Stats | None:
        """Returns the numbers if they are as wanted; None: not yet.

        Raises:
            WaitTimeout: the deadline is past, or the proxy has ended.
        """
        __tracebackhide__ = True
        over = self._is_over()  # asked first: then the numbers are final
        stats = self.stats()
        missing = wanted.missing(stats)
        if not missing:
            return stats
        if over or monotonic() >= deadline:
            when = "before the proxy ended" if over else f"within {limit:g} s"
            known = self.connections(ended=True)
            lines = table(known, measure([], known, 0), None) if known else ["no connections"]
            raise WaitTimeout("\n".join([f"not {when}: {missing}", *lines]))
        return None


class _Wanted:
    """What `wait_for` waits for."""

    def __init__(
        self,
        accepted: int | None,
        active: int | None,
        ended: int | None,
        to_upstream: int | None,
        to_client: int | None,
        since: Stats | None,
    ) -> None:
        if since is not None and not isinstance(since, Stats):
            raise UsageError(f"since {quoted(since)} is no Stats, expected what stats() returns")
        given = {
            "accepted": accepted,
            "active": active,
            "ended": ended,
            "to_upstream": to_upstream,
            "to_client": to_client,
        }
        checked = {name: parse_number(name, value, 0, 2**64) for name, value in given.items() if value is not None}
        self._active = checked.pop("active", None)
        self._totals = {f"bytes_{name}" if name[:3] == "to_" else name: value for name, value in checked.items()}
        self._since = {name: getattr(since, name) if since else 0 for name in self._totals}

    def missing(self, stats: Stats) -> str:
        """Returns a text of the numbers that are not as wanted; empty: all are."""
        found = []
        for name, value in self._totals.items():
            if (now := getattr(stats, name) - self._since[name]) < value:
                found.append(f"{name} {now} of {value}")
        if self._active is not None and stats.active != self._active:
            found.append(f"active {stats.active}, not {self._active}")
        return ", ".join(found)


def _stream_bits(stream: Stream) -> int:
    if not isinstance(stream, str) or stream not in STREAMS:
        raise UsageError(f"stream {quoted(stream)} is unknown, expected both, upstream or downstream")
    return STREAMS[stream]


def _undoing(undo: Callable[[], None]) -> contextlib.AbstractContextManager[object]:
    """Returns a context manager that calls `undo` when its block is left."""
    stack = contextlib.ExitStack()
    stack.callback(undo)
    return stack
