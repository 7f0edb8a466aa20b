"""Recording: the bytes that have passed through one connection, for a program or test."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from .. import awaiting
from .._core import recorded
from .._core.capture import TapReader
from ..directions import DIRECTIONS, parse_side
from ..errors import UsageError, WaitTimeout
from ..native import let_greenlets_run, monotonic
from ..text import quoted
from ..values import parse_limit, parse_size
from ..views import Alias, Direction
from .dump import header, hex_lines

SLICE = 0.05
"""Seconds after which a wait returns to Python, for Ctrl-C and other signals."""

SETTLE = 1.0
"""The least time limit, in seconds, for the reader to take all recorded bytes, also in a shorter wait. It takes a
millisecond, unless a capture stands still."""

TOLD = 16 * 1024
"""The text of a WaitTimeout shows the last TOLD bytes."""

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
    """The bytes of one read of the proxy. TCP has no messages: a read may have a part of one, or several.

    Attributes:
        direction: the direction of the bytes.
        data: the bytes.
        time: seconds since the client was accepted.
    """

    direction: Direction
    data: bytes
    time: float


class Recording:
    """The first bytes of each direction of a connection. It stays usable after the end of the connection and the proxy.

    An attribute has all bytes that a peer has received when it is read. It lacks bytes that a peer has sent and the
    proxy has not read yet: `wait_for` waits for them.

    Attributes:
        id: the number of the connection, from 1, in the order of accept.
    """

    def __init__(self, reader: TapReader, recording: recorded.Recording) -> None:
        self._reader, self._it = reader, recording
        self.id = recording.id

    def __repr__(self) -> str:
        try:
            client, upstream, reason, ended, truncated, _, _, up, down = self._facts()
        except RuntimeError:
            return f"<Recording #{self.id}, of another process>"
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
        """Have more bytes passed than are kept? `chunks` keeps the first 65,536 reads."""
        return self._facts()[4]

    @property
    def to_upstream(self) -> bytes:
        """The bytes that the client has sent, from the first one on."""
        self._reader.sync()
        return self._it.data(0)

    @property
    def to_client(self) -> bytes:
        """The bytes that upstream has sent, from the first one on."""
        self._reader.sync()
        return self._it.data(1)

    @property
    def chunks(self) -> list[Chunk]:
        """The reads of the proxy, in order."""
        self._reader.sync()
        return [chunk for _, chunk in self._last_chunks(math.inf)]

    def _last_chunks(self, most: float) -> list[tuple[int, Chunk]]:
        """The last reads, of not more than `most` bytes, each with the offset in its direction."""
        ends, spans = [0, 0], []
        for side, size, time in self._it.chunks():
            spans.append((side, ends[side], ends[side] + size, time))
            ends[side] += size
        starts, last = ends.copy(), []
        while spans and most:
            side, start, end, time = spans.pop()
            starts[side] = start = int(max(start, end - most))
            most -= end - start
            last.append((side, start, end, time))
        data = [self._it.data(side, starts[side]) for side in (0, 1)]
        return [
            (start, Chunk(DIRECTIONS[side], data[side][start - starts[side] : end - starts[side]], time))
            for side, start, end, time in reversed(last)
        ]

    def wait_for(
        self,
        pattern: bytes | re.Pattern[bytes],
        direction: Direction | Alias | None = None,
        timeout: float | str | None = 5.0,
    ) -> re.Match[bytes]:
        """Waits until some bytes have passed, also in several reads.

        Args:
            pattern: the bytes, or a compiled regular expression.
            direction: where to look; None: in both.
            timeout: seconds or a text like `250ms`; None: for ever.

        Returns:
            The match. Its `start()` is the offset in that direction.

        Raises:
            WaitTimeout: they have not passed in this time, or the connection ended without them; the text shows the
                last 16 KiB that have passed.
            UsageError: there is no such direction, the timeout is no duration, or the pattern is neither bytes nor a
                regular expression of bytes.
        """
        __tracebackhide__ = True
        look = _Looking(self, pattern, direction, timeout)
        self._reader.sync(-1 if look.limit == math.inf else max(look.limit, SETTLE))
        passes = 0
        while not (match := look()):
            passes = self._reader.wait_change(passes, 0.0 if let_greenlets_run() else min(look.rest, SLICE))
            self._reader.sync(-1 if look.rest == math.inf else max(0.0, look.rest))
        return match

    async def wait_for_async(
        self,
        pattern: bytes | re.Pattern[bytes],
        direction: Direction | Alias | None = None,
        timeout: float | str | None = 5.0,
    ) -> re.Match[bytes]:
        """`wait_for` without blocking the event loop."""
        __tracebackhide__ = True
        look = _Looking(self, pattern, direction, timeout)

        def read_on() -> re.Match[bytes] | None:
            __tracebackhide__ = True
            self._reader.sync(SLICE)  # microseconds, unless a capture stands still
            return look()

        return await awaiting.poll_async(read_on)

    def _missed(self, pattern: bytes, direction: Direction | Alias | None, timeout: float, ended: bool) -> str:
        _, _, reason, _, truncated, kept_up, kept_down, up, down = self._it.facts()
        when = f"before connection #{self.id} ended ({reason})" if ended else f"within {timeout:g} s"
        where = f" {direction.replace('_', ' ')}" if direction else ""
        text = f"{quoted(pattern)} did not pass{where} {when}"
        if truncated:
            text += f"; only the first {kept_up} of {up} and {kept_down} of {down} bytes are recorded"
        if kept_up + kept_down > TOLD:
            text += f"; these are the last {TOLD}"
        return f"{text}\n{self._lines(TOLD)}"

    def dump(self) -> str:
        """The bytes that have passed, as text: for each read a header and the bytes as `hexdump -C` shows them.

        The time in the header is in seconds since accept.
        """
        self._reader.sync()
        return self._lines(math.inf)

    def _lines(self, most: float) -> str:
        """The dump of the last bytes."""
        text = []
        for offset, chunk in self._last_chunks(most):
            side, size = DIRECTIONS.index(chunk.direction), len(chunk.data)
            text.append(f"{header(side, f'{chunk.time:.6f}', self.id, offset, size)}\n")
            text.append(hex_lines(chunk.data, offset))
        return "".join(text)


def _regex(pattern: object) -> re.Pattern[bytes]:
    """UsageError: it is neither bytes nor a regular expression of bytes."""
    if isinstance(pattern, bytes):
        return re.compile(re.escape(pattern))
    if isinstance(pattern, re.Pattern) and isinstance(pattern.pattern, bytes):
        return pattern
    raise UsageError(f"pattern {quoted(pattern)} is neither bytes nor a compiled regular expression of bytes")


class _Looking:
    """The state of a `wait_for`. Each call searches the recorded bytes once, and returns the match or None.

    Attributes:
        limit: how long to wait, in seconds.
    """

    def __init__(
        self,
        recording: Recording,
        pattern: bytes | re.Pattern[bytes],
        direction: Direction | Alias | None,
        timeout: Any,
    ) -> None:
        self._recording, self._pattern, self._direction = recording, pattern, direction
        self._wanted = _regex(pattern)
        self._sides = [0, 1] if direction is None else [parse_side("direction", direction)]
        self._sizes = [-1, -1]
        self.limit = parse_limit("timeout", timeout)
        self._deadline = monotonic() + self.limit

    @property
    def rest(self) -> float:
        """Seconds until the time-out."""
        return self._deadline - monotonic()

    def __call__(self) -> re.Match[bytes] | None:
        __tracebackhide__ = True
        it = self._recording._it
        ended = it.facts()[3]  # before the bytes: none come after the end
        for side in self._sides:
            kept = it.facts()[5:7][side]
            if kept != self._sizes[side]:
                before, self._sizes[side] = self._sizes[side], kept
                if match := self._search(side, before):
                    return match
        if ended or self.rest <= 0:
            raise WaitTimeout(self._recording._missed(self._wanted.pattern, self._direction, self.limit, ended))
        return None

    def _search(self, side: int, before: int) -> re.Match[bytes] | None:
        """Searches the kept bytes. For plain bytes it skips the first `before`, which were searched before."""
        it, pattern = self._recording._it, self._pattern
        if isinstance(pattern, bytes) and pattern not in it.data(side, max(0, before - len(pattern) + 1)):
            return None
        return self._wanted.search(it.data(side))
