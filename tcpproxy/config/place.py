"""Parses where the command serves metrics: an address of this machine, or a UNIX socket. Pure functions."""

from __future__ import annotations

import re

from ..errors import UsageError
from ..text import quoted
from . import habits
from .endpoints import Endpoint, is_ip
from .paths import check_path, is_path, path_in

_EXPECTED = "expected PORT, IP:PORT, [IPv6]:PORT or /PATH"


def parse_place(what: str, value: object) -> Endpoint | None:
    """Parses `PORT` (of 127.0.0.1), `IP:PORT`, `[IPv6]:PORT`, or the path of a UNIX socket; None stays None.

    Args:
        what: the name of the argument, for errors.
        value: what was given.

    Raises:
        UsageError: it is none of these.
    """
    if value is None:
        return None
    text = value if isinstance(value, str) else str(value)
    if is_path(text):
        check_path(what, text, path_in(text))
        return Endpoint(path=path_in(text))
    if place := _place(text):
        return place
    host, _, port = text.rpartition(":")
    raise UsageError(f"{what} {quoted(value)} is no place to serve at, {_EXPECTED}{_hint(what, text, host, port)}")


def _place(text: str) -> Endpoint | None:
    """Parses an address and a port; None if the text is none."""
    host, colon, port = text.rpartition(":")
    if not habits.is_port(port):
        return None
    if not colon:
        return Endpoint("127.0.0.1", int(port))
    address = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    return Endpoint(address, int(port)) if is_ip(address) and (":" in address) == (address != host) else None


def _hint(what: str, text: str, host: str, port: str) -> str:
    """Returns how to write what was probably meant, like `:PORT` or a URL; empty if that is not known."""
    import shlex  # only an error needs it

    inner = re.fullmatch(r"(?:http://)?([^/]+)(?:/\w*)?", text)
    if inner and inner[1] != text and _place(inner[1]):
        return f"; the paths are always the same: {what} {shlex.quote(inner[1])}"
    if path := habits.other_path(text):
        return f"; for a UNIX socket: {what} {shlex.quote(path)}"
    if not (port.isascii() and port.isdecimal()):
        return ""
    if not 1 <= int(port[:6]) <= 65535:
        return "; a port is a whole number from 1 to 65535"
    if host in ("", "*") and text != port:
        return f"; for all addresses: {what} 0.0.0.0:{port}"
    if ":" in host and is_ip(host):
        return f"; with brackets: {what} '[{host}]:{port}'"
    return f"; for this machine alone: {what} {port}" if host == "localhost" else ""
