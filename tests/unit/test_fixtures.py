"""The targets that the fixture accepts."""

from __future__ import annotations

import asyncio
import http.server
import socket
import socketserver
from pathlib import Path
from types import SimpleNamespace

import pytest

from tcpproxy import Proxy, UsageError
from tcpproxy.config.targets import target_of


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("db:5432", "db:5432"),
        (5432, 5432),
        ("5432", 5432),
        (Path("/run/db.sock"), Path("/run/db.sock")),
        (("db", 5432), ("db", 5432)),
        (("fe80::1", 80, 0, 3), ("fe80::1", 80, 0, 3)),
        ("redis://user:secret@cache:6380/0", "cache:6380"),
        ("postgresql://db/name", "db:5432"),
        ("http://[::1]:8000/path?x", "[::1]:8000"),
        (SimpleNamespace(host="db", port=5432), ("db", 5432)),  # executors of pytest-postgresql, pytest-httpserver
        (SimpleNamespace(host="0.0.0.0", port=5432), ("127.0.0.1", 5432)),
        (SimpleNamespace(host=None, port=5432), ("localhost", 5432)),
        (SimpleNamespace(port=5432), ("localhost", 5432)),
        (SimpleNamespace(server_address=("::", 80, 0, 0)), ("::1", 80, 0, 0)),
    ],
)
def test_targets(target: object, expected: object) -> None:
    assert target_of(target) == expected


def test_sockets_and_servers() -> None:
    with socket.create_server(("", 0)) as listener:
        port = listener.getsockname()[1]
        assert target_of(listener) == ("127.0.0.1", port)
        assert target_of(SimpleNamespace(sockets=[listener])) == ("127.0.0.1", port)
        assert target_of(SimpleNamespace(listeners=[SimpleNamespace(socket=listener)])) == ("127.0.0.1", port)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        assert target_of(server) == server.server_address
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as plain:
        assert target_of(plain) == plain.server_address


def test_a_server_of_asyncio() -> None:
    async def check() -> None:
        async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
            assert target_of(server) == server.sockets[0].getsockname()
        with pytest.raises(UsageError, match="cannot be connected to"):
            target_of(server)  # it is closed

    asyncio.run(check())


def test_another_proxy() -> None:
    with Proxy(9) as proxy:
        assert target_of(proxy) == proxy.address


@pytest.mark.parametrize("target", [None, 1.5, [], {}, object(), SimpleNamespace(port=None), b"db:5432"])
def test_what_is_no_target(target: object) -> None:
    with pytest.raises(UsageError, match=r"^target .* cannot be connected to, expected HOST:PORT, a URL"):
        target_of(target)


@pytest.mark.parametrize(
    ("url", "missing"), [("gopher://db/x", "port"), ("postgresql:///db", "host"), ("x://u:secret@/", "host")]
)
def test_urls_without_a_place(url: str, missing: str) -> None:
    with pytest.raises(UsageError, match=f"has no {missing}, expected SCHEME://HOST:PORT") as error:
        target_of(url)
    assert "secret" not in str(error.value)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no UNIX sockets")
def test_a_unix_socket(tmp_path: object) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/s")
        with pytest.raises(UsageError, match="cannot be connected to"):
            target_of(listener)
