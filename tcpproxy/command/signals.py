"""Runs a proxy as the only purpose of a process, until a signal or a failure ends it."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading

from ..errors import StartError
from ..proxy import Proxy

CAUGHT = [signal.SIGINT, signal.SIGTERM]
if sys.platform == "win32":
    CAUGHT.append(signal.SIGBREAK)  # Ctrl-Break, or the console window was closed


def serve(proxy: Proxy) -> None:
    """Starts the proxy and returns when it has ended. Main thread only.

    The first SIGINT or SIGTERM stops it with its grace, a second one at once.

    Raises:
        TcpProxyError: it cannot start.
    """
    # A handler that sets an Event would deadlock if the signal came while the main thread holds the Event's lock. So
    # the handlers do nothing: the interpreter writes a byte per signal to a socket, which the main thread reads.
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    for number in CAUGHT:
        signal.signal(number, lambda _number, _frame: None)
    proxy.start()

    def stop_and_wake() -> None:
        proxy.wait()
        proxy.stop()
        with contextlib.suppress(OSError):
            writer.send(b"\0")

    try:
        threading.Thread(target=stop_and_wake, name="tcpproxy-stop", daemon=True).start()
    except RuntimeError as error:  # no thread to be had
        proxy.stop(0)
        raise StartError(f"cannot start a proxy for {proxy.config.remote}", error) from error
    while (byte := reader.recv(1)) != b"\0":
        if byte[0] not in CAUGHT:
            continue
        if proxy.wait(0):
            proxy.abort()
        else:
            proxy.drain()
    # The proxy has ended: a late signal must not change the exit code.
    for number in CAUGHT:
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    reader.close()
    writer.close()
