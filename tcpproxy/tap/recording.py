"""Recording: what has passed through one connection, for a program or test that looks at it."""

from __future__ import annotations

import re
from typing import NamedTuple

from .._core import capture
from ..errors import UsageError, WaitTimeout
from ..native import monotonic
from ..text import quoted
from ..values import parse_size
from .dump import DIRECTIONS, Direction, header, hex_lines

SLICE = 0.05
"""Seconds: a wait returns to Python so often, for Ctrl-C and other signals."""

KEPT = 1024**2
"""Bytes of each direction that `record=True` keeps."""


def parse_record(value: bool | int | str | None) -> int:
    """Bytes to keep of each direction; 0: nothing is recorded.

    Raises:
        UsageError: it is neither True, False nor a size.
    """
    if isinstance(value, bool) or value is None:
        return KEPT if value else 0
    return parse_size("record", value, 1, 1024**3)


class Chunk(NamedTuple):
    """What one read of the proxy brought. TCP has no messages: a read may bring a part of one, or several.

    Attributes:
        direction: which way the bytes go.
        data: the bytes.
        time: seconds since the client was accepted.
    """

    direction: Direction
    data: bytes
    time: float


class Recording:
    """The first bytes of each direction of a connection. It stays after the end of the connection and of the proxy.

    Each attribute is exact at the time when it is read: all bytes that a peer has received by then are there. Bytes
    that a peer has sent, and the proxy has not read yet, are not: `wait_for` waits for these.

    Attributes:
        id: the number of the connection, from 1, in the order of accept.
    """

    def __init__(self, reader: capture.TapReader, recording: capture.Recording) -> None:
        self._reader, self._it = reader, recording
        self.id = recording.id

    def __repr__(self) -> str:
        client, upstream, reason, ended, truncated, _, _, up, down = self._facts()
        state = f"ended: {reason}" if ended else "live"
        cut = ", truncated" if truncated else ""
        return f"<Recording #{self.id} {client} -> {upstream or '?'}, {up} and {down} bytes{cut}, {state}>"

    def _facts(self) -> tuple[str, str, str, bool, bool, int, int, int, int]:
        self._reader.sync()
        return self._it.facts()

    @property
    def client(self) -> str:
        """The client's address, `host:port`."""
        return self._facts()[0]

    @property
    def upstream(self) -> str:
        """Upstream's address, `host:port`; empty until it is connected."""
        return self._facts()[1]

    @property
    def reason(self) -> str:
        """Why the connection ended: a Reason; empty while it lives."""
        return self._facts()[2]

    @property
    def truncated(self) -> bool:
        """Has more passed than is kept? `chunks` keeps the first 65,536 reads."""
        return self._facts()[4]

    @property
    def to_upstream(self) -> bytes:
        """What the client has sent, from its first byte on."""
        self._reader.sync()
        return self._it.data(0)

    @property
    def to_client(self) -> bytes:
        """What upstream has sent, from its first byte on."""
        self._reader.sync()
        return self._it.data(1)

    @property
    def chunks(self) -> list[Chunk]:
        """What each read brought, in the order in which the proxy read."""
        self._reader.sync()
        reads = self._it.chunks()
        data = (self._it.data(0), self._it.data(1))
        ends = [0, 0]
        found = []
        for side, size, time in reads:
            found.append(Chunk(DIRECTIONS[side], data[side][ends[side] : ends[side] + size], time))
            ends[side] += size
        return found

    def wait_for(
        self, pattern: bytes | re.Pattern[bytes], direction: Direction | None = None, timeout: float = 5.0
    ) -> re.Match[bytes]:
        """Waits until these bytes have passed, also in several reads.

        Args:
            pattern: the bytes, or a compiled regular expression.
            direction: where to look; None: in both.
            timeout: seconds.

        Returns:
            The match. Its `start()` is the offset in that direction.

        Raises:
            WaitTimeout: they have not passed in this time, or the connection ended without them; the text shows what
                did pass.
            UsageError: there is no such direction.
        """
        if direction is not None and direction not in DIRECTIONS:
            raise UsageError(f"direction {quoted(direction)} is unknown, expected to_upstream or to_client")
        wanted = re.compile(re.escape(pattern)) if isinstance(pattern, bytes) else pattern
        sides = [0, 1] if direction is None else [DIRECTIONS.index(direction)]
        deadline = monotonic() + timeout
        passes, sizes = 0, [-1, -1]
        while True:
            self._reader.sync()
            ended = self._it.facts()[3]  # before the bytes: none come after the end
            for side in sides:
                kept = self._it.facts()[5:7][side]
                if kept != sizes[side]:
                    sizes[side] = kept
                    if match := wanted.search(self._it.data(side)):
                        return match
            rest = deadline - monotonic()
            if ended or rest <= 0:
                raise WaitTimeout(self._missed(pattern, direction, timeout, ended))
            passes = self._reader.wait_change(passes, min(rest, SLICE))

    def _missed(self, pattern: object, direction: Direction | None, timeout: float, ended: bool) -> str:
        _, _, reason, _, truncated, kept_up, kept_down, up, down = self._it.facts()
        shown = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
        when = f"before connection #{self.id} ended ({reason})" if ended else f"within {timeout:g} s"
        where = f" {direction.replace('_', ' ')}" if direction else ""
        text = f"{shown!r} did not pass{where} {when}"
        if truncated:
            text += f"; only the first {kept_up} of {up} and {kept_down} of {down} bytes are recorded"
        return f"{text}\n{self.dump()}"

    def dump(self) -> str:
        """What has passed, as text: for each read a header and the bytes as `hexdump -C` shows them.

        The header's time is that since accept, in seconds.
        """
        text = []
        offsets = [0, 0]
        for chunk in self.chunks:
            side, size = DIRECTIONS.index(chunk.direction), len(chunk.data)
            text.append(f"{header(side, f'{chunk.time:.6f}', self.id, offsets[side], size)}\n")
            text.append(hex_lines(chunk.data, offsets[side]))
            offsets[side] += size
        return "".join(text)
