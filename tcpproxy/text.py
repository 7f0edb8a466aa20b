"""Text for people: makes outside text safe to show, and formats numbers with units."""

from __future__ import annotations

import time


def quoted(value: object) -> str:
    """The repr of an argument, for an error message. A long repr is cut; a number may be too long for one."""
    try:
        text = repr(value)
    except ValueError:
        return "of more digits than can be shown"
    return text if len(text) <= 500 else f"{text[:80]}... ({len(text)} characters)"


def clean(text: str) -> str:
    """The text with control characters escaped, so that it cannot begin a line or move a cursor (log injection)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def count(number: int, what: str) -> str:
    """`1 connection`, `1,204 connections`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def bytes_text(size: int) -> str:
    """A number of bytes in the largest unit that fits: `17 B`, `1.2 GiB`, `340 MiB`."""
    if size < 1024:
        return f"{size} B"
    value, units = size / 1024, ["KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1024
        del units[0]
    unit = units[0]
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"


def timestamp(time_ns: int) -> str:
    """Nanoseconds since 1970 as RFC 3339 has them, UTC, to the microsecond: `2026-11-28T19:30:00.123456Z`."""
    whole, nano = divmod(time_ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{nano // 1000:06d}Z"


def span(seconds: float) -> str:
    """A duration in its two largest units: `250 ms`, `1.2 s`, `13 min 5 s`, `2 h 13 min`, `3 d 4 h`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for large, small, first, second in ((86400, 3600, "d", "h"), (3600, 60, "h", "min")):
        if whole >= large:
            return f"{whole // large} {first} {whole % large // small} {second}"
    return f"{whole // 60} min {whole % 60} s"
