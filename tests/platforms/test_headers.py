"""net_posix.h and net_windows.h are twins: the same names, in the same order."""

from __future__ import annotations

import re
from pathlib import Path

CORE = Path(__file__).parents[2] / "tcpproxy" / "_core"
NAME = re.compile(r"^\s*(?:#define (NET_\w+)|typedef .*?(\w+);|static inline .*?(\w+)\()", re.MULTILINE)


def names(file: str) -> list[str]:
    """What the header defines from net_socket on, once each: an #ifdef may choose between two definitions."""
    text = (CORE / file).read_text()
    start = re.search(r"^typedef \w+ net_socket;", text, re.MULTILINE)
    assert start
    return list(dict.fromkeys("".join(found) for found in NAME.findall(text[start.start() :])))


def test_twins() -> None:
    assert names("net_posix.h") == names("net_windows.h")
    assert {"net_socket", "NET_POLL_NAME", "net_poll"} <= set(names("net_posix.h"))
