"""Events as fields: for lines of JSON, and for records of `logging`. Pure functions.

docs/seeing.md lists the names, beside those of OpenTelemetry and the Elastic Common Schema.
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
"""The level of each kind; other kinds have "warning"."""

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
    """The fields of an event, by their names in JSON lines, without `time`, `level` and `kind`."""
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
    """The name of an errno, like `ECONNREFUSED`, also for Winsock; its number if it has no name; empty for 0."""
    return errno.errorcode.get(number, str(number)).removeprefix("WSA") if number else ""


def seconds(value: float) -> float:
    """A duration, to the microsecond."""
    return round(value, 6)


def timestamp(since_1970: float) -> str:
    """The text of a time in seconds since 1970, rounded to microseconds, because a float has no more precision."""
    return text.timestamp(round(since_1970 * 1_000_000) * 1000)


def json_line(kind: str, since_1970: float, values: Mapping[str, object]) -> str:
    """One line of JSON, without its end.

    Args:
        kind: the kind of record.
        since_1970: its time, in seconds.
        values: the other fields.
    """
    import json  # lines of text do not need it

    level = LEVELS.get(kind, "warning")
    return json.dumps({"time": timestamp(since_1970), "level": level, "kind": kind, **values})
