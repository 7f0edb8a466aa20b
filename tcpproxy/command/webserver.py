"""A small HTTP server with one request per connection.

Its peers may be hostile. So it has one thread, and limits on the connections at a time, their duration, and the size of
a request.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from io import BytesIO

from ..native import monotonic

MOST = 16
"""The most connections at a time. A further one replaces the oldest; a scrape has ended long before that."""

WITHIN = 5.0
"""Seconds from accept to the end of a connection."""

LARGEST = 8192
"""The most bytes of a request; Prometheus sends some 300."""

Answer = Callable[[str, str], tuple[int, str, bytes]]
"""Returns status, content type and body for a path and a header Accept."""


class WebServer(threading.Thread):
    """A daemon thread that serves until the process ends.

    Args:
        listener: a listening socket.
        answer: called in this thread for each request.
    """

    def __init__(self, listener: socket.socket, answer: Answer) -> None:
        super().__init__(name="tcpproxy-monitor", daemon=True)
        self._listener, self._answer = listener, answer
        self._selector = selectors.DefaultSelector()
        self._peers: dict[socket.socket, _Peer] = {}  # in the order of accept, which is that of their deadlines
        self._paused = 0.0
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def run(self) -> None:
        while True:
            oldest = next(iter(self._peers.values()), None)
            for key, _ in self._selector.select(max(0.0, oldest.deadline - monotonic()) if oldest else None):
                if key.fileobj is self._listener:
                    self._accept()
                elif peer := self._peers.get(key.fileobj):  # type: ignore[call-overload]
                    self._serve(peer)
            now = monotonic()
            for peer in [peer for peer in self._peers.values() if peer.deadline <= now]:
                self._close(peer)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # out of descriptors: the connection stays in the backlog
            threading.Event().wait(0.1)
            return
        if len(self._peers) == MOST:
            self._close(next(iter(self._peers.values())))
        connection.setblocking(False)
        self._peers[connection] = _Peer(connection, monotonic() + WITHIN)
        self._selector.register(connection, selectors.EVENT_READ)

    def _serve(self, peer: _Peer) -> None:
        try:
            if not peer.go_on(self._answer):
                self._close(peer)
            elif peer.wants_to_write:
                self._selector.modify(peer.connection, selectors.EVENT_WRITE)
            else:
                self._selector.modify(peer.connection, selectors.EVENT_READ)
        except OSError:
            self._close(peer)

    def _close(self, peer: _Peer) -> None:
        del self._peers[peer.connection]
        self._selector.unregister(peer.connection)
        peer.connection.close()


class _Peer:
    """One connection: reads a request, writes the answer, and reads on until the peer closes.

    Closing with unread bytes would reset the connection, and the answer might be lost.
    """

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection, self.deadline = connection, deadline
        self._request = bytearray()
        self._answer: memoryview | None = None

    @property
    def wants_to_write(self) -> bool:
        return bool(self._answer)

    def go_on(self, answer: Answer) -> bool:
        """Reads or writes without blocking. Returns False when the connection has ended."""
        with contextlib.suppress(BlockingIOError):
            if self._answer is None:
                self._read(answer)
            elif not self._answer and not self.connection.recv(LARGEST):
                return False
            if self._answer:
                self._answer = self._answer[self.connection.send(self._answer) :]
                if not self._answer:
                    self.connection.shutdown(socket.SHUT_WR)
        return True

    def _read(self, answer: Answer) -> None:
        data = self.connection.recv(LARGEST)
        if not data:
            raise ConnectionResetError
        self._request += data
        complete = b"\r\n\r\n" in self._request or b"\n\n" in self._request
        if complete or len(self._request) >= LARGEST:
            self._answer = memoryview(_Exchange(bytes(self._request), complete, answer).written)


class _Exchange(BaseHTTPRequestHandler):
    """Parses one request, from bytes, and writes the answer, to bytes."""

    protocol_version = "HTTP/1.1"
    error_content_type, error_message_format = "text/plain", "%(message)s\n"

    def __init__(
        self, request: bytes, complete: bool, answer: Answer
    ) -> None:  # without super().__init__, which needs a socket
        self.rfile, self.wfile = BytesIO(request), BytesIO()
        self.client_address = ("", 0)
        self._answer = answer
        if not complete:
            self._refuse(431)
            return
        try:
            self.handle_one_request()
        except Exception:  # the parser of headers also parses MIME parameters, and raises for some
            self.wfile = BytesIO()
        if not self.written:  # to a request that begins with an empty line the base class gives no answer
            self._refuse(400)

    def _refuse(self, status: int) -> None:
        """Answers a request that could not be read."""
        self.requestline, self.request_version, self.command = "", self.protocol_version, ""
        self.send_error(status)

    @property
    def written(self) -> bytes:
        return self.wfile.getvalue()  # type: ignore[attr-defined, no-any-return]

    def do_GET(self) -> None:
        try:
            status, content_type, body = self._answer(self.path.partition("?")[0], self.headers.get("Accept", ""))
        except Exception:  # whatever a request causes, the thread must go on
            self.send_error(500)
            return
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def version_string(self) -> str:
        """Returns the header Server, without the version of Python."""
        return "tcpproxy"

    def log_message(self, *_: object) -> None:
        """Logs nothing."""
