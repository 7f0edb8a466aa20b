"""Waiting: for a condition, for a duration, for a thread; and bounds for measured durations."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import tcpproxy

TIMEOUT = 20.0 if os.name == "posix" else 60.0
"""Seconds after which a peer that waits for something fails its test; nothing waits this long on purpose.

Under wine a command starts in 2 s, and on a machine that is ten times as busy as it can bear, in more than 20.
"""


@contextlib.contextmanager
def in_background(function: Callable[..., object], *args: object) -> Iterator[list[object]]:
    """Runs a function in a thread beside the block; joins it, raises what it raised; yields a list for its result."""
    result: list[object] = []
    trouble: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function(*args))
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield result
    thread.join(TIMEOUT * 2)
    if trouble:
        raise trouble[0]
    assert not thread.is_alive(), f"{function} did not end"


def pause(seconds: float) -> None:
    """Lets time pass: a test is about a duration, or about what must not happen, of which no event tells."""
    threading.Event().wait(seconds)


def eventually(condition: Callable[[], object], within: float = 5.0, what: str = "") -> None:
    """Waits for something that no socket tells. Fails after `within` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, what or f"not within {within} s"
        threading.Event().wait(0.002)


def at_best(measure: Callable[[], float], bound: float, tries: int = 1) -> list[float]:
    """Measures, at least so many times, until one result is below the bound. Returns all results.

    For durations: only a machine that is slow for as long as `TIMEOUT` can fail it, yet what always takes longer does.
    """
    deadline = time.monotonic() + TIMEOUT
    results = [measure()]
    while len(results) < tries or min(results) >= bound:
        assert time.monotonic() < deadline, f"never below {bound}: {results}"
        results.append(measure())
    return results


def bounds(loose: float, tight: float) -> pytest.MarkDecorator:
    """Runs a test with each as its argument `bound`; with the tight one, which a slow machine misses, as `timed`."""
    return pytest.mark.parametrize(
        "bound", [pytest.param(loose, id="loose"), pytest.param(tight, id="tight", marks=pytest.mark.timed)]
    )


def ends(events: list[tcpproxy.Event], count: int = 1) -> list[tcpproxy.Event]:
    """The `end` events, once there are so many; no other trouble was reported."""
    eventually(lambda: sum(event.kind == "end" for event in events) >= count)
    assert {event.kind for event in events} - {"connected"} == {"listening", "new", "end"}
    return [event for event in events if event.kind == "end"]
