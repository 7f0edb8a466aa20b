"""Events as records of the logger `tcpproxy`, for programs."""

from __future__ import annotations

import contextlib

from ..text import clean
from .event import Event
from .fields import fields
from .sentences import sentence


class LoggingSink:
    """The default sink of a Proxy in a program: the logger `tcpproxy`. Connections: DEBUG; trouble: WARNING.

    The message is the command's sentence. The fields of JSON lines are attributes of the record. Their names begin with
    `tcpproxy_`, because `logging` raises an error for the name of an existing attribute.

    Args:
        several: the proxy has several forwards.
    """

    def __init__(self, *, several: bool = False) -> None:
        # Imported here: the command does not need it, and in the log thread it could race with interpreter shutdown.
        import logging

        self._logger = logging.getLogger("tcpproxy")
        self._several = several
        self._levels = {
            **dict.fromkeys(("listening", "upstream-up"), logging.INFO),
            **dict.fromkeys(("new", "connected", "fault", "end"), logging.DEBUG),
        }
        self._other = logging.WARNING
        self.wants_outgoing = self._logger.isEnabledFor(logging.DEBUG)
        """Is the proxy's own address toward upstream worth a system call per connection?"""

    def __call__(self, event: Event) -> None:
        """Logs an event. Never raises."""
        level = self._levels.get(event.kind, self._other)
        if self._logger.isEnabledFor(level):
            with contextlib.suppress(Exception):  # a handler of the program may fail
                self._logger.log(level, "%s", clean(sentence(event, several=self._several)), extra=self._extra(event))

    def _extra(self, event: Event) -> dict[str, object]:
        values = {"kind": event.kind, **fields(event)}
        return {f"tcpproxy_{name}": clean(it) if isinstance(it, str) else it for name, it in values.items()}
