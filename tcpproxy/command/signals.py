"""Runs the proxy of the command until a signal or a failure ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import StartError
from ..proxy import Proxy
from ..text import count
from .connections import Display
from .inherited import SHOWING, VIEWING, hung_up, is_ignored, nothing, stopping_signals

if TYPE_CHECKING:
    from .systemd import Service
    from .view import View  # which most commands do not need

QUIT, STARTED = 255, 254
"""Bytes for the main thread beside signal numbers. QUIT: a user of the view stops it; STARTED: the proxy listens."""


def serve(
    proxy: Proxy, display: Display, *, greets: bool, service: Service | None = None, view: View | None = None
) -> None:
    """Starts the proxy and returns when it has ended. Main thread only.

    The first signal of `stopping_signals` stops the proxy; its connections may end within the grace. During the start
    it cancels the start. A second one stops the proxy at once, unless it is SIGHUP. A signal of SHOWING shows the live
    connections.

    Args:
        proxy: not started yet.
        display: shows the proxy's connections.
        greets: print where the proxy forwards to when it listens, if stderr is a terminal.
        service: tells systemd when the proxy listens and when it stops.
        view: the live view, from when the proxy listens until it has ended.

    Raises:
        TcpProxyError: the proxy cannot start.
    """
    reader, writer = socket.socketpair()
    reader.settimeout(None)
    writer.setblocking(False)
    stopping, showing, harmless = _catch(writer)
    extra = _catch_for_view() if view else []
    run = _Run(proxy, writer, service, _when_started(writer, display if greets else None, view))
    try:
        run.start()
    except RuntimeError as error:  # the system refuses a thread
        raise StartError.because(f"cannot start a proxy for {proxy.config.targets}", error) from error
    said = False
    with contextlib.closing(view) if view else contextlib.nullcontext():
        while (number := view.next(reader) if view else reader.recv(1)[0]) != 0:
            if number in stopping or number == QUIT:
                # When a terminal closes, several SIGHUP may arrive: from the kernel and from shells that end.
                run.stop(may_abort=number != getattr(signal, "SIGHUP", None))
            elif number in showing:
                display.show()
            elif number in harmless and not said:
                said = True
                proxy._note("warning", "SIGHUP is ignored: there is nothing to reload, and no file to open again")
    # The proxy has ended: a late signal must not change the exit code.
    for number in (*stopping, *showing, *harmless, *extra):
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    reader.close()
    writer.close()
    if run.error:
        raise run.error


def _when_started(writer: socket.socket, display: Display | None, view: View | None) -> Callable[[], object]:
    """Returns the function to call once the proxy listens."""
    if view:
        return lambda: writer.send(bytes([STARTED]))
    return display.greet if display else lambda: None


def _catch(writer: socket.socket) -> tuple[list[int], list[int], list[int]]:
    """Makes the interpreter write the number of each signal, except ignored ones, as a byte to `writer`.

    The main thread reads the bytes; the handlers do nothing. A handler that sets an Event would deadlock if the signal
    arrived while the main thread holds the Event's lock.

    Returns:
        The numbers of the signals that stop the proxy, that show its connections, and that only give a warning.
    """
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    stopping = stopping_signals()
    harmless: list[int] = []
    if hasattr(signal, "SIGHUP") and signal.SIGHUP not in stopping and not is_ignored(signal.SIGHUP):
        harmless.append(signal.SIGHUP)
    showing = _showing()
    for number in (*stopping, *showing, *harmless):
        signal.signal(number, nothing)
    writer.send(bytes(hung_up[:1]))
    return stopping, showing, harmless


def _catch_for_view() -> list[int]:
    """Does the same as `_catch` for the signals of the live view. Returns their numbers."""
    numbers = [number for name in VIEWING if not is_ignored(number := getattr(signal, name))]
    for number in numbers:
        signal.signal(number, nothing)
    return numbers


class _Run(threading.Thread):
    """A thread that starts the proxy, waits for its end, and stops it, while the main thread reads signals."""

    def __init__(
        self, proxy: Proxy, writer: socket.socket, service: Service | None, when_started: Callable[[], object]
    ) -> None:
        super().__init__(name="tcpproxy-stop", daemon=True)
        self._proxy, self._writer, self._service, self._when_started = proxy, writer, service, when_started
        self._stopping = False
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            if not self._stopping:
                self._proxy.start()
                # If it was stopped during the start, workers may already have connections; the wait below covers them.
                if not self._stopping:
                    if self._service:
                        self._service.started(self._proxy)
                    self._when_started()
                self._proxy.wait()
                self._proxy.stop()
        except BaseException as error:
            self.error = error
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")

    def stop(self, may_abort: bool) -> None:
        """The first call cancels the start, or stops the proxy; its connections may end within the grace.

        Args:
            may_abort: a later call resets the connections that are left.
        """
        if self._stopping:
            if may_abort:
                self._proxy.abort()
            return
        self._stopping = True
        self._proxy.drain()
        active, grace = self._proxy.stats().active, self._proxy.config.timeouts.grace
        if self._service:
            self._service.stopping(grace)
        if active and grace:
            what = count(active, "connection")
            how = "Ctrl-C again" if os.isatty(2) else "a second signal"
            self._proxy._note("stopping", f"waiting up to {grace:g} s for {what} to end; {how} stops at once")


def _showing() -> list[int]:
    """Returns the numbers of the signals of SHOWING that exist here and are neither ignored nor handled otherwise."""
    numbers = [getattr(signal, name) for name in SHOWING if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) in (nothing, signal.SIG_DFL)]
