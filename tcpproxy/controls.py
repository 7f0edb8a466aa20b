"""Controls: the methods that change a running proxy. A part of Proxy."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from .config.targets import target_of
from .config.urls import with_address
from .crew import LOG_DRAIN, Crew
from .directions import STREAMS, parse_stream
from .errors import StartError, UsageError
from .native import Lock
from .network.forwarding import Forwarding
from .refusing import Refusing, undoing
from .report.reporter import Reporter
from .text import quoted
from .views import Alias, Connection, Direction
from .waits import Waits

if TYPE_CHECKING:
    from .faults import Fault
    from .handles import Handle
    from .inforce import Faults

Stream = Direction | Alias | Literal["both"]


class Controls(Refusing, Waits):
    """The methods that change a running proxy. Any thread may call them.

    A change is in force when its method returns. Repeating a call is harmless. `on_event` may call them, too. Then they
    do not wait for the delivery of events, because events are delivered after `on_event` returns. A signal handler or a
    `__del__` gets a RuntimeError if it calls one during a start, a stop or another change of the same proxy.
    """

    _reporter: Reporter
    _lock: Lock
    _busy: set[int]
    _paused: int
    _bent: Faults | None = None  # made for the first fault: its import takes milliseconds
    _seed: int | None

    if TYPE_CHECKING:  # Proxy has them

        @property
        def address(self) -> Any: ...
        def _tcp_address(self, what: str) -> tuple[str, int]: ...
        def _not_nested(self) -> contextlib.AbstractContextManager[None]: ...
        def _find_targets(self, forwards: list[Forwarding]) -> None: ...
        def _leave_out_circles(self, forwards: list[Forwarding]) -> None: ...

    @contextlib.contextmanager
    def _held(self) -> Iterator[Crew | None]:
        """Holds the proxy's lock, so that no start and no other change runs. Its value is the started crew, or None.

        Raises:
            RuntimeError: the calling thread would wait for itself.
        """
        crew = self._crew
        if threading.get_ident() in self._busy:  # a signal handler, or a __del__
            raise RuntimeError("called in the middle of a start, a stop or another change of the same proxy")
        if crew and crew.is_own_thread() and not crew.may_ask():  # a __del__, called by the garbage collector
            raise RuntimeError("called in a thread of the proxy, expected any other one, or on_event")
        with self._not_nested(), self._lock:
            yield self._crew

    def _flush(self) -> None:
        """Waits until all events up to now have been delivered; does not wait in a thread of the proxy."""
        crew = self._crew
        if crew and not crew.is_own_thread():
            self._reporter.flush(LOG_DRAIN)

    # --- connections ---

    def kill(
        self, end: Literal["reset", "close"] = "reset", *, only: int | Callable[[Connection], object] | None = None
    ) -> int:
        """Ends connections. When it returns, their bytes no longer pass, and `on_event` has got their `end`.

        Connections that wait in the backlog at the time of the call are ended, too. With "close", bytes that the proxy
        has given to its kernel still reach the peer.

        Args:
            end: reset: both peers get a reset (RST); close: an end of file (FIN), and later bytes are discarded.
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
        """Stops reading and delivering in one direction or both, until `resume`. Nothing is lost.

        Ends and resets are held, too, and time-outs stand still. New connections are accepted and connected. Before
        the start of the proxy, the pause begins with the start.

        Args:
            stream: to_upstream: what clients send; to_client: what they receive; or both.

        Returns:
            A context manager, which resumes what this call has paused.

        Raises:
            UsageError: there is no such stream.
        """
        bits = STREAMS[parse_stream("stream", stream)]
        with self._held() as crew:
            paused = bits & ~self._paused
            self._set_paused(crew, self._paused | bits)
        return undoing(lambda: self._resume(paused))

    def resume(self, stream: Stream = "both") -> None:
        """Ends a pause. Bytes that were held are delivered, in order.

        Args:
            stream: as for `pause`.

        Raises:
            UsageError: there is no such stream.
        """
        self._resume(STREAMS[parse_stream("stream", stream)])

    def _resume(self, bits: int) -> None:
        with self._held() as crew:
            self._set_paused(crew, self._paused & ~bits)

    def _set_paused(self, crew: Crew | None, paused: int) -> None:
        self._paused = paused
        if crew:
            crew.pause(paused)

    # --- upstream ---

    @property
    def upstream(self) -> str:
        """Where new connections go, as `HOST:PORT`.

        It may be set to any target that `Proxy` or the fixture takes: also a URL, a socket, or a server.

        Setting it looks up a name, which may take seconds. Connections that are connecting or connected keep their
        upstream.

        Raises:
            UsageError: on setting, no such address can exist, or it is the proxy's own; or there are several targets,
                now or in what is set.
            StartError: on setting, the system refuses memory, or a thread for the look-ups.
            RuntimeError: the proxy has several forwards.
        """
        self._check_single("upstream")
        return self.config.remote

    @upstream.setter
    def upstream(self, remote: object) -> None:
        self._check_single("upstream")
        config = self.config.with_remote(remote if isinstance(remote, list) else target_of(remote))
        for each in (config, self.config):
            if (count := len(each.forwards[0].targets)) > 1:
                which = "the value has" if each is config else "the proxy has"
                raise UsageError(f"upstream {quoted(remote)} cannot be set: {which} {count} targets, expected one")
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
        """Removes all faults, and ends `pause` and `down`. It ends no connection.

        Raises:
            StartError: the proxy cannot listen again; everything else has been restored.
        """
        with contextlib.ExitStack() as stack:  # runs all callbacks, the last one first, also after an error
            stack.callback(self.up)
            if self._bent:
                stack.callback(self._bent.remove)
                stack.callback(self._bent.remove_rules)
            stack.callback(self.resume)

    # --- faults ---

    def fault(self, *faults: Fault | str) -> Handle:
        """Puts faults in force, all at once, for new and open connections. They are in force when it returns.

        Args:
            faults: of `tcpproxy.faults`, or texts like "to_upstream:latency=100ms".

        Returns:
            A handle, which changes and removes the faults and counts what they have done. As a context manager it
            removes them.

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
        from .inforce import Faults

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
