"""Attributes of faults: their names in a text, and the checks of their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from .directions import parse_stream
from .errors import UsageError
from .text import quoted
from .values import Rate, parse_choice, parse_flag, parse_number, parse_rate, parse_share, parse_size, parse_time

if TYPE_CHECKING:
    from .faults import Fault

Time = str | timedelta | int
"""A time with its unit. 0 is the only number."""

MOST_BYTES = 999_999_999_999
MOST_BURST = 10**9
MOST_NUMBER = 10**9

_NAME = re.compile(r"[\w.#-]{1,64}", re.ASCII)
TIMES = ("latency", "jitter", "delay", "timeout", "after", "start", "for_", "repeat")
SIZES = ("bytes", "average_size", "size_variation", "after_bytes")
COUNTS = ("first", "nth", "every", "connection", "times")


def key_of(name: str) -> str:
    """Returns the key of an attribute in a text. The attribute of `for` is `for_`: `for` is a keyword of Python."""
    return name.rstrip("_")


def attribute_of(key: str) -> str:
    """Returns the attribute of a key: the reverse of `key_of`."""
    return "for_" if key == "for" else key


def kept(kind: type[Fault], name: str, value: Any) -> object:
    """Checks the value of an attribute, and returns it in the form in which a fault keeps it.

    Raises:
        UsageError: the value is invalid.
    """
    key = key_of(name)
    if name in TIMES:
        return parse_time(key, value, other="us" if kind.kind == "slicer" else "ms")
    if name == "burst":
        return parse_size(key, value, 1, MOST_BURST)
    if name in SIZES:
        return parse_size(key, value, 0, MOST_BYTES)
    if name in COUNTS:
        return parse_number(key, value, 1, MOST_NUMBER)
    if name == "end":
        return parse_choice(key, value, kind.ends)
    return _CHECKS[name](key, value)


def _network(what: str, value: object) -> str:
    import ipaddress  # few faults need it

    try:
        if isinstance(value, str):
            return str(ipaddress.ip_network(value))
    except ValueError as error:
        why = "has bits set behind its prefix" if "host bits" in str(error) else "is no network"
        raise UsageError(f"{what} {quoted(value)} {why}, expected one like 10.0.0.0/8") from None
    raise UsageError(f"{what} {quoted(value)} is no network, expected one like 10.0.0.0/8")


def _name(what: str, value: object) -> str:
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise UsageError(f"{what} {quoted(value)} is no name, expected up to 64 letters, digits, and any of _ . # -")


def _rate(what: str, value: Any) -> Rate:
    if value in (0, "0"):
        raise UsageError(f"{what} {quoted(value)} lets nothing pass: stall does that")
    return parse_rate(what, value)


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "stream": parse_stream,
    "toxicity": parse_share,
    "name": _name,
    "seed": lambda what, value: parse_number(what, value, 0, 2**64 - 1),
    "client": _network,
    "live": parse_flag,
    "idle": parse_flag,
    "scope": lambda what, value: parse_choice(what, value, ("connection", "proxy")),
    "distribution": lambda what, value: parse_choice(what, value, ("uniform", "normal")),
    "rate": _rate,
}
"""The checks of the attributes that are not in TIMES, SIZES or COUNTS."""
