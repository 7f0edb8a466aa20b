"""Where to listen and where to connect, from what people write. Pure functions."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

from ..errors import UsageError
from ..text import quoted
from ..values import parse_number

_LABEL = re.compile(r"[^\s\x00-\x20\x7f./:\[\]@%]{1,63}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host (name or IP address, IPv6 without brackets) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """`HOST:PORT` or `[IPv6]:PORT`.

    Raises:
        UsageError: there is no port, no host, or one that cannot exist.
    """
    expected = "expected HOST:PORT or [IPv6]:PORT"
    _check_text("remote", text, expected)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket:
            raise UsageError(f"remote {quoted(text)} has a '[' without a ']', {expected}")
        if ":" not in host:
            what = f"{quoted(host)} in brackets, which are for IPv6 addresses"
            raise UsageError(f"remote {quoted(text)} has {what}, {expected}")
        if not rest.startswith(":"):
            raise UsageError(f"remote {quoted(text)} has no port behind the ']', {expected}")
        port = rest[1:]
    else:
        host, colon, port = text.rpartition(":")
        if not colon:
            raise UsageError(f"remote {quoted(text)} has no port, {expected}")
        if ":" in host:
            hint = " (an IPv6 address needs brackets)" if is_ip(text) or is_ip(host.partition("%")[0]) else ""
            raise UsageError(f"remote {quoted(text)} has more than one ':', {expected}{hint}")
    _check_host("remote", text, host, expected)
    if not port:
        raise UsageError(f"remote {quoted(text)} has an empty port, {expected}")
    return Endpoint(host, parse_number(f"port of remote {quoted(text)}:", port, 1, 65535))


def parse_bind(what: str, text: str) -> str:
    """A name or IP address to listen on; IPv6 with or without brackets.

    Raises:
        UsageError: it is empty or no host.
    """
    expected = "expected a name, an IPv4 address or an IPv6 address"
    _check_text(what, text, expected)
    if re.fullmatch(r"(\[.*\]|[^:\[\]]+):\w*", text, re.DOTALL):
        raise UsageError(f"{what} {quoted(text)} has a port, which is an option of its own, {expected}")
    host = text
    if text.startswith("[") or text.endswith("]"):
        host = text[1:-1]
        if not (text.startswith("[") and text.endswith("]")) or ":" not in host:
            raise UsageError(f"{what} {quoted(text)} is not an IPv6 address in brackets, {expected}")
    _check_host(what, text, host, expected)
    return host


def _check_text(what: str, text: object, expected: str) -> None:
    if not isinstance(text, str):
        raise UsageError(f"{what} {quoted(text)} is not a text, {expected}")
    if not text:
        raise UsageError(f"{what} {quoted(text)} is empty, {expected}")


def _check_host(what: str, text: str, host: str, expected: str) -> None:
    problem = _host_problem(host)
    if problem == "empty":
        raise UsageError(f"{what} {quoted(text)} has an empty host, {expected}")
    if problem:
        which = problem if host == text else f"has {quoted(host)}, which {problem}"
        raise UsageError(f"{what} {quoted(text)} {which}, {expected}")


def _host_problem(host: str) -> str:
    """What is wrong with a host, as the end of a sentence; nothing: it may exist."""
    if not host:
        return "empty"
    if ":" in host:
        address, percent, scope = host.partition("%")
        is_good = is_ip(address) and (not percent or re.fullmatch(r"[\w.-]{1,15}", scope))
        return "" if is_good else "is not an IPv6 address"
    labels = host.removesuffix(".").split(".")
    if not host.isascii():
        try:
            host.encode("idna")
        except UnicodeError:
            labels = [""]
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return "cannot be a host name"
    # No top-level domain is a number, so 1.2.3.999 is no name; and 010.0.0.1 is 8.0.0.1 to some, 10.0.0.1 to others.
    if len(labels) > 3 and re.fullmatch(r"\d+", labels[-1], re.ASCII) and not is_ip(host):
        return "is not an IPv4 address"
    return ""


def is_ip(host: str) -> bool:
    """Is it a numeric address, IPv4 or IPv6 (without a scope)?"""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return True
    return False
