"""Parses where to listen and where to connect. Pure functions."""

from __future__ import annotations

import operator
import os
import re
import socket
from dataclasses import dataclass
from typing import SupportsIndex

from ..errors import UsageError
from ..text import quoted
from ..values import parse_number
from . import habits
from .habits import Spelling
from .paths import check_path, is_path, path_in, plain_path

_LABEL = re.compile(r"[^\s\x00-\x20\x7f,./:\[\]@%]{1,63}")
_NUMBER = r"(?:0x[0-9a-f]+|\d+)"
_NUMBERS = re.compile(rf"{_NUMBER}(?:\.{_NUMBER})*\.?", re.ASCII | re.IGNORECASE)
"""What inet_aton takes for an IPv4 address, or would if the numbers were smaller. No host name has this form."""

_SHORT_LOOPBACK = r"127(?:\.(?:0|[1-9]\d*)){1,2}"
"""Abbreviated loopback addresses, like 127.1 for 127.0.0.1. They are allowed: all of them are this machine."""

EVERYWHERE = "::"
"""The host for `*`: every address, of both families."""

ANY_REMOTE = "expected HOST:PORT, [IPv6]:PORT or /PATH"
_REMOTE, _REMOTE_V6 = "expected HOST:PORT", "expected [IPv6]:PORT"

Remote = str | int | tuple[str, int] | tuple[str, int, int, int] | os.PathLike[str]
"""What a program may give as a target: a text, a port of localhost, an address of `socket.getsockname`, or a path."""

Remotes = Remote | list[Remote]
"""Several in a list are tried in order."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect or to listen: a host and a port, or a UNIX socket.

    Attributes:
        host: a name or an IP address, IPv6 without brackets.
        port: to listen on: 0 for a free one.
        path: of a UNIX socket: it begins with `/`, `./`, `../`, or `@` for an abstract one; empty: TCP.
    """

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def endpoints(remote: Remotes) -> tuple[Endpoint, ...]:
    """The targets that a program names: `HOST:PORT,HOST:PORT`, a list of what `endpoint` takes, or one of it.

    Raises:
        UsageError: as `endpoint`; or there is none.
    """
    if isinstance(remote, str):
        return parse_endpoints(remote, program=True)
    if not isinstance(remote, list):
        return (endpoint(remote),)
    if not remote:
        raise UsageError(f"remote [] is empty, {ANY_REMOTE}")
    return tuple(map(endpoint, remote))


def parse_endpoints(text: str, *, program: bool = False, front: str = "") -> tuple[Endpoint, ...]:
    """Targets with commas alone between them, each as `parse_endpoint` takes it."""
    parts = text.split(",")
    named = [each.strip() for each in parts if each.strip()]
    if named and len(parts) > 1 and named != parts:
        problem = "an empty target" if not all(map(str.strip, parts)) else "a space beside a ','"
        hint = Spelling(",".join(named), front=front).spelled(program)
        raise UsageError(f"remote {quoted(text)} has {problem}, expected HOST:PORT,HOST:PORT; without it: {hint}")
    return tuple(parse_endpoint(each, program=program, front=front) for each in parts)


def endpoint(remote: Remote) -> Endpoint:
    """Returns the endpoint that a program gives; an int is a port of localhost.

    Raises:
        UsageError: it is none of the types of Remote, or no endpoint can have this form.
    """
    if isinstance(remote, str):
        return parse_endpoint(remote, program=True)
    if isinstance(remote, tuple) and len(remote) in (2, 4) and isinstance(remote[0], str):
        host, scope = remote[0], remote[3] if len(remote) == 4 else 0
        if scope and "%" not in host:
            host = f"{host}%{scope}"
        check_host("remote", remote, host, "expected (host, port)")
        return Endpoint(host, _port(remote, remote[1]))
    if isinstance(remote, os.PathLike):
        path = plain_path(os.fspath(remote))
        check_path("remote", remote, path)
        return Endpoint(path=path)
    if isinstance(remote, SupportsIndex) and not isinstance(remote, bool):
        return Endpoint("localhost", _port(remote, operator.index(remote)))
    raise UsageError(f"remote {quoted(remote)} is no address, {ANY_REMOTE}, a port of localhost, or (host, port)")


def _port(remote: object, value: int | str) -> int:
    what = "port" if remote == value else f"port of remote {quoted(remote)}:"
    return parse_number(what, value, 1, 65535)


