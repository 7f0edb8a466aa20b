"""Where the command serves what is not relayed: an address of this machine, or a UNIX socket. Pure functions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import UsageError
from ..text import quoted
from .endpoints import is_ip


@dataclass(frozen=True, slots=True)
class Place:
    """A host and a port, or the path of a UNIX socket. The host is an IP address, IPv6 without brackets."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_place(what: str, value: object) -> Place | None:
    """`PORT` (of 127.0.0.1), `IP:PORT`, `[IPv6]:PORT` or `unix:PATH`; None stays None.

    Raises:
        UsageError: it is none of these.
    """
    if value is None:
        return None
    text = value if isinstance(value, str) else str(value)
    if text.startswith("unix:") and len(text) > 5 and "\0" not in text:
        return Place(path=text[5:])
    host, colon, port = text.rpartition(":")
    if re.fullmatch(r"\d{1,5}", port, re.ASCII) and 1 <= int(port) <= 65535:
        address = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not colon:
            return Place("127.0.0.1", int(port))
        if is_ip(address) and (":" in address) == (address != host):
            return Place(address, int(port))
    expected = "expected PORT, IP:PORT, [IPv6]:PORT or unix:PATH"
    raise UsageError(f"{what} {quoted(value)} is no place to serve at, {expected}{_hint(what, text, host, port)}")


def _hint(what: str, text: str, host: str, port: str) -> str:
    """What somebody with the habits of another program may have meant."""
    if text.startswith(("/", "./", "../")):
        return f"; for a UNIX socket: {what} unix:{text}"
    if not port.isdecimal():
        return ""
    if host in ("", "*") and text != port:
        return f"; for all addresses: {what} 0.0.0.0:{port}"
    return f"; for this machine alone: {what} {port}" if host == "localhost" else ""
