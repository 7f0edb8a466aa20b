"""A name with addresses of both families, of which one gives no answer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest
from networks import Closed, Silent, resolve_to
from support.peers import Named, connect, said
from support.streams import read_exactly
from support.waiting import pause

from tcpproxy import Proxy

MakeProxy = Callable[..., Proxy]
NAME = "both.test"


@pytest.fixture(autouse=True)
def both(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name has ::1, which is to be tried first, and 127.0.0.1."""
    resolve_to(monkeypatch, "::1", "127.0.0.1")


@pytest.mark.parametrize("workers", [1, 2])
def test_silent_family_costs_its_delay_once(make_proxy: MakeProxy, named: Named, workers: int) -> None:
    """Packets to ::1 vanish: one connection waits for 250 ms, and those that follow go to 127.0.0.1 at once."""
    with contextlib.closing(Silent("::1", named.port)):
        proxy = make_proxy(f"{NAME}:{named.port}", workers=workers)
        first = _time(proxy)
        assert 0.24 < first < 2
        assert sum(_time(proxy) for _ in range(10)) < 0.25
        pause(5.1)  # so long is an answer of the resolver used
        assert sum(_time(proxy) for _ in range(10)) < 0.25


def _time(proxy: Proxy) -> float:
    start = time.monotonic()
    said(proxy.address)
    return time.monotonic() - start


def test_silent_family_is_tried_last_all_the_same(make_proxy: MakeProxy) -> None:
    """The other one has gone: the address of the family that was silent is used."""
    with contextlib.closing(Named()) as named, contextlib.closing(Silent("::1", named.port)) as silent:
        proxy = make_proxy(f"{NAME}:{named.port}")
        assert said(proxy.address) == named.port
        named.close()
        silent.let_in()
        with connect(proxy.address) as client, silent.accept() as server:
            server.sendall(b"x")
            assert read_exactly(client, 1) == b"x"


def test_family_that_refuses_is_not_avoided(make_proxy: MakeProxy, named: Named) -> None:
    """A refusal costs nothing, so that IPv6 is used as soon as somebody listens."""
    proxy = make_proxy(f"{NAME}:{named.port}")
    assert said(proxy.address) == named.port
    with contextlib.closing(Closed("::1", named.port)) as second:
        second.listen()
        with connect(proxy.address) as client, second.accept() as server:
            server.sendall(b"x")
            assert read_exactly(client, 1) == b"x"
