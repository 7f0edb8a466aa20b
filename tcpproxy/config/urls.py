"""URLs and connection strings with another address in them. Pure functions."""

from __future__ import annotations

import re

from ..errors import UsageError
from ..text import quoted
from .habits import without_password

_URL = r"([A-Za-z][\w+.:-]*://)([^/?#]*)(.*)"
_PLAIN = r"(?:\[[^\]\s]+\]|[^\s:/=]+):\d+"
_KEYWORD = r"(?<!\S){}\s*=\s*(?:'(?:[^'\\]|\\.)*'|\S*)"


def reachable(host: str) -> str:
    """Where to connect to for a listener at `host`: an address that stands for all becomes that of this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def with_address(url: str, host: str, port: int) -> str:
    """The same URL, libpq connection string, or HOST:PORT with another host and port.

    Args:
        url: `scheme://user:password@HOST:PORT/...` (also with several hosts, which become this one),
            `host=HOST port=PORT ...`, or `HOST:PORT`.
        host: where to connect to; an address that stands for all becomes that of this machine.
        port: likewise.

    Raises:
        UsageError: there is no host in it.
    """
    host = reachable(host)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if match := re.fullmatch(_URL, url, re.DOTALL):
        scheme, authority, rest = match.groups()
        user, at, hosts = authority.rpartition("@")
        if hosts and not scheme.endswith("+srv://"):  # that one's host is a name of DNS records, and has no port
            return f"{scheme}{user}{at}{address}{rest}"
    elif re.search(_KEYWORD.format("host(?:addr)?"), url):
        for name, value in (("host", host), ("hostaddr", host), ("port", port)):
            url = re.sub(_KEYWORD.format(name), f"{name}={value}", url)
        return url if re.search(_KEYWORD.format("port"), url) else f"{url} port={port}"
    elif re.fullmatch(_PLAIN, url):
        return address
    raise UsageError(
        f"url {quoted(without_password(url))} has no host, expected scheme://HOST:PORT, host=HOST or HOST:PORT"
    )
