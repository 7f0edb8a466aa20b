"""Examples of docs/testing.md, with a client of Redis. Each replaces what a project's tests do by hand."""

from __future__ import annotations

import asyncio

import pytest

redis = pytest.importorskip("redis")
Retry, NoBackoff = redis.retry.Retry, redis.backoff.NoBackoff


# pika, aiopg, aio-pika, aiomisc: end every connection, and see that the client comes back.
def test_client_reconnects(tcpproxy, redis_port):
    proxy = tcpproxy(redis_port)
    client = redis.Redis(*proxy.address)
    client.set("key", "value")
    assert proxy.kill("reset") == 1  # both peers get an RST
    assert client.get("key") == b"value"
    assert [it.reason for it in proxy.connections(ended=True)] == ["killed", ""]


# asyncpg, python-etcd3: the network is gone for a while. Nothing is lost.
def test_server_is_silent(tcpproxy, redis_port):
    proxy = tcpproxy(redis_port)
    client = redis.Redis(*proxy.address, socket_timeout=0.2, retry=None)
    with proxy.pause(), pytest.raises(redis.TimeoutError):
        client.ping()
    assert client.ping()


# redis-py: a request is cancelled while its answer is on the way. Nobody may get that answer later.
def test_cancelled_request(tcpproxy, redis_port):
    proxy = tcpproxy(redis_port, record=True)

    async def main():
        client = redis.asyncio.Redis(host=proxy.host, port=proxy.port)
        await client.set("a", "1")
        await client.set("b", "2")
        with proxy.pause("to_client"):
            task = asyncio.create_task(client.get("a"))
            before = proxy.stats()
            await proxy.wait_for_async(to_upstream=1, since=before)  # the request went out
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await client.get("b") == b"2"
        await client.aclose()

    asyncio.run(main())


# scylladb: the address behind a name moves. Connections that are open stay where they are.
def test_server_moves(tcpproxy, redis_port):
    proxy = tcpproxy("127.0.0.1:1")  # nobody is there
    client = redis.Redis(*proxy.address)
    with pytest.raises(redis.ConnectionError):
        client.ping()
    proxy.upstream = redis_port
    assert client.ping()


# Did it go through the proxy, and what was it?
def test_what_was_sent(tcpproxy, redis_port):
    proxy = tcpproxy(redis_port, record=True)
    redis.Redis(*proxy.address).set("key", "value")
    assert b"SET\r\n$3\r\nkey\r\n$5\r\nvalue" in proxy.recordings[0].to_upstream


# A pool gives its connections back.
def test_pool_closes(tcpproxy, redis_port):
    proxy = tcpproxy(redis_port)
    client = redis.Redis(*proxy.address)
    client.ping()
    assert proxy.stats().active == 1
    client.close()
    proxy.wait_for(active=0)


# dask, redis-like FaultyProxy: the first connections fail.
def test_first_connections_fail(tcpproxy, redis_port):
    proxy = tcpproxy(redis_port, faults=["reset_peer,first=2"], strict=True)
    client = redis.Redis(*proxy.address, retry=Retry(NoBackoff(), 2))
    assert client.ping()
    assert [it.reason for it in proxy.connections(ended=True)] == ["fault", "fault", ""]


# The request has been carried out, and its answer is lost. A client that repeats it does it twice.
def test_answer_is_lost(tcpproxy, redis_port):
    proxy = tcpproxy(redis_port)
    client = redis.Redis(*proxy.address, retry=Retry(NoBackoff(), 1))
    client.set("count", 0)
    with proxy.fault("to_client:reset_peer,after_bytes=0,times=1") as lost:
        client.incr("count")
    assert lost.fired == 1
    assert client.get("count") == b"2"


# aio-pika: a slow network, for a while.
def test_slow_network(tcpproxy, redis_port):
    proxy = tcpproxy(redis_port)
    client = redis.Redis(*proxy.address, socket_timeout=0.2, retry=None)
    assert client.ping()
    with proxy.fault("latency=5s") as slow, pytest.raises(redis.TimeoutError):
        client.ping()
    assert slow.fired == 1
    assert client.ping()
