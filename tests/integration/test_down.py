"""A proxy that refuses clients, listens again on its port, and changes its upstream."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from networks import Closed
from support.machine import descriptors
from support.peers import Echo, Upstream, connect, free_port, relays
from support.streams import echoes, is_over, read_exactly
from support.waiting import eventually, in_background

from tcpproxy import Event, Proxy, StartError, UsageError, crew, lookups

MakeProxy = Callable[..., Proxy]


@pytest.fixture(params=[1, 2])
def proxy(request: pytest.FixtureRequest, make_proxy: MakeProxy, echo: Echo) -> Proxy:
    return make_proxy(echo.name, workers=request.param)


def refuses(address: tuple[str, int]) -> bool:
    with pytest.raises(ConnectionRefusedError):
        connect(address)
    return True


def is_taken(address: tuple[str, int]) -> bool:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind(address)
    return True


# --- down and up ---


def test_refused_and_the_same_port_again(proxy: Proxy) -> None:
    address = proxy.address
    for _ in range(20):
        with proxy.down():
            assert refuses(address)
            assert repr(proxy).endswith(", down>")
        assert relays(address)
    assert proxy.address == address
    assert proxy.stats().accept_errors == 0


@pytest.mark.parametrize("live", ["close", "reset", "keep"])
def test_live_connections(proxy: Proxy, live: str, events: list[Event]) -> None:
    with connect(proxy.address) as client:
        assert echoes(client)
        with proxy.down(live):  # type: ignore[arg-type]
            if live == "keep":
                assert echoes(client)
            else:
                assert [event.reason for event in events if event.kind == "end"] == ["killed"]
                with pytest.raises(ConnectionResetError) if live == "reset" else contextlib.nullcontext():
                    assert client.recv(1) == b""
        if live == "keep":
            assert echoes(client)
    assert relays(proxy.address)


def test_clients_that_are_not_accepted_yet(proxy: Proxy) -> None:
    """Who has connected before is a live connection."""
    for _ in range(50):
        with connect(proxy.address) as client, proxy.down("keep"):
            assert echoes(client)


def test_the_port_stays_ours(make_proxy: MakeProxy, echo: Echo) -> None:
    """While it is down, no other socket gets it, whether it asks for any free port or for this one."""
    proxy = make_proxy(echo.name)
    stop = threading.Event()
    taken: list[int] = []

    def take() -> None:
        while not stop.is_set():
            with contextlib.ExitStack() as stack:
                for _ in range(200):
                    other = stack.enter_context(socket.socket())
                    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    other.bind(("127.0.0.1", 0))
                    taken.append(other.getsockname()[1])

    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(in_background(take))
        stack.callback(stop.set)
        for _ in range(50):
            with proxy.down():
                assert refuses(proxy.address)
                assert sys.platform != "linux" or is_taken(proxy.address)
            assert relays(proxy.address)
    assert len(taken) > 1000
    assert proxy.port not in taken


def test_down_before_the_start(echo: Echo) -> None:
    events: list[Event] = []
    proxy = Proxy(echo.name, on_event=events.append)
    proxy.down()
    with proxy:
        assert refuses(proxy.address)
        assert [it.kind for it in events] == []
        proxy.up()
        assert [it.kind for it in events] == ["listening"]
        assert relays(proxy.address)
    proxy.down()
    proxy.up()
    assert refuses(proxy.address)


def test_that_it_listens_again_is_reported(make_proxy: MakeProxy, echo: Echo) -> None:
    """After each `down`, once; not at the end of each window of a fault that refuses."""
    events: list[Event] = []
    proxy = make_proxy(echo.name, on_event=events.append)
    for count in range(1, 4):
        assert [it.text for it in events if it.kind == "listening"] == [address_name(proxy)] * count
        proxy.down()
        proxy.up()
        proxy.up()
    with proxy.fault("refuse"):
        assert refuses(proxy.address)
        proxy.down()
        proxy.up()
        assert [it.kind for it in events].count("listening") == 4
    eventually(lambda: [it.kind for it in events].count("listening") == 5)
    with proxy.fault("refuse"):
        assert refuses(proxy.address)
    assert relays(proxy.address)
    proxy.stop()
    assert [it.kind for it in events].count("listening") == 5


def address_name(proxy: Proxy) -> str:
    return f"{proxy.host}:{proxy.port}"


def test_a_given_port_and_several_addresses(make_proxy: MakeProxy, echo: Echo) -> None:
    proxy = make_proxy(echo.name, port=free_port(), bind="localhost")
    for _ in range(3):
        with proxy.down():
            assert all(map(refuses, proxy.addresses))
        assert all(map(relays, proxy.addresses))


def test_blocks_in_blocks(proxy: Proxy) -> None:
    with proxy.down():
        with proxy.down("keep"):
            pass
        assert refuses(proxy.address)
    assert relays(proxy.address)
    proxy.up()
    proxy.down()
    proxy.restore()
    proxy.restore()
    assert relays(proxy.address)


def test_words_that_are_none(proxy: Proxy) -> None:
    with pytest.raises(UsageError, match="live 'no' is unknown, expected close, reset or keep"):
        proxy.down("no")  # type: ignore[arg-type]
    assert relays(proxy.address)


@pytest.mark.parametrize("verb", ["stop", "drain", "abort"])
def test_the_end_gives_the_port_up(echo: Echo, verb: str) -> None:
    """Also while it is down. Nothing is left open."""
    before = descriptors()
    for down in (False, True):
        proxy = Proxy(echo.name).start()
        if down:
            proxy.down()
        getattr(proxy, verb)()
        with socket.create_server(proxy.address):  # with SO_REUSEADDR, as servers have
            proxy.up()
        if sys.platform == "linux":
            with socket.socket() as other:  # and without
                other.bind(proxy.address)
        proxy.stop()
    eventually(lambda: descriptors() <= before)


def test_up_without_descriptors(make_proxy: MakeProxy, echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, stays down, and comes up later."""
    proxy = make_proxy(echo.name, workers=2)
    proxy.down()

    def fail(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "dup", fail)
        with pytest.raises(StartError, match="cannot listen again"):
            proxy.up()
    assert refuses(proxy.address)
    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "listen", fail)
        with pytest.raises(StartError, match="cannot listen on"):
            proxy.up()
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            thief.bind(proxy.address)
    proxy.up()
    assert relays(proxy.address)


