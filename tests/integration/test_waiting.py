"""wait_for: until the proxy has accepted, ended or delivered so much, in threads and in coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.peers import Echo, Upstream, connect
from support.streams import echoes, read_exactly
from support.waiting import TIMEOUT, in_background, pause

from tcpproxy import Proxy, UsageError, WaitTimeout, awaiting

MakeProxy = Callable[..., Proxy]


@pytest.fixture(params=[1, 2])
def proxy(request: pytest.FixtureRequest, make_proxy: MakeProxy, echo: Echo) -> Proxy:
    return make_proxy(echo.name, workers=request.param)


def test_what_has_happened(proxy: Proxy) -> None:
    for _ in range(3):
        with connect(proxy.address) as client:
            assert echoes(client, b"12345")
            assert proxy.wait_for(accepted=1, active=1, to_upstream=5, to_client=5).active == 1
        proxy.wait_for(active=0)
    stats = proxy.wait_for(ended=3, to_upstream=15, to_client=15)
    assert stats == proxy.stats()
    assert proxy.wait_for() == stats


def test_what_comes(proxy: Proxy) -> None:
    with in_background(lambda: proxy.wait_for(accepted=2, active=0, timeout=TIMEOUT)) as found:
        for _ in range(2):
            pause(0.05)
            with connect(proxy.address) as client:
                assert echoes(client)
    assert found[0].accepted == 2  # type: ignore[attr-defined]


def test_since(proxy: Proxy) -> None:
    with connect(proxy.address) as client:
        assert echoes(client, b"12345")
        before = proxy.wait_for(to_client=5)  # the client may have bytes that are not counted yet
        with pytest.raises(WaitTimeout, match="bytes_to_client 0 of 1"):
            proxy.wait_for(since=before, to_client=1, timeout=0.02)
        assert echoes(client, b"1")
        proxy.wait_for(since=before, to_client=1, active=1)


def test_in_vain(proxy: Proxy) -> None:
    with pytest.raises(WaitTimeout, match=r"^not within 0\.01 s: accepted 0 of 1\nno connections$"):
        proxy.wait_for(accepted=1, timeout=0.01)
    with connect(proxy.address) as client:
        assert echoes(client, b"12345")
        proxy.kill()
        with connect(proxy.address) as other:
            assert echoes(other, b"123")
            with pytest.raises(TimeoutError) as caught:
                proxy.wait_for(accepted=2, active=2, to_client=9, timeout=0.05)
    first, _, *lines = str(caught.value).splitlines()
    assert first == "not within 0.05 s: bytes_to_client 8 of 9, active 1, not 2"
    assert [line.split()[0] for line in lines] == ["#1", "#2"]
    assert "ended: killed" in lines[0]
    assert "relaying" in lines[1]


def test_it_does_not_wait_for_a_proxy_that_has_ended(proxy: Proxy) -> None:
    with connect(proxy.address) as client:
        assert echoes(client)
        start = time.monotonic()
        missing = "not before the proxy ended: accepted 1 of 2"
        with in_background(lambda: (pause(0.1), proxy.stop())), pytest.raises(WaitTimeout, match=missing):
            proxy.wait_for(accepted=2, timeout=TIMEOUT)
        assert time.monotonic() - start < TIMEOUT / 2
    assert proxy.wait_for(accepted=1, ended=1, active=0).ended == 1


def test_before_the_start(echo: Echo) -> None:
    with pytest.raises(WaitTimeout, match=r"^not within 0\.01 s: accepted 0 of 1"):
        Proxy(echo.name).wait_for(accepted=1, timeout=0.01)


# --- coroutines ---


def asyncio_run(main: Callable[[], Any]) -> None:
    asyncio.run(main())


def trio_run(main: Callable[[], Any]) -> None:
    pytest.importorskip("trio").run(main)


def anyio_on_asyncio(main: Callable[[], Any]) -> None:
    pytest.importorskip("anyio").run(main, backend="asyncio")


def anyio_on_trio(main: Callable[[], Any]) -> None:
    pytest.importorskip("trio")
    pytest.importorskip("anyio").run(main, backend="trio")


@pytest.mark.parametrize("loop", [asyncio_run, trio_run, anyio_on_asyncio, anyio_on_trio])
def test_in_a_coroutine(loop: Callable[[Callable[[], Any]], None], make_proxy: MakeProxy, upstream: Upstream) -> None:
    proxy = make_proxy(upstream.name)

    async def main() -> None:
        with pytest.raises(WaitTimeout, match="accepted 0 of 1"):
            await proxy.wait_for_async(accepted=1, timeout=0.02)
        with contextlib.ExitStack() as stack:

            def come() -> None:
                pause(0.1)
                client = stack.enter_context(connect(proxy.address))
                client.sendall(b"hello")

            with in_background(come):
                stats = await proxy.wait_for_async(accepted=1, to_upstream=5, timeout=TIMEOUT)
            assert stats.bytes_to_upstream == 5
            read_exactly(stack.enter_context(upstream.accept()), 5)
            assert proxy.kill() == 1
            await proxy.wait_for_async(active=0, ended=1)

    loop(main)


def test_other_tasks_run_meanwhile(proxy: Proxy) -> None:
    async def main() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.create_task(tick())
        with contextlib.suppress(WaitTimeout):
            await proxy.wait_for_async(accepted=1, timeout=0.1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await proxy.wait_for_async(accepted=1, timeout=TIMEOUT)
        ticking.cancel()
        assert ticks > 100

    asyncio.run(main())


def test_outside_of_a_coroutine(proxy: Proxy) -> None:
    coroutine = awaiting.pause(1)
    with pytest.raises(RuntimeError, match="expected a coroutine that asyncio, trio or anyio runs"):
        coroutine.send(None)


@pytest.mark.parametrize("timeout", ["soon", float("nan"), "-1s"])
def test_what_is_no_time(proxy: Proxy, timeout: object) -> None:
    with pytest.raises(UsageError, match=r"^timeout "):
        proxy.wait_for(accepted=1, timeout=timeout)


@pytest.mark.parametrize("name", ["accepted", "active", "ended", "to_upstream", "to_client"])
@pytest.mark.parametrize("value", ["x", float("nan"), 1.5, True, -1, [1]])
def test_what_is_no_number(proxy: Proxy, name: str, value: object) -> None:
    with pytest.raises(UsageError, match=rf"^{name} .* is not a whole number"):
        proxy.wait_for(**{name: value})  # type: ignore[arg-type]


def test_since_what(proxy: Proxy) -> None:
    with pytest.raises(UsageError, match=r"^since 5 is no Stats"):
        proxy.wait_for(accepted=1, since=5)  # type: ignore[arg-type]


def test_times_with_units(proxy: Proxy) -> None:
    with pytest.raises(WaitTimeout, match=r"^not within 0\.01 s"):
        proxy.wait_for(accepted=1, timeout="10ms")
    with in_background(lambda: (pause(0.05), proxy.stop())), pytest.raises(WaitTimeout, match="before the proxy ended"):
        proxy.wait_for(accepted=1, timeout=None)
