"""Threads, locks, events and a clock of the operating system, even if the program has replaced those of Python.

gevent and eventlet replace threads by greenlets, which take turns in one thread; a worker would never give up its turn.
Tests freeze `time.monotonic`. The objects of this module are not affected by that. A greenlet that waits for one lets
the other greenlets run.
"""

from __future__ import annotations

import _thread
import collections
import contextlib
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

from ._core.worker import monotonic, wall

__all__ = [
    "Event",
    "Lock",
    "Thread",
    "getaddrinfo",
    "let_greenlets_run",
    "make_thread",
    "monotonic",
    "this_thread",
    "wall",
]

STEP = 0.005
"""Seconds between two checks of a greenlet that waits, because no other thread can wake it."""

SETTLE = 1.0
"""The most seconds that a join waits until `threading` also knows that the thread has ended. It takes microseconds."""


def _original(module: Any, name: str) -> Any:
    """Returns the original of an attribute of a module that gevent or eventlet has replaced."""
    if gevent := sys.modules.get("gevent.monkey"):
        return gevent.get_original(module.__name__, name)
    if eventlet := sys.modules.get("eventlet.patcher"):
        return getattr(eventlet.original(module.__name__), name)
    return getattr(module, name)


# Stored at the import: later replacements change the modules, not these names.
_start_new_thread: Callable[..., int] = _original(_thread, "start_new_thread")
allocate_lock: Callable[[], Any] = _original(_thread, "allocate_lock")
_allocate_reentrant: Callable[[], Any] = _original(_thread, "RLock")
this_thread: Callable[[], int] = _original(_thread, "get_ident")
"""Returns the ident of the calling thread."""

_ours: set[int] = set()
"""Idents of the threads made here while greenlets replace threads. No greenlet runs in them."""


def _green_sleep() -> Callable[[float], object] | None:
    """Returns the `sleep` that lets other greenlets run. None: `threading` has real threads."""
    if (gevent := sys.modules.get("gevent.monkey")) and gevent.is_module_patched("threading"):
        return sys.modules["gevent"].sleep  # type: ignore[no-any-return]
    if (eventlet := sys.modules.get("eventlet.patcher")) and eventlet.is_monkey_patched("thread"):
        return sys.modules["eventlet"].sleep  # type: ignore[no-any-return]
    return None


def let_greenlets_run() -> bool:
    """Lets other greenlets run for STEP seconds. Returns False at once if there are none, so that a wait may block."""
    sleep = _green_sleep()
    if sleep is None or this_thread() in _ours:
        return False
    sleep(STEP)
    return True


def _acquire(lock: Any, timeout: float | None) -> bool:
    """Acquires a lock of `_thread`. Returns False if `timeout` seconds pass first; None: no limit."""
    sleep = _green_sleep()
    if sleep is None or this_thread() in _ours:
        return bool(lock.acquire(True, -1 if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX)))
    deadline = None if timeout is None else monotonic() + timeout
    while not lock.acquire(False):
        if deadline is not None and monotonic() >= deadline:
            return False
        sleep(STEP)
    return True


class Lock:
    """A lock of the operating system. With `reentrant`, the thread that holds it may acquire it again."""

    def __init__(self, *, reentrant: bool = False) -> None:
        self._lock = _allocate_reentrant() if reentrant else allocate_lock()

    def acquire(self, timeout: float | None = None) -> bool:
        """Waits for the lock. Returns False if `timeout` seconds pass first; None: no limit."""
        return _acquire(self._lock, timeout)

    def release(self) -> None:
        """Releases the lock."""
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


class Event:
    """An event that is set once and stays set. Setting it takes no lock, so a signal handler may do it."""

    def __init__(self) -> None:
        self._set = False
        self._waiters: collections.deque[Callable[[], object]] = collections.deque()

    def is_set(self) -> bool:
        """Has it been set?"""
        return self._set

    def set(self) -> None:
        """Wakes all threads that wait, and calls the functions given to `on_set`."""
        self._set = True
        while True:
            try:
                waiter = self._waiters.popleft()
            except IndexError:
                return
            waiter()

    def on_set(self, function: Callable[[], object]) -> None:
        """Calls a function once: in the thread that sets the event, or now if it is set. It must not raise."""
        self._waiters.append(function)
        if self._set:
            self.set()

    def forget(self, function: Callable[[], object]) -> None:
        """Removes a function that was given to `on_set`."""
        with contextlib.suppress(ValueError):  # it has been called
            self._waiters.remove(function)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it is set. Returns False if `timeout` seconds pass first; None: no limit."""
        if not self._set:
            gate = allocate_lock()
            gate.acquire()
            release = gate.release
            self.on_set(release)
            try:
                _acquire(gate, timeout)
            finally:
                self.forget(release)
        return self._set


class Thread(Protocol):
    """A thread of the operating system."""

    @property
    def ident(self) -> int | None:
        """None before the start."""

    def start(self) -> None:
        """Starts it. RuntimeError: the system refuses a thread."""

    def is_alive(self) -> bool:
        """Has it been started, and not ended yet?"""

    def join(self, timeout: float | None = None) -> None:
        """Returns when it has ended, or after `timeout` seconds."""


class _Thread:
    """A thread that `threading` does not know, for a process in which `threading` makes greenlets."""

    def __init__(self, target: Callable[..., object], args: tuple[object, ...]) -> None:
        self.ident: int | None = None
        self._target, self._args = target, args
        self._ended = Event()

    def start(self) -> None:
        self.ident = _start_new_thread(self._run, ())

    def _run(self) -> None:
        _ours.add(this_thread())
        try:
            self._target(*self._args)
        finally:
            _ours.discard(this_thread())
            self._ended.set()

    def is_alive(self) -> bool:
        return self.ident is not None and not self._ended.is_set()

    def join(self, timeout: float | None = None) -> None:
        self._ended.wait(timeout)


class _NamedThread(threading.Thread):
    """A thread of `threading` whose `join` and `is_alive` are safe in a signal handler.

    Those of threading.Thread hold a lock for a moment. A signal handler that interrupts such a call, and calls one of
    them for the same thread, would deadlock.
    """

    def __init__(self, name: str, target: Callable[..., object], args: tuple[object, ...]) -> None:
        super().__init__(target=target, args=args, name=name, daemon=True)
        self._over = Event()

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._over.set()

    def is_alive(self) -> bool:
        return self.ident is not None and not self._over.is_set()

    def join(self, timeout: float | None = None) -> None:
        if self._over.wait(timeout):
            super().join(SETTLE)


def make_thread(name: str, target: Callable[..., object], *args: object) -> Thread:
    """Makes a daemon thread, which is not started yet. The exit of the interpreter does not wait for daemon threads."""
    if _green_sleep():
        return _Thread(target, args)
    return _NamedThread(name, target, args)


def getaddrinfo(*args: Any, **options: Any) -> list[Any]:
    """The original `socket.getaddrinfo`, also if gevent or eventlet has replaced it. Blocks the thread."""
    function = _original(socket, "getaddrinfo") if _green_sleep() else socket.getaddrinfo
    return function(*args, **options)
