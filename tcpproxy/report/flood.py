"""A rate limit for log lines."""

from __future__ import annotations

import time
from collections.abc import Callable


class Flood:
    """Lets a few lines of a kind through each second and counts the rest."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: dict[str, tuple[float, int, int]] = {}  # when it began, lines in it, how many may pass

    def admit(self, key: str, burst: int, *, told: bool = True) -> bool:
        """May this line pass? Ask `overdue` first: here a second that is over is forgotten. `told`: it is counted."""
        start, count, _ = self._seconds.get(key, (-1.0, 0, burst))
        if self._clock() - start >= 1:
            start, count = self._clock(), 0
        self._seconds[key] = (start, count + 1, burst if told else count + 1)
        return count < burst

    def overdue(self, final: bool = False) -> dict[str, int]:
        """How many lines were held back in seconds that are over (`final`: in any), by kind; each is told once."""
        now = self._clock()
        over = {key: count - burst for key, (start, count, burst) in self._seconds.items() if final or now - start >= 1}
        for key in over:
            del self._seconds[key]
        return {key: count for key, count in over.items() if count > 0}

    @property
    def pending(self) -> bool:
        """Is there something that `overdue` will have to say?"""
        return any(count > burst for _, count, burst in self._seconds.values())
