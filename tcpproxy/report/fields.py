"""Events as fields: for lines of JSON, and for records of `logging`. Pure functions.

docs/seeing.md lists the names, and what OpenTelemetry and the Elastic Common Schema call the same.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from .. import text
from .event import OF_TARGETS, Event

LEVELS = {
    **dict.fromkeys(("listening", "new", "connected", "connection", "end", "stopping", "summary"), "info"),
    **dict.fromkeys(("fault", "faults", "upstream-up"), "info"),
    **dict.fromkeys(("data", "end-of-stream", "reset", "gap", "capture"), "info"),
    "fatal": "error",
}
"""By kind; that of other kinds is "warning"."""

OF_CONNECTIONS = {
    "new": ("id", "client"),
    "connected": ("id", "client", "upstream", "outgoing", "connect_time"),
    "fault": ("id", "client", "upstream", "to_upstream", "to_client", "duration", "text"),
    **dict.fromkeys(
        ("end", "failed"),
        (
            *("id", "client", "upstream", "outgoing", "to_upstream", "to_client", "duration", "connect_time"),
            *("reason", "error", "text"),
        ),
    ),
}
"""Fields of the events about a connection. They are always there, also if they are 0 or empty."""

OF_OTHERS = ("reason", "lost", "error", "text")
"""Fields of the other events, unless they are 0 or empty."""


def fields(event: Event) -> dict[str, object]:
    """What an event says, by the names of JSON lines, but for `time`, `level` and `kind`."""
    if event.kind == "listening":
        return {"listener": event.text, "target": event.target}
    if event.kind in OF_TARGETS:
        names = ("upstream", "reason", "error", "text") if event.kind == "upstream-down" else ()
        return {"target": event.target, **{name: _value(event, name) for name in names}}
    if event.kind not in OF_CONNECTIONS:
        others = (*OF_OTHERS, "target") if event.kind == "lost" else OF_OTHERS
        return {name: value for name in others if (value := _value(event, name))}
    found = {name: _value(event, name) for name in OF_CONNECTIONS[event.kind]}
    found["target"] = event.target
    if event.via:
        found["via"] = event.via
    if event.faults:
        found["faults"] = list(event.faults)
    return found


def _value(event: Event, name: str) -> object:
    value = getattr(event, name)
    if name == "error":
        return error_name(value)
    return seconds(value) if isinstance(value, float) else value


def error_name(number: int) -> str:
    """The name of an errno, `ECONNREFUSED`; its number if it has none; empty for 0. Winsock's have the same names."""
    return errno.errorcode.get(number, str(number)).removeprefix("WSA") if number else ""


def seconds(value: float) -> float:
    """A duration, to the microsecond."""
    return round(value, 6)


def timestamp(since_1970: float) -> str:
    """Seconds since 1970 as `text.timestamp` shows them. A float has no more than microseconds: those are rounded."""
    return text.timestamp(round(since_1970 * 1_000_000) * 1000)


def json_line(kind: str, since_1970: float, values: Mapping[str, object]) -> str:
    """One line of JSON, without its end.

    Args:
        kind: what it is about.
        since_1970: when that was, in seconds.
        values: the other fields.
    """
    import json  # lines of text do not need it

    level = LEVELS.get(kind, "warning")
    return json.dumps({"time": timestamp(since_1970), "level": level, "kind": kind, **values})
