"""URLs and connection strings with the proxy's address in them."""

from __future__ import annotations

import pytest
from support.peers import Echo

from tcpproxy import Proxy, UsageError
from tcpproxy.config.urls import with_address

HERE = ("127.0.0.1", 7)


@pytest.mark.parametrize(
    ("url", "changed"),
    [
        ("http://example.org", "http://127.0.0.1:7"),
        ("http://example.org:80/a:b@c?d=e://f#g", "http://127.0.0.1:7/a:b@c?d=e://f#g"),
        ("http://[::1]:80/", "http://127.0.0.1:7/"),
        ("postgresql+psycopg://me:p%40ss:w@db.example:5432/x", "postgresql+psycopg://me:p%40ss:w@127.0.0.1:7/x"),
        ("postgresql://me:p@ss@db/x", "postgresql://me:p@ss@127.0.0.1:7/x"),
        ("postgresql://one:5432,two:5433/x?sslmode=disable", "postgresql://127.0.0.1:7/x?sslmode=disable"),
        ("redis://:secret@cache:6379/0", "redis://:secret@127.0.0.1:7/0"),
        ("amqp://guest:guest@rabbit/%2f", "amqp://guest:guest@127.0.0.1:7/%2f"),
        ("jdbc:postgresql://db/x?user=me", "jdbc:postgresql://127.0.0.1:7/x?user=me"),
        ("host=db port=5432 dbname=x", "host=127.0.0.1 port=7 dbname=x"),
        ("dbname=x host = 'a b' password='host=y'", "dbname=x host=127.0.0.1 password='host=y' port=7"),
        ("hostaddr=10.0.0.1 dbname=x", "hostaddr=127.0.0.1 dbname=x port=7"),
        ("db:5432", "127.0.0.1:7"),
        ("[::1]:5432", "127.0.0.1:7"),
    ],
)
def test_forms(url: str, changed: str) -> None:
    assert with_address(url, *HERE) == changed


@pytest.mark.parametrize(
    ("host", "shown"),
    [("::1", "[::1]:7"), ("0.0.0.0", "127.0.0.1:7"), ("::", "[::1]:7"), ("10.0.0.1", "10.0.0.1:7")],
)
def test_addresses(host: str, shown: str) -> None:
    assert with_address("http://a/b", host, 7) == f"http://{shown}/b"
    assert with_address("host=a", host, 7) == f"host={shown.rpartition(':')[0].strip('[]')} port=7"


@pytest.mark.parametrize(
    "url", ["", "db", "sqlite:///file", "postgresql:///x?host=/tmp", "mongodb+srv://cluster/x", "/tmp/socket", "x=1"]
)
def test_without_a_host(url: str) -> None:
    with pytest.raises(UsageError, match=r"^url '.*' has no host, expected scheme://HOST:PORT"):
        with_address(url, *HERE)


def test_no_password_is_shown() -> None:
    with pytest.raises(UsageError) as caught:
        with_address("mongodb+srv://me:secret@cluster/x", *HERE)
    assert "secret" not in str(caught.value)


def test_of_a_proxy(echo: Echo) -> None:
    with Proxy(echo.name) as proxy:
        assert proxy.url(f"tcp://{echo.name}/x") == f"tcp://127.0.0.1:{proxy.port}/x"
    with pytest.raises(RuntimeError, match="has not been started"):
        Proxy(echo.name).url("tcp://a:1")
