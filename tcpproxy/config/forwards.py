"""Parses forwards, `[ADDR:]PORT:REMOTE`, for -L and `forwards`. Pure functions."""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import UsageError
from ..text import quoted
from ..values import parse_number
from . import habits
from .endpoints import EVERYWHERE, Endpoint, check_text, is_ip, listen_host, parse_endpoints
from .habits import Spelling
from .paths import check_path, is_path, path_in

LOCAL = "127.0.0.1"
"""Where a forward without an address listens."""

_EXPECTED = "expected [ADDR:]PORT:REMOTE"
_FIELD = r"(\[[^\]]*\][^:]*|unix:(?!\d+(?::|\Z)|//)[^:]*|[^:]*)(?::(.*))?"
"""The text up to the first colon that is in neither brackets nor `unix:`, and the text after that colon."""


class ForwardSpec(NamedTuple):
    """A forward as it was given.

    Attributes:
        text: the text of the forward; for a proxy with a remote in place of forwards, the remote.
        listener: where to listen; port 0: a free one.
        targets: where to connect: the first one that is reached.
    """

    text: str
    listener: Endpoint
    targets: tuple[Endpoint, ...]

    @property
    def target(self) -> Endpoint:
        """The first of the targets."""
        return self.targets[0]

    @property
    def remote(self) -> str:
        """All targets, as they are written."""
        return ",".join(map(str, self.targets))


def parse_forward(what: str, text: str) -> ForwardSpec:
    """Parses `[ADDR:]PORT:REMOTE` or `/PATH:REMOTE`, with IPv6 addresses in brackets. Commas separate targets.

    Args:
        what: the name of the argument, for errors; one that begins with `-` is an option of the command.
        text: what was given.

    Raises:
        UsageError: it is no forward; the text names the part that is wrong, and what was probably meant.
    """
    program = not what.startswith("-")
    check_text(what, text, _EXPECTED)
    if habits.is_url(text):
        raise UsageError(f"{what} {quoted(habits.without_password(text))} is a URL, {_EXPECTED}")
    if text.startswith("~"):
        raise UsageError(f"{what} {quoted(text)} begins with '~', which only a shell expands, {_EXPECTED}")
    listener, rest = _listener(what, text, program)
    if not rest:
        there = habits.forward(":".join(text.split()))  # a blank in place of a colon: LocalForward of ssh_config
        raise UsageError(f"{what} {quoted(text)} has no REMOTE, {_EXPECTED}{_hint(there, program)}")
    front = text.removesuffix(rest)
    try:
        return ForwardSpec(text, listener, parse_endpoints(rest, program=program, front=front))
    except UsageError as error:
        raise UsageError(f"{what} {quoted(text)}: {error}") from None


def _listener(what: str, text: str, program: bool) -> tuple[Endpoint, str]:
    """Returns where to listen, and the rest of the text."""
    first, rest = _split(text)
    if is_path(first):
        check_path(what, text, path_in(first))
        return Endpoint(path=path_in(first)), rest
    if first.lower() == "fd":
        raise UsageError(f"{what} {quoted(text)} begins with 'fd:', which is for inherited sockets: not supported yet")
    _refuse_v6(what, text, program)  # first: its first group may look like a port
    if first.isascii() and first.isdecimal():
        return Endpoint(LOCAL, _port(what, text, first)), rest
    port, target = _split(rest)
    if not target:
        return Endpoint(), ""
    if port and not (port.isascii() and port.isdecimal()):
        raise UsageError(f"{what} {quoted(text)} begins with {quoted(first)}, {_no_port(first, rest, program)}")
    if not first:
        here, everywhere = (Spelling(target, front=f"{place}{port}:").spelled(program) for place in ("", "*:"))
        problem = f"has an empty address, {_EXPECTED}; for this machine alone: {here}, for all: {everywhere}"
        raise UsageError(f"{what} {quoted(text)} {problem}")
    host = EVERYWHERE if first == "*" else listen_host(what, text, first, _EXPECTED)
    if not port:
        target = f"localhost:{target}" if habits.is_port(target) else target
        hint = Spelling(target, front=f"{first}:0:").spelled(program)
        raise UsageError(f"{what} {quoted(text)} has an empty port, {_EXPECTED}; for a free port: {hint}")
    return Endpoint(host, _port(what, text, port)), target


def _hint(there: Spelling | None, program: bool) -> str:
    """Returns the hint for a text without a REMOTE, which may be a forward with another separator, or a REMOTE."""
    if not there or not there.port:
        return there.hint(program) if there else ""
    place = f"[{there.bind}]:" if ":" in there.bind else f"{there.bind}:" if there.bind else ""
    return Spelling(there.target, front=f"{place}{there.port}:").hint(program) if there.target else ""


def _split(text: str) -> tuple[str, str]:
    """Returns the first field, and the text after its colon."""
    match = re.fullmatch(_FIELD, text, re.DOTALL | re.IGNORECASE)
    assert match  # the third alternative matches everything
    return match[1], match[2] or ""


def _port(what: str, text: str, port: str) -> int:
    return parse_number(f"port of {what} {quoted(text)}:", port, 0, 65535)


def _no_port(first: str, rest: str, program: bool) -> str:
    """Returns the end of the error for a forward without a port: neither its first field nor the second one is one."""
    if re.fullmatch(r"\d+-\d+", first, re.ASCII):
        return f"a range of ports, {_EXPECTED} for each of them"
    if path := habits.other_path(first):
        return f"which is no port, {_EXPECTED}{Spelling(rest, front=f'{path}:').hint(program)}"
    if number := habits.service(first):
        hint = Spelling(rest, front=f"{number}:").spelled(program)
        return f"which is no port, {_EXPECTED}; the service {first} has port {number}: {hint}"
    return f"which is no port, {_EXPECTED}"


def _refuse_v6(what: str, text: str, program: bool) -> None:
    """Refuses an IPv6 address without brackets in front of a port."""
    for colon in (match.start() for match in re.finditer(r":(?=\d+:.*[:/@])", text)):
        address = text[:colon]
        if ":" in address and is_ip(address.partition("%")[0]):
            hint = Spelling(text[colon + 1 :], front=f"[{address}]:").spelled(program)
            raise UsageError(
                f"{what} {quoted(text)} has an IPv6 address without brackets, {_EXPECTED}; with them: {hint}"
            )
