"""Events as records of the logger `tcpproxy`, for programs."""

from __future__ import annotations

import contextlib

from ..text import clean
from .event import Event


class LoggingSink:
    """The default sink of a Proxy in a program: the logger `tcpproxy`. Connections: DEBUG; trouble: WARNING."""

    def __init__(self) -> None:
        # Here: the command does not need it, and an import in the log thread can race with interpreter shutdown.
        import logging

        self._logger = logging.getLogger("tcpproxy")
        self._levels = {
            "listening": logging.INFO,
            **dict.fromkeys(("new", "connected", "end"), logging.DEBUG),
        }
        self._other = logging.WARNING
        self.wants_outgoing = self._logger.isEnabledFor(logging.DEBUG)
        """Is the proxy's own address toward upstream worth a system call per connection?"""

    def __call__(self, event: Event) -> None:
        """Logs it. Never raises."""
        level = self._levels.get(event.kind, self._other)
        if self._logger.isEnabledFor(level):
            with contextlib.suppress(Exception):  # a handler of the program may fail
                self._logger.log(level, "%s", " ".join(clean(str(part)) for part in event if part))