def parse_endpoint(text: str, *, program: bool = False, front: str = "") -> Endpoint:
    """Parses `HOST:PORT`, `[IPv6]:PORT`, or the path of a UNIX socket.

    Args:
        text: what was given.
        program: errors show calls of `Proxy` in place of command lines.
        front: the text before it in a forward, like `8080:`; errors then show forwards.

    Raises:
        UsageError: the host or the port is missing or malformed.
    """
    check_text("remote", text, ANY_REMOTE)
    if is_path(text):
        check_path("remote", text, path_in(text))
        return Endpoint(path=path_in(text))
    there = Spelling(habits.other_path(text) or habits.url_target(text), front=front)
    _refuse_other_kinds("remote", text, _REMOTE, there, program)
    if text.startswith("[") and not re.search(r"\]:[^:]*:", text):
        expected = _REMOTE_V6
        host, port = _bracketed(text)
    else:
        expected = _REMOTE
        host, colon, port = text.rpartition(":")
        if not colon and not habits.is_port(text):
            raise UsageError(f"remote {quoted(text)} has no port, {expected}")
        if is_ip(text.partition("%")[0]) or (":" in host and is_ip(host.partition("%")[0])):
            raise UsageError(f"remote {quoted(text)} is an IPv6 address without brackets, {_REMOTE_V6}")
        _refuse_forward(text, host, colon, program, front)
        if ":" in host:
            raise UsageError(f"remote {quoted(text)} has more than one ':', {expected}")
    host = _without_percent_25(host)
    check_host("remote", text, host, expected)
    if not port:
        raise UsageError(f"remote {quoted(text)} has an empty port, {expected}")
    return Endpoint(host, _remote_port(text, host, port, program, front))


def _bracketed(text: str) -> tuple[str, str]:
    """Splits `[IPv6]:PORT` in two."""
    host, bracket, rest = text[1:].partition("]")
    if not bracket:
        raise UsageError(f"remote {quoted(text)} has a '[' without a ']', {_REMOTE_V6}")
    if ":" not in host:
        what = f"{quoted(host)} in brackets, which are for IPv6 addresses"
        raise UsageError(f"remote {quoted(text)} has {what}, {ANY_REMOTE}")
    if not rest.startswith(":"):
        raise UsageError(f"remote {quoted(text)} has no port behind the ']', {_REMOTE_V6}")
    return host, rest[1:]


def _remote_port(text: str, host: str, port: str, program: bool, front: str) -> int:
    try:
        return parse_number(f"port of remote {quoted(text)}:", port, 1, 65535)
    except UsageError as error:
        if number := habits.service(port):
            hint = Spelling(str(Endpoint(host, number)), front=front).spelled(program)
            raise UsageError(f"{error}; the service {port} has port {number}: {hint}") from None
        raise


def _refuse_forward(text: str, host: str, colon: str, program: bool, front: str) -> None:
    """Raises UsageError if ssh, docker or kubectl would take the text for a forward; says how to write it here."""
    if "," in text:
        raise UsageError(f"remote {quoted(text)} has a ',', expected one HOST:PORT")
    if re.fullmatch(r".*\d/(udp|sctp)", text):
        raise UsageError(f"remote {quoted(text)} is not TCP, {_REMOTE}")
    there = habits.forward(text)
    if not there or there.target == text:
        return
    if front:
        there = Spelling("" if there.port or there.bind else there.target, front=front)
    if re.match(r"tcp[46]?:", text, re.IGNORECASE) and not there.port:
        problem = f"begins with {quoted(text.partition(':')[0])}"
    elif ":" in host:
        problem = f"has {habits.count_fields(text)} fields"
    elif not host:
        problem = "has an empty host" if colon else "has no host"
    elif text.endswith("/tcp"):
        problem = "ends with '/tcp'"
    else:
        problem = f"has the host {quoted(host)}, which is a bare number"
    raise UsageError(f"remote {quoted(text)} {problem}, {_REMOTE}{there.hint(program)}")


def _refuse_other_kinds(what: str, text: str, expected: str, there: Spelling, program: bool) -> None:
    """Raises UsageError for a URL, and for the path of a UNIX socket in the spelling of another program."""
    if text.startswith("~"):
        raise UsageError(f"{what} {quoted(text)} begins with '~', which only a shell expands, expected /PATH")
    if habits.is_url(text):
        problem = f"{quoted(habits.without_password(text))} is a URL"
    elif habits.is_path(text) and not habits.forward(text):
        problem = f"{quoted(text)} is not how a UNIX socket is spelled here"
        expected = "expected /PATH"
    else:
        return
    raise UsageError(f"{what} {problem}, {expected}{there.hint(program)}")


