"""What a proxy is told to do: parsing and validation. Pure functions; nothing here touches a socket or a thread."""

from __future__ import annotations

import math
import re
import socket
from dataclasses import dataclass

from .errors import UsageError

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|h|)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1, "": 1, "m": 60, "h": 3600}
_LONGEST = 365 * 86400
_SIZE = re.compile(r"(\d+)\s*(B|kB|KB|KiB|K|MB|MiB|M|)", re.ASCII)
_BYTES = {"": 1, "B": 1, "kB": 1000, "KB": 1000, "K": 1024, "KiB": 1024, "MB": 1000**2, "M": 1024**2, "MiB": 1024**2}
_LABEL = re.compile(r"[^\s\x00-\x20\x7f./:\[\]@%]{1,63}")

WORKERS_LIMIT = 64


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host (name or IP address, IPv6 without brackets) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a proxy needs to know. Times in seconds, sizes in bytes; `make` builds one from what people write."""

    remote: Endpoint
    bind: str
    port: int
    workers: int
    connect_timeout: float
    half_close_timeout: float
    idle_timeout: float
    keepalive: int
    grace: float
    max_connections: int | None
    max_connections_per_source: int
    """0: any number."""
    buffer_size: int
    socket_buffer: int
    """0: the system's own choice."""
    zero_copy: str
    busy_poll: int

    @classmethod
    def make(
        cls,
        remote: str,
        *,
        bind: str = "127.0.0.1",
        port: int | str = 0,
        workers: int | str = 1,
        connect_timeout: float | str = 10,
        half_close_timeout: float | str = 60,
        idle_timeout: float | str | None = None,
        keepalive: float | str | None = 60,
        grace: float | str = 0,
        max_connections: int | str | None = None,
        max_connections_per_source: int | str | None = None,
        buffer_size: int | str = 65536,
        socket_buffer: int | str | None = None,
        zero_copy: str = "auto",
        busy_poll: int | str = "auto",
    ) -> Config:
        """Checks and converts; the arguments are described in `tcpproxy.Proxy`.

        Raises:
            UsageError: the first argument that cannot be meant.
        """
        return cls(
            remote=parse_endpoint(remote),
            bind=parse_bind(bind),
            port=parse_number("local-port", port, 0, 65535),
            workers=parse_number("workers", workers, 1, WORKERS_LIMIT),
            connect_timeout=parse_duration("connect-timeout", connect_timeout, least=0.001),
            half_close_timeout=parse_duration("half-close-timeout", half_close_timeout),
            idle_timeout=parse_duration("idle-timeout", idle_timeout, least=0.001, off=True),
            keepalive=math.ceil(parse_duration("keepalive", keepalive, least=1, most=32767, off=True)),
            grace=parse_duration("grace", grace),
            max_connections=None
            if max_connections is None
            else parse_number("max-connections", max_connections, 1, 10**6),
            max_connections_per_source=0
            if max_connections_per_source is None
            else parse_number("max-connections-per-source", max_connections_per_source, 1, 10**6),
            buffer_size=parse_size("buffer-size", buffer_size, 1024, 16 * 1024**2),
            socket_buffer=parse_size("socket-buffer", socket_buffer, 4096, 1024**3, off=True),
            # "always", from the first byte on, is for tests
            zero_copy=parse_word("zero-copy", zero_copy, ("auto", "off"), ("always",)),
            busy_poll=parse_busy_poll(busy_poll),
        )


def parse_endpoint(text: str) -> Endpoint:
    """`HOST:PORT` or `[IPv6]:PORT`.

    Raises:
        UsageError: there is no port, no host, or one that cannot exist.
    """
    expected = "expected HOST:PORT or [IPv6]:PORT"
    if not isinstance(text, str) or not text:
        raise UsageError(f"remote {shown(text)} is empty, {expected}")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket:
            raise UsageError(f"remote {shown(text)} has a '[' without a ']', {expected}")
        if ":" not in host:
            what = f"{shown(host)} in brackets, which are for IPv6 addresses"
            raise UsageError(f"remote {shown(text)} has {what}, {expected}")
        if not rest.startswith(":"):
            raise UsageError(f"remote {shown(text)} has no port behind the ']', {expected}")
        port = rest[1:]
    else:
        host, colon, port = text.rpartition(":")
        if not colon:
            raise UsageError(f"remote {shown(text)} has no port, {expected}")
        if ":" in host:
            raise UsageError(f"remote {shown(text)} has more than one ':', {expected} (an IPv6 address needs brackets)")
    _check_host("remote", text, host, expected)
    if not port:
        raise UsageError(f"remote {shown(text)} has an empty port, {expected}")
    return Endpoint(host, parse_number(f"port of remote {shown(text)}:", port, 1, 65535))


