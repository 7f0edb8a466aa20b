"""Upstream's name: answers that change, servers that are dead, and clients that wait meanwhile.

The command runs in a mount namespace of its own, where /etc/resolv.conf names a DNS server that belongs to the test.
The network is the machine's own, so that the test's peers are ordinary sockets on loopback.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.command import Command
from support.machine import allow_descriptors
from support.peers import Serving, connect, free_port
from support.streams import read_all, read_exactly
from support.waiting import TIMEOUT, eventually

NAME = "upstream.test"
A, AAAA = 1, 28
SERVFAIL, NXDOMAIN = 2, 3
FRESH = 5.0
"""Seconds for which an answer may serve new connections."""

ENTER = """
for name in resolv.conf hosts nsswitch.conf; do
    if [ -e "/etc/$name" ]; then mount --bind "$0/$name" "/etc/$name" || exit 125; fi
done
exec "$@"
"""


class Nameserver:
    """A DNS server on a loopback address of its own. It knows one name, and can refuse, hold back or ignore queries."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        """What the name means, IPv4 and IPv6. Empty: there is no such name."""
        self.failing = False
        self.asked = 0
        """Look-ups of the name: queries for its IPv4 addresses, with repetitions."""
        self._listening = threading.Event()
        self._listening.set()
        self._held: list[tuple[bytes, tuple[str, int]]] = []
        self._lock = threading.Lock()
        self.socket, self.host = self._bind()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @staticmethod
    def _bind() -> tuple[socket.socket, str]:
        for attempt in range(20):
            host = f"127.53.{os.getpid() % 250 + 1}.{attempt + 1}"
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                udp.bind((host, 53))
            except OSError as error:
                udp.close()
                if error.errno != errno.EADDRINUSE:
                    pytest.skip(f"a DNS server on port 53 is not possible here: {error}")
            else:
                return udp, host
        pytest.skip("port 53 is taken on every address")

    def hold(self) -> None:
        """Answers nothing from now on; what is asked is kept."""
        self._listening.clear()

    @property
    def held(self) -> int:
        """Queries that wait for their answer."""
        with self._lock:
            return len(self._held)

    def release(self) -> None:
        """Answers what was held back, and everything from now on."""
        with self._lock:
            self._listening.set()
            held, self._held = self._held, []
        for query, client in held:
            self.socket.sendto(self._answer(query), client)

    def _serve(self) -> None:
        while True:
            query, client = self.socket.recvfrom(4096)
            if len(query) < 12:  # how close() says that it is over
                return
            if self._kind(query) == (NAME, A):
                self.asked += 1
            with self._lock:
                if not self._listening.is_set():
                    self._held.append((query, client))
                    continue
            self.socket.sendto(self._answer(query), client)

    @staticmethod
    def _kind(query: bytes) -> tuple[str, int]:
        labels, at = [], 12
        while size := query[at]:
            labels.append(query[at + 1 : at + 1 + size].decode())
            at += 1 + size
        return ".".join(labels), struct.unpack_from("!H", query, at + 1)[0]

    def _answer(self, query: bytes) -> bytes:
        name, kind = self._kind(query)
        question = query[12 : query.index(b"\0", 12) + 5]
        family = socket.AF_INET6 if kind == AAAA else socket.AF_INET
        known = self.addresses if name == NAME and not self.failing else []
        raw = [socket.inet_pton(family, it) for it in known if (":" in it) == (kind == AAAA) and kind in (A, AAAA)]
        code = SERVFAIL if self.failing else 0 if known else NXDOMAIN
        # The name of each answer is a pointer to the question's; a time to live of 0, so that nobody keeps it.
        answers = b"".join(b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 0, len(it)) + it for it in raw)
        return query[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, len(raw), 0, 0) + question + answers

    def close(self) -> None:
        with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as last:
            last.sendto(b"end", (self.host, 53))
        self._thread.join(TIMEOUT)
        self.socket.close()


class Greeter(Serving):
    """Says its name to whoever connects, then sends everything back. Its address is 127.0.0.`number`."""

    def __init__(self, number: int, port: int = 0) -> None:
        self.greeting = b"%d\n" % number
        super().__init__(f"127.0.0.{number}", port)

    def serve(self, connection: socket.socket) -> None:
        connection.sendall(self.greeting)
        while data := connection.recv(65536):
            connection.sendall(data)


@pytest.fixture
def nameserver(stack: contextlib.ExitStack) -> Nameserver:
    return stack.enter_context(contextlib.closing(Nameserver()))


@pytest.fixture
def greeters(stack: contextlib.ExitStack) -> tuple[Greeter, Greeter]:
    """Two upstreams on one port: 127.0.0.2 and 127.0.0.3."""
    two = stack.enter_context(contextlib.closing(Greeter(2, free_port())))
    return two, stack.enter_context(contextlib.closing(Greeter(3, two.port)))


@pytest.fixture
def wrapper(nameserver: Nameserver, tmp_path: Path) -> tuple[str, ...]:
    """Runs a command where names are asked of the test's server, and of nobody else.

    One attempt of 30 seconds: a server that does not answer keeps a look-up for longer than any test lasts.
    """
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed")
    (tmp_path / "resolv.conf").write_text(f"nameserver {nameserver.host}\noptions timeout:30 attempts:1\nsearch .\n")
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (tmp_path / "nsswitch.conf").write_text("hosts: files dns\n")
    wrapper = ("unshare", "--mount", "sh", "-c", ENTER, str(tmp_path))
    trial = subprocess.run([*wrapper, "true"], capture_output=True, text=True)
    if trial.returncode:
        pytest.skip(f"no mount namespace here: {trial.stderr.strip()}")
    return wrapper


@pytest.fixture
def start(command: Callable[..., Command], wrapper: tuple[str, ...]) -> Callable[..., Command]:
    """Starts the command for NAME and a port."""

    def start(port: int, *args: str) -> Command:
        return command(*args, f"{NAME}:{port}", wrapper=wrapper)

    return start


@contextlib.contextmanager
def client(proxy: Command) -> Iterator[socket.socket]:
    with connect(proxy.address) as connection:
        yield connection


def greeting(proxy: Command) -> bytes:
    """Who answers a new connection; nobody: b""."""
    with contextlib.suppress(ConnectionResetError), client(proxy) as connection:
        return connection.recv(10)
    return b""


def says(lines: list[str], text: str) -> int:
    return sum(text in line for line in lines)


def until_stale(proxy: Command, nameserver: Nameserver) -> None:
    """Connects until that makes the proxy ask again, because its answer has become too old."""
    asked = nameserver.asked

    def again() -> bool:
        with client(proxy):
            return nameserver.asked > asked

    eventually(again, FRESH + 5, "the proxy does not ask again")


@pytest.mark.parametrize("workers", [1, 2])
def test_changed_answer(
    start: Callable[..., Command], nameserver: Nameserver, greeters: tuple[Greeter, Greeter], workers: int
) -> None:
    """Row 91: the next connection goes where the name points now, 5 seconds later at most; live ones stay."""
    old, new = greeters
    nameserver.addresses = [old.host]
    proxy = start(old.port, "--workers", str(workers))
    with client(proxy) as early:
        assert read_exactly(early, 2) == old.greeting
        nameserver.addresses = [new.host]
        changed = time.monotonic()
        while (answer := greeting(proxy)) == old.greeting:
            assert time.monotonic() - changed < 2 * FRESH, "the old answer is used for too long"
        assert answer == new.greeting
        assert {greeting(proxy) for _ in range(10 * workers)} == {new.greeting}
        early.sendall(b"still there?")
        assert read_exactly(early, 12) == b"still there?"


def test_files_of_the_system_change(
    start: Callable[..., Command],
    nameserver: Nameserver,
    greeters: tuple[Greeter, Greeter],
    stack: contextlib.ExitStack,
    tmp_path: Path,
) -> None:
    """Row 91: another DNS server, then an entry in /etc/hosts: a running command goes by them without a restart."""
    other = stack.enter_context(contextlib.closing(Nameserver()))
    nameserver.addresses, other.addresses = [greeters[0].host], [greeters[1].host]
    proxy = start(greeters[0].port)
    assert greeting(proxy) == greeters[0].greeting
    (tmp_path / "resolv.conf").write_text(f"nameserver {other.host}\n")
    eventually(lambda: greeting(proxy) == greeters[1].greeting, FRESH + TIMEOUT)
    (tmp_path / "hosts").write_text(f"{greeters[0].host} {NAME}\n")
    eventually(lambda: greeting(proxy) == greeters[0].greeting, FRESH + TIMEOUT)
    assert proxy.complaints == []


def test_answer_serves_many_connections(
    start: Callable[..., Command], nameserver: Nameserver, greeters: tuple[Greeter, Greeter]
) -> None:
    """Rows 91, 92: connections in quick succession share one look-up."""
    nameserver.addresses = [greeters[0].host]
    proxy = start(greeters[0].port, "--workers", "2")
    began = time.monotonic()
    for _ in range(50):
        assert greeting(proxy) == greeters[0].greeting
    # One at the start; as many more as the 50 connections took times 5 seconds, for each worker at most.
    assert nameserver.asked <= 1 + 2 * int((time.monotonic() - began) / FRESH + 1)


@pytest.mark.timeout(300)
def test_recent_answer_outlives_its_server(
    start: Callable[..., Command], nameserver: Nameserver, greeters: tuple[Greeter, Greeter]
) -> None:
    """Row 92: a good answer goes on being used while the server fails or is silent; then a new one is taken."""
    old, new = greeters
    nameserver.addresses = [old.host]
    proxy = start(old.port)
    with client(proxy) as early:
        assert read_exactly(early, 2) == old.greeting

        nameserver.failing = True
        until_stale(proxy, nameserver)
        asked = nameserver.asked
        while nameserver.asked < asked + 2:  # through more than one look-up that fails
            assert greeting(proxy) == old.greeting

        nameserver.failing = False
        nameserver.addresses = []  # an answer too: it says that there is no such name
        asked = nameserver.asked
        while nameserver.asked < asked + 2:
            assert greeting(proxy) == old.greeting

        nameserver.hold()
        until_stale(proxy, nameserver)
        for _ in range(5):
            began = time.monotonic()
            assert greeting(proxy) == old.greeting
            assert time.monotonic() - began < 5, "a silent server costs each connection too much"
        trips = []
        for _ in range(100):
            began = time.monotonic()
            early.sendall(b"ping")
            assert read_exactly(early, 4) == b"ping"
            trips.append(time.monotonic() - began)
        assert sorted(trips)[50] < 0.5, "a live relay feels the silent server"
        assert says(proxy.stderr, "Error") == 0

        nameserver.addresses = [new.host]
        nameserver.release()
        eventually(lambda: greeting(proxy) == new.greeting, FRESH + 5)


@pytest.mark.parametrize("workers", [1, 2])
def test_waiting_clients_share_a_look_up(
    start: Callable[..., Command], nameserver: Nameserver, greeters: tuple[Greeter, Greeter], workers: int
) -> None:
    """Row 92: queries are merged, and whoever waited is served by the one answer."""
    proxy = start(greeters[0].port, "--workers", str(workers))
    assert proxy.address
    nameserver.hold()
    nameserver.addresses = [greeters[0].host]
    asked = nameserver.asked
    with contextlib.ExitStack() as clients:
        waiting = [clients.enter_context(client(proxy)) for _ in range(20)]
        for number, connection in enumerate(waiting):
            connection.sendall(b"%4d" % number)  # before upstream is there: it must be kept
        eventually(lambda: says(proxy.stdout, "New connection") == 20)
        eventually(lambda: nameserver.asked > asked)
        nameserver.release()
        for number, connection in enumerate(waiting):
            assert read_exactly(connection, 6) == greeters[0].greeting + b"%4d" % number
    # A worker that asked while the other's question was under way may be told twice.
    assert nameserver.asked <= asked + workers


def test_waiting_clients_end_at_the_connect_timeout(start: Callable[..., Command], nameserver: Nameserver) -> None:
    """Row 92: no answer at all, from the start: clients are turned away in time, and one query was enough for them."""
    nameserver.hold()
    proxy = start(9, "--connect-timeout", "1s", "--workers", "2")
    assert proxy.address
    began = time.monotonic()
    with contextlib.ExitStack() as clients:
        waiting = [clients.enter_context(client(proxy)) for _ in range(8)]
        for connection in waiting:
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        assert 0.9 < time.monotonic() - began < 5
    message = "failed to lookup address information: no answer in time"
    eventually(lambda: says(proxy.stderr, message) == 8, what=str(proxy.stderr))
    assert nameserver.asked == 1
    assert says(proxy.stderr, f"warning: cannot resolve {NAME} (no answer within 2 s)") == 1


@pytest.mark.parametrize(
    ("percent", "bound"),
    [pytest.param(50, 0.5, id="loose"), pytest.param(99, 0.005, id="tight", marks=pytest.mark.timed)],
)
def test_live_relay_beside_clients_that_wait(
    start: Callable[..., Command],
    nameserver: Nameserver,
    greeters: tuple[Greeter, Greeter],
    percent: int,
    bound: float,
) -> None:
    """Row 92: round trips of a live relay while 600 clients wait for a server that is dead; then they are served."""
    allow_descriptors(3000)
    nameserver.addresses = [greeters[0].host]
    proxy = start(greeters[0].port, "--workers", "2")
    with contextlib.ExitStack() as clients:
        early = clients.enter_context(client(proxy))
        early.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert read_exactly(early, 2) == greeters[0].greeting
        nameserver.hold()
        until_stale(proxy, nameserver)
        answers = select.poll()
        waiting = [clients.enter_context(socket.socket()) for _ in range(600)]
        for connection in waiting:
            connection.setblocking(False)
            connection.connect_ex(proxy.address)
            answers.register(connection, select.POLLIN)
        trips = []
        while not trips or not answers.poll(0):
            began = time.monotonic()
            early.sendall(b"ping")
            assert read_exactly(early, 4) == b"ping"
            trips.append(time.monotonic() - began)
        assert sorted(trips)[len(trips) * percent // 100] < bound
        for connection in waiting:
            connection.settimeout(TIMEOUT)
            assert read_exactly(connection, 2) == greeters[0].greeting


def test_unresolved_at_start(
    start: Callable[..., Command], nameserver: Nameserver, greeters: tuple[Greeter, Greeter]
) -> None:
    """Rows 91, 92: a name that does not exist yet is a warning; clients are turned away at once until it does."""
    proxy = start(greeters[0].port)
    began = time.monotonic()
    assert greeting(proxy) == b""
    assert greeting(proxy) == b""
    assert time.monotonic() - began < 5
    eventually(lambda: says(proxy.stderr, "failed to lookup address information: ") == 2, what=str(proxy.stderr))
    assert says(proxy.stderr, f"warning: cannot resolve {NAME} (") == 1
    nameserver.addresses = [greeters[0].host]
    assert greeting(proxy) == greeters[0].greeting


def test_client_that_leaves_while_its_name_is_looked_up(
    start: Callable[..., Command], nameserver: Nameserver, greeters: tuple[Greeter, Greeter]
) -> None:
    """Rows 45, 92: it is gone, and those who stayed are served."""
    proxy = start(greeters[0].port, "-d")
    assert proxy.address
    nameserver.hold()
    asked = nameserver.asked
    with client(proxy) as staying:
        eventually(lambda: nameserver.asked > asked)
        for _ in range(3):
            with client(proxy):
                pass
        eventually(lambda: says(proxy.stdout, "New connection") == 4)
        nameserver.addresses = [greeters[0].host]
        nameserver.release()
        assert read_exactly(staying, 2) == greeters[0].greeting
    assert greeting(proxy) == greeters[0].greeting


def test_both_families(
    start: Callable[..., Command], nameserver: Nameserver, greeters: tuple[Greeter, Greeter]
) -> None:
    """Rows 44, 91: a name with addresses of both families, of which one is dead."""
    nameserver.addresses = ["::1", greeters[0].host]
    proxy = start(greeters[0].port)
    assert greeting(proxy) == greeters[0].greeting


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_during_a_look_up(start: Callable[..., Command], nameserver: Nameserver, number: signal.Signals) -> None:
    """Rows 92, 97: a look-up that hangs holds up no end."""
    proxy = start(9, "--grace", "0")
    assert proxy.address
    nameserver.hold()
    asked = nameserver.asked
    with client(proxy) as waiting:
        eventually(lambda: nameserver.asked > asked)
        began = time.monotonic()
        proxy.signal(number)
        assert proxy.wait() == 0
        assert time.monotonic() - began < 5
        with contextlib.suppress(ConnectionResetError):
            assert read_all(waiting) == b""
    assert says(proxy.stderr, "Traceback") == 0


def test_name_to_listen_on(
    command: Callable[..., Command],
    wrapper: tuple[str, ...],
    nameserver: Nameserver,
    greeters: tuple[Greeter, Greeter],
) -> None:
    """Row 94: `--bind NAME` listens on every address of the name, on one port; no such name is an error."""
    target = f"{greeters[0].host}:{greeters[0].port}"
    nowhere = command("-b", NAME, target, wrapper=wrapper)
    assert nowhere.wait() == 1
    assert nowhere.stdout == []
    assert len(nowhere.stderr) == 1
    assert nowhere.stderr[0].startswith(f"tcpproxy: cannot listen on {NAME}: ")

    nameserver.addresses = ["127.0.0.4", "127.0.0.5", "::1"]
    proxy = command("-b", NAME, target, wrapper=wrapper)
    port = proxy.address[1]
    eventually(lambda: len(proxy.stdout) == 3)
    assert sorted(proxy.stdout) == [
        f"Listening on 127.0.0.4:{port}",
        f"Listening on 127.0.0.5:{port}",
        f"Listening on [::1]:{port}",
    ]
    for host in nameserver.addresses:
        with connect((host, port)) as connection:
            assert read_exactly(connection, 2) == greeters[0].greeting


@pytest.mark.parametrize("args", [(f"{NAME}:80",), ("-b", NAME, "127.0.0.1:80")], ids=["remote", "bind"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_first_lookup(
    command: Callable[..., Command],
    wrapper: tuple[str, ...],
    nameserver: Nameserver,
    number: signal.Signals,
    args: tuple[str, ...],
) -> None:
    """It ends the start at once: nothing listens, and nothing says so."""
    nameserver.hold()
    proxy = command(*args, wrapper=wrapper)
    eventually(lambda: nameserver.held, TIMEOUT, "the name is not looked up")
    start = time.monotonic()
    proxy.signal(number)
    assert proxy.wait() == 0
    assert time.monotonic() - start < 1.5, "it waited for the lookup"
    assert (proxy.stdout, proxy.stderr) == ([], [])
