"""The exit of a process, while other threads start and stop proxies."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest
from support.waiting import in_background

from tcpproxy import lifetime


class Stopped:
    """Stands for a proxy."""

    def stop(self, grace: float | str | None = None) -> None:
        pass

    def _close_after_fork(self) -> None:
        pass


@pytest.fixture
def often() -> Iterator[None]:
    """Threads take turns at nearly every instruction."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("often")
def test_all_are_stopped_while_others_come_and_go() -> None:
    over = threading.Event()
    kept = [Stopped() for _ in range(50)]
    for each in kept:
        lifetime.register(each)

    def come_and_go() -> None:
        while not over.is_set():
            some = [Stopped() for _ in range(20)]
            for each in some:
                lifetime.register(each)
            del each, some

    with in_background(come_and_go), in_background(come_and_go):
        try:
            for _ in range(20_000):
                lifetime._stop_all()
        finally:
            over.set()
