"""UNIX sockets at either end: bytes, ends, resets, a full backlog, and differences from TCP."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.command import Command, strace
from support.machine import descriptors
from support.manager import passing
from support.peers import Echo, Upstream, connect
from support.streams import echoes, payload, read_all, read_exactly, send_and_shut
from support.waiting import TIMEOUT, eventually, in_background, pause

import tcpproxy
from tcpproxy import Proxy, StartError, UsageError
from tcpproxy.config.forwards import parse_forward
from tcpproxy.network.unix import Folders, UnixPort

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this platform has no UNIX sockets")

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
MakeProxy = Callable[..., Proxy]
MIB = 1 << 20


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: that of tmp_path may be too long for a socket."""
    path = tempfile.mkdtemp(prefix="tp")
    yield Path(path)
    shutil.rmtree(path)


class UnixUpstream(Upstream):
    """A UNIX socket that hands out the connections it gets."""

    def __init__(self, path: Path | str, backlog: int = 128) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        self.socket.listen(backlog)
        self.socket.settimeout(TIMEOUT)
        self.path = str(path)

    @property
    def name(self) -> str:
        return self.path


@pytest.fixture
def server(stack: contextlib.ExitStack, folder: Path) -> UnixUpstream:
    return stack.enter_context(contextlib.closing(UnixUpstream(folder / "server.sock")))


def connect_unix(path: object) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    try:
        client.settimeout(TIMEOUT)
        client.connect(str(path))
    except BaseException:
        client.close()
        raise
    return client


def any_client(proxy: Proxy) -> socket.socket:
    return connect_unix(proxy.address) if isinstance(proxy.address, str) else connect(proxy.address)


KINDS = ["unix-unix", "unix-tcp", "tcp-unix"]


class Pairs:
    """Makes pairs of a client and its server, with a UNIX socket at one end or at both."""

    def __init__(self, proxy: Proxy, upstream: Upstream) -> None:
        self.proxy, self._upstream = proxy, upstream

    def __call__(self) -> tuple[socket.socket, socket.socket]:
        client = any_client(self.proxy)
        return client, self._upstream.accept()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_pairs(
    kind: str, make_proxy: MakeProxy, server: UnixUpstream, upstream: Upstream, folder: Path
) -> Callable[..., Pairs]:
    def make(**options: object) -> Pairs:
        target = server if kind.endswith("unix") else upstream
        if kind.startswith("unix"):
            options["bind"] = str(folder / "proxy.sock")
        return Pairs(make_proxy(target.name, **options), target)

    return make


# --- bytes and ends ---


@pytest.mark.parametrize("zero_copy", ["off", "auto", "always"])
@pytest.mark.parametrize("workers", [1, 2])
def test_bytes_both_ways(make_pairs: Callable[..., Pairs], workers: int, zero_copy: str) -> None:
    """Each direction ends by itself, behind its last byte."""
    pair = make_pairs(workers=workers, zero_copy=zero_copy)
    up, down = payload(3 * MIB, 1), payload(4 * MIB, 2)
    for _ in range(3):
        client, server = pair()
        with client, server:
            client.sendall(b"hello")
            assert read_exactly(server, 5) == b"hello"
            with in_background(send_and_shut, client, up), in_background(read_all, server) as got:
                pass
            assert got == [up]
            with in_background(send_and_shut, server, down):
                assert read_all(client) == down
    proxy = pair.proxy
    proxy.wait_for(ended=3, active=0)
    assert {it.reason for it in proxy.connections(ended=True)} == {"client-eof"}
    assert proxy.stats().bytes_to_upstream == 3 * (len(up) + 5)


def test_half_close(make_pairs: Callable[..., Pairs]) -> None:
    """Either way round; the other direction goes on."""
    pair = make_pairs()
    for first in 0, 1:
        ends = pair()
        with ends[0], ends[1]:
            ends[first].sendall(b"last words")
            ends[first].shutdown(socket.SHUT_WR)
            assert read_all(ends[1 - first]) == b"last words"
            for _ in range(3):
                ends[1 - first].sendall(b"go on")
                assert read_exactly(ends[first], 5) == b"go on"


def test_a_client_that_is_gone_at_once(make_pairs: Callable[..., Pairs]) -> None:
    """What it has sent arrives, however late upstream reads."""
    pair = make_pairs()
    data = payload(100_000)
    for _ in range(5):
        client, server = pair()
        with server:
            client.sendall(data)
            client.close()
            pause(0.05)
            assert read_all(server) == data
    pair.proxy.wait_for(ended=5)
    assert {it.reason for it in pair.proxy.connections(ended=True)} == {"client-eof"}


