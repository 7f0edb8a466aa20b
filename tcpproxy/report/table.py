"""Connections as a table, for SIGUSR1 and the live view. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..text import bytes_text, span
from ..views import Connection
from .fields import seconds

Rates = Mapping[int, tuple[float, float]]
"""Bytes per second to upstream and to the client, by the connection's id."""

RIGHT = ("#", "age", "idle", "to upstream", "rate up", "to client", "rate down")
"""Columns that are aligned to the right."""

OPTIONAL = ("idle", "to upstream", "to client", "age", "upstream", "state")
"""Columns to leave out on a narrow terminal, in this order."""


def measure(before: Sequence[Connection], after: Sequence[Connection], apart: float) -> Rates:
    """The rates between two lists of the connections, taken `apart` seconds from each other.

    A connection that is only in the second list has its mean since accept.
    """
    known = {it.id: it for it in before}
    rates = {}
    for it in after:
        old = known.get(it.id)
        up, down, time = (old.to_upstream, old.to_client, apart) if old else (0, 0, it.age)
        rates[it.id] = ((it.to_upstream - up) / max(time, 1e-6), (it.to_client - down) / max(time, 1e-6))
    return rates


def table(connections: Sequence[Connection], rates: Rates, width: int | None) -> list[str]:
    """One line a connection, below a line of headings.

    Args:
        connections: in the order of the lines.
        rates: see `measure`.
        width: columns of the terminal; None: no limit.
    """
    rows = [_cells(it, *rates.get(it.id, (0.0, 0.0))) for it in connections]
    columns = list(_cells(_NOBODY, 0, 0))
    widths = {name: max(len(name), *(len(row[name]) for row in rows), 0) for name in columns}
    for name in OPTIONAL:
        if width is not None and sum(widths.values()) + 2 * (len(widths) - 1) > width:
            del widths[name]
    lines = [{name: name for name in columns}, *rows]
    return ["  ".join(_aligned(name, line[name], widths[name]) for name in widths).rstrip() for line in lines]


def record(connection: Connection, rate_up: float, rate_down: float) -> dict[str, object]:
    """The fields of a connection's JSON record."""
    it = connection
    return {
        "id": it.id,
        "client": it.client,
        "upstream": it.upstream,
        "outgoing": it.outgoing,
        "state": it.state,
        "age": seconds(it.age),
        "idle": seconds(it.idle),
        "connect_time": seconds(it.connect_time),
        "to_upstream": it.to_upstream,
        "to_client": it.to_client,
        "rate_to_upstream": round(rate_up),
        "rate_to_client": round(rate_down),
        "waiting_for_upstream": it.waiting_for_upstream,
        "waiting_for_client": it.waiting_for_client,
        "target": it.target,
        **_bent(it),
        **({"via": it.via} if it.via else {}),
    }


def _bent(it: Connection) -> dict[str, object]:
    """The fields about faults, if any has acted on the connection."""
    if not it.faults:
        return {}
    return {"faults": list(it.faults), "held_for_upstream": it.held[0], "held_for_client": it.held[1]}


def waits_for(connection: Connection) -> str:
    """What a connection waits for, with the number of bytes that wait; empty: nothing."""
    if connection.state in ("resolving", "connecting"):
        return "name server" if connection.state == "resolving" else "upstream"
    to_upstream, to_client = connection.held
    sides = {
        "upstream": connection.waiting_for_upstream - to_upstream,
        "client": connection.waiting_for_client - to_client,
        "fault": to_upstream + to_client,
    }
    return ", ".join(f"{side} ({bytes_text(size)})" for side, size in sides.items() if size)


_NOBODY = Connection(0, "", "", "relaying", 0, 0, 0.0, 0.0, 0.0, 0, 0, "")


def _cells(it: Connection, rate_up: float, rate_down: float) -> dict[str, str]:
    return {
        "#": f"#{it.id}",
        "client": it.client,
        "upstream": it.upstream or "-",
        "state": f"{it.state}: {it.reason}" if it.reason else it.state,
        "age": span(it.age),
        "idle": span(it.idle),
        "to upstream": bytes_text(it.to_upstream),
        "rate up": f"{bytes_text(round(rate_up))}/s",
        "to client": bytes_text(it.to_client),
        "rate down": f"{bytes_text(round(rate_down))}/s",
        "waits for": waits_for(it),
    }


def _aligned(name: str, text: str, width: int) -> str:
    return text.rjust(width) if name in RIGHT else text.ljust(width)