def parse_bind(what: str, text: str | os.PathLike[str]) -> str:
    """Parses a name or IP address to listen on, IPv6 with or without brackets; or the path of a UNIX socket.

    Args:
        what: the name of the argument, for errors; one that begins with `-` is an option of the command.
        text: what was given.

    Raises:
        UsageError: it is neither a host nor a path.
    """
    expected = "expected a name, an IP address or /PATH"
    program = not what.startswith("-")
    if isinstance(text, os.PathLike):
        text = plain_path(os.fspath(text))
    check_text(what, text, expected)
    if is_path(text):
        check_path(what, text, path_in(text))
        return path_in(text)
    if text in ("*", "[*]"):
        return EVERYWHERE
    if path := habits.other_path(text):
        _refuse_other_kinds(what, text, expected, Spelling(bind=path), program)
    there = None if is_ip(text.partition("%")[0]) else habits.listen_at(text)
    _refuse_other_kinds(what, text, expected, there or Spelling(), program)
    if habits.is_port(text):
        raise UsageError(f"{what} {quoted(text)} is a bare number, {expected}{Spelling(port=text).hint(program)}")
    if "," in text:
        first = habits.listen_address(next(filter(None, text.split(",")), "ADDR"))
        front = f"[{first}]:PORT:" if ":" in first else f"{first}:PORT:"
        hint = f"each address has a forward of its own, like {Spelling('REMOTE', front=front).spelled(program)}"
        raise UsageError(f"{what} {quoted(text)} has a ',', {expected}; {hint}")
    if not there and ":" in text and not is_ip(text.partition("%")[0]):
        there = habits.forward(text)
    if there or re.fullmatch(r"(\[.*\]|[^:\[\]]+|):\w*", text, re.DOTALL):
        hint = there.hint(program) if there else ""
        raise UsageError(f"{what} {quoted(text)} has a port, which is an option of its own, {expected}{hint}")
    return listen_host(what, text, text, expected)


def listen_endpoint(bind: str, port: int) -> Endpoint:
    """Returns where to listen, from the results of `parse_bind` and `parse_local_port`."""
    return Endpoint(path=bind) if is_path(bind) else Endpoint(bind, port)


def listen_host(what: str, text: str, host: str, expected: str) -> str:
    """Checks a host to listen on, and returns it without brackets.

    Args:
        what: the name of the argument.
        text: what was given.
        host: the host in it.
        expected: the end of an error.

    Raises:
        UsageError: no host can have this form.
    """
    if host.startswith("[") or host.endswith("]"):
        plain = host[1:-1]
        if not (host.startswith("[") and host.endswith("]")) or ":" not in plain:
            which = "is" if host == text else f"has {quoted(host)}, which is"
            raise UsageError(f"{what} {quoted(text)} {which} not an IPv6 address in brackets, {expected}")
        host = plain
    host = _without_percent_25(host)
    check_host(what, text, host, expected)
    return host


def parse_sources(what: str, value: object) -> tuple[str, ...]:
    """IP addresses to connect from, at most one of each family; IPv6 with or without brackets. None is none.

    Raises:
        UsageError: one is no IP address, or they are of one family.
    """
    expected = "expected an IP address of this machine, like 10.0.0.5"
    if not isinstance(value, list | tuple | None):
        raise UsageError(f"{what} {quoted(value)} is no address, {expected}")
    found: dict[bool, str] = {}
    for text in value or ():
        host = text[1:-1] if isinstance(text, str) and re.fullmatch(r"\[.*:.*\]", text) else text
        ip, percent, scope = host.partition("%") if isinstance(host, str) else ("", "", "")
        if not is_ip(ip) or (percent and (not scope or ":" not in ip)):
            raise UsageError(f"{what} {quoted(text)} is no IP address, {expected}{_source_hint(text)}")
        v6 = ":" in ip
        raw = socket.inet_pton(socket.AF_INET6 if v6 else socket.AF_INET, ip)
        if not any(raw):
            raise UsageError(f"{what} {quoted(text)} is every address, {expected}")
        if raw[0] == 255 if v6 else 224 <= raw[0] < 240 or raw == b"\xff" * 4:  # Linux binds to them
            raise UsageError(f"{what} {quoted(text)} is a multicast or broadcast address, {expected}")
        if v6 in found:
            family = "IPv6" if v6 else "IPv4"
            raise UsageError(f"{what} {quoted(text)} is the second {family} address, expected one of a family")
        found[v6] = host
    return tuple(found.values())


