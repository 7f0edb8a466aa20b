"""The look-ups of targets' names while a proxy runs: a thread answers the workers that ask for addresses.

Each query has a thread of its own (see network/resolver.py). With several targets each look-up has one, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from ._core.worker import Worker
from .native import Event, Lock, Thread, make_thread
from .network.forwarding import Target
from .network.resolver import TTL, Address, Resolver
from .wakeup import Wakeup


class Lookups:
    """Gives the workers the addresses of the targets.

    Args:
        targets: the targets of all forwards.
        workers: the workers of the proxy; the list is complete before the thread starts.
        wakeup: a worker wakes the thread by it when it asks.
        running: returns whether any worker runs.
        stopping: is set when the proxy stops.

    Attributes:
        thread: the thread that answers the workers; None: no target has a name.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        workers: Sequence[Worker],
        wakeup: Wakeup,
        running: Callable[[], bool],
        stopping: Event,
    ) -> None:
        self._targets, self._workers, self._wakeup = targets, workers, wakeup
        self._running, self._stopping = running, stopping
        self._lock = Lock()  # protects the resolvers, and the addresses that workers got from them
        self.thread = self._make_thread() if any(each.resolver for each in targets) else None

    def _make_thread(self) -> Thread:
        return make_thread("tcpproxy-names", self._serve)

    def publish_first(self, worker: Worker) -> None:
        """Gives the known addresses to a worker that does not run yet.

        Raises:
            MemoryError: there is no memory for them.
        """
        for number, target in enumerate(self._targets):
            if target.addresses:
                worker.set_addresses(number, target.addresses, TTL if target.resolver else None)

    def replace(self, target: Target) -> None:
        """Replaces the only target.

        Raises:
            MemoryError, RuntimeError: there is no memory, or the system refuses a thread.
        """
        if target.resolver and not self.thread:
            self.thread = self._make_thread()
            try:
                self.thread.start()
            except RuntimeError:
                self.thread = None
                raise
        with self._lock:
            (known,) = self._targets
            old, known.resolver = known.resolver, target.resolver
            known.place, known.name, known.addresses = target.place, target.name, target.addresses
            for worker in self._workers:
                worker.set_addresses(0, target.addresses, TTL if target.resolver else None)
        if old:
            old.close()

    def _serve(self) -> None:
        """The thread: looks up a target's name when a worker asks."""
        while self._running() or not self._stopping.is_set():
            self._wakeup.wait()
            for number in range(len(self._targets)):
                asked = [each.wants_addresses(number) for each in self._workers]  # ask all: the call clears the flag
                if any(asked):
                    self._begin(number)

    def _begin(self, number: int) -> None:
        """Looks up the name of a target; with several targets in its own thread, because a name server may hang."""
        if len(self._targets) > 1:
            with contextlib.suppress(RuntimeError, MemoryError):
                return make_thread("tcpproxy-name", self._look_up, number).start()
        self._look_up(number)

    def _look_up(self, number: int) -> None:
        if resolver := self._targets[number].resolver:
            addresses, lifetime = resolver.lookup()
            for worker in self._workers:
                self._publish(worker, number, resolver, addresses, lifetime)

    def _publish(
        self, worker: Worker, number: int, resolver: Resolver, addresses: list[Address], lifetime: float
    ) -> None:
        """Gives a worker the answer. Retries after a MemoryError, because the worker does not ask again."""
        while True:
            with contextlib.suppress(MemoryError), self._lock:
                if resolver is self._targets[number].resolver:  # else the target was replaced
                    worker.set_addresses(number, addresses, lifetime)
                return
            if self._stopping.wait(0.1):
                return
