"""Proxy: resolves, listens, starts one thread a worker, stops. What passes through it is the core's business."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Self, Unpack

from ._core.worker import Worker
from .config.config import Config
from .config.groups import Options
from .config.reference import documented
from .errors import StartError, WorkerError, describe
from .network.limits import connection_limit
from .network.listening import address, is_public, listen, small_buffers, where
from .network.resolver import Address, Resolver, numeric
from .report.event import Event, wanted
from .report.reporter import Reporter
from .views import Connection, Stats

START_PATIENCE = 2.0
"""Seconds that a start waits for upstream's name before it warns and listens all the same."""

LAST_WORDS = 3.0
"""Seconds that an end waits for the log thread."""

_live: weakref.WeakSet[Proxy] = weakref.WeakSet()
_hooked = False


@documented
class Proxy:
    """Forwards TCP connections to `remote`, in threads of this process. A context manager, plain or async.

    Durations are seconds or texts like `250ms`, `5m`; sizes are bytes or texts like `64KiB`.

    Args:
        remote: `HOST:PORT` or `[IPv6]:PORT`.
        on_event: called with each `Event`, in a thread of the proxy's own; None: the logger `tcpproxy`.
    <options>

    Raises:
        UsageError: an argument that cannot be meant, or a target that is this proxy itself.
        StartError: on start, the address cannot be listened on, or there are no descriptors.
    """

    def __init__(
        self, remote: str, *, on_event: Callable[[Event], None] | None = None, **options: Unpack[Options]
    ) -> None:
        self.config = Config.make(remote, **options)
        self.addresses: list[tuple[str, int]] = []
        """What it listens on, as (host, port)."""
        self.failure: WorkerError | None = None
        """Why it ended by itself, if it did."""
        self._reporter = Reporter(on_event)
        self._resolver: Resolver | None = None
        self._workers: list[Worker] = []
        self._threads: list[threading.Thread] = []
        self._logger: threading.Thread | None = None
        self._namer: threading.Thread | None = None
        self._bells: list[socket.socket] = []
        self._lock = threading.Lock()
        self._started = False
        self._stopping = threading.Event()
        self._stopped = threading.Event()

    # --- life ---

    def start(self) -> Self:
        """Begins to listen and to relay; when it returns, clients can connect.

        Raises:
            StartError: the address is taken or not ours, or the system refuses what a proxy needs.
            UsageError: the target is the proxy's own address.
        """
        with self._lock:
            if self._started:
                raise RuntimeError("a Proxy starts once; make another one")
            self._started = True
            target = self._find_target()
            listeners = listen(self.config, target)
            try:
                self._prepare(listeners, target)
                for thread in (*self._threads, self._logger, self._namer):
                    if thread:
                        thread.start()
            except BaseException as error:
                self._discard(listeners)
                if isinstance(error, OSError | MemoryError | RuntimeError):  # the latter: no thread to be had
                    raise StartError(f"cannot start a proxy for {self.config.remote}", error) from error
                raise
            _hook()
            _live.add(self)
        return self

    def _find_target(self) -> list[Address]:
        """Upstream's addresses: none (and a warning) if its name does not resolve soon enough."""
        remote = self.config.remote
        known = numeric(remote.host, remote.port)
        if known:
            return known
        self._resolver = Resolver(remote.host, remote.port)
        found, _ = self._resolver.lookup(START_PATIENCE)
        if not found:
            why = self._resolver.problem or f"no answer within {START_PATIENCE:g} s"
            self._reporter.note(
                "warning", f"cannot resolve {remote.host} ({why}); it is looked up again for each connection"
            )
        return found

    def _prepare(self, listeners: list[socket.socket], target: list[Address]) -> None:
        config = self.config
        self._reporter.prepare()
        for _ in range(2):
            self._bells += socket.socketpair()
        for bell in (self._bells[1], self._bells[3]):
            bell.setblocking(False)
        limit, warning = connection_limit(config)
        if warning:
            self._reporter.note("warning", warning)
        for number in range(config.operating.workers):
            worker = Worker(
                bell=self._bells[1].fileno(),
                names_bell=self._bells[3].fileno(),
                buffer_size=config.memory.buffer_size,
                connect_timeout=config.timeouts.connect_timeout,
                half_close_timeout=config.timeouts.half_close_timeout,
                idle_timeout=config.timeouts.idle_timeout,
                keepalive=config.timeouts.keepalive,
                socket_buffer=config.memory.socket_buffer,
                zero_copy=config.speed.zero_copy,
                busy_poll_us=config.speed.busy_poll,
            )
            self._workers.append(worker)
            for listener in listeners:
                with listener.dup() as copy:
                    worker.listen(copy.fileno(), 0)
                    copy.detach()  # the worker's own, unless it has said no
            worker.want_events(wanted(self._reporter.kinds))
            if target:
                worker.set_addresses(0, target, None if self._resolver is None else 5.0)
            self._threads.append(_thread(f"tcpproxy-worker-{number}", self._run, worker))
        Worker.link(self._workers, limit=limit, per_source=config.clients.max_connections_per_source)
        self.addresses = [where(listener) for listener in listeners]
        for listener in listeners:
            self._reporter.note("listening", address(listener))
            if is_public(listener):
                self._reporter.note("warning", f"listening on {address(listener)}, which other machines may reach")
            if warning := small_buffers(listener, config):
                self._reporter.note("warning", warning)
            listener.close()  # each worker has its own copy
        resolver = self._resolver
        problem = (lambda: resolver.problem) if resolver else str
        self._logger = _thread(
            "tcpproxy-log", self._reporter.run, self._workers, self._threads, self._bells[0], self._stopped, problem
        )
        if self._resolver:
            self._namer = _thread("tcpproxy-names", self._answer, self._resolver)

    def stop(self, grace: float | None = None) -> None:
        """Stops listening, lets connections end for `grace` seconds (None: as configured), resets the rest.

        From any thread, any number of times; returns when all is over. Called by `on_event` it does not wait, and
        without a `grace` it gives none.
        """
        if threading.current_thread() in (self._logger, self._namer):  # by a callback: nobody can wait for himself
            self.drain() if grace else self.abort()
            return
        with self._lock:  # not in the middle of a start
            if not self._threads:
                return
        deadline = time.monotonic() + (self.config.timeouts.grace if grace is None else grace)
        self.drain()
        for thread in self._threads:
            _join(thread, deadline - time.monotonic())
        self.abort()
        for thread in self._threads:
            _join(thread, None)
        with self._lock:
            if not self._stopped.is_set():
                self._clean_up()
                self._stopped.set()

    def drain(self) -> None:
        """Stops listening, at once; connections go on. Does not wait."""
        self._stopping.set()
        for worker in self._workers:
            worker.stop(abort=False)

    def abort(self) -> None:
        """Resets all connections and stops. Does not wait."""
        self._stopping.set()
        for worker in self._workers:
            worker.stop(abort=True)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until somebody stops the proxy, or a worker fails (see `failure`). False: the time was over before."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            rest = None if deadline is None else max(0.0, deadline - time.monotonic())
            # Ctrl-C does not end a wait on Windows, but comes to its word between two.
            if self._stopping.wait(rest if os.name != "nt" else min(0.2, 0.2 if rest is None else rest)):
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def _clean_up(self) -> None:
        _live.discard(self)
        for worker in self._workers:
            worker.close()
        self._end_helpers()

    def _end_helpers(self) -> None:
        """Waits for the threads that are no workers, once all workers have ended, and closes what they listen to."""
        self._ring(0)
        if self._resolver:
            self._resolver.close()
            self._ring(2)
        # The log thread may be stuck in a write to a full pipe, for ever: then it is left behind, as a daemon. Or the
        # machine stands still for a moment, and the last lines are still to come.
        deadline = time.monotonic() + LAST_WORDS
        helpers = [thread for thread in (self._logger, self._namer) if thread]
        for thread in helpers:
            _join(thread, deadline - time.monotonic())
        if not any(thread.is_alive() for thread in helpers):
            for bell in self._bells:
                bell.close()

    def _ring(self, bell: int) -> None:
        with contextlib.suppress(OSError):
            for writer in self._bells[bell + 1 : bell + 2]:  # none, after a start that failed early
                writer.send(b"s")

    def _discard(self, listeners: list[socket.socket]) -> None:
        """Undoes what a start had done when it failed."""
        self.abort()
        for thread in self._threads:
            _join(thread, None)
        for worker in self._workers:
            worker.close()
        self._end_helpers()
        self._workers, self._threads = [], []  # other ones: the log thread may still have these in its hands
        self._logger = self._namer = None
        for listener in listeners:
            listener.close()

    def _forked(self) -> None:
        """In a child: this proxy lives on in the parent only."""
        for worker in self._workers:
            worker.abandon()
        for bell in self._bells:
            bell.close()
        self._workers, self._threads, self._logger, self._namer = [], [], None, None
        self._lock = threading.Lock()
        # A thread of the parent's may have held their locks at the fork.
        self._stopping, self._stopped = threading.Event(), threading.Event()
        self._stopping.set()
        self._stopped.set()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        import asyncio

        return await asyncio.to_thread(self.start)

    async def __aexit__(self, *exc: object) -> None:
        import asyncio

        await asyncio.to_thread(self.stop)

    # --- what its threads do ---

    def _run(self, worker: Worker) -> None:
        try:
            worker.run()
        except OSError as error:
            self.failure = WorkerError(error.errno, describe(error.errno or 0), error.filename)
            self.abort()

    def _answer(self, resolver: Resolver) -> None:
        """Resolves upstream's name whenever a worker asks."""
        while not self._stopping.is_set() or any(thread.is_alive() for thread in self._threads):
            self._bells[2].recv(4096)
            asked = [worker.wants_addresses(0) for worker in self._workers]
            if any(asked):
                found, lifetime = resolver.lookup()
                for worker in self._workers:
                    self._hand_over(worker, found, lifetime)

    def _hand_over(self, worker: Worker, found: list[Address], lifetime: float | None) -> None:
        """Gives a worker the answer that it waits for, even if memory is short just now: it would not ask again."""
        while True:
            try:
                return worker.set_addresses(0, found, lifetime)
            except MemoryError:
                if self._stopping.wait(0.1):
                    return

    # --- views ---

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) to connect to, as `socket.create_connection` wants it."""
        if not self.addresses:
            raise RuntimeError("the proxy has not been started")
        return self.addresses[0]

    def stats(self) -> Stats:
        """Numbers, from any thread at any time, also after the end."""
        each = [worker.counters() for worker in self._workers]
        total = {name: sum(counters[name] for counters in each) for name in Stats.__slots__ if each and name in each[0]}
        by_worker = tuple(counters["accepted"] for counters in each)
        return Stats(**{name: total.get(name, 0) for name in Stats.__slots__[:-1]}, accepted_by_worker=by_worker)

    def connections(self) -> list[Connection]:
        """The connections alive now."""
        return [Connection(*item) for worker in self._workers for item in worker.connections()]


def _thread(name: str, target: Callable[..., None], *args: object) -> threading.Thread:
    # Daemon threads, joined by stop() and at exit: others would hold up an exit that nobody told to stop.
    return threading.Thread(target=target, args=args, name=name, daemon=True)


def _join(thread: threading.Thread, timeout: float | None) -> None:
    if thread.ident is not None:
        thread.join(None if timeout is None else max(0.0, timeout))


# --- the process around it ---


def _hook() -> None:
    """At the first start, not at import: ends proxies at exit and lets go of them in forked children."""
    global _hooked
    if not _hooked:
        _hooked = True
        atexit.register(_stop_all)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_forked)


def _stop_all() -> None:
    for proxy in list(_live):
        proxy.stop(grace=0)


def _forked() -> None:
    for proxy in list(_live):
        proxy._forked()
    _live.clear()
