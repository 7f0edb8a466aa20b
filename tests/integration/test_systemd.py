"""Under a service manager: passed sockets, notifications, the watchdog, the descriptor store."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import Command, strace
from support.machine import needs
from support.manager import Manager, passing
from support.peers import Echo, connect, free_port, relays
from support.streams import echoes
from support.stuck import stuck
from support.waiting import TIMEOUT, eventually, pause

from tcpproxy.network.listening import known_places

if os.name == "nt":
    pytest.skip("no descriptors are passed here, and no UNIX sockets exist", allow_module_level=True)

Start = Callable[..., Command]


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, stack: contextlib.ExitStack) -> Manager:
    abstract = request.param == "abstract"
    if abstract and sys.platform != "linux":
        pytest.skip("no abstract UNIX sockets here")
    address = f"@tcpproxy-test-{tmp_path.name}-{os.getpid()}" if abstract else str(tmp_path / "notify")
    return stack.enter_context(contextlib.closing(Manager(address)))


@pytest.fixture
def listener(stack: contextlib.ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_server(("127.0.0.1", 0)))


def environment(manager: Manager, **more: str) -> dict[str, str]:
    return {**os.environ, **manager.environ, **more}


# --- sockets ---


@pytest.mark.parametrize("names", [True, False], ids=["named", "nameless"])
def test_sockets_that_are_passed_are_used(command: Start, echo: Echo, names: bool, stack: contextlib.ExitStack) -> None:
    """All of them, of both families, and nothing else is listened on."""
    listeners = [
        stack.enter_context(socket.create_server(("127.0.0.1", 0))),
        stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6)),
    ]
    given = dict(zip(("web", "v6"), listeners, strict=True)) if names else listeners
    process = command(echo.name, **passing(given))  # type: ignore[arg-type]
    for each in listeners:
        assert relays(each.getsockname()[:2])
    eventually(lambda: len(process.stdout) == 4)
    here = [f"127.0.0.1:{listeners[0].getsockname()[1]}", f"[::1]:{listeners[1].getsockname()[1]}"]
    assert [line for line in process.stdout if line.startswith("Listening")] == [
        f"Listening on {each}" for each in here
    ]
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.complaints == []


def test_a_client_between_two_processes_waits_and_is_served(
    command: Start, echo: Echo, listener: socket.socket
) -> None:
    """Row 105: the socket stays open, so that nobody is refused while nothing runs."""
    address = listener.getsockname()
    for _ in range(2):
        with connect(address) as waiting:
            process = command(echo.name, **passing([listener]))
            assert echoes(waiting)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_one_drains_and_another_one_accepts(command: Start, echo: Echo, listener: socket.socket) -> None:
    """Row 105: two processes on one socket: no client of the one that stops is reset, and it gets no new one."""
    address = listener.getsockname()
    old = command(echo.name, "--grace", "1h", **passing([listener]))
    with connect(address) as before:
        assert echoes(before)
        new = command(echo.name, **passing([listener]))
        assert new.address == address
        old.signal(signal.SIGTERM)
        eventually(lambda: old.stderr)
        for _ in range(10):
            assert relays(address)
        assert echoes(before)
        eventually(lambda: len(new.stdout) == 11)
        assert len(old.stdout) == 2
    assert old.wait() == 0


def test_a_socket_that_others_have_never_blocks(
    command: Start, echo: Echo, listener: socket.socket, tmp_path: Path
) -> None:
    """Not for a moment: accept() of another process would wait for a client, and its connections with it."""
    trace = tmp_path / "trace"
    given = passing([listener])
    given["wrapper"] = (*strace("-yy", "-e", "trace=ioctl,fcntl", "-o", str(trace)), *given["wrapper"])  # type: ignore[misc]
    os.set_blocking(listener.fileno(), False)
    process = command(echo.name, **given)
    assert relays(process.address)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    about = [line for line in trace.read_text().splitlines() if f":{listener.getsockname()[1]}]" in line]
    assert any("FIONBIO, [1]" in line for line in about)
    assert [line for line in about if "FIONBIO, [0]" in line or ("F_SETFL" in line and "O_NONBLOCK" not in line)] == []


def test_activated_by_systemds_own_program(command: Start, echo: Echo) -> None:
    needs("systemd-socket-activate")
    port = free_port()
    process = command(echo.name, wrapper=("systemd-socket-activate", "-l", f"127.0.0.1:{port}"))

    def served() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            return relays(("127.0.0.1", port))
        return False

    eventually(served, TIMEOUT)
    assert process.address == ("127.0.0.1", port)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


@pytest.mark.parametrize("environ", [{}, {"LISTEN_FDS": "x"}, {"LISTEN_FDS": ""}, {"LISTEN_FDS": "0"}], ids=str)
def test_what_is_for_another_process_or_no_number_is_ignored(
    command: Start, echo: Echo, listener: socket.socket, environ: dict[str, str]
) -> None:
    process = command(echo.name, **passing([listener], pid_off_by=0 if environ else 1, **environ))
    assert process.address != listener.getsockname()
    assert relays(process.address)
    if environ:
        assert process.complaints == []
        return
    eventually(lambda: process.stderr)
    (warning,) = process.stderr
    other, own = map(int, re.findall(r"\d{2,}", warning))
    whose = f"LISTEN_PID is '{other}' and this is process {own}"
    assert warning == f"warning: 1 passed socket not used: {whose}; start tcpproxy directly, or by exec"
    assert other == own + 1


def test_sockets_for_nobody(command: Start, echo: Echo) -> None:
    """LISTEN_FDS was given by hand, without the number of a process."""
    process = command(echo.name, wrapper=("env", "-u", "LISTEN_PID", "LISTEN_FDS=2"))
    assert relays(process.address)
    eventually(lambda: process.stderr)
    text = "2 passed sockets not used: there is no LISTEN_PID; start tcpproxy directly, or by exec"
    assert process.stderr == [f"warning: {text}"]


def datagrams(stack: contextlib.ExitStack) -> socket.socket:
    return stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))


def unbound(stack: contextlib.ExitStack) -> socket.socket:
    return stack.enter_context(socket.socket())


def connection(stack: contextlib.ExitStack) -> socket.socket:
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    stack.enter_context(socket.create_connection(server.getsockname()))
    return stack.enter_context(server.accept()[0])


def unix(stack: contextlib.ExitStack) -> socket.socket:
    return stack.enter_context(socket.socketpair()[0])


def netlink(stack: contextlib.ExitStack) -> socket.socket:
    if not hasattr(socket, "AF_NETLINK"):
        pytest.skip("no such family here")
    return stack.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))


EXPECTED = "expected a listening TCP or UNIX socket"


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (datagrams, f"is a UDP socket, {EXPECTED}"),
        (unbound, f"does not listen, {EXPECTED}"),
        (connection, f"is a connection (of a socket unit with Accept=yes?), {EXPECTED}"),
        (unix, f"is a connection (of a socket unit with Accept=yes?), {EXPECTED}"),
        (netlink, f"is a socket of family 16, {EXPECTED}"),
    ],
)
def test_a_socket_that_is_no_listener(
    command: Start, echo: Echo, make: Callable[..., socket.socket], problem: str, stack: contextlib.ExitStack
) -> None:
    process = command(echo.name, **passing([make(stack)]))
    assert process.wait() == 2
    assert process.stderr == [f"tcpproxy: descriptor 3, passed by systemd, {problem}"]
    assert process.stdout == []


def test_a_descriptor_that_is_no_socket(command: Start, echo: Echo, listener: socket.socket) -> None:
    process = command(echo.name, **passing([listener], LISTEN_FDS="2"))
    assert process.wait() == 2
    assert process.stderr == [f"tcpproxy: descriptor 4, passed by systemd, is no socket, {EXPECTED}"]


def test_too_many_sockets(command: Start, echo: Echo, listener: socket.socket) -> None:
    process = command(echo.name, **passing([listener] * 17))
    assert process.wait() == 2
    assert process.stderr == ["tcpproxy: 17 sockets are given, expected at most 16"]


@pytest.mark.parametrize("option", [("-l", "0"), ("-b", "127.0.0.1")], ids=" ".join)
def test_sockets_and_a_place_to_listen(
    command: Start, echo: Echo, listener: socket.socket, option: tuple[str, str]
) -> None:
    process = command(*option, echo.name, **passing([listener]))
    assert process.wait() == 2
    name = "--local-port" if "-l" in option else "--bind"
    text = f"systemd passes sockets to listen on and {name} is given, expected one of them: remove {name}"
    assert process.stderr == [f"tcpproxy: {text}, or the socket unit"]


# --- what systemd is told ---


def test_ready_and_stopping(command: Start, echo: Echo, manager: Manager) -> None:
    """READY when clients can connect and the sandbox has been entered; STOPPING with what it waits for."""
    process = command("--grace", "1h", echo.name, env=environment(manager))
    ready = manager.told("READY")
    host, port = process.address
    assert ready == {"READY": "1", "STATUS": f"Listening on {host}:{port}, forwarding to {echo.name}"}
    with connect(process.address) as client:
        assert echoes(client)
        process.signal(signal.SIGTERM)
        stopping = manager.told("STOPPING")
        assert stopping["STATUS"] == "Waiting for 1 connection to end, 3600 s at most"
        assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 10_000_000
        assert echoes(client)
    assert process.wait() == 0
    assert process.complaints == []
    assert manager.count("WATCHDOG") == manager.count("FDSTORE") == 0


def test_stopping_without_connections(command: Start, echo: Echo, manager: Manager) -> None:
    process = command(echo.name, env=environment(manager))
    manager.told("READY")
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert manager.told("STOPPING") == {"STOPPING": "1", "STATUS": "Stopping"}


@pytest.mark.timeout(120)
def test_a_long_grace_is_extended_again_and_again(command: Start, echo: Echo, manager: Manager) -> None:
    process = command("--grace", "1h", echo.name, env=environment(manager))
    with connect(process.address) as client:
        assert echoes(client)
        manager.told("READY")
        process.signal(signal.SIGTERM)
        eventually(lambda: manager.count("EXTEND_TIMEOUT_USEC") == 2, TIMEOUT)
        assert manager.count("STOPPING") == 1
    assert process.wait() == 0


def test_a_start_that_fails(command: Start, echo: Echo, manager: Manager, listener: socket.socket) -> None:
    process = command("-l", str(listener.getsockname()[1]), echo.name, env=environment(manager))
    assert process.wait() == 1
    message = manager.told("ERRNO")
    assert message["ERRNO"] == str(errno.EADDRINUSE)
    assert process.stderr == [f"tcpproxy: {message['STATUS']}"]
    assert manager.count("READY") == 0


@pytest.mark.parametrize(
    "place", ["/nowhere/notify", "vsock:2:1234", "relative", "/" + "x" * 200], ids=lambda it: it[:9]
)
def test_nobody_listens_to_it(command: Start, echo: Echo, place: str) -> None:
    process = command(echo.name, env={**os.environ, "NOTIFY_SOCKET": place, "WATCHDOG_USEC": "1000"})
    assert relays(process.address)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.complaints == []


class Deaf:
    """A socket for messages that is full, and that nobody reads until `read`.

    Args:
        path: its address.
    """

    def __init__(self, path: Path) -> None:
        self.environ = {**os.environ, "NOTIFY_SOCKET": str(path)}
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._path)
        self._socket.settimeout(TIMEOUT)

    def fill(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sender.sendto(b"x", self._path)

    def read(self, until: bytes) -> None:
        while until not in self._socket.recv(4096):
            pass

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def deaf(tmp_path: Path, stack: contextlib.ExitStack) -> Deaf:
    return stack.enter_context(contextlib.closing(Deaf(tmp_path / "notify")))


def test_a_full_queue_delays_no_stop(command: Start, echo: Echo, deaf: Deaf) -> None:
    """Whether it is full at the stop, or already at the start."""
    for is_full in (False, True):
        process = command(echo.name, env=deaf.environ)
        if not is_full:
            deaf.read(b"READY=1")
            deaf.fill()
        assert relays(process.address)
        since = time.monotonic()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert time.monotonic() - since < 4


def test_messages_wait_for_room(command: Start, echo: Echo, deaf: Deaf) -> None:
    """Those that systemd waits for: it would end a service that never says that it is ready."""
    deaf.fill()
    process = command("--grace", "1h", echo.name, env={**deaf.environ, "WATCHDOG_USEC": "200000"})
    with connect(process.address) as client:
        assert echoes(client)
        deaf.read(b"READY=1")
        deaf.read(b"WATCHDOG=1")
        deaf.fill()
        process.signal(signal.SIGTERM)
        assert echoes(client)
        deaf.read(b"STOPPING=1")
        deaf.read(b"WATCHDOG=1")
    assert process.wait() == 0


# --- the watchdog ---


@pytest.mark.parametrize("how_many", [1, 2], ids=["1worker", "2workers"])
def test_the_watchdog_hears_of_a_worker_that_is_stuck(
    command: Start, echo: Echo, manager: Manager, how_many: int
) -> None:
    """It is notified while all workers answer, also idle ones. If one is stuck it is not."""
    process = command(
        "--workers", str(how_many), echo.name, env=environment(manager, WATCHDOG_USEC="400000", WATCHDOG_PID="")
    )
    assert relays(process.address)
    eventually(lambda: manager.count("WATCHDOG") >= 5, TIMEOUT)
    with stuck(process.process.pid):
        pause(0.5)  # one may be on its way
        before = manager.count("WATCHDOG")
        pause(1.0)
        assert manager.count("WATCHDOG") == before
    eventually(lambda: manager.count("WATCHDOG") >= before + 5, TIMEOUT)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def test_a_watchdog_with_a_period_of_centuries(command: Start, echo: Echo, manager: Manager) -> None:
    """No wait of Python can take it."""
    process = command(echo.name, env=environment(manager, WATCHDOG_USEC="9" * 18))
    manager.told("WATCHDOG")
    assert relays(process.address)
    process.signal(signal.SIGTERM)
    manager.told("STOPPING")
    assert process.wait() == 0
    assert process.complaints == []


def test_a_watchdog_with_a_period_of_microseconds(command: Start, echo: Echo, manager: Manager) -> None:
    """The process stays idle, and says why systemd will end it."""
    process = command(echo.name, env=environment(manager, WATCHDOG_USEC="1"))
    manager.told("READY")
    eventually(lambda: process.stderr)
    assert process.stderr == [
        "warning: WATCHDOG_USEC is 1, expected at least 200000: systemd is told 20 times a second"
    ]
    before = manager.count("WATCHDOG")
    pause(1.0)
    assert 1 <= manager.count("WATCHDOG") - before <= 25


def test_the_watchdog_of_another_process(command: Start, echo: Echo, manager: Manager) -> None:
    process = command(echo.name, env=environment(manager, WATCHDOG_USEC="1000", WATCHDOG_PID="1"))
    assert relays(process.address)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    manager.told("STOPPING")
    assert manager.count("WATCHDOG") == 0


def test_the_watchdog_while_it_stops(command: Start, echo: Echo, manager: Manager) -> None:
    process = command("--grace", "1h", echo.name, env=environment(manager, WATCHDOG_USEC="200000"))
    with connect(process.address) as client:
        assert echoes(client)
        manager.told("READY")
        process.signal(signal.SIGTERM)
        manager.told("STOPPING")
        before = manager.count("WATCHDOG")
        eventually(lambda: manager.count("WATCHDOG") >= before + 5, TIMEOUT)
    assert process.wait() == 0


def test_a_log_that_nobody_reads_does_not_stop_the_watchdog(command: Start, echo: Echo, manager: Manager) -> None:
    reader, writer = os.pipe()
    process = command("-d", echo.name, env=environment(manager, WATCHDOG_USEC="200000"), stdout=writer, stderr=writer)
    os.close(writer)
    first = b""
    while b"\n" not in first:
        first += os.read(reader, 1)
    port = int(first.decode().rpartition(":")[2])
    for _ in range(500):  # more lines than a pipe holds
        assert relays(("127.0.0.1", port))
    before = manager.count("WATCHDOG")
    eventually(lambda: manager.count("WATCHDOG") >= before + 5, TIMEOUT)
    os.close(reader)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


# --- the store of descriptors ---


@pytest.mark.parametrize("bind", ["127.0.0.1", "localhost"])
def test_the_store_keeps_listeners_for_the_next_start(command: Start, echo: Echo, manager: Manager, bind: str) -> None:
    """Row 105: a client that comes between two processes waits, also of one that was killed."""
    options = ("-b", bind, "-l", str(free_port()), echo.name)
    process = command(*options, env=environment(manager, FDSTORE="16"))
    address = process.address
    manager.told("READY")
    addresses = len(manager.store)
    assert addresses == (1 if bind == "127.0.0.1" or not socket.has_ipv6 else 2)
    for end in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        process.signal(end)
        process.wait()
        with connect(address) as between:
            process = command(*options, **passing(manager.store, **manager.environ, FDSTORE="16"))
            assert echoes(between)
        assert process.address == address
        assert relays(address)
    assert manager.count("FDSTORE") == addresses, "what is in the store is not stored again"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems cannot let clients hang")
def test_a_fault_does_not_outlive_its_process_in_the_store(command: Start, echo: Echo, manager: Manager) -> None:
    options = ("-l", str(free_port()), echo.name)
    process = command("--fault", "hang", *options, env=environment(manager, FDSTORE="16"))
    manager.told("READY")
    process.process.kill()
    process.wait()
    process = command(*options, **passing(manager.store, **manager.environ, FDSTORE="16"))
    assert relays(process.address)


@pytest.mark.parametrize("change", ["port", "bind", "part"])
def test_what_is_in_the_store_and_not_wanted_is_taken_out(
    command: Start, echo: Echo, manager: Manager, change: str
) -> None:
    """Before the proxy listens: 0.0.0.0 could not be listened on while 127.0.0.1 is."""
    port = free_port()
    bind = "localhost" if change == "part" else "127.0.0.1"
    process = command("-b", bind, "-l", str(port), echo.name, env=environment(manager, FDSTORE="16"))
    manager.told("READY")
    process.signal(signal.SIGTERM)
    process.wait()
    stored = dict(manager.store)
    if change == "part":
        if len(stored) < 2:
            pytest.skip("localhost has one family here")
        stored = dict(list(stored.items())[:1])
        manager.store.pop(next(name for name in manager.store if name not in stored)).close()
    elif change == "port":
        port = free_port()
    else:
        bind = "0.0.0.0"
    manager.messages.clear()
    process = command("-b", bind, "-l", str(port), echo.name, **passing(stored, **manager.environ, FDSTORE="16"))
    manager.told("READY")
    assert manager.messages[0] == {"FDSTOREREMOVE": "1", "FDNAME": next(iter(stored))}
    assert process.address[1] == port
    assert relays(("127.0.0.1", port))
    assert set(manager.store) == {each["FDNAME"] for each in manager.messages if "FDSTORE" in each}


def test_two_of_one_name_in_the_store(
    command: Start, echo: Echo, manager: Manager, listener: socket.socket, stack: contextlib.ExitStack
) -> None:
    """Neither is used or kept open: who connected to it would wait for ever."""
    other, port = stack.enter_context(socket.create_server(("127.0.0.1", 0))), free_port()
    name = f"127.0.0.1 {port} 1 of 1".replace(":", ".")
    manager.store[name] = listener.dup()
    given = passing([listener, other], LISTEN_FDNAMES=f"{name}:{name}", **manager.environ, FDSTORE="16")
    process = command("-l", str(port), echo.name, **given)
    manager.told("READY")
    assert process.address == ("127.0.0.1", port)
    assert relays(process.address)
    assert manager.messages[0] == {"FDSTOREREMOVE": "1", "FDNAME": name}
    for each in (listener, other):
        place = each.getsockname()
        each.close()
        with pytest.raises(ConnectionRefusedError):
            connect(place)


@pytest.mark.parametrize(
    ("bind", "room", "stored"), [("127.0.0.1", "", 0), ("127.0.0.1", "1", 1), ("localhost", "1", 0)]
)
def test_without_room_for_all_nothing_is_stored(
    command: Start, echo: Echo, manager: Manager, bind: str, room: str, stored: int
) -> None:
    if bind == "localhost" and len(known_places(bind)) == 1:
        pytest.skip("localhost has one family here")
    command("-b", bind, echo.name, env=environment(manager, FDSTORE=room))
    manager.told("READY")
    assert len(manager.store) == stored


def test_sockets_of_a_unit_are_not_stored(
    command: Start, echo: Echo, manager: Manager, listener: socket.socket
) -> None:
    """systemd has them already."""
    command(echo.name, **passing({"unit": listener}, **manager.environ, FDSTORE="16"))
    manager.told("READY")
    assert manager.store == {}


def test_no_variable_is_left_for_others() -> None:
    program = """
import os, sys
from tcpproxy.command.systemd import Service
environ = {name: "1" for name in sys.argv[1:]}
Service(environ)
print(environ)
"""
    names = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE"]
    names += ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"]
    done = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, cwd="/", check=True)
    assert done.stdout == "{}\n"
