"""Stops proxies when their process exits, and closes their copies in forked children."""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from typing import Protocol

from .native import Lock


class Stoppable(Protocol):
    """What can be registered here."""

    def stop(self, grace: float | str | None = None) -> None:
        """Called at the exit of the process, with a grace of 0."""

    def _close_after_fork(self) -> None:
        """Called in a forked child: the proxy goes on in the parent only."""


_live: weakref.WeakValueDictionary[int, Stoppable] = weakref.WeakValueDictionary()
"""The proxies that exist, by id(). Stopped ones, too: in a forked child they need new locks.

Not a WeakSet: reading one fails when another thread changes it meanwhile.
"""

_hooked = False

no_fork = Lock(reentrant=True)
"""Held while a proxy opens or closes descriptors. A fork waits for it, so that the child knows which are open.

Reentrant: a signal handler or a `__del__` that interrupts its holder may stop another proxy.
"""

FORK_WAIT = 3.0
"""The most seconds that a fork waits for `no_fork`, which is held for milliseconds."""


def register(proxy: Stoppable) -> None:
    """Registers a proxy to be stopped at exit and closed in forked children. The hooks are set at the first call."""
    global _hooked
    if not _hooked:
        _hooked = True
        atexit.register(_stop_all)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=_wait_for_starts, after_in_parent=_let_start, after_in_child=_close_after_fork)
    _live[id(proxy)] = proxy


def _all() -> list[Stoppable]:
    return [proxy for reference in _live.valuerefs() if (proxy := reference())]


def _stop_all() -> None:
    for proxy in _all():
        proxy.stop(grace=0)


def _wait_for_starts() -> None:
    no_fork.acquire(FORK_WAIT)


def _let_start() -> None:
    with contextlib.suppress(RuntimeError):  # after FORK_WAIT this thread does not hold it
        no_fork.release()


def _close_after_fork() -> None:
    global no_fork
    no_fork = Lock(reentrant=True)
    for proxy in _all():
        proxy._close_after_fork()
    _live.clear()