def _source_hint(text: object) -> str:
    """Returns the end of the error for a source that has a port, or is the name of a host or of an interface."""
    host, _, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    if port.isdecimal() and is_ip(address := habits.listen_address(host)):
        return f"; the port is the system's choice: {address}"
    is_name = isinstance(text, str) and re.fullmatch(r"[A-Za-z][\w.-]*", text)
    return "; for a name or a network interface: one of its addresses" if is_name else ""


def parse_local_port(what: str, value: int | str) -> int:
    """Parses a port to listen on, 0 for a free one.

    Raises:
        UsageError: it is no port; for an address or a forward, the text says how to write it.
    """
    try:
        return parse_number(what, value, 0, 65535)
    except UsageError as error:
        text = value.strip() if isinstance(value, str) else ""
        program = not what.startswith("-")
        if several := re.fullmatch(r"(\d+)(?:[,-]\d+)+", text, re.ASCII):
            hint = Spelling("REMOTE", front=f"{several[1]}:").spelled(program)
            raise UsageError(f"{error}; each port has a forward of its own, like {hint}") from None
        path = path_in(text) or habits.other_path(text)
        there = habits.forward(text) if re.match(r"[^:]+:", text) else None
        if not there or not there.port:
            there = habits.listen_at(text) if not text.isdecimal() else None
        there = Spelling(bind=path) if path else there
        if not there and text and (number := habits.service(text)):
            there = Spelling(port=str(number))
        if not there:
            raise
        raise UsageError(f"{error}{there.hint(program)}") from None


def _without_percent_25(host: str) -> str:
    """Returns the host without the escape of URLs (RFC 6874): `fe80::1%eth0` for `fe80::1%25eth0`.

    The number of an interface stays as it is. An interface whose name begins with 25 is written `%2525...`.
    """
    return re.sub(r"%25(?=.)(?!\d+\Z)", "%", host, count=1)


def check_text(what: str, text: object, expected: str) -> None:
    """Raises UsageError if it is no text, or empty."""
    if not isinstance(text, str):
        raise UsageError(f"{what} {quoted(text)} is not a text, {expected}")
    if not text:
        raise UsageError(f"{what} {quoted(text)} is empty, {expected}")


def check_host(what: str, text: object, host: str, expected: str) -> None:
    """Raises UsageError if no host can have the form of `host`, which is in `text`."""
    problem = _host_problem(host)
    if problem == "empty":
        raise UsageError(f"{what} {quoted(text)} has an empty host, {expected}")
    if problem:
        which = problem if host == text else f"has {quoted(host)}, which {problem}"
        raise UsageError(f"{what} {quoted(text)} {which}, {expected}")


def _host_problem(host: str) -> str:
    """Returns what is wrong with the form of a host, as the end of a sentence; empty: nothing."""
    if not host:
        return "empty"
    if ":" in host:
        address, percent, scope = host.partition("%")
        is_good = is_ip(address) and (not percent or re.fullmatch(r"[\w.-]{1,15}", scope))
        return "" if is_good else "is not an IPv6 address"
    plain = host
    if not host.isascii():
        try:
            plain = host.encode("idna").decode("ascii")  # makes ASCII digits and dots of those of any width
        except UnicodeError:
            return "cannot be a host name"
    labels = plain.removesuffix(".").split(".")
    if len(host) > 253 or not all(map(_LABEL.fullmatch, [*labels, *host.removesuffix(".").split(".")])):
        return "cannot be a host name"
    if _NUMBERS.fullmatch(plain):
        return "" if is_ip(plain) else _number_problem(plain)
    # No top-level domain is a number, so 1.2.3.999 is no name.
    return "is not an IPv4 address" if len(labels) > 3 and labels[-1].isdecimal() else ""


def _number_problem(host: str) -> str:
    """Returns what is wrong with numbers that are no full IPv4 address; empty: nothing.

    getaddrinfo takes most of them for an address: 18080 is 0.0.70.160, 10.1 is 10.0.0.1, and 010.0.0.1 is 8.0.0.1 on
    some systems, 10.0.0.1 on others.
    """
    try:
        full = socket.inet_ntop(socket.AF_INET, socket.inet_aton(host))
    except OSError:
        full = ""
    if full and re.fullmatch(_SHORT_LOOPBACK, host, re.ASCII):
        return ""
    problem = "is not an IPv4 address" if "." in host else "is a bare number"
    has_one_meaning = full and not re.search(r"(^|\.)0\d", host)
    return f"{problem} (in full: {full})" if has_one_meaning and not habits.is_port(host) else problem


def is_ip(host: str) -> bool:
    """Is it a numeric address, IPv4 or IPv6, without a scope?"""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return True
    return False