def test_back_pressure(make_pairs: Callable[..., Pairs]) -> None:
    """A receiver that does not read stops its sender; nothing is lost."""
    pair = make_pairs(zero_copy="off")
    client, server = pair()
    with client, server:
        data = payload(32 * MIB)
        with in_background(send_and_shut, client, data) as sent:
            eventually(lambda: pair.proxy.connections()[0].waiting_for_upstream, 10)
            pause(0.2)
            assert not sent
            assert pair.proxy.connections()[0].waiting_for_upstream <= 65536
            assert read_all(server) == data


@linux
@pytest.mark.parametrize("kind", ["unix-unix", "tcp-unix"], indirect=True)
def test_a_slow_receiver_is_not_idle(make_pairs: Callable[..., Pairs]) -> None:
    """Its socket is writable again when three quarters are read, which takes it longer than the time-out."""
    pair = make_pairs(idle_timeout="0.5s", zero_copy="off")
    client, server = pair()
    with client, server:
        client.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += client.send(bytes(65536))
                pause(0.001)
        for _ in range(40):
            pause(0.05)
            assert len(server.recv(10_000)) > 0
        assert pair.proxy.stats().active == 1
        eventually(lambda: pair.proxy.stats().active == 0)


# --- resets ---


def reset(sock: socket.socket) -> None:
    """Resets a connection the way a UNIX socket can: closes it with bytes unread, which the other end has sent."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("side", ["client", "upstream"])
def test_a_reset_is_passed_on(make_pairs: Callable[..., Pairs], kind: str, side: str) -> None:
    """As a reset to a TCP peer; a UNIX peer gets an end of file, because it cannot be reset."""
    pair = make_pairs()
    for _ in range(5):
        client, server = pair()
        near, far = (client, server) if side == "client" else (server, client)
        with client, server:
            near.sendall(b"before")
            assert read_exactly(far, 6) == b"before"
            far.sendall(b"unread")
            pause(0.02)  # a UNIX socket is reset by a close with bytes unread
            reset(near)
            if far.family == socket.AF_UNIX:
                assert far.recv(1) == b""
            else:
                with pytest.raises(ConnectionResetError):
                    far.recv(1)
    pair.proxy.wait_for(ended=5)
    assert {it.reason for it in pair.proxy.connections(ended=True)} == {f"{side}-reset"}


@pytest.mark.parametrize("kind", ["unix-unix", "tcp-unix"], indirect=True)
def test_a_reset_waits_for_no_unix_peer(make_pairs: Callable[..., Pairs]) -> None:
    """What it was sent is in its socket already, and it may read that at any time."""
    pair = make_pairs()
    client, server = pair()
    with client, server:
        server.sendall(b"unread")
        client.sendall(b"before")
        pause(0.05)
        reset(client)
        pair.proxy.wait_for(ended=1, timeout=2)
        assert read_exactly(server, 6) == b"before"


def test_an_abort(make_pairs: Callable[..., Pairs]) -> None:
    """A UNIX peer that has sent bytes which the proxy has not read is reset, too."""
    pair = make_pairs()
    client, server = pair()
    with client, server:
        client.sendall(b"hello")
        assert read_exactly(server, 5) == b"hello"
        with pair.proxy.pause():
            client.sendall(b"unread")
            server.sendall(b"unread")
            pause(0.05)
            assert pair.proxy.kill() == 1
        for end in client, server:
            with pytest.raises(ConnectionResetError):
                end.recv(1)


def test_a_send_to_one_that_is_gone(make_pairs: Callable[..., Pairs]) -> None:
    """Ends the connection, as with TCP."""
    pair = make_pairs()
    client, server = pair()
    with client, server:
        server.close()
        assert client.recv(1) == b""
        with contextlib.suppress(OSError):
            for _ in range(10):
                client.sendall(b"x")
                pause(0.05)
        pair.proxy.wait_for(ended=1)


@linux
def test_urgent_bytes_stay_in_the_stream(make_pairs: Callable[..., Pairs]) -> None:
    """From a UNIX socket as well, which has them since Linux 5.15."""
    pair = make_pairs()
    client, server = pair()
    with client, server:
        client.sendall(b"abc")
        try:
            client.send(b"!", socket.MSG_OOB)
        except OSError as error:
            pytest.skip(f"the kernel has no urgent bytes here: {error}")
        client.sendall(b"def")
        client.shutdown(socket.SHUT_WR)
        assert read_all(server) == b"abc!def"


# --- connecting ---


@linux
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_backlog(make_proxy: MakeProxy, folder: Path, workers: int, stack: contextlib.ExitStack) -> None:
    """Clients wait, and are served once there is room: no event tells of it."""
    upstream = stack.enter_context(contextlib.closing(UnixUpstream(folder / "s", backlog=0)))
    proxy = make_proxy(upstream.name, workers=workers)
    with connect_unix(upstream.path), connect(proxy.address) as client:
        client.sendall(b"hello")
        eventually(lambda: [it.state for it in proxy.connections()] == ["connecting"])
        pause(0.3)
        assert [it.state for it in proxy.connections()] == ["connecting"]
        wakeups = proxy.stats().wakeups
        pause(0.5)
        assert proxy.stats().wakeups - wakeups < 20
        upstream.accept().close()
        with upstream.accept() as server:
            assert read_exactly(server, 5) == b"hello"
            server.sendall(b"there")
            assert read_exactly(client, 5) == b"there"


@linux
def test_a_backlog_that_stays_full(make_proxy: MakeProxy, folder: Path, stack: contextlib.ExitStack) -> None:
    """The client waits until --connect-timeout; one that leaves before is forgotten."""
    upstream = stack.enter_context(contextlib.closing(UnixUpstream(folder / "s", backlog=0)))
    proxy = make_proxy(upstream.name, connect_timeout="0.5s")
    before = descriptors()
    with connect_unix(upstream.path), connect(proxy.address) as client:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        other = connect(proxy.address)
        eventually(lambda: proxy.stats().active == 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        other.close()
        proxy.wait_for(active=0, ended=2)
    assert [it.reason for it in proxy.connections(ended=True)] == ["connect-timeout", "client-reset"]
    assert proxy.connections(ended=True)[0].upstream == upstream.path
    eventually(lambda: descriptors() == before)


@pytest.mark.parametrize(
    ("make", "reason", "text"),
    [
        ("nothing", "connect-refused", "No such file or directory"),
        ("left behind", "connect-refused", "Connection refused"),
        ("a datagram socket", "unreachable", "Protocol wrong type for socket"),
        ("a file", "connect-refused", "Connection refused"),
    ],
)
@linux
def test_a_path_that_does_not_answer(
    make_proxy: MakeProxy, folder: Path, events: list[tcpproxy.Event], make: str, reason: str, text: str
) -> None:
    """The client is reset; event and sentence have the path."""
    path = folder / "s"
    with contextlib.ExitStack() as stack:
        if make == "left behind":
            UnixUpstream(path).close()
        elif make == "a datagram socket":
            stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)).bind(str(path))
        elif make == "a file":
            path.touch()
        proxy = make_proxy(str(path))
        with pytest.raises(ConnectionResetError), connect(proxy.address) as client:
            client.recv(1)
        proxy.wait_for(ended=1)
        proxy.stop()
    (failed,) = [it for it in events if it.kind == "failed"]
    assert (failed.reason, failed.upstream) == (reason, str(path))
    assert text in failed.text


def test_a_server_that_starts_again(make_proxy: MakeProxy, folder: Path) -> None:
    """Its new socket, at the same path, is found."""
    path = folder / "s"
    proxy = make_proxy(str(path))
    for _ in range(3):
        with (
            contextlib.closing(UnixUpstream(path)) as upstream,
            connect(proxy.address) as client,
            upstream.accept() as server,
        ):
            server.sendall(b"here")
            assert read_exactly(client, 4) == b"here"
        path.unlink()


@linux
@pytest.mark.parametrize("name", ["x" * 90, "caf\udce9", "a b'c", "new\nline", "a:b,c"])
def test_paths(make_proxy: MakeProxy, folder: Path, echo: Echo, name: str, events: list[tcpproxy.Event]) -> None:
    """As long as can be, no UTF-8, and what looks like something else; both ways."""
    path = folder / name[: 107 - len(os.fsencode(folder)) - 1]
    inner = make_proxy(echo.name, bind=path)
    assert inner.address == str(path)
    outer = make_proxy(path)
    with connect(outer.address) as client:
        assert echoes(client)
        assert outer.connections()[0].upstream == str(path)
    assert str(path) in repr(inner)
    assert str(path) in {it.text for it in events if it.kind == "listening"}


@linux
def test_abstract_names(make_proxy: MakeProxy, echo: Echo, events: list[tcpproxy.Event]) -> None:
    """They have no file, and no permissions."""
    name = f"@tcpproxy-{os.getpid()}-{time.monotonic_ns()}"
    inner = make_proxy(echo.name, bind=name)
    outer = make_proxy(name)
    assert inner.address == name
    with connect(outer.address) as client:
        assert echoes(client)
        assert outer.connections()[0].upstream == name
    warnings = [it.text for it in events if it.kind == "warning"]
    assert warnings == [f"listening on {name}, which every user of this machine may reach"]
    with pytest.raises(tcpproxy.StartError, match=rf"^cannot listen on {name}: Address already in use$"):
        Proxy(echo.name, bind=name).start()


# --- who, and what is told ---


def test_who_the_client_is(make_proxy: MakeProxy, echo: Echo, folder: Path, events: list[tcpproxy.Event]) -> None:
    """Its user and process, which the kernel knows."""
    proxy = make_proxy(echo.name, bind=folder / "s")
    with connect_unix(proxy.address) as client:
        assert echoes(client)
        (live,) = proxy.connections()
    who = f"unix:uid={os.getuid()}" + (f",pid={os.getpid()}" if sys.platform == "linux" else "")
    assert live.client == who
    assert (live.upstream, live.target) == (echo.name, echo.name)
    proxy.wait_for(ended=1)
    proxy.stop()
    assert {it.client for it in events if it.id} == {who}


def test_connections_of_one_user(make_proxy: MakeProxy, echo: Echo, folder: Path) -> None:
    """Count as those of one source."""
    proxy = make_proxy(echo.name, bind=folder / "s", max_connections_per_source=2)
    with connect_unix(proxy.address) as first, connect_unix(proxy.address) as second:
        assert echoes(first)
        assert echoes(second)
        with contextlib.suppress(OSError), connect_unix(proxy.address) as third:
            assert third.recv(1) == b""
        proxy.wait_for(accepted=2)
        eventually(lambda: proxy.stats().refused == 1)
    proxy.wait_for(active=0)
    with connect_unix(proxy.address) as client:
        assert echoes(client)


def test_recordings_and_captures(make_pairs: Callable[..., Pairs], tmp_path: Path) -> None:
    path = tmp_path / "unix.pcapng"
    pair = make_pairs(record=True, capture=str(path))
    client, server = pair()
    with client, server:
        client.sendall(b"question")
        assert read_exactly(server, 8) == b"question"
        server.sendall(b"answer")
        assert read_exactly(client, 6) == b"answer"
    pair.proxy.wait_for(ended=1)
    (recording,) = pair.proxy.recordings
    assert (recording.to_upstream, recording.to_client) == (b"question", b"answer")
    told = recording.upstream
    pair.proxy.stop()
    assert pair.proxy.capture
    assert (pair.proxy.capture.connections, pair.proxy.capture.failure) == (1, None)
    assert b"question" in path.read_bytes()
    assert recording.upstream == told


def test_addresses_of_a_unix_socket(make_proxy: MakeProxy, echo: Echo, folder: Path) -> None:
    path = str(folder / "s")
    assert repr(Proxy(echo.name, bind=path)) == f"<Proxy {path} -> {echo.name}, not started>"
    proxy = make_proxy(echo.name, bind=path)
    assert (proxy.address, proxy.addresses) == (path, [path])
    assert proxy.forwards == (tcpproxy.Forward(echo.name, path, 0, echo.name),)
    for name in "host", "port":
        with pytest.raises(RuntimeError, match=rf"^the proxy listens on a UNIX socket, which has no {name}: see"):
            getattr(proxy, name)
    with pytest.raises(RuntimeError, match="UNIX socket"):
        proxy.url("http://db/")


def test_verbs(make_pairs: Callable[..., Pairs], kind: str) -> None:
    """A pause, down and up, kill."""
    pair = make_pairs()
    proxy = pair.proxy
    client, server = pair()
    with client, server:
        with proxy.pause("to_upstream"):
            client.sendall(b"late")
            server.settimeout(0.2)
            with pytest.raises(TimeoutError):
                server.recv(1)
        server.settimeout(TIMEOUT)
        assert read_exactly(server, 4) == b"late"
        for _ in range(3):
            with proxy.down("keep"), pytest.raises((ConnectionRefusedError, FileNotFoundError)):
                any_client(proxy)
            other, its_server = pair()
            with other, its_server:
                other.sendall(b"new")
                assert read_exactly(its_server, 3) == b"new"
        assert proxy.kill("close") == 1
        assert read_all(client) == b""


def test_another_upstream(make_proxy: MakeProxy, echo: Echo, server: UnixUpstream) -> None:
    """From TCP to UNIX and back."""
    proxy = make_proxy(echo.name)
    for _ in range(3):
        proxy.upstream = server.path
        with connect(proxy.address) as client, server.accept() as peer:
            client.sendall(b"hello")
            assert read_exactly(peer, 5) == b"hello"
            proxy.upstream = echo.name
            with connect(proxy.address) as other:
                assert echoes(other)


# --- circles ---


@linux
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("header", [b"", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"], ids=["plain", "header"])
def test_a_path_that_becomes_its_own(
    command: Callable[..., Command], folder: Path, server: UnixUpstream, workers: str, header: bytes
) -> None:
    """After the start, when nothing can be refused any more: the client is reset, and there is no loop."""
    own, link, other = (folder / name for name in ("own", "link", "other"))
    link.symlink_to(server.path)
    options = ("--accept-proxy", "unix", "--send-proxy", "v1") if header else ()
    process = command("-d", "--workers", workers, *options, "-b", str(own), str(link))

    def is_served() -> bool:
        with connect_unix(own) as client:
            client.sendall(header)
            with server.accept() as peer:
                assert read_exactly(peer, len(header)) == header
                peer.sendall(b"x")
                return read_exactly(client, 1) == b"x"

    eventually(lambda: process.stdout)
    assert is_served()
    other.symlink_to(own)
    os.replace(other, link)
    with connect_unix(own) as client:
        client.sendall(header)
        with contextlib.suppress(ConnectionResetError):
            assert read_all(client) == b""
    eventually(lambda: any("it is this proxy's own address" in line for line in process.stderr))
    other.symlink_to(server.path)
    os.replace(other, link)
    assert is_served()
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert sum(line.startswith("New connection") for line in process.stdout) <= 4


def test_circles_of_paths(folder: Path, echo: Echo) -> None:
    """They are found by the file, whatever its path."""
    one, two, link = (str(folder / name) for name in ("one", "two", "link"))
    with pytest.raises(UsageError, match=rf"^remote '{one}' is this proxy's own address"):
        Proxy(one, bind=one).start()
    os.symlink(one, link)
    with pytest.raises(UsageError, match=rf"^remote '{link}' is this proxy's own address"):
        Proxy(link, bind=one).start()
    with pytest.raises(UsageError, match=r"leads back to itself, by way of"):
        Proxy(forwards=[f"{one}:{two}", f"{two}:{link}"]).start()
    with pytest.raises(UsageError, match=rf"^forwards has '{one}' twice to listen on$"):
        Proxy(forwards=[f"{one}:{echo.name}", f"{one}:{echo.name}"])
    assert sorted(os.listdir(folder)) == ["link"]
    with Proxy(forwards=[f"{one}:{link}2", f"{link}2:{echo.name}"]) as proxy, connect_unix(one) as client:
        assert echoes(client)
        assert proxy.stats().accepted == 2


# --- wrong usage ---


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"bind": "/x", "port": 80}, r"^port is given, and bind is a UNIX socket, which has none$"),
        ({"bind": "/x" * 60}, r"has a path of 120 bytes, expected at most 10[37]$"),
        ({"unix_mode": 0o666}, r"^unix_mode needs a UNIX socket to listen on$"),
        pytest.param(
            {"bind": "@x", "unix_mode": 0o660},
            r"^unix_mode needs a UNIX socket to listen on, with a file: abstract names have no rights$",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract names"),
        ),
        ({"bind": "/x", "unix_mode": 600}, r"^unix_mode 600 is no mode of a file, expected octal digits from 0000 to"),
        ({"bind": "/x", "unix_mode": "0888"}, r"^unix_mode '0888' is no mode of a file"),
        (
            {"bind": "/x", "unix_mode": "0444"},
            r"^unix_mode '0444' lets nobody connect, expected one with a 2, like 0600$",
        ),
        ({"bind": "/x", "unix_mode": 0}, r"^unix_mode 0 lets nobody connect"),
        ({"bind": "/x", "unix_mode": True}, r"^unix_mode True is no mode of a file"),
    ],
)
def test_wrong_usage(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Proxy("db:80", **options)  # type: ignore[arg-type]


# --- sockets that were given ---


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("place", ["file", pytest.param("abstract", marks=linux)])
def test_a_given_socket(make_proxy: MakeProxy, echo: Echo, folder: Path, place: str, workers: int) -> None:
    """Beside one of TCP. Its file stays, because it belongs to the caller."""
    path, mark = folder / "given", "" if place == "file" else "@"
    name = f"{mark}{path}"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as given, socket.create_server(("127.0.0.1", 0)) as other:
        given.bind(name.replace("@", "\0"))
        given.listen()
        proxy = make_proxy(echo.name, sockets=[given, other], workers=workers)
        assert proxy.addresses == [name, other.getsockname()]
        for _ in range(3):
            with connect_unix(name.replace("@", "\0")) as client, connect(other.getsockname()) as second:
                assert echoes(client)
                assert echoes(second)
        proxy.stop()
        assert path.is_socket() == (place == "file")


def test_a_given_socket_that_leads_back(folder: Path) -> None:
    path = str(folder / "given")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as given:
        given.bind(path)
        given.listen()
        with pytest.raises(UsageError, match="own"):
            Proxy(path, sockets=[given]).start()


@linux
@pytest.mark.parametrize("mode", [0o600, 0o666], ids=oct)
def test_a_given_socket_of_the_command(
    command: Callable[..., Command], echo: Echo, folder: Path, stack: contextlib.ExitStack, mode: int
) -> None:
    """One that systemd has made. A restart refuses no client, and there is a warning if everybody may connect."""
    path = folder / "given"
    given = stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX)))
    given.bind(str(path))
    path.chmod(mode)
    given.listen()
    for _ in range(2):
        process = command(echo.name, **passing([given]))
        eventually(lambda process=process: process.stdout, TIMEOUT)
        assert process.stdout[0] == f"Listening on {path}"
        with connect_unix(path) as client:
            assert echoes(client)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        warning = f"warning: listening on {path}, which every user of this machine may reach"
        assert process.complaints == ([warning] if mode & 2 else [])


def test_a_directory(folder: Path, echo: Echo) -> None:
    with (
        pytest.raises(UsageError, match=r"^remote '.*' is a directory, expected the path of a UNIX socket$"),
        Proxy(str(folder)),
    ):
        pass
    with Proxy(echo.name) as proxy:
        with pytest.raises(UsageError, match="is a directory"):
            proxy.upstream = str(folder)
        assert proxy.upstream == echo.name


# --- the command ---


def test_the_command(command: Callable[..., Command], echo: Echo, folder: Path) -> None:
    """Under its sandbox, at both ends; the line has the path."""
    first, second = folder / "first", folder / "second"
    inner = command("-b", str(first), echo.name)
    eventually(lambda: inner.stdout, TIMEOUT)
    assert inner.stdout == [f"Listening on {first}"]
    outer = command("-L", f"{second}:{first}", "-L", f"0:{first}")
    eventually(lambda: len(outer.stdout) == 2, TIMEOUT)
    assert outer.stdout[0] == f"Listening on {second} -> {first}"
    port = int(outer.stdout[1].split()[2].rpartition(":")[2])
    for _ in range(3):
        with connect_unix(second) as client, connect(("127.0.0.1", port)) as other:
            assert echoes(client)
            assert echoes(other)
    line = rf"New connection from unix:uid=\d+(,pid=\d+)? -> {re.escape(str(first))}"
    assert any(re.fullmatch(line, each) for each in outer.stdout)
    for process in outer, inner:
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert process.complaints == []


@linux
@pytest.mark.parametrize("option", ["auto", "off"])
def test_the_end_of_the_command(command: Callable[..., Command], echo: Echo, folder: Path, option: str) -> None:
    """Without the sandbox the file is removed. With it the command may not, says so under -d; the next start does."""
    path = folder / "s"
    for _ in range(2):
        process = command("-d", "--sandbox", option, "-b", str(path), echo.name)
        eventually(lambda process=process: process.stdout, TIMEOUT)
        with connect_unix(path) as client:
            assert echoes(client)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        left = [line for line in process.stderr if "left behind" in line]
        if path.exists():
            assert left == [f"warning: {path} is left behind (Permission denied): the next start takes it over"]
        else:
            assert left == []
    assert path.exists() or option == "off"


@linux
def test_what_a_unix_socket_has_not_is_not_asked_for(
    command: Callable[..., Command], folder: Path, tmp_path: Path
) -> None:
    """No call for an option of TCP or an address, not even one that fails."""
    with contextlib.closing(UnixUpstream(folder / "s")) as upstream:
        trace = tmp_path / "trace"
        wrapper = strace("-s", "0", "-e", "trace=setsockopt,getsockopt,connect,accept4", "-o", str(trace))
        process = command("-q", "--keepalive", "1", "-b", str(folder / "p"), upstream.name, wrapper=wrapper)
        eventually(lambda: process.stdout, TIMEOUT)
        with connect_unix(folder / "p") as client, upstream.accept() as peer:
            for _ in range(20):
                client.sendall(bytes(100_000))
                read_exactly(peer, 100_000)
                pause(0.1)  # longer than it takes until keepalive is set
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    text = trace.read_text()
    assert "SO_PEERCRED" in text
    assert "SOL_TCP" not in text
    assert [line for line in text.splitlines() if " = -1 " in line and "EAGAIN" not in line and "AF_UNIX" in line] == []


# --- the file ---


@linux
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, "0777", "0o620"])
def test_mode(umask: int, mode: int | str, folder: Path, echo: Echo, events: list[tcpproxy.Event]) -> None:
    """As asked for, whatever the umask is; a warning if all users may connect."""
    number = mode if isinstance(mode, int) else int(mode[-3:], 8)
    before = os.umask(umask)
    try:
        with Proxy(echo.name, bind=folder / "s", unix_mode=mode, on_event=events.append) as proxy:
            assert (folder / "s").stat().st_mode & 0o777 == number
            warned = [it.text for it in events if it.kind == "warning"]
            assert warned == [f"listening on {proxy.address}, which every user of this machine may reach"][: number & 2]
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


def test_the_file_is_removed(folder: Path, echo: Echo) -> None:
    """When nobody listens any more; the file of another server stays."""
    path = folder / "s"
    for stop in ("stop", "abort", "drain"):
        with Proxy(echo.name, bind=path) as proxy:
            assert path.is_socket()
            getattr(proxy, stop)()
            assert not path.exists()
    with Proxy(echo.name, bind=path):
        path.unlink()
        path.write_text("another one's")
    assert path.read_text() == "another one's"


def test_a_start_that_fails_leaves_no_file(folder: Path, echo: Echo) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        forwards = [f"{folder}/s:{echo.name}", f"{taken.getsockname()[1]}:{echo.name}"]
        before = descriptors()
        with pytest.raises(tcpproxy.StartError):
            Proxy(forwards=forwards).start()
    assert os.listdir(folder) == []
    assert descriptors() == before - 1


def test_a_file_left_behind(folder: Path, echo: Echo) -> None:
    """The file of a server that was killed is replaced."""
    path = folder / "s"
    UnixUpstream(path).close()
    assert path.is_socket()
    with Proxy(echo.name, bind=path), connect_unix(path) as client:
        assert echoes(client)


@pytest.mark.parametrize("full", [False, True])
def test_a_file_in_use(folder: Path, echo: Echo, full: bool) -> None:
    """It is not replaced, even if the backlog of its server is full; the server sees one connection at most."""
    path = folder / "s"
    with (
        contextlib.closing(UnixUpstream(path, backlog=0 if full else 128)) as upstream,
        connect_unix(path) if full else contextlib.nullcontext(),
    ):
        with pytest.raises(tcpproxy.StartError, match=rf"^cannot listen on {path}: Address already in use$"):
            Proxy(echo.name, bind=path).start()
        upstream.accept().close()
    path.unlink()


OTHER_USER = """
import os, sys, tcpproxy
tcpproxy.Proxy(sys.argv[2], bind=sys.argv[1] + "0").start().stop()  # imports all, which the other user may not
if os.geteuid() == 0:
    os.seteuid(65534)
