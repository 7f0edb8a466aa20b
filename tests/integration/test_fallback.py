"""Several targets of one forward: tried in order, each with its share of the time, and what is remembered of them."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from networks import Closed, Silent
from support.command import Command
from support.peers import Echo, Named, connect, said
from support.streams import echoes, read_exactly
from support.waiting import TIMEOUT, eventually

import tcpproxy
from tcpproxy import Proxy, UsageError
from tcpproxy.command.sandbox import ports_to_reach
from tcpproxy.config.config import Config

MakeProxy = Callable[..., Proxy]


@pytest.fixture
def other(stack: contextlib.ExitStack) -> Named:
    return stack.enter_context(contextlib.closing(Named()))


def changes(events: list[tcpproxy.Event]) -> list[tuple[str, str, str, str]]:
    kinds = ("upstream-down", "upstream-up")
    return [(it.kind, it.target, it.reason, it.upstream) for it in events if it.kind in kinds]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("zero_copy", ["off", "always"])
def test_the_first_that_answers(
    make_proxy: MakeProxy, named: Named, other: Named, closed: Closed, workers: int, zero_copy: str
) -> None:
    """Strictly in order: nothing is balanced."""
    targets = f"{closed.name},{named.name},{other.name}"
    proxy = make_proxy(targets, workers=workers, zero_copy=zero_copy)
    assert [said(proxy.address) for _ in range(8)] == [named.port] * 8
    proxy.wait_for(active=0)
    with connect(proxy.address) as client:
        read_exactly(client, 5)
        assert echoes(client, bytes(300_000))
        (live,) = proxy.connections()
        assert (live.target, live.upstream) == (named.name, named.name)
    (only,) = proxy.forwards
    assert only.target == proxy.upstream == targets


@pytest.mark.parametrize("workers", [1, 2])
def test_change_is_said_once(
    make_proxy: MakeProxy, closed: Closed, named: Named, events: list[tcpproxy.Event], workers: int
) -> None:
    """And so is the change back. A refusal comes at once, so that the first target is used as soon as it is there."""
    proxy = make_proxy(f"{closed.name},{named.name}", workers=workers)
    assert {said(proxy.address) for _ in range(5)} == {named.port}
    closed.listen()
    for _ in range(3):
        with connect(proxy.address), closed.accept() as server:
            server.sendall(b"x")
    proxy.wait_for(ended=8)
    proxy.stop()
    down = ("upstream-down", closed.name, "connect-refused", named.name)
    assert changes(events) == [down, ("upstream-up", closed.name, "", "")]
    assert {it.target for it in events if it.kind == "new"} == {f"{closed.name},{named.name}"}
    used = [it.target for it in events if it.kind == "end"]
    assert sorted(used) == sorted([named.name] * 5 + [closed.name] * 3)


def test_all_are_down(make_proxy: MakeProxy, closed: Closed, events: list[tcpproxy.Event]) -> None:
    """The connection fails as with one target, and names the last one."""
    with contextlib.closing(Closed()) as second:
        proxy = make_proxy(f"{closed.name},{second.name}")
        for _ in range(2):
            with contextlib.suppress(ConnectionResetError), connect(proxy.address) as client:
                assert client.recv(1), "an end of file"
        proxy.wait_for(ended=2)
        proxy.stop()
    downs = [("upstream-down", closed.name, "connect-refused", second.name)]
    downs.append(("upstream-down", second.name, "connect-refused", ""))
    assert changes(events) == downs
    failed = [(it.reason, it.target, it.upstream) for it in events if it.kind == "failed"]
    assert failed == [("connect-refused", second.name, second.name)] * 2


def test_a_name_without_addresses(make_proxy: MakeProxy, named: Named, events: list[tcpproxy.Event]) -> None:
    proxy = make_proxy(["nowhere.invalid:80", named.name])
    assert said(proxy.address) == said(proxy.address) == named.port
    proxy.stop()
    assert changes(events) == [("upstream-down", "nowhere.invalid:80", "dns", named.name)]


def test_names_with_several_addresses(make_proxy: MakeProxy, named: Named, closed: Closed) -> None:
    """All addresses of the first name are tried, and then those of the next one."""
    proxy = make_proxy(f"localhost:{closed.port},localhost:{named.port}", workers=2)
    for _ in range(5):
        assert said(proxy.address) == named.port


def test_paths(make_proxy: MakeProxy, tmp_path: Path, closed: Closed, named: Named) -> None:
    """UNIX sockets among the targets: one that nobody has bound, one without a server, one that serves."""
    missing, dead, live = (tmp_path / name for name in ("missing", "dead", "live"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(dead))
        proxy = make_proxy([missing, dead, live, named.name])
        assert said(proxy.address) == named.port
        with socket.socket(socket.AF_UNIX) as serving:
            serving.bind(str(live))
            serving.listen()
            with connect(proxy.address) as client, serving.accept()[0] as peer:
                peer.sendall(b"hello")
                assert read_exactly(client, 5) == b"hello"
                assert proxy.connections()[-1].target == str(live)


def test_path_with_a_full_backlog(make_proxy: MakeProxy, tmp_path: Path, named: Named) -> None:
    """It is waited for, for its share of the time."""
    path = tmp_path / "full"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as filler:
        server.bind(str(path))
        server.listen(0)
        filler.connect(str(path))
        proxy = make_proxy([path, named.name], connect_timeout=1)
        start = time.monotonic()
        assert said(proxy.address) == named.port
        assert 0.45 < time.monotonic() - start < 0.95


# --- targets that answer nothing ---


def test_share_of_the_time(make_proxy: MakeProxy, silent: Silent, named: Named) -> None:
    """Of two targets the first one has half of the time. The client is served within --connect-timeout."""
    proxy = make_proxy(f"{silent.name},{named.name}", connect_timeout=1)
    start = time.monotonic()
    assert said(proxy.address) == named.port
    assert 0.45 < time.monotonic() - start < 0.95


def test_the_last_one_has_all_that_is_left(make_proxy: MakeProxy, silent: Silent, closed: Closed) -> None:
    """Of three the first two refuse at once."""
    with contextlib.closing(Closed()) as second:
        proxy = make_proxy(f"{closed.name},{second.name},{silent.name}", connect_timeout=0.6)
        start = time.monotonic()
        with connect(proxy.address) as client, pytest.raises(ConnectionResetError):
            client.recv(1)
        assert 0.55 < time.monotonic() - start < 1.5


@pytest.mark.parametrize("workers", [1, 2])
def test_black_hole_is_passed_over(
    make_proxy: MakeProxy, silent: Silent, named: Named, events: list[tcpproxy.Event], workers: int
) -> None:
    """One connection waits for it; those that follow do not, whichever worker they have."""
    proxy = make_proxy(f"{silent.name},{named.name}", connect_timeout=4, workers=workers)
    start = time.monotonic()
    assert said(proxy.address) == named.port
    assert time.monotonic() - start > 1.9
    start = time.monotonic()
    for _ in range(20):
        assert said(proxy.address) == named.port
    assert time.monotonic() - start < 1.5
    proxy.stop()
    assert changes(events) == [("upstream-down", silent.name, "connect-timeout", named.name)]


def test_one_tries_it_again(make_proxy: MakeProxy, named: Named, events: list[tcpproxy.Event]) -> None:
    """After 10 seconds, while the others go on; it answers, and is used again from then on."""
    with contextlib.closing(Silent()) as silent:
        proxy = make_proxy(f"{silent.name},{named.name}", connect_timeout=3)
        assert said(proxy.address) == named.port
        start = time.monotonic()
        eventually(lambda: _slow(proxy), within=20, what="a connection that tries it again")
        assert 7 < time.monotonic() - start < 14
        silent.let_in()
        stop = threading.Event()
        server = threading.Thread(target=_greet, args=(silent, stop))
        server.start()
        try:
            eventually(lambda: said(proxy.address) == silent.port, within=20, what="the first target to be used again")
            assert said(proxy.address) == silent.port
        finally:
            stop.set()
            silent.socket.settimeout(0.1)
            server.join(TIMEOUT)
        proxy.stop()
    assert changes(events)[-1] == ("upstream-up", silent.name, "", "")
    assert len(changes(events)) == 2


def _slow(proxy: Proxy) -> bool:
    start = time.monotonic()
    said(proxy.address)
    return time.monotonic() - start > 1


def _greet(server: Silent, stop: threading.Event) -> None:
    server.socket.settimeout(0.1)
    while not stop.is_set():
        with contextlib.suppress(OSError), server.socket.accept()[0] as connection:
            connection.sendall(f"{server.port:5}".encode())


def test_all_are_passed_over(make_proxy: MakeProxy, silent: Silent) -> None:
    """Then they are tried in order, as if nothing were known of them."""
    with contextlib.closing(Silent()) as second:
        proxy = make_proxy(f"{silent.name},{second.name}", connect_timeout=2.2)
        with connect(proxy.address) as client, pytest.raises(ConnectionResetError):
            client.recv(1)
        second.let_in()
        with connect(proxy.address) as client, second.accept() as server:
            server.sendall(b"x")
            assert read_exactly(client, 1) == b"x"


def test_client_that_leaves_meanwhile(make_proxy: MakeProxy, silent: Silent, named: Named) -> None:
    """Nothing is left of it, and the next client is served."""
    proxy = make_proxy(f"{silent.name},{named.name}", connect_timeout=1)
    for _ in range(5):
        client = connect(proxy.address)
        eventually(lambda: any(it.state == "connecting" for it in proxy.connections()))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        eventually(lambda: not proxy.connections())
    assert said(proxy.address) == named.port


def test_abort_meanwhile(make_proxy: MakeProxy, silent: Silent, named: Named) -> None:
    proxy = make_proxy(f"{silent.name},{named.name}")
    with connect(proxy.address):
        eventually(lambda: any(it.state == "connecting" for it in proxy.connections()))
        proxy.stop(0)
    assert proxy.stats().active == 0


def test_many_at_once(make_proxy: MakeProxy, closed: Closed, echo: Echo) -> None:
    proxy = make_proxy(f"{closed.name},{echo.name}", workers=2)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(proxy.address)) for _ in range(200)]
        assert all(echoes(client) for client in clients)
    with contextlib.closing(Closed()) as second:
        targets = f"{closed.name},{second.name},{echo.name}"
        proxy = make_proxy(None, forwards=[f"0:{echo.name}", f"0:{targets}"], workers=2)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(it.address)) for it in proxy.forwards * 50]
            assert all(echoes(client) for client in clients)
            used = {it.target for it in proxy.connections()}
            assert used == {echo.name}


@pytest.mark.parametrize("fault", ["both:latency=30ms", "bandwidth=1MB/s"])
def test_with_faults(make_proxy: MakeProxy, closed: Closed, echo: Echo, fault: str) -> None:
    proxy = make_proxy(f"{closed.name},{echo.name}", faults=fault)
    with connect(proxy.address) as client:
        assert echoes(client)


# --- what is said and refused ---


@pytest.fixture
def command(closed: Closed, named: Named) -> Iterator[Command]:
    command = Command(f"{closed.name},{named.name}")
    yield command
    command.end()


def test_lines(command: Command, closed: Closed, named: Named) -> None:
    for _ in range(3):
        with connect(command.address) as client:
            assert int(read_exactly(client, 5)) == named.port
    closed.listen()
    with connect(command.address), closed.accept():
        pass
    command.signal(signal.SIGTERM)
    assert command.wait() == 0
    down = f"Upstream {closed.name} does not answer (Connection refused (os error 111)), using {named.name}"
    assert command.complaints == [down, f"Upstream {closed.name} answers again"]


def test_json(closed: Closed, named: Named) -> None:
    command = Command("--log-format", "json", "-l", "0", f"{closed.name},{named.name}")
    try:
        eventually(lambda: command.stdout)
        host, _, port = json.loads(command.stdout[0])["listener"].rpartition(":")
        with connect((host, int(port))) as client:
            assert int(read_exactly(client, 5)) == named.port
        command.signal(signal.SIGTERM)
        assert command.wait() == 0
    finally:
        command.end()
    records = [json.loads(line) for line in command.stdout]
    (down,) = [it for it in records if it["kind"] == "upstream-down"]
    assert (down["level"], down["target"], down["upstream"]) == ("warning", closed.name, named.name)
    assert (down["reason"], down["error"]) == ("connect-refused", "ECONNREFUSED")
    assert [it["target"] for it in records if it["kind"] == "end"] == [named.name]


@pytest.mark.parametrize(
    ("remote", "said"),
    [
        ("db:1,", "remote 'db:1,' has an empty target, expected HOST:PORT,HOST:PORT; without it: Proxy('db:1')"),
        ("db:1,cache", "remote 'cache' has no port, expected HOST:PORT"),
        ("db:1,db:1", "remote 'db:1,db:1' has the target db:1 twice"),
        (",".join(f"db:{port}" for port in range(1, 18)), "has 17 targets, expected at most 16"),
        (["db:1", "db:1"], "remote 'db:1,db:1' has the target db:1 twice"),
        ([], "remote [] is empty"),
    ],
)
def test_refused(remote: object, said: str) -> None:
    with pytest.raises(UsageError) as error:
        Proxy(remote)  # type: ignore[arg-type]
    assert said in str(error.value)


def test_too_many_in_all() -> None:
    targets = ",".join(f"db:{port}" for port in range(1, 17))
    with pytest.raises(UsageError, match="forwards: 256 targets in all, expected at most 255"):
        Proxy(forwards=[f"0:{targets}"] * 16)


def test_a_target_that_leads_back(named: Named) -> None:
    with contextlib.closing(Closed()) as place:
        port = place.port
    with pytest.raises(UsageError, match="own address"), Proxy(f"{named.name},127.0.0.1:{port}", port=port):
        pass


def test_upstream_is_kept(make_proxy: MakeProxy, named: Named, closed: Closed) -> None:
    proxy = make_proxy(f"{closed.name},{named.name}")
    with pytest.raises(UsageError, match=r"^upstream '.*' cannot be set: the proxy has 2 targets, expected one$"):
        proxy.upstream = named.name
    assert said(proxy.address) == named.port
    proxy = make_proxy(named.name)
    for several in (f"{closed.name},{named.name}", [closed.name, named.name]):
        with pytest.raises(UsageError, match=r"^upstream .* cannot be set: the value has 2 targets, expected one$"):
            proxy.upstream = several  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"^remote 'db:1,db:1' has the target db:1 twice$"):
        proxy.upstream = "db:1,db:1"
    assert proxy.upstream == named.name
    assert said(proxy.address) == named.port


def test_sandbox_lets_reach_all() -> None:
    assert ports_to_reach(Config.make("127.0.0.1:5,[::1]:6")) == {5, 6}
