"""Events as records of the logger `tcpproxy`, for programs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ..text import clean
from .event import Event


def logging_sink() -> Callable[[Event], None]:
    """The default sink of a Proxy in a program: the logger `tcpproxy`, connections at DEBUG, trouble at WARNING."""
    import logging  # not above: the command does without; and not in the log thread, where it could meet an exit

    logger = logging.getLogger("tcpproxy")
    levels = {"listening": logging.INFO, "new": logging.DEBUG, "end": logging.DEBUG}

    def sink(event: Event) -> None:
        level = levels.get(event.kind, logging.WARNING)
        if logger.isEnabledFor(level):
            with contextlib.suppress(Exception):  # a handler's mistake is not the proxy's
                logger.log(level, "%s", " ".join(clean(str(part)) for part in event if part))

    return sink
