"""Text from outside, made safe to show: in errors and in log lines."""

from __future__ import annotations


def quoted(value: object) -> str:
    """The repr of an argument, for an error message. Long ones are cut; a number may be too long to print."""
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
