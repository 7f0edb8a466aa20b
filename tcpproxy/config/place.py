"""Where the command serves what is not relayed: an address of this machine, or a UNIX socket. Pure functions."""

from __future__ import annotations

import re

from ..errors import UsageError
from ..text import quoted
from .endpoints import Endpoint, is_ip
from .paths import check_path, is_path, path_in

_EXPECTED = "expected PORT, IP:PORT, [IPv6]:PORT or /PATH"


def parse_place(what: str, value: object) -> Endpoint | None:
    """`PORT` (of 127.0.0.1), `IP:PORT`, `[IPv6]:PORT`, or the path of a UNIX socket; None stays None.

    Raises:
        UsageError: it is none of these.
    """
    if value is None:
        return None
    text = value if isinstance(value, str) else str(value)
    if is_path(text):
        check_path(what, text, path_in(text))
        return Endpoint(path=path_in(text))
    host, colon, port = text.rpartition(":")
    if re.fullmatch(r"\d{1,5}", port, re.ASCII) and 1 <= int(port) <= 65535:
        address = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not colon:
            return Endpoint("127.0.0.1", int(port))
        if is_ip(address) and (":" in address) == (address != host):
            return Endpoint(address, int(port))
    raise UsageError(f"{what} {quoted(value)} is no place to serve at, {_EXPECTED}{_hint(what, text, host, port)}")


def _hint(what: str, text: str, host: str, port: str) -> str:
    """What somebody with the habits of another program may have meant."""
    if not port.isdecimal():
        return ""
    if host in ("", "*") and text != port:
        return f"; for all addresses: {what} 0.0.0.0:{port}"
    return f"; for this machine alone: {what} {port}" if host == "localhost" else ""
