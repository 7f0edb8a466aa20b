"""Where the command serves metrics."""

from __future__ import annotations

import pytest

from tcpproxy import UsageError
from tcpproxy.config.endpoints import Endpoint
from tcpproxy.config.place import parse_place
from tcpproxy.text import quoted


@pytest.mark.parametrize(
    ("text", "place", "shown"),
    [
        ("9464", Endpoint("127.0.0.1", 9464), "127.0.0.1:9464"),
        ("1", Endpoint("127.0.0.1", 1), "127.0.0.1:1"),
        ("65535", Endpoint("127.0.0.1", 65535), "127.0.0.1:65535"),
        ("0.0.0.0:9464", Endpoint("0.0.0.0", 9464), "0.0.0.0:9464"),
        ("[::]:9464", Endpoint("::", 9464), "[::]:9464"),
        ("[2001:db8::1]:80", Endpoint("2001:db8::1", 80), "[2001:db8::1]:80"),
        ("unix:/run/metrics.sock", Endpoint(path="/run/metrics.sock"), "/run/metrics.sock"),
        ("/run/metrics.sock", Endpoint(path="/run/metrics.sock"), "/run/metrics.sock"),
        ("unix:a:1", Endpoint(path="./a:1"), "./a:1"),
    ],
)
def test_places(text: str, place: Endpoint, shown: str) -> None:
    assert parse_place("--metrics", text) == place
    assert str(place) == shown


def test_none() -> None:
    assert parse_place("--metrics", None) is None


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", ""),
        ("0", "; a port is a whole number from 1 to 65535"),
        ("65536", "; a port is a whole number from 1 to 65535"),
        ("9" * 5000, "; a port is a whole number from 1 to 65535"),
        ("-1", ""),
        ("9464 ", ""),
        ("\u0661", ""),
        ("a", ""),
        ("1.2.3:80", ""),
        ("db.example:80", ""),
        ("::1:9464", "; with brackets: --metrics '[::1]:9464'"),
        ("[127.0.0.1]:80", ""),
        ("[::1]", ""),
        ("[::1]:", ""),
        ("127.0.0.1:", ""),
        ("127.0.0.1:0", "; a port is a whole number from 1 to 65535"),
        ("http://127.0.0.1:80", "; the paths are always the same: --metrics 127.0.0.1:80"),
        ("9464/metrics", "; the paths are always the same: --metrics 9464"),
        ("https://127.0.0.1:80", ""),
        ("http://db.example:80/metrics", ""),
        ("m.sock", "; for a UNIX socket: --metrics ./m.sock"),
        ("unix:///run/m.sock", "; for a UNIX socket: --metrics /run/m.sock"),
        (":9464", "; for all addresses: --metrics 0.0.0.0:9464"),
        ("*:9464", "; for all addresses: --metrics 0.0.0.0:9464"),
        ("localhost:9464", "; for this machine alone: --metrics 9464"),
    ],
)
def test_what_is_none(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_place("--metrics", text)
    shown = quoted(text)
    expected = f"--metrics {shown} is no place to serve at, expected PORT, IP:PORT, [IPv6]:PORT or /PATH{hint}"
    assert str(error.value) == expected


@pytest.mark.parametrize("text", ["unix:", "/run/", "unix:a\0b"])
def test_paths_that_cannot_exist(text: str) -> None:
    with pytest.raises(UsageError, match=r"--metrics .* (no path of a UNIX socket|is a directory|has a NUL)"):
        parse_place("--metrics", text)
