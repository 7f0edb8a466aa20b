"""Parses numbers, durations, sizes, rates and choices. Pure functions."""

from __future__ import annotations

import math
import re

from .directions import DIRECTIONS, known_word
from .errors import UsageError
from .text import quoted

TYPE_CHECKING = False  # typing's own costs the command milliseconds
if TYPE_CHECKING:
    from datetime import timedelta

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|h|d|)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1, "": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST = 365 * 86400
"""The longest duration, in seconds."""
_BYTES: dict[str, int] = {
    **{"": 1, "B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3},
    **{unit + more: 1024**power for power, unit in enumerate("KMG", 1) for more in ("", "iB")},
    **{unit: 1024**power for power, unit in enumerate("kmg", 1)},
}
"""Units of sizes. A letter alone is a power of 1024."""
_SIZE = re.compile(rf"(\d+)\s*({'|'.join(_BYTES)})", re.ASCII)

_DECIMAL = r"\d{1,15}(?:\.\d{0,9})?|\.\d{1,9}"
_MICROSECONDS = {"us": 1, "ms": 1000, "s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6}
_BITS: dict[str, int] = {
    **{f"{unit}B/s": 8 * 1000**power for power, unit in enumerate(("", "k", "M", "G"))},
    **{f"{unit}iB/s": 8 * 1024**power for power, unit in enumerate("KMG", 1)},
    **{f"{unit}bit/s": 1000**power for power, unit in enumerate(("", "k", "M", "G"))},
    "KB/s": 8000,
}
"""The bits of each unit of rates."""
# Patterns that a start does not need are not compiled at import; `re` keeps what it has compiled.
_TIME = rf"({_DECIMAL})\s*(us|ms|s|m|h|)"
_RATE = rf"({_DECIMAL})\s*({'|'.join(_BITS)})"
_RATE_ELSEWHERE = rf"({_DECIMAL})\s*([kKmMgG]?)(i?)(bits?|b|B|)(?:/s|ps)?"
"""Rates in the notations of other tools."""
_SHARE = r"(\d{1,3}(?:\.\d{0,30})?|\.\d{1,30})(?:e-(\d{1,3}))?(%?)"
FASTEST = 10**12
"""The highest rate, in bytes per second."""


class Rate(int):
    """Bytes per second. `parse_rate` reads its text."""

    def __str__(self) -> str:
        return _decimal(self, (("GB/s", 10**9), ("MB/s", 10**6), ("kB/s", 1000), ("B/s", 1)))

    def __repr__(self) -> str:
        return f"Rate({str(self)!r})"


def parse_number(what: str, value: int | str, least: int, most: int, *, word: str = "") -> int:
    """A whole number from `least` to `most`, as a number or in digits. UsageError otherwise.

    Args:
        what: the name of the argument.
        value: what was given.
        least, most: the bounds.
        word: a word that the caller accepts beside numbers, for the error.
    """
    number = value
    if isinstance(value, str):
        number = int(value) if re.fullmatch(r"\s*\d{1,20}\s*", value, re.ASCII) else -1
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
        other = f" or {word}" if word else ""
        hint = _in_digits(value, least, most)
        raise UsageError(f"{what} {quoted(value)} is not a whole number from {least} to {most}{other}{hint}")
    return int(number)


def _in_digits(value: object, least: int, most: int) -> str:
    """The end of the error for a number like `10k`; empty: it is none, or out of range."""
    match = re.fullmatch(r"(\d{1,9})([kKmM])", str(value).strip(), re.ASCII) if isinstance(value, str) else None
    number = int(match[1]) * (1000 if match[2] in "kK" else 1000**2) if match else least - 1
    return f"; in digits: {number}" if least <= number <= most else ""


def parse_duration(
    what: str, value: float | str | None, *, least: float = 0, most: float = LONGEST, off: bool = False
) -> float:
    """Seconds, from a number or a text like `250ms`, `10s`, `1.5m`, `2h`.

    With `off`, the word `off` or None is 0, and 0 stands for no limit.

    Raises:
        UsageError: neither, negative, or outside `least` to `most`.
    """
    word = " or off" if off else ""
    expected = f"expected seconds or a number with ms, s, m, h or d, like 250ms or 10s{',' * off}{word}"
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

    Callers compute numbers from deadlines. So a number below 0 is 0, and one above the longest duration is for ever.

    Raises:
        UsageError: it is no duration, or nan.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:
        return None if value > LONGEST else float(max(0, value))
    return None if value is None else parse_duration(what, value)


def parse_limit(what: str, value: float | str | None) -> float:
    """As `parse_wait`, but returns inf for ever, to compute with."""
    limit = parse_wait(what, value)
    return math.inf if limit is None else limit


def parse_busy_poll(what: str, value: int | str) -> int:
    """Microseconds; `off` and 0 are 0, `auto` is -1. UsageError otherwise."""
    if value in ("auto", "off", "0") or (value == 0 and not isinstance(value, bool)):
        return -1 if value == "auto" else 0
    try:
        return parse_number(what, value, 1, 1000)
    except UsageError:
        expected = "expected auto, off or microseconds from 1 to 1000"
        raise UsageError(f"{what} {quoted(value)} is unknown, {expected}") from None


def parse_flag(what: str, value: object) -> bool:
    """A bool, also from `true` or `false`. UsageError otherwise."""
    if not isinstance(value, bool) and value not in ("true", "false"):
        raise UsageError(f"{what} {quoted(value)} is unknown, expected true or false")
    return value in (True, "true")


def parse_share(what: str, value: float | str) -> float:
    """A number from 0 to 1, also from a text like `0.1` or `10%`. UsageError otherwise."""
    share = -1.0
    match = re.fullmatch(_SHARE, value.strip(), re.ASCII) if isinstance(value, str) else None
    if match:
        digits, scale = _digits(match[1])
        share = digits / 10 ** (scale + int(match[2] or 0) + 2 * len(match[3]))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        share = float(max(-1, min(value, 2)))
    if not 0 <= share <= 1:  # also refuses nan
        raise UsageError(f"{what} {quoted(value)} is not a share, expected 0 to 1 or 0% to 100%")
    return share


def parse_choice(what: str, value: str, words: tuple[str, ...], hidden: tuple[str, ...] = ()) -> str:
    """One of the words, or of the `hidden` ones, which the error does not list. UsageError otherwise."""
    if value not in (*words, *hidden):
        expected = f"{', '.join(words[:-1])} or {words[-1]}"
        raise UsageError(f"{what} {quoted(value)} is unknown, expected {expected}")
    return value


def parse_mode(what: str, value: int | str) -> int:
    """The mode of a UNIX socket's file, from octal digits like `0600` or a number up to 0o777. UsageError otherwise."""
    if isinstance(value, str) and re.fullmatch(r"(0o?)?[0-7]{3}", value, re.ASCII):
        mode = int(value[-3:], 8)
    elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 0o777:
        mode = value
    else:
        raise UsageError(f"{what} {quoted(value)} is no mode of a file, expected octal digits from 0000 to 0777")
    if not mode & 0o222:  # connect() needs the right to write
        raise UsageError(f"{what} {quoted(value)} lets nobody connect, expected one with a 2, like 0600")
    return mode


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
        expected = f"expected bytes or a number with KiB or MiB, like 64KiB{',' * off}{word}"
        raise UsageError(f"{what} {quoted(value)} is not a size, {expected}")
    if off and size == 0:
        return 0
    if not least <= size <= most:
        raise UsageError(f"{what} {quoted(value)} is out of range, expected {least} to {most} bytes{word}")
    return size


def parse_time(what: str, value: str | timedelta | int, *, other: str = "ms") -> timedelta:
    """A duration with a unit: a text like `250ms`, `1.5s` or `10us`, a timedelta, or 0.

    Args:
        what: its name, for errors.
        value: what was given.
        other: the unit that a bare number might mean, besides seconds; for the error.

    Raises:
        UsageError: it has no unit, is negative, longer than a year, or finer than 1us.
    """
    from datetime import timedelta  # not for the start of the command

    if isinstance(value, timedelta):
        time = value
    elif value in (0, "0") and not isinstance(value, bool):
        time = timedelta(0)
    else:
        match = re.fullmatch(_TIME, str(value).strip(), re.ASCII) if _is_number(value) else None
        if not match:
            raise UsageError(
                f"{what} {quoted(value)} is not a time, expected a number with us, ms, s, m or h, like 250ms"
            )
        if not match[2]:
            raise UsageError(f"{what} {quoted(value)} has no unit, expected '{match[1]}{other}' or '{match[1]}s'")
        digits, scale = _digits(match[1])
        microseconds, rest = divmod(digits * _MICROSECONDS[match[2]], 10**scale)
        if rest:
            raise UsageError(f"{what} {quoted(value)} is no whole number of microseconds")
        time = timedelta(microseconds=min(microseconds, 2 * LONGEST * 10**6))
    if not timedelta(0) <= time <= timedelta(seconds=LONGEST):
        raise UsageError(f"{what} {quoted(value)} is out of range, expected 0s to {LONGEST}s")
    return time


def format_time(time: timedelta) -> str:
    """A text that `parse_time` reads."""
    microseconds = (time.days * 86400 + time.seconds) * 10**6 + time.microseconds
    return _decimal(microseconds, (("s", 10**6), ("ms", 1000), ("us", 1))) if microseconds else "0"


def parse_rate(what: str, value: str | Rate) -> Rate:
    """Bytes per second, from a text like `100kB/s`, `1MiB/s` or `10Mbit/s`.

    Raises:
        UsageError: it has no unit, is 0, above 1000 GB/s, or no whole number of bytes per second.
    """
    if isinstance(value, Rate):
        return value
    match = re.fullmatch(_RATE, str(value).strip(), re.ASCII) if _is_number(value) else None
    if not match:
        raise UsageError(f"{what} {quoted(value)} {_no_rate(value)}")
    number, unit = match.groups()
    digits, scale = _digits(number)
    rate, rest = divmod(digits * _BITS[unit], 8 * 10**scale)
    if rest:
        raise UsageError(f"{what} {quoted(value)} is no whole number of bytes per second")
    if not 1 <= rate <= FASTEST:
        raise UsageError(f"{what} {quoted(value)} is out of range, expected {Rate(1)} to {Rate(FASTEST)}")
    return Rate(rate)


def _no_rate(value: object) -> str:
    """The end of an error about an invalid rate: what is wrong, and the notation of the rate that it may mean."""
    match = re.fullmatch(_RATE_ELSEWHERE, str(value).strip(), re.ASCII) if _is_number(value) else None
    if match:
        number, letter, binary, noun = match.groups()
        prefix = ("k" if letter in "kK" and not binary else letter.upper()) if letter else ""
        units = {f"{prefix}{binary}B/s": noun[:3] != "bit", f"{prefix}{binary}bit/s": noun != "B"}
        if noun == "b" and letter in ("K", "M", "G"):  # Mbps is bits; what mbps is depends on the tool
            units[f"{prefix}{binary}B/s"] = False
        digits, scale = _digits(number)
        read = [each for each in units if units[each] and each in _BITS and digits * _BITS[each] % (8 * 10**scale) == 0]
        if read:
            fault = "is not a rate" if noun else "has no unit"
            return f"{fault}, expected {' or '.join(quoted(number + each) for each in read)}"
    return "is not a rate, expected a number with B/s or bit/s, like 100kB/s"


def parse_rates(what: str, value: object) -> tuple[int, int]:
    """Bytes per second to upstream and to clients: `10MB/s` for both, or a rate for each direction.

    None, `off` and 0 are 0, which stands for no limit.

    Raises:
        UsageError: a rate is invalid (see `parse_rate`), or a direction is unknown or given twice.
    """
    if value is None or (value in ("off", "0", 0) and not isinstance(value, bool)):
        return 0, 0
    if not isinstance(value, str) or "=" not in value:
        rate = int(parse_rate(what, value))  # type: ignore[arg-type]
        return rate, rate
    found: dict[str, int] = {}
    for part in value.split(","):
        word, equals, text = part.strip().partition("=")
        name = known_word(word)
        if name not in DIRECTIONS or not equals or name in found:
            expected = "expected RATE or to_upstream=RATE,to_client=RATE"
            raise UsageError(f"{what} {quoted(value)} has {quoted(part)}, {expected}")
        found[name] = 0 if text in ("off", "0") else int(parse_rate(what, text))
    return found.get("to_upstream", 0), found.get("to_client", 0)


def _is_number(value: object) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _digits(number: str) -> tuple[int, int]:
    """A decimal number, exactly: all digits as an integer, and how many of them are after the point."""
    whole, _, rest = number.partition(".")
    return int(whole + rest), len(rest)


def _decimal(number: int, units: tuple[tuple[str, int], ...]) -> str:
    """The exact number, in the largest unit that is not larger than it."""
    unit, size = next((each for each in units if number >= each[1]), units[-1])
    whole, rest = divmod(number, size)
    digits = f"{rest:0{len(str(size)) - 1}}".rstrip("0") if rest else ""
    return f"{whole}.{digits}{unit}" if digits else f"{whole}{unit}"
