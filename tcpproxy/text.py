"""Text from outside, made safe to show: in errors and in log lines."""

from __future__ import annotations


def shown(value: object) -> str:
    """An argument as an error repeats it: a few lines at most, and also where Python refuses to write a number out."""
    try:
        text = repr(value)
    except ValueError:
        return "of more digits than can be shown"
    return text if len(text) <= 500 else f"{text[:80]}... ({len(text)} characters)"


def clean(text: str) -> str:
    """The text with everything that could move a cursor or begin a line made visible (log injection)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
