"""Crew: the threads of a proxy. One per worker, one for the log, and one for look-ups of names (lookups.py).

If there is a tap, another thread reads it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Collection, Sequence
from threading import TIMEOUT_MAX
from typing import TYPE_CHECKING, Any

from . import lifetime
from ._core.capture import TapReader
from ._core.worker import ZERO_COPY, Worker
from .config.config import Config
from .config.networks import UNIX
from .errors import StartError, WorkerError, describe
from .lookups import Lookups
from .native import Event, Thread, allocate_lock, make_thread, monotonic, this_thread
from .network.forwarding import Forwarding, all_targets
from .network.limits import ephemeral_ports
from .network.resolver import Address
from .processors import cpu_quota
from .report.reporter import Reporter
from .views import Connection
from .wakeup import Wakeup

if TYPE_CHECKING:
    from ._core.rulebook import Rulebook
    from ._core.worker import _Settings
    from .tap.capture import Capture

LOG_DRAIN = 3.0
"""The most seconds that the end, or a caller that wants its events delivered, waits for the log thread, whose writes
may block."""


KILLED_AT_ONCE = 256
"""Connections of a worker that are killed before the log thread takes their records: the ring has room for 2,048."""


class Crew:
    """Makes the workers of a proxy and the threads that serve them; starts, stops and joins them.

    Args:
        config: the configuration of the proxy.
        reporter: runs in the log thread.
        forwards: the forwards of the proxy.
        failed: called once, by a worker's thread, if a worker ends by itself.
        record: bytes to record of each direction of each connection; 0: none.
        capture: the capture; `close` closes it.
        paused: directions that are paused from the start: see `pause`.
        sources: local addresses of connections to upstream, at most one per family; none: the system chooses.
    """

    def __init__(
        self,
        config: Config,
        reporter: Reporter,
        forwards: Sequence[Forwarding],
        failed: Callable[[WorkerError], None],
        record: int = 0,
        capture: Capture | None = None,
        paused: int = 0,
        sources: Sequence[Address] = (),
    ) -> None:
        self._config, self._reporter, self._forwards, self._failed = config, reporter, forwards, failed
        self._targets, self._sources = all_targets(forwards), sources
        self._record, self._capture, self._paused = record, capture, paused
        self._lookups: Lookups | None = None
        self.tap: TapReader | None = None
        self._tap_thread: Thread | None = None
        self._wakeups: list[Wakeup] = []
        self._workers: list[Worker] = []
        self._threads: list[Thread] = []
        self._log_thread: Thread | None = None
        self._begun = False  # all threads have been started
        self._stopping = Event()
        self.limit = 0
        """The most connections at a time."""

    def open(self, listeners: Sequence[Sequence[socket.socket]], limit: int) -> None:
        """Makes the workers, and the threads without starting them. After an error `close` frees what was made.

        Args:
            listeners: the listeners of each forward. Each worker gets duplicates; the caller closes these.
            limit: the most connections at a time.

        Raises:
            OSError, MemoryError: the system refuses a descriptor or memory.
        """
        self.limit = limit
        self._wakeups.append(lookup_wakeup := Wakeup())
        self._wakeups.append(log_wakeup := Wakeup())
        settings = self._settings(log_wakeup, lookup_wakeup)
        lookups = Lookups(self._targets, self._workers, lookup_wakeup, lambda: self.running, self._stopping)
        self._lookups = lookups
        for number in range(self._config.operating.workers):
            worker = Worker(settings, allocate_lock)
            self._workers.append(worker)
            worker.connect_from(self._sources)
            for first, forward, own in zip(self._firsts, self._forwards, listeners, strict=True):
                worker.fall_back(first, len(forward.targets))
                for listener in own:
                    with listener.dup() as duplicate:
                        worker.listen(duplicate.fileno(), first)
                        duplicate.detach()  # from here on the worker owns and closes it
            lookups.publish_first(worker)
            self._threads.append(make_thread(f"tcpproxy-worker-{number}", self._run, worker))
        per_source = self._config.clients.max_connections_per_source
        rates = self._config.rates
        Worker.link(
            self._workers,
            limit=limit,
            per_source=per_source,
            admitted=self._admitted(),
            rates=rates.max_rate,
            rates_each=rates.max_rate_per_connection,
            **self._proxies(),
        )
        shown = self._config.seeing.shown
        reporting = self._threads.copy()
        if self._taps:
            capture, wakeup = self._capture is not None, log_wakeup.fileno()
            self.tap = TapReader(self._workers, record=self._record, capture=capture, show=shown, wakeup=wakeup)
            self._tap_thread = make_thread("tcpproxy-tap", self._read_tap, self.tap)
            reporting.append(self._tap_thread)
        pieces = self.tap if shown else None
        self._reporter.open(self._workers, reporting, log_wakeup, self._forwards, pieces, self._trouble)
        for worker in self._workers:
            worker.want_events(self._reporter.kinds, self._reporter.wants_outgoing)
        self._log_thread = make_thread("tcpproxy-log", self._reporter.run)

    def _admitted(self) -> bytes | None:
        """The table of admitted networks for the workers; None: all are admitted."""
        clients = self._config.clients
        if clients.allow is None and clients.deny is None:
            return None
        from .network.networks import admitted  # its imports take milliseconds

        return admitted(clients.allow, clients.deny or ())

    @property
    def _firsts(self) -> list[int]:
        """The number of each forward's first target."""
        counts = [len(each.targets) for each in self._forwards]
        return [sum(counts[:place]) for place in range(len(counts))]

    def _proxies(self) -> dict[str, Any]:
        """The table of the peers that send PROXY headers, for the workers."""
        listed = self._config.proxy_protocol.accept_proxy
        if listed is None:
            return {}
        from .network.networks import bounds

        networks = [each for each in listed if each != UNIX]
        return {"proxies": bounds(networks), "unix_proxies": UNIX in listed}

    def _settings(self, log_wakeup: Wakeup, lookup_wakeup: Wakeup) -> _Settings:
        """The settings of each worker."""
        config = self._config
        busy_poll = config.speed.busy_poll
        if busy_poll < 0 and cpu_quota() is not None:
            busy_poll = 0  # polling would use up the quota, and the kernel then stops all workers for up to 100 ms
        first, last = ephemeral_ports()
        return {
            "log_wakeup": log_wakeup.fileno(),
            "lookup_wakeup": lookup_wakeup.fileno(),
            "buffer_size": config.memory.buffer_size,
            "connect_timeout": config.timeouts.connect_timeout,
            "header_timeout": config.proxy_protocol.proxy_header_timeout,
            "half_close_timeout": config.timeouts.half_close_timeout,
            "idle_timeout": config.timeouts.idle_timeout,
            "keepalive": config.timeouts.keepalive,
            "socket_buffer": config.memory.socket_buffer,
            "ephemeral_first": first,
            "ephemeral_last": last,
            "zero_copy": ZERO_COPY[config.speed.zero_copy],
            "busy_poll_us": busy_poll,
            "tap": self._taps,
            "paused": self._paused,
            "upstreams": len(self._targets),
            "send_header": int((config.proxy_protocol.send_proxy or "v0")[1:]),
        }

    @property
    def _taps(self) -> bool:
        """Is a tap needed, because bytes are captured, recorded or dumped?"""
        return bool(self._record or self._capture or self._config.seeing.shown)

    def start(self) -> None:
        """Starts all threads: the log thread last, because it reports that the proxy listens.

        Raises:
            RuntimeError: the system refuses a thread.
        """
        for thread in (self._tap_thread, *self._threads, self._lookup_thread, self._log_thread):
            if thread:
                thread.start()
        self._begun = True

    @property
    def _lookup_thread(self) -> Thread | None:
        return self._lookups.thread if self._lookups else None

    @property
    def running(self) -> bool:
        """Does any worker run?"""
        return any(thread.is_alive() for thread in self._threads)

    def is_own_thread(self) -> bool:
        """Is the calling thread one of the proxy's own? Such a thread must not wait for itself.

        The log thread calls `on_event`. The garbage collector may call a `__del__` in any of them.
        """
        own = (*self._threads, self._tap_thread, self._log_thread, self._lookup_thread)
        # When a thread has ended, another one may get its ident.
        return any(thread and thread.ident == this_thread() and thread.is_alive() for thread in own)

    def may_ask(self) -> bool:
        """May the calling thread wait for the workers? The log thread may, for the calls of `on_event`."""
        log = self._log_thread
        return self._begun and (not self.is_own_thread() or (log is not None and log.ident == this_thread()))

    def stop(self, *, abort: bool) -> None:
        """Makes the workers stop accepting; with `abort` they reset all connections and end. Does not wait."""
        self._stopping.set()
        for worker in self._workers:
            worker.stop(abort=abort)

    def sync(self) -> None:
        """Returns when every worker has carried out all earlier commands."""
        for worker in self._workers:
            worker.sync()

    def replace_listeners(self, listeners: Sequence[Sequence[socket.socket]]) -> None:
        """Makes the workers replace their listeners. The change is in force when it returns.

        Args:
            listeners: the listeners of each forward. Each worker gets duplicates; the caller closes these.
                Empty: the workers accept the clients in the backlog, and then do not listen any more.

        Raises:
            OSError: there is no descriptor for a duplicate; nothing has changed.
        """
        with contextlib.ExitStack() as stack:
            new = [
                [
                    (stack.enter_context(each.dup()), first)
                    for first, own in zip(self._firsts, listeners, strict=False)
                    for each in own
                ]
                for _ in self._workers
            ]
            for worker, own in zip(self._workers, new, strict=True):
                # From here on the worker closes them.
                worker.replace_listeners([(each.detach(), target) for each, target in own])

    def accept_waiting(self) -> None:
        """Accepts all clients in the backlog."""
        for worker in self._workers:
            worker.accept_waiting()

    def hang(self, on: bool) -> None:
        """Makes connect() of clients hang, or no longer. To be called after `start`.

        Raises:
            StartError: the system refuses that.
        """
        for worker in self._workers:  # they share the listeners, but one may have ended
            try:
                worker.hang(on)
            except OSError as error:
                raise StartError.because("cannot let clients hang", error) from error

    def pause(self, directions: int) -> None:
        """Pauses these directions of all connections, and resumes the others. Bits: 1 to upstream, 2 to the client."""
        for worker in self._workers:
            worker.pause(directions)

    def kill(self, ids: Collection[int] | None, flush: Callable[[], object], *, reset: bool) -> int:
        """Ends connections. When it returns, none of their bytes are delivered any more.

        Args:
            ids: the ids of the connections; None: all at the time of the call, including those in the backlog.
            flush: waits until the log thread has taken all event records.
            reset: send RST to both peers, else FIN.

        Returns:
            How many connections it has ended.
        """
        if ids is None:
            self.accept_waiting()
        last = self._workers[0].last_id()  # later connections are not ended
        total = 0
        for worker in self._workers:
            killed = KILLED_AT_ONCE
            while killed == KILLED_AT_ONCE:
                flush()
                killed = worker.kill(ids, last, KILLED_AT_ONCE, reset=reset)
                total += killed
        return total

    def set_upstream(self, new: Forwarding) -> None:
        """Sets the upstream of connections that do not connect yet. The change is in force when it returns.

        Args:
            new: replaces the only forward; both have one target.

        Raises:
            MemoryError, RuntimeError: there is no memory, or the system refuses a thread.
        """
        (target,) = new.targets
        assert self._lookups  # since `open`
        self._lookups.replace(target)
        self.sync()

    def join(self, timeout: float | None) -> None:
        """Waits until all workers have ended, at most `timeout` seconds."""
        deadline = None if timeout is None else monotonic() + timeout
        for thread in self._threads:
            _join(thread, deadline)

    def close(self) -> None:
        """Closes all descriptors, and ends the other threads. All workers must have ended, or none has started."""
        if self.tap and self._tap_thread and not self._end_tap(self.tap, self._tap_thread):
            return
        if self._capture:
            self._capture.close()
        with lifetime.no_fork:
            for worker in self._workers:
                worker.close()
            if self.tap:
                self.tap.close()
        for each in self._targets:
            if each.resolver:
                each.resolver.close()
        for wakeup in self._wakeups:
            wakeup.wake()
        # The log thread may be stuck in a write to a full pipe. Then it stays, a daemon thread, with its wake-up open.
        # Otherwise the wait lets it write the last lines.
        deadline = monotonic() + LOG_DRAIN
        helpers = [thread for thread in (self._log_thread, self._lookup_thread) if thread]
        for thread in helpers:
            _join(thread, deadline)
        if not any(thread.is_alive() for thread in helpers):
            with lifetime.no_fork:
                for wakeup in self._wakeups:
                    wakeup.close()

    def _end_tap(self, tap: TapReader, thread: Thread) -> bool:
        """Ends the thread of the tap, before the workers' pollers are closed, because it wakes them.

        The thread may be blocked in a write to a pipe: the capture is given up after LOG_DRAIN seconds. A write to a
        disk that hangs cannot be ended. Then the thread stays, a daemon, with all that it uses, and False is returned.
        """
        tap.finish()
        _join(thread, monotonic() + LOG_DRAIN)
        tap.give_up()
        _join(thread, monotonic() + 1)
        return not thread.is_alive()

    def close_after_fork(self) -> None:
        """In a forked child: closes the copies of the parent's descriptors. The threads run in the parent only."""
        for worker in self._workers:
            worker.close_after_fork()
        if self.tap:
            self.tap.close_after_fork()
        if self._capture:
            self._capture.close()
        for wakeup in self._wakeups:
            wakeup.close()

    def begin_with(self, rules: Rulebook) -> None:
        """Puts faults in force. To be called before `start`."""
        for worker in self._workers:
            worker.begin_with(rules)

    def bend(self, rules: Rulebook) -> None:
        """Replaces the faults in force, for all connections when it returns. To be called after `start`."""
        for worker in self._workers:
            worker.bend(rules)

    def last_id(self) -> int:
        """The id of the connection that was accepted last."""
        return self._workers[0].last_id()

    def counters(self) -> list[dict[str, int]]:
        """The counters of each worker."""
        return [worker.counters() for worker in self._workers]

    def measures(self, forward: int) -> list[dict[str, list[float]]]:
        """The measures (see `Worker.measures`) of each target of a forward, summed over all workers."""
        first = self._firsts[forward]
        return [
            sums([worker.measures(target) for worker in self._workers])
            for target in range(first, first + len(self._forwards[forward].targets))
        ]

    def down(self, forward: int) -> list[bool]:
        """For each target of a forward, whether its last attempt failed; always False for an only target."""
        first, count = self._firsts[forward], len(self._forwards[forward].targets)
        return [self._workers[0].is_down(first + number) for number in range(count)]

    def connections(self) -> list[Connection]:
        """The live connections of all workers."""
        targets = [each.name for each in self._targets]
        faults = self._reporter.faults
        return [
            Connection(
                *item, target=targets[target], faults=faults.acted(item[0], keys) if faults else (), held=held, via=via
            )
            for worker in self._workers
            for item, target, held, keys, via in worker.connections()
        ]

    # --- what the threads do ---

    def _run(self, worker: Worker) -> None:
        try:
            worker.run()
        except OSError as error:
            self._failed(WorkerError(error.errno, describe(error.errno or 0), error.filename))

    def _read_tap(self, tap: TapReader) -> None:
        if self._capture:
            self._capture.follow(tap, lambda text: self._reporter.note("lost", text))
        else:
            tap.run()

    def _trouble(self) -> str:
        """For the log thread: returns a new warning; empty: there is none."""
        if self.tap and self._capture and self.tap.slow():
            return f"the capture {self._capture.path} holds traffic up: less than 1 MiB of it a second is taken"
        return ""


def sums(each: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Adds lists of numbers, name by name and index by index."""
    return {name: [sum(column) for column in zip(*(one[name] for one in each), strict=True)] for name in each[0]}


def _join(thread: Thread, deadline: float | None) -> None:
    if thread.ident is not None:
        thread.join(None if deadline is None else min(max(0.0, deadline - monotonic()), TIMEOUT_MAX))
