"""A proxy as the whole purpose of a process: until a signal, a second one, or its own failure."""

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
    CAUGHT.append(signal.SIGBREAK)  # Ctrl-Break, or the window is closed


def serve(proxy: Proxy) -> None:
    """Starts the proxy and returns when it is over. Main thread only.

    SIGINT or SIGTERM stops it, with its grace; a second one at once.

    Raises:
        TcpProxyError: it could not start.
    """
    # Handlers that set an Event would deadlock if the signal came while the main thread holds the Event's lock. So
    # the interpreter itself writes a byte per signal into a socket, and everything else happens outside of handlers.
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    for number in CAUGHT:
        signal.signal(number, lambda _number, _frame: None)
    proxy.start()

    def tell() -> None:
        proxy.wait()
        proxy.stop()
        with contextlib.suppress(OSError):
            writer.send(b"\0")

    try:
        threading.Thread(target=tell, name="tcpproxy-stop", daemon=True).start()
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
    # All is over: a late signal must not make the exit look like a death.
    for number in CAUGHT:
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    reader.close()
    writer.close()
