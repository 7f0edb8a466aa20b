"""Which failures of a test count as "this platform does not have that", on one that is not Linux."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.machine import absent, resource

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="plays another platform on Linux")


def ask_for_an_option() -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, 9999, 1)


def fail() -> None:
    assert not os.sep


WAYS: list[tuple[Callable[[], object], str]] = [
    (lambda: os.listdir("/proc/of another kind"), "/proc/"),
    (lambda: Path("/dev/of another kind").read_bytes(), "/dev/"),
    (lambda: os.sched_getaffinities(0), "os.sched_getaffinities"),  # type: ignore[attr-defined]
    (lambda: resource.prlimits(0), "resource.prlimits"),  # type: ignore[attr-defined]
    (lambda: socket.TCP_INFOS, "socket.TCP_INFOS"),  # type: ignore[attr-defined]
    (ask_for_an_option, "such a socket option"),
    (lambda: os.listdir("of another kind"), ""),
    (lambda: sys.of_another_kind, ""),  # type: ignore[attr-defined]
    (fail, ""),
]
"""What a test may do, and what the platform then lacks; "": such a failure is one."""


@pytest.mark.parametrize("platform", ["linux", "darwin", "freebsd14"])
@pytest.mark.parametrize(("way", "lacks"), WAYS)
def test_what_is_absent(platform: str, way: Callable[[], object], lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        way()
    monkeypatch.setattr(sys, "platform", platform)
    assert absent(raised.value) == (lacks if platform != "linux" else "")
