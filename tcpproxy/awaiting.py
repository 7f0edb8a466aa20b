"""Waits for threads: in coroutines (asyncio, trio, anyio), and by polling."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from .native import Event, Thread, make_thread

Result = TypeVar("Result")

LOOK_AGAIN = 0.002
"""Seconds between two reads of the workers' counters. A read takes microseconds and does not disturb the workers."""


def _in_trio() -> Any:
    """Returns the module trio if trio runs the calling coroutine; else None."""
    trio = sys.modules.get("trio")
    asyncio = sys.modules.get("asyncio")
    if not trio:
        return None
    # In trio's guest mode this thread also has a loop of asyncio, but the coroutine is none of its tasks.
    with contextlib.suppress(RuntimeError):  # no loop
        if asyncio and asyncio.current_task():
            return None
    try:
        trio.lowlevel.current_trio_token()
    except RuntimeError:
        return None
    return trio


def _running_loop() -> Any:
    """Returns the event loop of asyncio that runs the calling coroutine. RuntimeError: none does."""
    import asyncio

    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError("expected a coroutine that asyncio, trio or anyio runs") from None


async def until(event: Event, timeout: float | None = None) -> bool:
    """Waits until the event is set, without a thread. Returns False if `timeout` seconds pass first; None: no limit."""
    if trio := _in_trio():
        token, woken = trio.lowlevel.current_trio_token(), trio.Event()

        def wake_trio() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(woken.set)

        event.on_set(wake_trio)
        try:
            with trio.move_on_after(math.inf if timeout is None else timeout):
                await woken.wait()
        finally:
            event.forget(wake_trio)
        return event.is_set()
    import asyncio

    loop = _running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def finish() -> None:
        if not future.done():
            future.set_result(None)

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish)

    event.on_set(wake)
    try:
        await asyncio.wait([future], timeout=timeout)
    finally:
        event.forget(wake)
    return event.is_set()


async def pause(seconds: float) -> None:
    """Lets other tasks run for a number of seconds."""
    if trio := _in_trio():
        return await trio.sleep(seconds)  # type: ignore[no-any-return]
    _running_loop()
    import asyncio

    return await asyncio.sleep(seconds)


def poll(look: Callable[[], Result | None]) -> Result:
    """Calls `look` every LOOK_AGAIN seconds until it returns something other than None; returns that."""
    __tracebackhide__ = True  # here and in its callers: pytest's traceback ends at the line that waits
    while (found := look()) is None:
        Event().wait(LOOK_AGAIN)
    return found


async def poll_async(look: Callable[[], Result | None]) -> Result:
    """`poll` without blocking the event loop."""
    __tracebackhide__ = True
    while (found := look()) is None:
        await pause(LOOK_AGAIN)
    return found


async def _finish(event: Event) -> None:
    """Waits until the event is set, even if the task is cancelled meanwhile."""
    if trio := _in_trio():
        with trio.CancelScope(shield=True):
            await until(event)
        return
    import asyncio

    while not event.is_set():
        with contextlib.suppress(asyncio.CancelledError):
            await until(event)


async def call(function: Callable[[], Result], hurry: Callable[[], object], undo: Callable[[], object]) -> Result:
    """Runs a function in a new thread, because the thread pool of the program may be full. Returns its result.

    Args:
        function: its exceptions are raised by `call`, too.
        hurry: called when the task is cancelled. Makes `function` return soon, and does not block.
        undo: called in another thread after a cancelled `function` has returned. The task waits for its end.

    Raises:
        RuntimeError: neither asyncio nor trio runs the coroutine.
    """
    _in_trio() or _running_loop()  # raises before there is a thread
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    done, thread = _begin(run)
    try:
        await until(done)
    except BaseException as error:
        hurry()
        undone, undoing = _begin(lambda: (done.wait(), undo()))
        if not isinstance(error, GeneratorExit):  # a coroutine that is closed can await nothing
            await _finish(undone)
            _join(undoing)
            _join(thread)
        raise
    _join(thread)  # it has nothing left to do
    if errors:
        raise errors[0]
    return results[0]


def _begin(function: Callable[[], object]) -> tuple[Event, Thread]:
    """Runs a function in a new thread, or in this one if the system refuses a thread.

    Returns:
        An event that is set when the function has ended, and the thread.
    """
    ended = Event()

    def run() -> None:
        try:
            function()
        finally:
            ended.set()

    thread = make_thread("tcpproxy-call", run)
    try:
        thread.start()
    except (RuntimeError, MemoryError):
        run()
    return ended, thread


def _join(thread: Thread) -> None:
    if thread.ident is not None:  # it was started
        thread.join()
