"""The totals of a proxy since its start, as a sentence and as fields. Pure functions."""

from __future__ import annotations

from ..text import bytes_text, count, span
from ..views import Stats
from .fields import seconds


def summary(duration: float, stats: Stats) -> str:
    """`2 h 13 min: 1,204 connections, 3 failed; 1.2 GiB to upstream, 340 MiB to clients`.

    Args:
        duration: seconds since the start.
        stats: the numbers of that time.
    """
    several = {"failed": stats.failed, "refused": stats.refused, "open": stats.active}
    parts = [count(stats.accepted, "connection"), *(f"{number:,} {what}" for what, number in several.items() if number)]
    moved = f"{bytes_text(stats.bytes_to_upstream)} to upstream, {bytes_text(stats.bytes_to_client)} to clients"
    return f"{span(duration)}: {', '.join(parts)}; {moved}"


def summary_fields(duration: float, stats: Stats) -> dict[str, object]:
    """The totals as fields of a JSON record."""
    return {
        "duration": seconds(duration),
        "accepted": stats.accepted,
        "active": stats.active,
        "failed": stats.failed,
        "refused": stats.refused,
        "to_upstream": stats.bytes_to_upstream,
        "to_client": stats.bytes_to_client,
    }
