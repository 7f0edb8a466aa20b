"""Recognizes spellings of other programs (ssh, docker, kubectl, socat, URLs): errors show how to write them here.

Pure functions, except `service`.
"""

from __future__ import annotations

import contextlib
import re
import socket
from typing import NamedTuple

from .paths import path_in, plain_path

_URL = r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?:.*@)?(?P<place>[^/?#@]*).*"
_PORT = re.compile(r"0*[1-9]\d{0,4}", re.ASCII)
_PATH = re.compile(
    r"[/@]|~/|\.{1,2}/|(.*:)?/(?!/)|.*\.sock\Z|unix(-connect|-listen|-client)?:(?!\d+\Z)", re.DOTALL | re.I
)
_KUBERNETES = r"(pods?|po|service|svc|deploy(ment)?|replicaset|rs|statefulset|sts)/[\w.-]+"
_HOST = re.compile(r"\[[0-9a-f:.]+(%\w+)?\]|[\w*][\w.-]*\Z", re.I)
_DEFAULT_PORTS = {
    **{"http": 80, "ws": 80, "https": 443, "wss": 443, "ftp": 21, "ssh": 22, "redis": 6379, "rediss": 6379},
    **{"postgres": 5432, "postgresql": 5432, "mysql": 3306, "mongodb": 27017, "amqp": 5672, "amqps": 5671},
    **{"ldap": 389, "ldaps": 636, "mqtt": 1883, "mqtts": 8883, "nats": 4222, "memcached": 11211},
}
"""The ports of URLs without one, by scheme. A table, because a container has no /etc/services."""


class Spelling(NamedTuple):
    """What a user meant, in parts that this program spells in its own way. An empty part was not given.

    Args:
        target: HOST:PORT or a path to connect to.
        bind: the address to listen on, or a path.
        port: the port to listen on.
        front: if this is the forward of an -L: the text before the target, like `8080:`.
    """

    target: str = ""
    bind: str = ""
    port: str = ""
    front: str = ""

    @property
    def meaning(self) -> str:
        """What the user wants, as a part of a sentence: `to listen on port 8080`."""
        if not self.port and not self.bind:
            return f"to forward to {self.target}"
        place = " ".join([self.bind, f"port {self.port}" if self.port else ""]).strip()
        return f"to listen on {place}" + (f" and forward to {self.target}" if self.target else "")

    def hint(self, program: bool) -> str:
        """Returns the end of an error: what is meant, and how to write it here; empty if nothing is known.

        Args:
            program: show a call of `Proxy` in place of a command line.
        """
        known = self.target or self.bind or self.port
        return f"; {self.meaning}: {self.spelled(program)}" if known else ""

    def spelled(self, program: bool) -> str:
        """Returns `in_program` or `in_command`."""
        return self.in_program() if program else self.in_command()

    def in_program(self) -> str:
        """Returns it as a call of `Proxy`; without a target, as arguments of one."""
        if self.front:
            return f"forwards=[{self.front + self.target!r}]"
        named = [("bind", repr(self.bind)), ("port", self.port)]
        options = [f"{name}={value}" for name, value in named if value and value != "''"]
        return f"Proxy({', '.join([repr(self.target), *options])})" if self.target else ", ".join(options)

    def in_command(self) -> str:
        """Returns it as a command line, quoted for a shell; without a target, as options of one."""
        import shlex  # only an error needs it

        if self.front:
            return shlex.join(["-L", self.front + self.target])
        words = ["tcpproxy"] if self.target else []
        words += ["-b", self.bind] if self.bind else []
        words += ["-l", self.port] if self.port else []
        words += [self.target] if self.target else []
        return shlex.join(words)


def is_url(text: str) -> bool:
    """Is it SCHEME://...?"""
    return _url(text) is not None


def is_path(text: str) -> bool:
    """Is it meant for a UNIX socket: a path, socat's `UNIX-CONNECT:PATH`, a URL, or a path after a port?"""
    url = _url(text)
    return "unix" in url["scheme"].lower().split("+") if url else _PATH.match(text) is not None


def other_path(text: str) -> str:
    """Returns the path of a UNIX socket in the spelling of another program, as written here; empty if it is none."""
    if not is_path(text) or text.startswith("~") or forward(text):
        return ""
    if is_url(text):  # unix:///run/x, http+unix://%2Frun%2Fx
        from urllib.parse import unquote  # only an error needs it

        path = unquote(text.partition("://")[2])
    else:
        path = re.sub(r"\Aunix[a-z-]*:", "", text, flags=re.I)
    return plain_path(path)


def is_of_kubectl(text: str) -> bool:
    """Is it KIND/NAME of something in Kubernetes?"""
    return re.fullmatch(_KUBERNETES, text, re.ASCII) is not None


def without_password(text: str) -> str:
    """Returns the URL without its user and password, which must not get into a log."""
    return re.sub(r"://.*@", "://...@", text, count=1, flags=re.DOTALL)


def is_port(text: str) -> bool:
    """Is it a number from 1 to 65535, in digits?"""
    return _PORT.fullmatch(text) is not None and int(text) <= 65535


def url_target(text: str) -> str:
    """Returns HOST:PORT of a URL, with the word PORT if it has none and the scheme no default; empty without a host."""
    match = _url(text)
    if not match or not match["place"] or "," in match["place"]:
        return ""
    host, port = _host_and_port(match["place"])
    port = port or str(_DEFAULT_PORTS.get(match["scheme"].lower(), "PORT"))
    return f"{host or 'localhost'}:{port}"


def forward(text: str) -> Spelling | None:
    """Returns the parts of `[BIND:]PORT:[HOST:]PORT`, as ssh, docker and kubectl write it; None if it is none."""
    text = text.removesuffix("/tcp")
    text = re.sub(r"\Atcp[46]?:(?=[^/].*:)", "", text, flags=re.I)  # socat's TCP:HOST:PORT
    parts = _fields(text)
    if len(parts) == 2 and is_port(parts[0]) and path_in(parts[1]):  # PORT:/PATH
        return Spelling(parts[1], "", parts[0])
    if len(parts) == 2 and is_port(parts[0]) and re.fullmatch(r"[a-z][\w.-]*", parts[1], re.I):  # PORT:HOST
        return Spelling(f"{parts[1]}:PORT", "", parts[0])
    if not 1 <= len(parts) <= 4 or not is_port(parts[-1]):
        return None
    *front, port = parts
    if len(front) <= 1:  # PORT, :PORT, PORT:PORT, HOST:PORT
        host = front[0] if front else ""
        if not host or is_port(host):
            return Spelling(f"localhost:{port}", "", host)
        return Spelling(f"{host}:{port}") if _HOST.match(host) else None
    if len(front) == 3:  # BIND:PORT:HOST:PORT
        bind, local, host = front
    elif is_port(front[0]) or front[0] == "0":  # PORT:HOST:PORT
        bind, (local, host) = "", front
    else:  # docker's ADDRESS:PORT:PORT, and ADDRESS::PORT for a free port
        bind, local, host = *front, ""
    host = host or "localhost"
    if (
        (local and not local.isdecimal())
        or host.isdecimal()
        or not _HOST.match(host)
        or (bind and not _HOST.match(bind))
    ):
        return None
    return Spelling(f"{host}:{port}", listen_address(bind), local)


def socat(first: str, second: str) -> Spelling | None:
    """What the two addresses of socat are here, `TCP-LISTEN:8080,fork TCP:db:5432`; None: they are no such thing."""
    listen = re.fullmatch(r"(?:tcp[46]?-l(?:isten)?:(\d+)|unix-l(?:isten)?:([^,]+))((?:,.*)?)", first, re.I)
    there = re.fullmatch(
        r"(?:tcp[46]?(?:-connect)?:([^,]+:\d+)|unix(?:-connect|-client)?:([^,]+))(?:,.*)?", second, re.I
    )
    if not listen or not there:
        return None
    bind = re.search(r",bind=([^,]+)", listen[3], re.I)
    place = plain_path(listen[2] or "") or (listen_address(bind[1]) if bind else "")
    return Spelling(plain_path(there[2] or "") or there[1], place, listen[1] or "")


def count_fields(text: str) -> int:
    """Returns how many fields colons separate."""
    return len(_fields(text))


def listen_at(text: str) -> Spelling | None:
    """Returns the parts of `ADDRESS:PORT` or `:PORT`, a place to listen at; None if it is none."""
    if is_url(text):
        text = text.partition("://")[2].partition("/")[0]
    host, port = _host_and_port(text.removesuffix("/tcp"))
    if not (is_port(port) or port == "0") or (host and not _HOST.match(host)):
        return None
    return Spelling("", listen_address(host), port)


def listen_address(text: str) -> str:
    """Returns an address to listen on without brackets; `::` for `*`."""
    return "::" if text == "*" else text.removeprefix("[").removesuffix("]")


def service(name: str) -> int:
    """Returns the TCP port of a service's name on this machine; 0 if it is unknown."""
    with contextlib.suppress(OSError, ValueError):
        return socket.getservbyname(name, "tcp")
    return 0


def _url(text: str) -> re.Match[str] | None:
    # Most texts are none, and to compile the pattern takes a third of a millisecond.
    return re.fullmatch(_URL, text, re.DOTALL | re.I) if "://" in text else None


def _fields(text: str) -> list[str]:
    """Splits at colons outside brackets."""
    hidden = re.sub(r"\[[^\]]*\]", lambda found: found[0].replace(":", "\0"), text)
    return [field.replace("\0", ":") for field in hidden.split(":")]


def _host_and_port(text: str) -> tuple[str, str]:
    host, colon, port = text.rpartition(":")
    if not colon and is_port(text):
        return "", text
    return (host, port) if colon and "]" not in port else (text, "")
