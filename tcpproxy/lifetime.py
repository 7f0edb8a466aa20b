"""What happens to proxies when their process ends or forks."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Protocol

from .native import Lock


class Stoppable(Protocol):
    """What can be registered here."""

    def stop(self, grace: float | None = None) -> None:
        """Called at the exit of the process, with a grace of 0."""

    def _close_after_fork(self) -> None:
        """Called in a forked child: it runs on in the parent only."""


_live: weakref.WeakSet[Stoppable] = weakref.WeakSet()
_hooked = False
_forking = False

no_fork = Lock()
"""Held while a proxy opens or closes descriptors: a fork in another thread waits, or the child could not tell which."""

FORK_WAIT = 3.0
"""Seconds that a fork waits at most. An opening takes milliseconds."""


def register(proxy: Stoppable) -> None:
    """Registers a proxy to be stopped at exit and closed in forked children. The hooks are set at the first call."""
    global _hooked
    if not _hooked:
        _hooked = True
        atexit.register(_stop_all)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=_wait_for_starts, after_in_parent=_let_start, after_in_child=_close_after_fork)
    _live.add(proxy)


def unregister(proxy: Stoppable) -> None:
    """Removes a proxy that has stopped."""
    _live.discard(proxy)


def _stop_all() -> None:
    for proxy in list(_live):
        proxy.stop(grace=0)


def _wait_for_starts() -> None:
    global _forking
    _forking = no_fork.acquire(FORK_WAIT)


def _let_start() -> None:
    if _forking:
        no_fork.release()


def _close_after_fork() -> None:
    global no_fork
    no_fork = Lock()
    for proxy in list(_live):
        proxy._close_after_fork()
    _live.clear()