with tcpproxy.Proxy(sys.argv[2], bind=sys.argv[1]) as proxy:
    print(proxy.address)
"""


def test_a_folder_that_may_be_written_and_not_read(folder: Path, echo: Echo) -> None:
    """It cannot be locked; the file is made all the same, and removed."""
    folder.chmod(0o1733 if os.geteuid() == 0 else 0o300)
    argv = [sys.executable, "-c", OTHER_USER, str(folder / "s"), echo.name]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", check=False)
    folder.chmod(0o700)
    assert (done.stdout, done.stderr, done.returncode) == (f"{folder}/s\n", "", 0)
    assert os.listdir(folder) == []


def test_one_file_for_two_forwards(folder: Path, echo: Echo) -> None:
    """By two paths: what does not listen yet is not the file of a server that has ended."""
    one, other = str(folder / "s"), f"{folder}/./s"
    with pytest.raises(StartError, match=rf"^cannot listen on {other} for '.*': Address already in use$"):
        Proxy(forwards=[f"{one}:{echo.name}", f"{other}:{echo.name}"]).start()
    assert os.listdir(folder) == []


@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_what_is_no_socket(folder: Path, echo: Echo, what: str) -> None:
    """Is left alone."""
    path = folder / "s"
    if what == "file":
        path.write_text("precious")
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to(folder / "nothing")
    with pytest.raises(tcpproxy.StartError, match=rf"^cannot listen on {path}: what is there is no socket$"):
        Proxy(echo.name, bind=path).start()
    assert os.path.lexists(path)
    assert what != "file" or path.read_text() == "precious"


def test_no_such_folder(folder: Path, echo: Echo) -> None:
    with pytest.raises(tcpproxy.StartError, match=rf"^cannot listen on {folder}/no/s: No such file or directory$"):
        Proxy(echo.name, bind=folder / "no/s").start()


def test_a_start_amid_another(folder: Path, echo: Echo) -> None:
    """It waits while another start has bound the path and does not listen yet: the file looks like one left behind."""
    path = folder / "s"
    folders = Folders()
    port = UnixPort(parse_forward("forwards", f"{path}:{echo.name}"), 0o600, folders)
    refused: list[str] = []

    def start() -> None:
        try:
            Proxy(echo.name, bind=path).start().stop()
        except tcpproxy.StartError as error:
            refused.append(str(error))

    with in_background(start):
        pause(0.3)
        assert not refused
        (listener,) = port.listen()
        folders.close()
    with listener:
        assert refused == [f"cannot listen on {path}: Address already in use"]
        connect_unix(path).close()
    port.close()


STARTER = """
import sys, tcpproxy
sys.stdin.readline()
try:
    proxy = tcpproxy.Proxy(sys.argv[2], bind=sys.argv[1]).start()
