"""Finds and checks paths of UNIX sockets in what people write. Pure functions."""

from __future__ import annotations

import os
import re
import socket
import sys

from ..errors import UsageError
from ..text import quoted

MOST = 107 if sys.platform == "linux" else 103
"""The most bytes of a path: the size of `sun_path`, less a NUL at its end, which some systems need."""

_PREFIX = re.compile(r"unix:(?!\d+\Z|//)", re.IGNORECASE)


def path_in(text: str) -> str:
    """Returns the path that a text means: `/path`, `./path`, `unix:path`, or `@name` for an abstract one.

    `unix:80` is port 80 of a host named unix, and `unix://...` is a URL.

    Returns:
        A path that begins with `/`, `./`, `../` or `@`; empty if the text means none.
    """
    if text.startswith(("/", "@", "./", "../")):
        return text
    match = _PREFIX.match(text)
    return plain_path(text[match.end() :]) if match else ""


def plain_path(path: str) -> str:
    """Returns a path in a form that is no host name: with `./` before a relative one."""
    return path if not path or path.startswith(("/", "@", "./", "../")) else f"./{path}"


def is_path(text: str) -> bool:
    """Does the text mean a path? True for an empty one, `unix:`, too."""
    return bool(path_in(text)) or _PREFIX.match(text) is not None


def check_path(what: str, text: object, path: str) -> None:
    """Checks the path of a UNIX socket, without looking at the file system.

    Args:
        what: the name of the argument.
        text: what was given.
        path: the path in it.

    Raises:
        UsageError: no UNIX socket of this system can have this path.
    """
    if problem := _problem(path):
        raise UsageError(f"{what} {quoted(text)} {problem}")


def _problem(path: str) -> str:
    if not hasattr(socket, "AF_UNIX"):
        return "is for a UNIX socket, which Python does not have on this system"
    if path.startswith("@") and sys.platform != "linux":
        return "is an abstract UNIX socket, which only Linux has, expected /PATH"
    if path in ("", "@"):
        return "has no path of a UNIX socket, expected /PATH"
    if "\0" in path:
        return "has a NUL, which no path can have"
    if path.endswith(("/", "/.", "/..")) and not path.startswith("@"):
        return "is a directory, expected the path of a UNIX socket"
    if (size := len(os.fsencode(path))) > MOST:
        return f"has a path of {size} bytes, expected at most {MOST}"
    return ""
