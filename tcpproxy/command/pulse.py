"""Checks whether the workers answer, for a watchdog and for the health probe."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Pulse:
    """Asks all workers whether they run. Uses its own thread, because the call does not return if a worker is stuck.

    Args:
        ask: returns when every worker has answered.
    """

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask
        self._changed = threading.Condition()
        self._asked = self._answered = 0
        threading.Thread(target=self._run, name="tcpproxy-pulse", daemon=True).start()

    def beats(self, within: float) -> bool:
        """Asks all workers now. Returns whether all have answered within `within` seconds."""
        with self._changed:
            self._asked += 1
            mine = self._asked
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._answered >= mine, within)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked > self._answered)
                number = self._asked
            self._ask()
            with self._changed:
                self._answered = number
                self._changed.notify_all()
