"""Several forwards in one proxy: each with its own target, all started or none."""

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
from networks import Closed, resolve_to
from support.command import Command
from support.machine import descriptors
from support.peers import Echo, Named, connect, free_port, relays, said
from support.streams import echoes, read_all, read_exactly
from support.waiting import TIMEOUT, eventually

import tcpproxy
from tcpproxy import Proxy, StartError, UsageError
from tcpproxy.command.sandbox import ports_to_reach
from tcpproxy.config.config import Config

MakeProxy = Callable[..., Proxy]


@pytest.fixture
def servers() -> Iterator[list[Named]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Named())) for _ in range(5)]


@pytest.mark.parametrize("workers", [1, 2])
def test_each_goes_to_its_own_target(make_proxy: MakeProxy, servers: list[Named], workers: int) -> None:
    """By number and by name, on one address and on several; also with many connections at a time."""
    forwards = [f"0:{server.name}" for server in servers[:3]]
    forwards += [f"localhost:0:localhost:{servers[3].port}", f"*:0:{servers[4].name}"]
    proxy = make_proxy(None, forwards=forwards, workers=workers)
    assert [it.spec for it in proxy.forwards] == forwards
    assert [it.target for it in proxy.forwards] == [it.partition(":0:")[2] or it[2:] for it in forwards]
    for _ in range(10):
        for it, server in zip(proxy.forwards, servers, strict=True):
            assert said(("127.0.0.1", it.port)) == server.port
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(("127.0.0.1", it.port))) for it in proxy.forwards * 20]
        for client, server in zip(clients, servers * 20, strict=True):
            assert int(read_exactly(client, 5)) == server.port
            assert echoes(client)
        assert sorted(it.target for it in proxy.connections()) == sorted([it.target for it in proxy.forwards] * 20)


def test_addresses(make_proxy: MakeProxy, servers: list[Named]) -> None:
    """In the order of the forwards; attributes of a single forward raise an error that says so."""
    forwards = [f"0:{servers[0].name}", f"localhost:0:{servers[1].name}"]
    assert Proxy(forwards=forwards).forwards == ()
    proxy = make_proxy(None, forwards=forwards)
    first, second = proxy.forwards
    assert proxy.addresses[0] == first.address == ("127.0.0.1", first.port)
    assert {port for _, port in proxy.addresses[1:]} == {second.port}
    assert repr(proxy).startswith(f"<Proxy 127.0.0.1:{first.port} -> {first.target}; 127.0.0.1:{second.port}")
    for name in ("address", "host", "port", "upstream"):
        sentence = rf"^{'address' if name != 'upstream' else name} is of a proxy with one forward, and this one has 2"
        with pytest.raises(RuntimeError, match=sentence):
            getattr(proxy, name)
    with pytest.raises(RuntimeError, match=r"^upstream is of a proxy with one forward"):
        proxy.upstream = servers[2].name
    with pytest.raises(RuntimeError, match=r"^address is of a proxy with one forward"):
        proxy.url("http://db/")


def test_a_remote_is_a_forward(make_proxy: MakeProxy, servers: list[Named]) -> None:
    proxy = make_proxy(servers[0].name)
    (only,) = proxy.forwards
    assert (only.spec, only.target) == (servers[0].name, servers[0].name)
    assert (only.address, only.port) == (proxy.address, proxy.port)
    proxy.upstream = servers[1].name
    assert proxy.forwards[0].target == servers[1].name
    assert said(only.address) == servers[1].port


def test_one_forward(make_proxy: MakeProxy, servers: list[Named]) -> None:
    """One forward is the same as a remote."""
    proxy = make_proxy(None, forwards=[f"0:{servers[0].name}"])
    assert said(proxy.address) == servers[0].port
    assert repr(proxy) == f"<Proxy 127.0.0.1:{proxy.port} -> {servers[0].name}, listening>"


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_reported(
    make_proxy: MakeProxy, servers: list[Named], closed: Closed, events: list[tcpproxy.Event], workers: int
) -> None:
    """Each event of a listener or a connection has its target, also of one that fails."""
    targets = [servers[0].name, closed.name, "nowhere.invalid:80", servers[1].name]
    proxy = make_proxy(None, forwards=[f"0:{target}" for target in targets], workers=workers)
    for it in proxy.forwards:
        with contextlib.suppress(ConnectionResetError), connect(it.address) as client:
            client.recv(5)
    proxy.wait_for(ended=4)
    names = [f"127.0.0.1:{it.port}" for it in proxy.forwards]
    proxy.stop()
    assert [(it.text, it.target) for it in events if it.kind == "listening"] == list(zip(names, targets, strict=True))
    for kind in "new", "end":
        assert {it.target for it in events if it.kind == kind} >= {targets[0], targets[3]}
    failed = {it.target: it.reason for it in events if it.kind == "failed"}
    assert failed == {closed.name: "connect-refused", "nowhere.invalid:80": "dns"}
    (told,) = [it.text for it in events if it.reason == "dns"]
    assert told.startswith("failed to lookup address information: ")
    over = proxy.connections(ended=True)
    assert sorted(it.target for it in over) == sorted(targets)


