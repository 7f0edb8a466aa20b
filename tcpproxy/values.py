"""Numbers, durations, sizes and choices, from what people write. Pure functions."""

from __future__ import annotations

import re

from .errors import UsageError
from .text import quoted

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|h|d|)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1, "": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST = 365 * 86400
"""Seconds: the longest duration."""
_BYTES: dict[str, int] = {
    **{"": 1, "B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3},
    **{unit + more: 1024**power for power, unit in enumerate("KMG", 1) for more in ("", "iB")},
    **{unit: 1024**power for power, unit in enumerate("kmg", 1)},
}
"""Units of sizes. A letter alone is a power of 1024."""
_SIZE = re.compile(rf"(\d+)\s*({'|'.join(_BYTES)})", re.ASCII)


def parse_number(what: str, value: int | str, least: int, most: int, *, word: str = "") -> int:
    """A whole number from `least` to `most`, as a number or in digits. UsageError otherwise.

    Args:
        what: the name of the argument.
        value: what was given.
        least, most: the bounds.
        word: what the caller takes beside numbers, for the error.
    """
    number = value
    if isinstance(value, str):
        number = int(value) if re.fullmatch(r"\s*\d{1,9}\s*", value, re.ASCII) else -1
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
        other = f" or {word}" if word else ""
        raise UsageError(f"{what} {quoted(value)} is not a whole number from {least} to {most}{other}")
    return int(number)


def parse_duration(
    what: str, value: float | str | None, *, least: float = 0, most: float = LONGEST, off: bool = False
) -> float:
    """Seconds, from a number or a text like `250ms`, `10s`, `1.5m`, `2h`.

    With `off`, the word `off` or None is 0, and 0 stands for no limit.

    Raises:
        UsageError: neither, negative, or outside `least` to `most`.
    """
    word = " or off" if off else ""
    expected = f"expected seconds or a number with ms, s, m, h or d, like 250ms or 10s{word}"
    if off and (value is None or value == "off"):
        return 0.0
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if not match:
            raise UsageError(f"{what} {quoted(value)} is not a duration, {expected}")
        seconds = float(match[1]) * _SECONDS[match[2]]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(max(-1, min(value, 2 * LONGEST)))  # also for numbers that no float can hold
    else:
        raise UsageError(f"{what} {quoted(value)} is not a duration, {expected}")
    if off and seconds == 0:
        return 0.0
    if not least <= seconds <= most:  # also refuses nan
        raise UsageError(f"{what} {quoted(value)} is out of range, expected {least:g}s to {most:.0f}s{word}")
    return seconds


def parse_wait(what: str, value: float | str | None) -> float | None:
    """Seconds that a call may take, in the forms of `parse_duration`; None: for ever.

    Callers compute numbers from deadlines: one below 0 is 0, and one that is longer than any duration is for ever.

    Raises:
        UsageError: it is no duration, or nan.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:
        return None if value > LONGEST else float(max(0, value))
    return None if value is None else parse_duration(what, value)


def parse_busy_poll(what: str, value: int | str) -> int:
    """Microseconds; `off` and 0 are 0, `auto` is -1. UsageError otherwise."""
    if value in ("auto", "off", "0") or (value == 0 and not isinstance(value, bool)):
        return -1 if value == "auto" else 0
    try:
        return parse_number(what, value, 1, 1000)
    except UsageError:
        expected = "expected auto, off or microseconds from 1 to 1000"
        raise UsageError(f"{what} {quoted(value)} is unknown, {expected}") from None


def parse_choice(what: str, value: str, words: tuple[str, ...], hidden: tuple[str, ...] = ()) -> str:
    """One of the words, or of the `hidden` ones, which the error does not list. UsageError otherwise."""
    if value not in (*words, *hidden):
        expected = f"{', '.join(words[:-1])} or {words[-1]}"
        raise UsageError(f"{what} {quoted(value)} is unknown, expected {expected}")
    return value


def parse_size(what: str, value: int | str | None, least: int, most: int, *, off: bool = False) -> int:
    """Bytes, from a number or a text like `64KiB`, `100kB`, `1M`. UsageError outside `least` to `most`.

    With `off`, the word `off` or None is 0, and 0 is allowed.
    """
    word = " or off" if off else ""
    if off and value in (None, "off"):
        return 0
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match and len(match[1]) <= 12:
        size = int(match[1]) * _BYTES[match[2]]
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        expected = f"expected bytes or a number with KiB or MiB, like 64KiB{word}"
        raise UsageError(f"{what} {quoted(value)} is not a size, {expected}")
    if off and size == 0:
        return 0
    if not least <= size <= most:
        raise UsageError(f"{what} {quoted(value)} is out of range, expected {least} to {most} bytes{word}")
    return size
