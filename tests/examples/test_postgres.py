"""Examples of docs/testing.md, with a client of PostgreSQL. Each replaces what a project's tests do by hand."""

from __future__ import annotations

import threading

import pytest

pg8000 = pytest.importorskip("pg8000.native")


def connect(proxy):
    return pg8000.Connection("postgres", host=proxy.host, port=proxy.port)


# psycopg: the server is restarted on the same port.
def test_server_restarts(tcpproxy, dsn):
    proxy = tcpproxy(dsn)
    old = connect(proxy)
    with proxy.down("reset"):
        with pytest.raises(pg8000.InterfaceError):
            connect(proxy)  # refused
        with pytest.raises(pg8000.InterfaceError):
            old.run("select 1")
    assert connect(proxy).run("select 1") == [[1]]


# asynch (ClickHouse): a server that ends in order, and one that crashes, in the middle of a query.
@pytest.mark.parametrize("end", ["close", "reset"])
def test_connection_ends_during_a_query(tcpproxy, dsn, end):
    proxy = tcpproxy(dsn, record=True)
    connection = connect(proxy)
    killer = threading.Thread(target=kill_once_it_runs, args=(proxy, end))
    killer.start()
    with pytest.raises((pg8000.InterfaceError, ConnectionError)):
        connection.run("select pg_sleep(60)")
    killer.join()


def kill_once_it_runs(proxy, end):
    proxy.recordings[0].wait_for(b"pg_sleep", "to_upstream")
    proxy.kill(end)


# psycopg: a DSN with the proxy's address in it.
def test_dsn(tcpproxy, dsn):
    proxy = tcpproxy(dsn)
    assert proxy.url("host=db user=postgres") == f"host=127.0.0.1 user=postgres port={proxy.port}"
    assert proxy.url(dsn) == f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"


# Any client: the connection dies in the middle of an answer, at the same byte each time.
def test_connection_dies_at_a_byte(tcpproxy, dsn):
    proxy = tcpproxy(dsn, faults=["limit_data=4096,end=reset"])
    connection = connect(proxy)
    with pytest.raises((pg8000.InterfaceError, ConnectionError)):
        connection.run("select repeat('x', 10000)")
    (over,) = proxy.connections(ended=True)
    assert (over.to_client, over.reason) == (4096, "fault")
