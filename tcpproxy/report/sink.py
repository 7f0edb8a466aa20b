"""Events as records of the logger `tcpproxy`, for programs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ..text import clean
from .event import Event


def logging_sink() -> Callable[[Event], None]:
    """The default sink of a Proxy in a program: the logger `tcpproxy`. Connections: DEBUG; trouble: WARNING."""
    # Imported here: the command does not need it, and an import in the log thread can race with interpreter shutdown.
    import logging

    logger = logging.getLogger("tcpproxy")
    levels = {"listening": logging.INFO, "new": logging.DEBUG, "end": logging.DEBUG}

    def sink(event: Event) -> None:
        level = levels.get(event.kind, logging.WARNING)
        if logger.isEnabledFor(level):
            with contextlib.suppress(Exception):  # a handler of the program may fail
                logger.log(level, "%s", " ".join(clean(str(part)) for part in event if part))

    return sink
