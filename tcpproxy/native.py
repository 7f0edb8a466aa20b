"""Threads, locks, events and a clock of the operating system, whatever the program has replaced in Python's modules.

gevent and eventlet replace `threading` by greenlets, which take turns in one thread: a worker gives up no turn. Tests
freeze `time.monotonic`. What is made here is not affected, and a greenlet that waits for it lets the others run.
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
"""Seconds between two looks of a greenlet that waits: nothing wakes it from another thread."""


SETTLE = 1.0
"""Seconds that a join waits at most for `threading` to forget a thread that is over, some microseconds later."""


def _original(module: Any, name: str) -> Any:
    """What a module had under this name before gevent or eventlet replaced it."""
    if gevent := sys.modules.get("gevent.monkey"):
        return gevent.get_original(module.__name__, name)
    if eventlet := sys.modules.get("eventlet.patcher"):
        return getattr(eventlet.original(module.__name__), name)
    return getattr(module, name)


# At the import: what replaces them later changes the modules, not these names.
_start_new_thread: Callable[..., int] = _original(_thread, "start_new_thread")
allocate_lock: Callable[[], Any] = _original(_thread, "allocate_lock")
_allocate_reentrant: Callable[[], Any] = _original(_thread, "RLock")
this_thread: Callable[[], int] = _original(_thread, "get_ident")
"""The ident of the thread that calls it."""

_ours: set[int] = set()
"""Idents of threads made here while greenlets replace threads. There is no greenlet in them."""


def _green_sleep() -> Callable[[float], object] | None:
    """The `sleep` that lets other greenlets run; None: `threading` has real threads."""
    if (gevent := sys.modules.get("gevent.monkey")) and gevent.is_module_patched("threading"):
        return sys.modules["gevent"].sleep  # type: ignore[no-any-return]
    if (eventlet := sys.modules.get("eventlet.patcher")) and eventlet.is_monkey_patched("thread"):
        return sys.modules["eventlet"].sleep  # type: ignore[no-any-return]
    return None


def let_greenlets_run() -> bool:
    """Lets other greenlets have their turns, for STEP. False: there are none, and a wait may block its thread."""
    sleep = _green_sleep()
    if sleep is None or this_thread() in _ours:
        return False
    sleep(STEP)
    return True


def _acquire(lock: Any, timeout: float | None) -> bool:
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
    """A lock of the operating system. With `reentrant`, a thread that has it may take it again."""

    def __init__(self, *, reentrant: bool = False) -> None:
        self._lock = _allocate_reentrant() if reentrant else allocate_lock()

    def acquire(self, timeout: float | None = None) -> bool:
        """Returns False if `timeout` seconds were over first."""
        return _acquire(self._lock, timeout)

    def release(self) -> None:
        """Lets the next one have it."""
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


class Event:
    """Something that happens once. It takes no lock, so that a signal handler may set it."""

    def __init__(self) -> None:
        self._set = False
        self._waiters: collections.deque[Callable[[], object]] = collections.deque()

    def is_set(self) -> bool:
        """Has it happened?"""
        return self._set

    def set(self) -> None:
        """Wakes all that wait, and calls what `on_set` was given."""
        self._set = True
        while True:
            try:
                waiter = self._waiters.popleft()
            except IndexError:
                return
            waiter()

    def on_set(self, function: Callable[[], object]) -> None:
        """Has this called once, by the thread that sets it; at once if that has happened. It must not raise."""
        self._waiters.append(function)
        if self._set:
            self.set()

    def forget(self, function: Callable[[], object]) -> None:
        """Takes back `on_set`."""
        with contextlib.suppress(ValueError):  # it was called
            self._waiters.remove(function)

    def wait(self, timeout: float | None = None) -> bool:
        """Returns when it has happened; False: `timeout` seconds were over first."""
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
        """RuntimeError: the system refuses it."""

    def is_alive(self) -> bool:
        """Does it run?"""

    def join(self, timeout: float | None = None) -> None:
        """Returns when it has ended, or after `timeout` seconds."""


class _Thread:
    """A thread that `threading` does not know, for a process where that knows greenlets only."""

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
    """A thread of `threading`, of which any thread may ask at any time whether it lives, and wait for it.

    Thread.join and Thread.is_alive take a lock for a moment. A signal handler that interrupts its own thread then, and
    joins the same thread, would wait for ever.
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
    """Makes a daemon thread: others would block the end of the interpreter. Who needs its end joins it."""
    if _green_sleep():
        return _Thread(target, args)
    return _NamedThread(name, target, args)


def getaddrinfo(*args: Any, **options: Any) -> list[Any]:
    """`socket.getaddrinfo`, from a thread without greenlets."""
    function = _original(socket, "getaddrinfo") if _green_sleep() else socket.getaddrinfo
    return function(*args, **options)