def parse_bind(text: str) -> str:
    """A name or IP address to listen on; IPv6 with or without brackets.

    Raises:
        UsageError: it is empty or no host.
    """
    expected = "expected a name, an IPv4 address or an IPv6 address"
    if not isinstance(text, str) or not text:
        raise UsageError(f"bind {shown(text)} is empty, {expected}")
    host = text
    if text.startswith("[") or text.endswith("]"):
        host = text[1:-1]
        if not (text.startswith("[") and text.endswith("]")) or ":" not in host:
            raise UsageError(f"bind {shown(text)} is not an IPv6 address in brackets, {expected}")
    _check_host("bind", text, host, expected)
    return host


def _check_host(what: str, text: str, host: str, expected: str) -> None:
    if not host:
        raise UsageError(f"{what} {shown(text)} has an empty host, {expected}")
    if ":" in host:
        address, percent, scope = host.partition("%")
        if not is_ip(address) or (percent and not re.fullmatch(r"[\w.-]{1,15}", scope)):
            raise UsageError(f"{what} {shown(text)} has {shown(host)}, which is not an IPv6 address, {expected}")
        return
    labels = host.removesuffix(".").split(".")
    if not host.isascii():
        try:
            host.encode("idna")
        except UnicodeError:
            labels = [""]
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise UsageError(f"{what} {shown(text)} has {shown(host)}, which cannot be a host name, {expected}")
    # No top-level domain is a number, so 1.2.3.999 is no name; and 010.0.0.1 is 8.0.0.1 to some, 10.0.0.1 to others.
    if len(labels) > 3 and re.fullmatch(r"\d+", labels[-1], re.ASCII) and not is_ip(host):
        raise UsageError(f"{what} {shown(text)} has {shown(host)}, which is not an IPv4 address, {expected}")


def is_ip(host: str) -> bool:
    """Is it a numeric address, IPv4 or IPv6 (without a scope)?"""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return True
    return False


def shown(value: object) -> str:
    """An argument as an error repeats it: a few lines at most, and also where Python refuses to write a number out."""
    try:
        text = repr(value)
    except ValueError:
        return "of more digits than can be shown"
    return text if len(text) <= 500 else f"{text[:80]}... ({len(text)} characters)"


def parse_number(what: str, value: int | str, least: int, most: int) -> int:
    """A whole number from `least` to `most`, as a number or in digits. UsageError otherwise."""
    number = value
    if isinstance(value, str):
        number = int(value) if re.fullmatch(r"\s*\d{1,9}\s*", value, re.ASCII) else -1
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
        raise UsageError(f"{what} {shown(value)} is not a whole number from {least} to {most}")
    return int(number)


def parse_duration(
    what: str, value: float | str | None, *, least: float = 0, most: float = _LONGEST, off: bool = False
) -> float:
    """Seconds, from a number or a text like `250ms`, `10s`, `1.5m`, `2h`.

    With `off`, the word `off` or None is 0, and 0 stands for no limit.

    Raises:
        UsageError: neither, negative, or outside `least` to `most`.
    """
    word = " or off" if off else ""
    expected = f"expected seconds or a number with ms, s, m or h, like 250ms or 10s{word}"
    if off and (value is None or value == "off"):
        return 0.0
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if not match:
            raise UsageError(f"{what} {shown(value)} is not a duration, {expected}")
        seconds = float(match[1]) * _SECONDS[match[2]]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(max(-1, min(value, 2 * _LONGEST)))  # also for numbers that no float can hold
    else:
        raise UsageError(f"{what} {shown(value)} is not a duration, {expected}")
    if off and seconds == 0:
        return 0.0
    if not least <= seconds <= most:  # also refuses nan
        raise UsageError(f"{what} {shown(value)} is out of range, expected {least:g}s to {most:.0f}s{word}")
    return seconds


def parse_busy_poll(value: int | str) -> int:
    """Microseconds; `off` is 0, `auto` is -1. UsageError otherwise."""
    if value in ("auto", "off"):
        return -1 if value == "auto" else 0
    if isinstance(value, str) and not re.fullmatch(r"\d{1,9}", value, re.ASCII):
        raise UsageError(f"busy-poll {shown(value)} is unknown, expected auto, off or microseconds from 1 to 1000")
    return parse_number("busy-poll", value, 1, 1000)


def parse_word(what: str, value: str, words: tuple[str, ...], unsaid: tuple[str, ...] = ()) -> str:
    """One of the words, or of those that an error does not mention. UsageError otherwise."""
    if value not in (*words, *unsaid):
        raise UsageError(f"{what} {shown(value)} is unknown, expected {' or '.join(words)}")
    return value


def parse_size(what: str, value: int | str | None, least: int, most: int, *, off: bool = False) -> int:
    """Bytes, from a number or a text like `64KiB`, `100kB`, `1M`. UsageError outside `least` to `most`.

    With `off`, the word `off` or None is 0.
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
        raise UsageError(f"{what} {shown(value)} is not a size, {expected}")
    if not least <= size <= most:
        raise UsageError(f"{what} {shown(value)} is out of range, expected {least} to {most} bytes{word}")
    return size
