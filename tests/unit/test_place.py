"""Where the command serves what is not relayed."""

from __future__ import annotations

import pytest

from tcpproxy import UsageError
from tcpproxy.config.place import Place, parse_place


@pytest.mark.parametrize(
    ("text", "place", "shown"),
    [
        ("9464", Place("127.0.0.1", 9464), "127.0.0.1:9464"),
        ("1", Place("127.0.0.1", 1), "127.0.0.1:1"),
        ("65535", Place("127.0.0.1", 65535), "127.0.0.1:65535"),
        ("0.0.0.0:9464", Place("0.0.0.0", 9464), "0.0.0.0:9464"),
        ("[::]:9464", Place("::", 9464), "[::]:9464"),
        ("[2001:db8::1]:80", Place("2001:db8::1", 80), "[2001:db8::1]:80"),
        ("unix:/run/metrics.sock", Place(path="/run/metrics.sock"), "unix:/run/metrics.sock"),
        ("unix:a:1", Place(path="a:1"), "unix:a:1"),
    ],
)
def test_places(text: str, place: Place, shown: str) -> None:
    assert parse_place("--metrics", text) == place
    assert str(place) == shown


def test_none() -> None:
    assert parse_place("--metrics", None) is None


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", ""),
        ("0", ""),
        ("65536", ""),
        ("-1", ""),
        ("9464 ", ""),
        ("\u0661", ""),
        ("a", ""),
        ("1.2.3:80", ""),
        ("db.example:80", ""),
        ("::1:9464", ""),
        ("[127.0.0.1]:80", ""),
        ("[::1]", ""),
        ("[::1]:", ""),
        ("127.0.0.1:", ""),
        ("127.0.0.1:0", ""),
        ("unix:", ""),
        ("unix:a\0b", ""),
        ("http://127.0.0.1:80", ""),
        (":9464", "; for all addresses: --metrics 0.0.0.0:9464"),
        ("*:9464", "; for all addresses: --metrics 0.0.0.0:9464"),
        ("localhost:9464", "; for this machine alone: --metrics 9464"),
        ("/run/a", "; for a UNIX socket: --metrics unix:/run/a"),
        ("./a", "; for a UNIX socket: --metrics unix:./a"),
    ],
)
def test_what_is_none(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_place("--metrics", text)
    expected = f"--metrics {text!r} is no place to serve at, expected PORT, IP:PORT, [IPv6]:PORT or unix:PATH{hint}"
    assert str(error.value) == expected