except tcpproxy.StartError as error:
    print("refused", error, flush=True)
else:
    print("listens", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("left", [False, True])
def test_two_starts_at_once(folder: Path, echo: Echo, left: bool) -> None:
    """One of them gets the path, and keeps it; whether a file was left behind or not."""
    path = folder / "s"
    for _ in range(5):
        if left:
            UnixUpstream(path).close()
        with contextlib.ExitStack() as stack:
            argv = [sys.executable, "-c", STARTER, str(path), echo.name]
            starters = []
            for _ in range(4):
                starter = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")
                stack.callback(starter.wait, TIMEOUT)
                stack.callback(starter.communicate)
                starters.append(starter)
            for starter in starters:
                starter.stdin.write("\n")  # type: ignore[union-attr]
                starter.stdin.flush()  # type: ignore[union-attr]
            said = [starter.stdout.readline().split()[0] for starter in starters]  # type: ignore[union-attr]
            assert sorted(said) == ["listens", "refused", "refused", "refused"]
            with connect_unix(path) as client:
                assert echoes(client)
        assert not path.exists() or path.unlink() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_child_leaves_the_file(folder: Path, echo: Echo) -> None:
    path = folder / "s"
    with Proxy(echo.name, bind=path) as proxy:
        if (child := os.fork()) == 0:
            proxy.stop()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        with connect_unix(path) as client:
            assert echoes(client)
    assert not path.exists()


def test_many_connections(make_pairs: Callable[..., Pairs]) -> None:
    """Come and go, with two workers; nothing is left."""
    pair = make_pairs(workers=2)
    before = descriptors()

    def serve() -> None:
        for _ in range(300):
            client, server = pair()
            with client, server:
                client.sendall(b"x")
                assert read_exactly(server, 1) == b"x"

    with in_background(serve):
        pass
    pair.proxy.wait_for(ended=300, active=0, timeout=TIMEOUT)
    eventually(lambda: descriptors() == before)
