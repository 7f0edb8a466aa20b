"""Proxy: resolves names, listens, starts and stops threads. The core moves the bytes.

Longer than other files: the whole public class stays in one place, and a third of it is docstrings.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Never, Self, Unpack

from . import awaiting, lifetime
from .config.config import Config
from .config.endpoints import Endpoint, Remotes
from .config.groups import Options
from .config.reference import documented
from .controls import Controls
from .crew import LOG_DRAIN, Crew
from .errors import StartError, TcpProxyError, UsageError, WorkerError
from .native import Event as Signal
from .native import Lock, monotonic
from .network.forwarding import Forwarding, Target, all_targets, leave_out_circles, listen, places_of
from .network.given import GivenPort, check_given
from .network.limits import check_room, connection_limit
from .network.listening import Port, known_places, no_place, small_buffers, strangers
from .network.resolver import Address, Resolver, numeric
from .network.source import FAMILIES, families, own_addresses
from .network.unix import Folders, UnixPort, unix_address
from .report.event import Event, EventKind
from .report.reporter import Reporter
from .tap.capture import Capture
from .tap.recording import Recording, parse_record
from .text import quoted
from .values import parse_number, parse_wait
from .views import Connection, Forward, Stats

if TYPE_CHECKING:
    from .faults import Fault

ONCE = "a Proxy starts once; make another one"

START_LOOKUP = 2.0
"""The most seconds that a start waits for the addresses of upstream; then it warns, and listens without them."""


@documented
class Proxy(Controls):
    """Forwards TCP connections, to `remote` or as `forwards` say, in threads of this process.

    A context manager, plain or async.

    Durations are seconds or texts like `250ms`, `5m`; sizes are bytes or texts like `64KiB`.

    Args:
        remote: `HOST:PORT` or `[IPv6]:PORT`; an int is a port of localhost; a tuple is an address as
            `getsockname` returns it; a text that begins with `/`, or a `Path`, is a UNIX socket. Of several, with
            commas or in a list, the first that can be reached is used. None: `forwards` has the targets.
        on_event: called with each `Event`, in a thread of the proxy's own: a function, not a coroutine function;
            None: the logger `tcpproxy`.
        record: how much to keep of each direction of each connection, for `recordings`: a size, True for 1 MiB,
            False for nothing.
        faults: the faults in force from the start: those of `tcpproxy.faults`, or texts like
            "to_upstream:latency=100ms".
        seed: the seed of the faults' random numbers; the same seed repeats their decisions. None: a random one,
            which the attribute `seed` has.
        sockets: listening sockets (TCP or UNIX) to accept from, instead of `bind` and `port`. They become
            non-blocking, for all processes that have them. The proxy uses duplicates, so they stay usable
            after its end. None: it makes its own.
    <options>

    Raises:
        UsageError: an argument is invalid, or a target leads back to this proxy.
        StartError: on start, the address cannot be listened on, or there are no descriptors.

    Attributes:
        config: the checked arguments, in groups: `config.timeouts.idle_timeout`. Seconds, bytes, and 0 for off.
        addresses: the addresses that it listens on, as (host, port) or the path of a UNIX socket; empty before
            the start.
        failure: the WorkerError that has ended the proxy; None: there was none.
        capture: the capture, with `failure` and numbers; None: without `capture`.
    """

    def __init__(
        self,
        remote: Remotes | None = None,
        *,
        on_event: Callable[[Event], None] | None = None,
        record: bool | int | str = False,
        faults: Fault | str | Iterable[Fault | str] = (),
        seed: int | None = None,
        sockets: Sequence[socket.socket] | None = None,
        **options: Unpack[Options],
    ) -> None:
        self.config = Config.make(remote, **options)
        self._record = parse_record(record)
        check_callback(on_event)
        for name in ("bind", "port", "forwards") if sockets is not None else ():
            if name in options:
                raise UsageError(f"sockets and {name} are both given, expected one of them")
        self._given = None if sockets is None else check_given(sockets)
        self.addresses: list[Any] = []
        self.failure: WorkerError | None = None
        seeing = self.config.seeing
        self.capture = Capture(seeing.capture, seeing.capture_rotate, seeing.capture_files) if seeing.capture else None
        self._reporter = Reporter(on_event)
        self._on_open: Callable[[list[socket.socket]], object] | None = None  # for the command: gets the listeners
        self._crew: Crew | None = None
        self._resolvers: list[Resolver] = []  # those that the start waits for
        self._forwards: list[Forwarding] = []
        self._paths: dict[str, UnixPort] = {}  # bound before the start, by their paths
        self._folders = Folders()
        self._paused, self._is_down = 0, False
        self._refuses = self._hangs = self._is_closed = False  # by a fault; by a fault; whatever the cause
        self._lock = Lock()
        self._closing = Lock()
        self._busy: set[int] = set()  # idents of threads in a start, a stop or a verb
        self._started = self._start_failed = False
        self._stopping = Signal()
        self._stopped = Signal()
        self._seed = None if seed is None else parse_number("seed", seed, 0, 2**64 - 1)
        if faults:
            self._bend(faults)

    def __repr__(self) -> str:
        several = len(self.config.forwards) > 1
        if ports := [each.port for each in self._forwards if each.port]:
            places = [", ".join(port.names) for port in ports]
        else:
            listeners = [each.listener for each in self.config.forwards]
            places = ["sockets" if self._given else it.path or it.host for it in listeners]
        routes = zip(places, self.config.forwards, strict=True)
        text = "; ".join(f"{place} -> {each.remote}" for place, each in routes)
        return f"<Proxy {text}{';' if several else ','} {self._state}>"

    @property
    def _state(self) -> str:
        if self.failure:
            return "failed"
        if self._start_failed:
            return "start failed"
        if not self._started:
            return "not started"
        if self._stopping.is_set():
            return "draining" if self._crew and self._crew.running else "stopped"
        if not self.addresses:
            return "starting"
        return "down" if self._is_closed else "paused" if self._paused else "listening"

    def __reduce__(self) -> Never:
        raise TypeError("a Proxy cannot be copied or pickled: it has threads and sockets")

    # --- life ---

    def start(self) -> Self:
        """Begins to listen and to relay. When it returns, clients can connect, and `on_event` has got `listening`. If
        `on_event` blocks, it returns after 3 seconds.

        Raises:
            StartError: the address is taken or not ours, or the system refuses what a proxy needs.
            UsageError: the target leads back to the proxy.
            RuntimeError: it was started before.
        """
        if self._started or threading.get_ident() in self._busy:  # by a signal handler, in the middle of a start
            raise RuntimeError(ONCE)
        lifetime.register(self)  # before it takes the lock, which a forked child replaces
        with self._not_nested(), self._lock:
            if self._started:
                raise RuntimeError(ONCE)
            self._started = True
            try:
                crew = self._start()
            except BaseException:
                self._start_failed = True
                self._stopping.set()
                if self._bent:
                    self._bent.end()
                raise
        if not self._reporter.prints and not crew.is_own_thread():  # a Printer's output may block
            self._reporter.flush(LOG_DRAIN)
        return self

    def _start(self) -> Crew:
        forwards = [Forwarding(spec) for spec in self.config.forwards]
        sources = own_addresses(self.config.connecting.source)
        self._find_targets(forwards)
        crew = Crew(
            self.config, self._reporter, forwards, self._failed, self._record, self.capture, self._paused, sources
        )
        try:
            if self.capture:
                self.capture.open(lambda text: self._reporter.note("warning", text))
            places = [[] if self._given else self._find_places(each.spec.listener) for each in forwards]
            with lifetime.no_fork:
                self._open(crew, forwards, places)
        except BaseException as error:
            self._undo(crew)
            if isinstance(error, OSError | MemoryError | RuntimeError) and not isinstance(error, TcpProxyError):
                raise StartError.because(f"cannot start a proxy for {self.config.targets}", error) from error
            raise
        return crew

    def _open(self, crew: Crew, forwards: list[Forwarding], places: list[list[Address]]) -> None:
        self._forwards = forwards
        self._bind_paths()
        for each, found in zip(forwards, places, strict=True):
            if self._given:
                each.port = GivenPort(self._given)
            elif path := each.spec.listener.path:
                each.port = self._paths.pop(path)
            else:
                each.port = Port(each.spec, found, len(forwards) > 1)
                each.hang(self._hangs)
        self._leave_out_circles(forwards)
        with contextlib.ExitStack() as stack:
            listeners = [[] if self._is_closed else listen(each, stack) for each in forwards]
            self._folders.close()
            limit, warning = connection_limit(self.config)
            if warning:
                self._reporter.note("warning", warning)
            crew.open(listeners, limit)
            if self._bent:
                self._bent.begin(crew)
            check_room([each for own in listeners for each in own])
            if self.capture and crew.tap:
                own = places_of(forwards)
                names = [(each.place.host, each.addresses) for each in all_targets(forwards) if each.resolver]
                self.capture.begin(crew.tap, own, self.config.targets, names)
            if self._on_open:
                self._on_open([each for own in listeners for each in own])
            self._crew = crew
            if self._stopping.is_set():  # by another thread, which found no crew to stop
                crew.stop(abort=True)
                self._close_ports()
            self.addresses = [place for each in forwards if each.port for place in each.port.addresses]
            self._announce(forwards, listeners)
            stack.close()  # before the log thread starts, and can print that it listens
            crew.start()

    def _find_targets(self, forwards: list[Forwarding]) -> None:
        """Looks up the targets' addresses. A target whose name does not resolve in time has none, with a warning.

        Raises:
            UsageError: a target cannot be connected to, whatever happens.
        """
        asked: list[tuple[Target, Resolver, int]] = []
        sources = self.config.connecting.source
        for each in all_targets(forwards):
            place = each.place
            if place.path and not place.path.startswith("@") and os.path.isdir(place.path):
                raise UsageError(f"remote {quoted(each.name)} is a directory, expected the path of a UNIX socket")
            each.addresses = [unix_address(place.path)] if place.path else numeric(place.host, place.port) or []
            if not each.addresses:
                each.resolver = self._resolver_of(place.host, place.port, families(sources))
                asked.append((each, each.resolver, each.resolver.ask()))
            elif not place.path and len(each.addresses[0][0]) not in families(sources):
                family = FAMILIES[len(each.addresses[0][0])]
                why = f"needs one of {family}, which {each.name} is"
                raise UsageError(f"{self.config.labels['source']} {', '.join(sources)} {why}")
        deadline = monotonic() + START_LOOKUP
        for each, resolver, number in asked:
            each.addresses = resolver.lookup(max(0.0, deadline - monotonic()), number)[0]
            if not each.addresses and not self._stopping.is_set():
                why = resolver.lookup_error or f"no answer within {START_LOOKUP:g} s"
                text = f"cannot resolve {each.place.host} ({why}); it is looked up again for each connection"
                self._reporter.note("warning", text)

    def _bind_paths(self) -> None:
        """Binds the UNIX sockets to listen on, unless they are bound. The command does it before it enters the sandbox.

        Raises:
            StartError: one cannot be bound.
        """
        mode = self.config.listening.unix_mode
        for spec in self.config.forwards:
            if (path := spec.listener.path) and path not in self._paths:
                self._paths[path] = UnixPort(spec, mode, self._folders, len(self.config.forwards) > 1)

    def _find_places(self, listener: Endpoint) -> list[Address]:
        """The addresses to listen on; none if the proxy is stopped during a look-up, which may take long."""
        bind = listener.host
        if listener.path:
            return []
        if known := known_places(bind):
            return known
        resolver = self._resolver_of(bind, 0)
        found = resolver.lookup()[0]
        if not found and not self._stopping.is_set():
            raise no_place(bind, resolver.lookup_error)
        return found

    def _resolver_of(self, host: str, port: int, lengths: Collection[int] = (4, 16)) -> Resolver:
        """Returns a resolver, which a stop closes. `lengths`: the lengths of raw addresses that can be used."""
        resolver = Resolver(host, port, lengths)
        if not self._crew:
            self._resolvers.append(resolver)
        if self._stopping.is_set():  # by another thread, which found no resolver to interrupt
            resolver.close()
        return resolver

    def _leave_out_circles(self, forwards: list[Forwarding]) -> None:
        label = self.config.labels["forwards"]
        leave_out_circles(forwards, label, lambda text: self._reporter.note("warning", text))

    def _announce(self, forwards: list[Forwarding], listeners: list[list[socket.socket]]) -> None:
        if self._stopping.is_set():
            return
        for each, own in zip(forwards, listeners, strict=True):
            for name, listener in zip(each.port.names if each.port else [], own, strict=False):
                self._told = True
                self._reporter.note("listening", name, each.target)
                if (who := strangers(listener)) and not self._chooses(listener):
                    self._reporter.note("warning", f"listening on {name}, which {who} may reach")
                if self.config.proxy_protocol.send_proxy and not isinstance(listener.getsockname(), tuple):
                    self._reporter.note("warning", f"clients of {name} have no address that upstream could be told")
                if warning := small_buffers(listener, self.config):
                    self._reporter.note("warning", warning)

    def _chooses(self, listener: socket.socket) -> bool:
        """Is there a list of admitted clients for this listener? UNIX sockets are exempt."""
        return self.config.clients.allow is not None and isinstance(listener.getsockname(), tuple)

    def _undo(self, crew: Crew) -> None:
        """Releases the resources of a start that has failed."""
        crew.stop(abort=True)
        crew.join(None)
        crew.close()
        self._close_ports()
        self._crew = None
        self._forwards = []
        self.addresses = []

    def _close_ports(self) -> None:
        """Releases the ports of all forwards."""
        for port in [*self._paths.values(), *(each.port for each in self._forwards if each.port)]:
            port.close()
        self._folders.close()

    @property
    def _left(self) -> list[str]:
        """Sentences about files of UNIX sockets that could not be removed at the end."""
        ports = [each.port for each in self._forwards if isinstance(each.port, UnixPort) and each.port.left]
        return [f"{port.path} is left behind ({port.left}): the next start takes it over" for port in ports]

    def stop(self, grace: float | str | None = None) -> None:
        """Stops listening, lets connections end for `grace` (None: as configured; inf: for ever), resets the rest.

        May be called from any thread, any number of times. When it returns, all threads have ended, and `on_event` has
        got all events. If `on_event` blocks, it returns 3 seconds later. Called by `on_event` it does not wait: with a
        `grace` it drains, else it aborts.

        Raises:
            UsageError: `grace` is no duration; nothing has been stopped.
        """
        limit = parse_wait("grace", self.config.timeouts.grace if grace is None else grace)
        self._end(limit, told=grace is not None)

    def _end(self, limit: float | None, *, told: bool) -> None:
        """Stops within `limit` seconds; None: no limit. `told`: the caller has given a grace."""
        hurry = not told or limit == 0
        crew = self._crew
        if crew and crew.is_own_thread():  # called by one of its own threads, which cannot join itself
            self.abort() if hurry else self.drain()
            return
        if threading.get_ident() in self._busy:  # called by a signal handler, in the middle of a start or a stop
            self._stop(abort=hurry)
            return
        with self._not_nested():
            self._stop_and_join(limit)

    def _stop_and_join(self, limit: float | None) -> None:
        with self._lock:  # not in the middle of a start
            crew = self._crew
        if not crew:
            return
        self._stop(abort=False)
        crew.join(limit)
        self._stop(abort=True)
        crew.join(None)
        with self._closing:  # not `_lock`: this joins the log thread, which may hold or want that one
            if not self._stopped.is_set():
                crew.close()
                if self._bent:
                    self._bent.join(LOG_DRAIN)
                self._stopped.set()

    @contextlib.contextmanager
    def _not_nested(self) -> Iterator[None]:
        """Marks the calling thread as one that holds the lock or joins: a signal handler in it must do neither."""
        me = threading.get_ident()  # under gevent or eventlet that of the greenlet
        self._busy.add(me)
        try:
            yield
        finally:
            self._busy.discard(me)

    def drain(self) -> None:
        """Stops listening; connections go on. When it returns, no further client is accepted."""
        if crew := self._stop(abort=False):
            crew.sync()

    def abort(self) -> None:
        """Resets all connections and stops listening.

        When it returns, that is done, and `on_event` has got the `end` of each connection. It returns after 3 seconds
        in any case. Called by `on_event`, or by a signal handler during a start or a stop, it does not wait.
        """
        crew = self._stop(abort=True)
        if crew and not crew.is_own_thread() and threading.get_ident() not in self._busy:
            deadline = monotonic() + LOG_DRAIN
            crew.join(LOG_DRAIN)
            self._reporter.flush(max(0.0, deadline - monotonic()))

    def _stop(self, *, abort: bool) -> Crew | None:
        """Tells the workers to stop. A start that has not made them yet will do it. Before a start it has no effect."""
        if self._started:
            self._stopping.set()
            if self._bent:
                self._bent.end()
            if self.capture:
                self.capture.stop()  # the start may wait for the reader of a named pipe
        if crew := self._crew:
            self._close_ports()
            crew.stop(abort=abort)
        else:
            for resolver in self._resolvers:
                resolver.close()  # the start waits for it
        return crew

    def _note(self, kind: EventKind, text: str) -> None:
        """Reports something for the command, in the order of events."""
        self._reporter.note(kind, text)

    def _print(self, lines: list[str]) -> None:
        """Prints lines that are no event, in the order of events."""
        self._reporter.note_lines(lines)

    def _failed(self, failure: WorkerError) -> None:
        """Called when a worker has ended by itself, in its thread, which must not wait for another one."""
        self.failure = failure
        self._stop(abort=True)

    def wait(self, timeout: float | str | None = None) -> bool:
        """Waits until somebody stops the proxy, or until it ends by itself (`failure` says why).

        Returns:
            False if `timeout` (seconds or a text; None or inf: for ever) was over first.
        """
        limit = parse_wait("timeout", timeout)
        deadline = None if limit is None else monotonic() + limit
        while True:
            rest = None if deadline is None else max(0.0, deadline - monotonic())
            # On Windows Ctrl-C cannot interrupt a blocking wait: wait in slices of 0.2 s.
            if self._stopping.wait(rest if os.name != "nt" else min(0.2, 0.2 if rest is None else rest)):
                return True
            if deadline is not None and monotonic() >= deadline:
                return False

    def _close_after_fork(self) -> None:
        """Closes a forked child's copies of the sockets: the proxy runs only in the parent. Called in the child."""
        self._lock, self._closing = Lock(), Lock()  # a thread of the parent may have held the old ones
        self._busy &= {threading.get_ident()}
        if self._stopped.is_set():
            return
        if self._crew:
            self._crew.close_after_fork()
        for port in [*self._paths.values(), *(each.port for each in self._forwards if each.port)]:
            port.forget()
        self._crew, self._resolvers = None, []
        if not self._started:
            return
        self._stopping, self._stopped = Signal(), Signal()
        self._stopping.set()
        self._stopped.set()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # --- in coroutines ---

    async def astart(self) -> Self:
        """`start` without blocking the event loop. If the task is cancelled, the proxy is stopped."""
        return await awaiting.call(self.start, self._hurry, lambda: self.stop(0))

    async def astop(self, grace: float | str | None = None) -> None:
        """`stop` without blocking the event loop. If the task is cancelled, the grace ends at once."""
        await awaiting.call(lambda: self.stop(grace), self._hurry, lambda: None)

    async def await_end(self, timeout: float | str | None = None) -> bool:
        """`wait` without blocking the event loop. If the task is cancelled, the proxy goes on."""
        return await awaiting.until(self._stopping, parse_wait("timeout", timeout))

    def _hurry(self) -> None:
        """Makes a start or a stop end soon, also a start that its thread has not begun yet."""
        self._stopping.set()
        self._stop(abort=True)

    async def __aenter__(self) -> Self:
        return await self.astart()

    async def __aexit__(self, *exc: object) -> None:
        await self.astop()

    # --- views ---

    @property
    def address(self) -> Any:
        """(host, port) to connect to, as `socket.create_connection` wants it; of a UNIX socket its path.

        Raises:
            RuntimeError: it has not been started, or it has several forwards.
        """
        self._check_single("address")
        if not self.addresses:
            raise RuntimeError("the proxy has not been started")
        return self.addresses[0]

    @property
    def forwards(self) -> tuple[Forward, ...]:
        """Each place to listen with its target, in the order of `forwards`; empty before the start."""
        found = [(each, each.port.addresses[0]) for each in self._forwards if each.port and self.addresses]
        return tuple(
            Forward(each.spec.text, place, 0 if isinstance(place, str) else place[1], each.target)
            for each, place in found
        )

    @property
    def host(self) -> str:
        """The host of `address`; a link-local IPv6 address has its interface."""
        return self._tcp_address("host")[0]

    @property
    def port(self) -> int:
        """The port of `address`: the given one, or the free one that the system chose."""
        return self._tcp_address("port")[1]

    def _tcp_address(self, what: str) -> tuple[str, int]:
        address = self.address
        if isinstance(address, str):
            raise RuntimeError(f"the proxy listens on a UNIX socket, which has no {what}: see `address`")
        host, port = address
        return host, port

    def stats(self) -> Stats:
        """Numbers since the start, from any thread at any time, also after the end."""
        each = self._crew.counters() if self._crew else []
        total = {name: sum(counters[name] for counters in each) for name in Stats.__slots__ if each and name in each[0]}
        by_worker = tuple(counters["accepted"] for counters in each)
        return Stats(**{name: total.get(name, 0) for name in Stats.__slots__[:-1]}, accepted_by_worker=by_worker)

    def connections(self, ended: bool = False) -> list[Connection]:
        """The live connections, in the order of accept.

        Args:
            ended: also the last 1,000 that have ended or were refused, each with its reason. Waits until their events
                have been delivered; called by `on_event` it does not wait.
        """
        live = self._crew.connections() if self._crew else []
        found = {it.id: it for it in sorted(live, key=lambda it: it.id)}
        if not ended:
            return list(found.values())
        self._flush()  # after reading the live ones: one that ends in between is among the ended ones
        found |= {it.id: it for it in self._reporter.over.connections()}
        return [found[number] for number in sorted(found)]

    def _over(self, seconds: float) -> list[Event]:
        """The ends of connections in the last `seconds`, the latest at the end."""
        return self._reporter.over.last(seconds)

    @property
    def _dumpable(self) -> int:
        """The number of bytes that have passed and are to be shown."""
        return self._crew.tap.total if self._crew and self._crew.tap else 0

    @property
    def recordings(self) -> list[Recording]:
        """The recordings of all connections, also ended ones, in the order of accept.

        Each client that has connected before the call has one. At most 1,000 are kept: then the oldest ended one goes.

        Raises:
            RuntimeError: nothing is recorded: `Proxy(..., record=True)` does.
        """
        if not self._record:
            raise RuntimeError("nothing is recorded, expected Proxy(..., record=True)")
        crew = self._crew
        tap = crew.tap if crew else None
        if not crew or not tap:
            return []
        if crew.may_ask():  # not during a start
            crew.accept_waiting()
            crew.sync()  # a worker may have passed some of them on to another one
        tap.sync()
        return [Recording(tap, each) for each in tap.recordings()]


def check_callback(on_event: object) -> None:
    """Raises UsageError if it cannot be called, or is a coroutine function, whose result nobody would await."""
    if on_event is not None and not callable(on_event):
        raise UsageError(f"on_event {quoted(on_event)} cannot be called, expected a function of an Event, or None")
    if inspect.iscoroutinefunction(on_event):
        raise UsageError(f"on_event {quoted(on_event)} is a coroutine function, expected one that a thread can call")
