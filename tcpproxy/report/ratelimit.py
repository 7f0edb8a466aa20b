"""A rate limit for log lines."""

from __future__ import annotations

from collections.abc import Callable

from ..native import monotonic


class RateLimit:
    """Admits a few lines of a kind in each second, and counts the others."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._seconds: dict[str, tuple[float, int, int]] = {}  # start of the second, lines in it, how many may pass

    def admit(self, key: str, burst: int, *, counted: bool = True) -> bool:
        """May this line pass?

        Call `take_suppressed` first: this starts a new one-second window and drops the old count.

        Args:
            key: the kind of line.
            burst: lines that may pass in a second.
            counted: `take_suppressed` counts the line if it may not pass.
        """
        start, count, _ = self._seconds.get(key, (-1.0, 0, burst))
        if self._clock() - start >= 1:
            start, count = self._clock(), 0
        self._seconds[key] = (start, count + 1, burst if counted else count + 1)
        return count < burst

    def take_suppressed(self, final: bool = False) -> dict[str, int]:
        """Returns how many lines of each kind were suppressed in past seconds. Resets these numbers.

        Args:
            final: also return those of the present second.
        """
        now = self._clock()
        over = {key: count - burst for key, (start, count, burst) in self._seconds.items() if final or now - start >= 1}
        for key in over:
            del self._seconds[key]
        return {key: count for key, count in over.items() if count > 0}

    @property
    def pending(self) -> bool:
        """Will `take_suppressed` have something to return?"""
        return any(count > burst for _, count, burst in self._seconds.values())