def test_every_verb_is_for_all(make_proxy: MakeProxy, servers: list[Named]) -> None:
    proxy = make_proxy(None, forwards=[f"0:{server.name}" for server in servers], workers=2)
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(it.address)) for it in proxy.forwards]
            for client in clients:
                read_exactly(client, 5)
            with proxy.down("reset"):
                for it in proxy.forwards:
                    with pytest.raises(ConnectionRefusedError):
                        connect(it.address)
            for client in clients:
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
        for it, server in zip(proxy.forwards, servers, strict=True):
            assert said(it.address) == server.port
    proxy.drain()
    for it in proxy.forwards:
        with pytest.raises(ConnectionRefusedError):
            connect(it.address)


def test_as_many_as_there_can_be(make_proxy: MakeProxy, echo: Echo) -> None:
    before = descriptors()
    proxy = make_proxy(None, forwards=[f"0:{echo.name}"] * 64)
    assert len({it.port for it in proxy.forwards}) == 64
    assert all(relays(it.address) for it in proxy.forwards)
    proxy.stop()
    eventually(lambda: descriptors() == before)
    with pytest.raises(UsageError, match=r"^forwards is given 65 times, expected at most 64$"):
        Proxy(forwards=[f"0:{echo.name}"] * 65)


# --- all or nothing ---


def test_one_that_cannot_listen(echo: Echo) -> None:
    """Then none listens, and the error names the one that cannot."""
    port = free_port()
    before = descriptors()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        other = taken.getsockname()[1]
        bad = f"{other}:{echo.name}"
        with pytest.raises(StartError) as caught:
            Proxy(forwards=[f"{port}:{echo.name}", bad]).start()
        assert str(caught.value) == f"cannot listen on 127.0.0.1:{other} for {bad!r}: Address already in use"
    assert descriptors() == before
    with pytest.raises(ConnectionRefusedError):
        connect(("127.0.0.1", port))


@pytest.mark.parametrize("host", ["localhost:", "0.0.0.0:"])
def test_two_on_one_port(echo: Echo, host: str) -> None:
    port = free_port()
    with pytest.raises(StartError, match=rf"for '{host}{port}:.*': Address already in use$"):
        Proxy(forwards=[f"{port}:{echo.name}", f"{host}{port}:{echo.name}"]).start()


