"""The look-ups of targets' names while a proxy runs: a thread serves the workers that ask for addresses.

Each query has a further thread (see network/resolver.py), and with several targets each look-up that is served.
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
        targets: of all forwards.
        workers: the workers of the proxy; a list that is complete before the thread starts.
        wakeup: what a worker wakes when it asks.
        running: does any worker run?
        stopping: is set when the proxy stops.

    Attributes:
        thread: serves the workers; None: no target has a name.
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
        self._lock = Lock()  # over resolvers, and the addresses that workers have from them
        self.thread = self._make_thread() if any(each.resolver for each in targets) else None

    def _make_thread(self) -> Thread:
        return make_thread("tcpproxy-names", self._serve)

    def publish_first(self, worker: Worker) -> None:
        """Gives a worker that does not run yet the addresses that are known.

        Raises:
            MemoryError: there is none for them.
        """
        for number, target in enumerate(self._targets):
            if target.addresses:
                worker.set_addresses(number, target.addresses, TTL if target.resolver else None)

    def replace(self, target: Target) -> None:
        """Puts another target in the place of the only one.

        Raises:
            MemoryError, RuntimeError: there is no memory or no thread.
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
        """The thread: looks a target's name up whenever a worker asks."""
        while self._running() or not self._stopping.is_set():
            self._wakeup.wait()
            for number in range(len(self._targets)):
                asked = [each.wants_addresses(number) for each in self._workers]  # of each one: it clears its flag
                if any(asked):
                    self._begin(number)

    def _begin(self, number: int) -> None:
        """Looks the name of a target up; with several targets in a thread of its own: a name server may hang."""
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
        """Gives a worker the answer that it waits for. Retries after a MemoryError: the worker does not ask again."""
        while True:
            with contextlib.suppress(MemoryError), self._lock:
                if resolver is self._targets[number].resolver:  # else it has addresses of another upstream by now
                    worker.set_addresses(number, addresses, lifetime)
                return
            if self._stopping.wait(0.1):
                return
