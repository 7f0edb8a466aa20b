"""A plain relay on asyncio protocols and uvloop, as one would write it in Python.

`asyncio_relay.py HOST PORT HOST PORT`: where to listen, and the upstream. Written
to be fast, not to be beaten: protocols instead of streams, no copy of its own, back-pressure by pausing.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop


class Side(asyncio.Protocol):
    """One of the two connections; what it receives goes to `other`."""

    def __init__(self, other: Side | None = None) -> None:
        self.transport: asyncio.Transport | None = None
        self.other = other
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own class has no part in asyncio's family

    def data_received(self, data: bytes) -> None:
        """Pass the bytes on."""
        if self.other and self.other.transport:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        """Pass the end of the stream on, and keep the other direction until it ends too."""
        self.ended = True
        if self.other and self.other.transport and not self.other.transport.is_closing():
            self.other.transport.write_eof()
        return not (self.other and self.other.ended)

    def connection_lost(self, error: Exception | None) -> None:
        """Closes the other connection too, behind what it still has to send."""
        if self.other and self.other.transport:
            self.other.transport.close()

    def pause_writing(self) -> None:
        """This side is slow: stop reading from the other."""
        if self.other and self.other.transport:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """This side has caught up."""
        if self.other and self.other.transport and not self.other.transport.is_closing():
            self.other.transport.resume_reading()


class Accepted(Side):
    """The client's side, which keeps what it receives until upstream is connected."""

    upstream = ("", 0)
    tasks: set[asyncio.Task[None]] = set()  # noqa: RUF012 - the loop keeps only weak references to its tasks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to connect to upstream."""
        super().connection_made(transport)
        self.early: list[bytes] = []
        task = asyncio.get_running_loop().create_task(self.connect())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def data_received(self, data: bytes) -> None:
        """Pass the bytes on, or keep them (while upstream is being connected, which takes no time on a loopback)."""
        if self.other:
            super().data_received(data)
        else:
            self.early.append(data)

    async def connect(self) -> None:
        """Connects to upstream and let the bytes flow."""
        assert self.transport
        try:
            _, upstream = await asyncio.get_running_loop().create_connection(lambda: Side(self), *self.upstream)
        except OSError:
            self.transport.abort()
            return
        self.other = upstream
        assert upstream.transport
        upstream.transport.writelines(self.early)
        self.early.clear()
        if self.ended:
            upstream.transport.write_eof()
        elif self.transport.is_closing():
            upstream.transport.close()


async def main(address: str, port: int, upstream: str, upstream_port: int) -> None:
    """Relay until the process is ended."""
    Accepted.upstream = (upstream, upstream_port)
    server = await asyncio.get_running_loop().create_server(Accepted, address, port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