def test_the_command_that_cannot_listen(command: Callable[..., Command], echo: Echo) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bad = f"{taken.getsockname()[1]}:{echo.name}"
        process = command("-L", f"0:{echo.name}", "-L", bad)
        assert process.wait() == 1
    assert process.stdout == []
    assert process.stderr[0].endswith(f"for {bad!r}: Address already in use")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["-L", "8080:db"], "--forward '8080:db': remote 'db' has no port, expected HOST:PORT"),
        (["-L", "0:db:1", "-L", "8080"], "--forward '8080' has no REMOTE, expected [ADDR:]PORT:REMOTE; "),
        (["-L", "0:db:1", "db:1"], "REMOTE and --forward are both given: put it into the forward, [ADDR:]PORT:REMOTE"),
        (["-L", "0:db:1", "-l", "1"], "--local-port and --forward are both given: put it into the forward, "),
        (["-L", "0:db:1", "-b", "::"], "--bind and --forward are both given: put it into the forward, "),
        (["-L", "0:db:1,db:1"], "--forward '0:db:1,db:1' has the target db:1 twice"),
        (["-L", "0:db:1,db:1", "-L", "0:a:1"], "--forward '0:db:1,db:1' has the target db:1 twice"),
        (["-L", "8080:db:1", "-L", "8080:db:2"], "--forward has '127.0.0.1:8080' twice to listen on"),
        (["-L", "~/x.sock:db:1"], "--forward '~/x.sock:db:1' begins with '~', which only a shell expands, expected"),
        (["-L", ""], "--forward '' is empty, expected [ADDR:]PORT:REMOTE"),
    ],
)
def test_wrong_usage(command: Callable[..., Command], args: list[str], sentence: str) -> None:
    process = command(*args)
    assert process.wait() == 2
    assert process.stdout == []
    assert process.stderr[0].startswith(f"tcpproxy: {sentence}")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"forwards": []}, "remote is missing, expected HOST:PORT, [IPv6]:PORT or /PATH, or forwards"),
        ({"forwards": "0:db:1"}, "forwards '0:db:1' is no list, expected one of [ADDR:]PORT:REMOTE texts"),
        ({"forwards": 5}, "forwards 5 is no list, expected one of [ADDR:]PORT:REMOTE texts"),
        ({"forwards": ["0:db:1"], "port": 80}, "port and forwards are both given: put it into the forward, "),
        ({"forwards": ["0:db:1"], "remote": 80}, "remote and forwards are both given: put it into the forward, "),
    ],
)
def test_wrong_usage_in_a_program(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        Proxy(**options)  # type: ignore[arg-type]
    assert str(caught.value).startswith(sentence)


# --- circles ---


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_chain(make_proxy: MakeProxy, echo: Echo, host: str) -> None:
    """One forward may lead to another."""
    first, second = free_port(), free_port()
    proxy = make_proxy(None, forwards=[f"{first}:{host}:{second}", f"*:{second}:{echo.name}"])
    assert relays(proxy.forwards[0].address)
    assert proxy.wait_for(accepted=2)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_circle(host: str) -> None:
    """A circle of two or three forwards is an error before anything listens."""
    one, two, three = free_port(), free_port(), free_port()
    before = descriptors()
    forwards = [f"{one}:{host}:{two}", f"{two}:{host}:{one}"]
    sentence = f"forwards {forwards[0]!r} leads back to itself, by way of {forwards[1]!r}, expected another target"
    with pytest.raises(UsageError) as caught:
        Proxy(forwards=forwards).start()
    assert str(caught.value) == sentence
    forwards = [f"{one}:{host}:{two}", f"{two}:{host}:{three}", f"{three}:{host}:{one}"]
    with pytest.raises(UsageError, match=rf"^forwards '{one}:.* leads back to itself, by way of '{two}:"):
        Proxy(forwards=forwards).start()
    with pytest.raises(UsageError, match=rf"^forwards '{one}:.* leads back to itself, expected another target$"):
        Proxy(forwards=[f"{two}:{host}:9", f"{one}:{host}:{one}"]).start()
    assert descriptors() == before


def test_a_way_out_of_a_circle(monkeypatch: pytest.MonkeyPatch, events: list[tcpproxy.Event]) -> None:
    """Of a name's addresses only those that lead back are left out; then the other forward is no circle."""
    resolve_to(monkeypatch, "127.0.0.1", "::1")
    with contextlib.closing(Named("::1")) as server:
        first, second = free_port(), server.port
        forwards = [f"{second}:127.0.0.1:{first}", f"{first}:both.test:{second}"]
        with Proxy(forwards=forwards, on_event=events.append) as proxy:
            assert [said(it.address) for it in proxy.forwards] == [server.port] * 2
            assert proxy.stats().accepted == 3
    warnings = [it.text for it in events if it.kind == "warning"]
    own = f"127.0.0.1:{first}, 127.0.0.1:{second}"
    assert warnings == [f"both.test:{second} is this proxy itself ({own}) and others; only the others are used"]


# --- names ---


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Look-ups of names in `hangs.test` wait for it."""
    free = threading.Event()
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: object, **options: object) -> object:
        if host.endswith("hangs.test") and not options.get("flags"):
            free.wait(TIMEOUT)
            host = "127.0.0.1"
        return real(host, port, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield free
    free.set()


def test_a_name_server_that_hangs(
    monkeypatch: pytest.MonkeyPatch, hanging: threading.Event, make_proxy: MakeProxy, servers: list[Named]
) -> None:
    """It holds up no other forward: neither at the start, which waits once for all names, nor later."""
    monkeypatch.setattr("tcpproxy.proxy.START_LOOKUP", 0.5)
    monkeypatch.setattr("tcpproxy.lookups.TTL", 0.01)
    monkeypatch.setattr("tcpproxy.network.resolver.TTL", 0.01)
    start = time.monotonic()
    forwards = [f"0:{number}.hangs.test:{servers[0].port}" for number in range(20)]
    forwards.append(f"0:localhost:{servers[1].port}")
    proxy = make_proxy(None, forwards=forwards, workers=2)
    assert time.monotonic() - start < 5
    with connect(proxy.forwards[0].address) as waiting:
        eventually(lambda: [it.state for it in proxy.connections()] == ["resolving"])
        for _ in range(20):
            assert said(proxy.forwards[20].address) == servers[1].port
            threading.Event().wait(0.02)  # until the answer is stale
        hanging.set()
        assert int(read_exactly(waiting, 5)) == servers[0].port


# --- the command ---


def test_lines_of_the_command(command: Callable[..., Command], servers: list[Named]) -> None:
    """Each listener with its target, in the order of the options; one forward as without -L."""
    forwards = [f"0:{servers[0].name}", f"localhost:0:localhost:{servers[1].port}"]
    process = command("-L", forwards[0], "--forward", forwards[1])
    eventually(lambda: len(process.stdout) == 3, TIMEOUT)
    listening = [line.removeprefix("Listening on ").split(" -> ") for line in process.stdout]
    assert [target for _, target in listening] == [servers[0].name] + [f"localhost:{servers[1].port}"] * 2
    for (place, _), server in zip(listening[:2], servers[:2], strict=True):
        assert said(("127.0.0.1", int(place.rpartition(":")[2]))) == server.port
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.complaints == []
    alone = command("-L", forwards[0])
    assert said(alone.address) == servers[0].port
    assert " -> " not in alone.stdout[0]


def test_records_of_the_command(command: Callable[..., Command], servers: list[Named], closed: Closed) -> None:
    """In JSON every record of a listener and of a connection has its target, the table of SIGUSR1 as well."""
    targets = [servers[0].name, closed.name]
    process = command("--log-format=json", *(word for it in targets for word in ("-L", f"0:{it}")))
    eventually(lambda: len(process.stdout) == 2, TIMEOUT)
    listening = [json.loads(line) for line in process.stdout]
    assert [it["target"] for it in listening] == targets
    ports = [int(it["listener"].rpartition(":")[2]) for it in listening]
    with connect(("127.0.0.1", ports[0])) as client:
        read_exactly(client, 5)
        with contextlib.suppress(ConnectionResetError), connect(("127.0.0.1", ports[1])) as other:
            read_all(other)
        process.signal(signal.SIGUSR1)
        eventually(lambda: any('"kind": "connection"' in line for line in process.stdout))
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    records = [json.loads(line) for line in process.stdout]
    found = {(it["kind"], it["target"]) for it in records if "target" in it}
    assert found >= {(kind, targets[0]) for kind in ("new", "connected", "end", "connection")}
    assert {target for kind, target in found if kind == "failed"} == {targets[1]}


def test_capture_of_several(make_proxy: MakeProxy, servers: list[Named], tmp_path: Path) -> None:
    path = tmp_path / "both.pcapng"
    proxy = make_proxy(None, forwards=[f"0:{server.name}" for server in servers[:2]], capture=str(path))
    assert [said(it.address) for it in proxy.forwards] == [server.port for server in servers[:2]]
    proxy.stop()
    assert proxy.capture
    assert proxy.capture.connections == 2
    assert ", ".join(server.name for server in servers[:2]).encode() in path.read_bytes()


def test_ports_that_the_sandbox_leaves() -> None:
    """Those of all targets, and that of names if one is a name."""
    assert ports_to_reach(Config.make(None, forwards=["0:127.0.0.1:80", "0:[::1]:81"])) == {80, 81}
    assert ports_to_reach(Config.make(None, forwards=["0:127.0.0.1:80", "0:localhost:81"])) in ({80, 81, 53}, None)


def test_behind_the_sandbox(command: Callable[..., Command], servers: list[Named]) -> None:
    process = command(*(word for server in servers for word in ("-L", f"0:{server.name}")))
    eventually(lambda: len(process.stdout) == 5, TIMEOUT)
    places = [line.removeprefix("Listening on ").split(" -> ")[0] for line in process.stdout]
    assert [said(("127.0.0.1", int(place.rpartition(":")[2]))) for place in places] == [it.port for it in servers]