@pytest.mark.parametrize("verb", ["down", "up"])
def test_again_after_an_interruption(proxy: Proxy, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """By a signal handler that raises, as that of Ctrl-C does: the same call once more is in force."""
    if verb == "up":
        proxy.down()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(crew.Crew, "replace_listeners", interrupt)
        with pytest.raises(KeyboardInterrupt):
            getattr(proxy, verb)()
    getattr(proxy, verb)()
    assert refuses(proxy.address) if verb == "down" else relays(proxy.address)


def test_from_on_event(make_proxy: MakeProxy, echo: Echo) -> None:
    """A server that is gone after the first client."""

    def go(event: Event) -> None:
        if event.kind == "new":
            proxy.down("reset")

    proxy = make_proxy(echo.name, on_event=go)
    with contextlib.suppress(ConnectionResetError), connect(proxy.address) as client:
        assert is_over(client)
    assert refuses(proxy.address)
    proxy.up()
    with contextlib.suppress(ConnectionResetError), connect(proxy.address) as client:
        assert is_over(client)


def test_a_stop_while_on_event_calls(echo: Echo) -> None:
    """The last events come while the threads are joined: verbs do not make them wait for each other."""
    calls: list[str] = []

    def go(event: Event) -> None:
        if event.kind == "end":
            proxy.kill()
            with proxy.pause(), proxy.down():
                calls.append(event.reason)

    proxy = Proxy(echo.name, on_event=go)
    with proxy, connect(proxy.address) as client:
        assert echoes(client)
        with in_background(proxy.stop):
            pass
    assert len(calls) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_keeps_no_port(make_proxy: MakeProxy, echo: Echo) -> None:
    proxy = make_proxy(echo.name)
    proxy.down()
    child = os.fork()
    if not child:
        os._exit(0 if proxy.kill() == 0 and proxy.stats().accepted == 0 and not proxy.up() else 1)
    assert os.waitpid(child, 0)[1] == 0
    proxy.up()
    assert relays(proxy.address)


# --- upstream ---


@pytest.fixture
def other(stack: contextlib.ExitStack) -> Upstream:
    return stack.enter_context(contextlib.closing(Upstream()))


def test_new_connections_go_to_the_new_one(proxy: Proxy, echo: Echo, other: Upstream) -> None:
    with connect(proxy.address) as old:
        assert echoes(old)
        for given, text in ((other.name, other.name), ((other.host, other.port), other.name)):
            proxy.upstream = given
            assert proxy.upstream == text == str(proxy.config.remote)
            assert repr(proxy).endswith(f" -> {other.name}, listening>")
            with connect(proxy.address) as client, other.accept() as server:
                server.sendall(b"hello")
                assert read_exactly(client, 5) == b"hello"
        proxy.upstream = echo.name
        assert relays(proxy.address)
        assert echoes(old)


def test_names(proxy: Proxy, echo: Echo, other: Upstream) -> None:
    """A name is looked up, at first and later on."""
    for _ in range(2):
        proxy.upstream = f"localhost:{echo.port}"
        assert relays(proxy.address)
        proxy.upstream = other.name
        with connect(proxy.address) as client, other.accept() as server:
            server.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"


def test_a_name_without_an_address(proxy: Proxy, echo: Echo, events: list[Event]) -> None:
    proxy.upstream = "nowhere.invalid:80"
    (warning,) = [event.text for event in events if event.kind == "warning"]
    assert warning.startswith("cannot resolve nowhere.invalid")
    with contextlib.suppress(ConnectionResetError), connect(proxy.address) as client:
        assert is_over(client)
    proxy.wait_for(ended=1)
    assert [it.reason for it in proxy.connections(ended=True)] == ["dns"]
    proxy.upstream = echo.name
    assert relays(proxy.address)


def test_in_the_log(echo: Echo, caplog: pytest.LogCaptureFixture) -> None:
    """A failure without an address names the upstream of that time, also of one that was set before the start."""
    proxy = Proxy(echo.name)
    for number, upstream in enumerate(("nowhere.invalid:80", "nobody.invalid:81")):
        proxy.upstream = upstream
        if not number:
            proxy.start()
        with contextlib.suppress(ConnectionResetError), connect(proxy.address) as client:
            assert is_over(client)
        proxy.wait_for(ended=number + 1)
        eventually(lambda upstream=upstream: f"({upstream} for client" in caplog.text)
    proxy.stop()


def test_a_name_without_a_thread(proxy: Proxy, echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, and the upstream stays as it is."""

    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(lookups, "make_thread", fail)
        with pytest.raises(StartError, match=r"cannot forward to localhost:\d+: can't start new thread"):
            proxy.upstream = f"localhost:{echo.port}"
    assert proxy.upstream == echo.name
    assert relays(proxy.address)
    proxy.upstream = f"localhost:{echo.port}"
    assert relays(proxy.address)


def test_the_proxy_itself(proxy: Proxy, echo: Echo) -> None:
    with pytest.raises(UsageError, match="is this proxy's own address"):
        proxy.upstream = proxy.port
    assert proxy.upstream == echo.name
    assert relays(proxy.address)
    with pytest.raises(UsageError, match="remote 'nothing'"):
        proxy.upstream = "nothing"


def test_upstream_before_the_start(echo: Echo, closed: Closed) -> None:
    proxy = Proxy(closed.name)
    proxy.upstream = echo.name
    with proxy:
        assert relays(proxy.address)
    proxy.upstream = closed.name


def test_a_socket_or_a_server_as_upstream(make_proxy: MakeProxy, echo: Echo) -> None:
    """Whatever the fixture of pytest takes as its target."""
    proxy = make_proxy("127.0.0.1:1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy.upstream = server
        with connect(proxy.address), server.accept()[0]:
            assert proxy.upstream == f"127.0.0.1:{server.getsockname()[1]}"
    for target in (f"redis://localhost:{echo.port}/0", str(echo.port), SimpleNamespace(port=echo.port)):
        proxy.upstream = target
        assert relays(proxy.address)
    with pytest.raises(UsageError, match="expected HOST:PORT, a URL"):
        proxy.upstream = object()
