"""The life of a process that relays: signals, exit, fork, outputs that fail, what it says, what it keeps."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import (
    TIMEOUT,
    Command,
    Echo,
    Upstream,
    at_best,
    connect,
    eventually,
    fill,
    in_background,
    needs,
    needs_proc,
    payload,
    read_all,
    read_exactly,
    reset,
    resource,
    send_and_shut,
)

import tcpproxy
from tcpproxy import logs
from tcpproxy.errors import describe

MIB = 1 << 20
SIGNALS = (signal.SIGTERM, signal.SIGINT)
Start = Callable[..., Command]


def name_of(sock: socket.socket) -> str:
    """The address of its own end, as log lines write it."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def echoes(connection: socket.socket, data: bytes = b"still there") -> bool:
    connection.sendall(data)
    return read_exactly(connection, len(data)) == data


def is_over(connection: socket.socket) -> bool:
    """Reads until the end, by end of file or reset."""
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(1 << 16):
            pass
    return True


def seconds_until_refused(address: tuple[str, int]) -> float:
    start = time.monotonic()
    while True:
        try:
            socket.create_connection(address, TIMEOUT).close()
        except ConnectionRefusedError:
            return time.monotonic() - start
        except ConnectionResetError:  # it was in the queue of the listener when that was closed
            continue


@contextlib.contextmanager
def bulk(command: Command, upstream: Upstream) -> Iterator[None]:
    """Keeps a worker busy with as many bytes as it can move."""
    with connect(command.address) as client, upstream.accept() as server:

        def send() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client.sendall(bytes(1 << 18))

        with in_background(send), in_background(is_over, server):
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)


# --- signals ---


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_listening_within_50_ms(
    command: Start, upstream: Upstream, number: signal.Signals, busy: bool
) -> None:
    """Rows 97, 99: also while the workers have no need of Python. At best, for the machine may be busy too."""

    def time_to_refuse() -> float:
        process = command(upstream.name, "--grace", "0")
        with bulk(process, upstream) if busy else contextlib.nullcontext():
            address = process.address
            process.signal(number)
            took = seconds_until_refused(address)
        assert process.wait() == 0
        return took

    at_best(time_to_refuse, 0.05)


@pytest.mark.parametrize("number", SIGNALS)
def test_connections_go_on_after_the_first_signal(command: Start, echo: Echo, number: signal.Signals) -> None:
    """Row 97: the process ends, with 0, when the last of them has; long before its grace is over."""
    process = command(echo.name, "--grace", "1h")
    with connect(process.address) as client, connect(process.address) as other:
        assert echoes(client)
        assert echoes(other)
        process.signal(number)
        seconds_until_refused(process.address)
        assert echoes(client, payload(5 * MIB // 100))
        other.shutdown(socket.SHUT_WR)
        assert read_all(other) == b""
        assert process.process.poll() is None
        assert echoes(client)
        send_and_shut(client, b"the end")
        assert read_all(client) == b"the end"
    assert process.wait(5) == 0
    assert process.stderr == []


@pytest.mark.parametrize("number", SIGNALS)
def test_the_rest_is_reset_when_grace_is_over(command: Start, echo: Echo, number: signal.Signals) -> None:
    """Row 97."""
    process = command(echo.name, "--grace", "400ms", "-d")
    with connect(process.address) as client:
        assert echoes(client)
        start = time.monotonic()
        process.signal(number)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert 0.38 <= time.monotonic() - start < 5
    assert process.wait() == 0
    assert process.stderr[-1].endswith(": shutdown")


def test_without_connections_grace_is_not_waited_for(command: Start, echo: Echo) -> None:
    """Row 97."""
    process = command(echo.name, "--grace", "1h")
    with connect(process.address) as client:
        assert echoes(client)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""
    process.signal(signal.SIGTERM)
    assert process.wait(5) == 0


@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_signal_ends_it_at_once(
    command: Start, upstream: Upstream, first: signal.Signals, second: signal.Signals
) -> None:
    """Rows 98, 99: connections are reset within 100 ms, with a busy worker; exit code 0, no traceback."""

    def time_to_reset() -> float:
        process = command(upstream.name, "--grace", "1h", "--workers", "2")
        with bulk(process, upstream), connect(process.address) as client, upstream.accept() as server:
            client.sendall(b"x")
            assert server.recv(1) == b"x"
            process.signal(first)
            seconds_until_refused(process.address)
            start = time.monotonic()
            process.signal(second)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            took = time.monotonic() - start
            with pytest.raises(ConnectionResetError):
                server.recv(1)
        assert process.wait(5) == 0
        assert process.stderr == []
        return took

    at_best(time_to_reset, 0.1)


def test_a_burst_of_signals(command: Start, echo: Echo) -> None:
    """Row 98: a third and a twentieth do no more than the second."""
    process = command(echo.name, "--grace", "1h")
    with connect(process.address) as client:
        assert echoes(client)

        def told() -> bool:  # again and again, for the kernel makes one of signals that come too fast
            with contextlib.suppress(ProcessLookupError):
                process.signal(signal.SIGINT)
            return bool(select.select([client], [], [], 0)[0])

        eventually(told)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert process.wait(5) in (0, -signal.SIGINT)  # the last may come when Python has given its handlers back already
    assert process.stderr == []


# --- the same port again ---


SIGNALLED_WHILE_IMPORTING = """
import importlib.abc, os, signal, sys

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
module, sys.argv[1:] = sys.argv[1], ["--version"]
from tcpproxy.__main__ import main
main()
"""


interrupts_itself = pytest.mark.skipif(os.name == "nt", reason="os.kill ends a process here, whatever the signal is")


@interrupts_itself
@pytest.mark.parametrize("module", ["tcpproxy.cli", "click", "tcpproxy._core.worker", "tcpproxy.signals"])
@pytest.mark.parametrize("ignored", [False, True], ids=["", "ignored"])
def test_interrupted_while_it_is_imported(module: str, ignored: bool) -> None:
    """A SIGINT before the command has its handlers ends it without a traceback; one that is ignored stays so."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        argv = [sys.executable, "-c", SIGNALLED_WHILE_IMPORTING, module]
        done = subprocess.run(argv, capture_output=True, text=True, cwd="/", timeout=TIMEOUT, check=False)
    finally:
        signal.signal(signal.SIGINT, before)
    if ignored:
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("tcpproxy ")
    else:
        assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_restart_at_once_on_the_same_port(command: Start, upstream: Upstream) -> None:
    """Row 105, as far as it goes: after a stop, with connections in TIME_WAIT, and after a kill amid connections."""
    process = command(upstream.name)
    port = process.address[1]
    for end in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        done = connect(process.address)
        with upstream.accept() as server:
            send_and_shut(server, b"bye")
            assert read_all(done) == b"bye"
            done.close()  # the proxy was told to end first: the TIME_WAIT is its
        with connect(process.address) as live, upstream.accept() as server:
            server.sendall(b"x")
            assert live.recv(1) == b"x"
            if end == signal.SIGTERM:
                live.shutdown(socket.SHUT_WR)
                server.shutdown(socket.SHUT_WR)
            process.signal(end)
            process.wait()
            process = command(upstream.name, "-l", str(port))
            assert process.address == ("127.0.0.1", port)


def test_a_successor_starts_while_the_predecessor_drains(command: Start, echo: Echo) -> None:
    """Row 105: old connections stay with the old process, new ones go to the new one, on the same port."""
    old = command(echo.name, "--grace", "1h")
    with connect(old.address) as before:
        assert echoes(before)
        old.signal(signal.SIGTERM)
        seconds_until_refused(old.address)
        new = command(echo.name, "-l", str(old.address[1]))
        with connect(new.address) as after:
            assert echoes(after)
            assert echoes(before)
            eventually(lambda: len(new.stdout) == 2)
    assert old.wait(5) == 0


# --- the end of an interpreter with a proxy in it ---

# An import of logging in a thread at the wrong moment makes CPython forget that an interrupt ended the main thread.
BEGIN = """
import gc, logging, os, signal, sys, threading, time, tcpproxy
def view():
    while True:
        proxy.stats(), proxy.connections()
{before}
print(proxy.address[1], flush=True)
sys.stdin.readline()
{after}
"""
MAKE = "proxy = tcpproxy.Proxy(sys.argv[1], workers=2).start()"

EXITS = {
    "end-of-script": (MAKE, "", 0, ""),
    "sys.exit": (MAKE, "sys.exit(3)", 3, ""),
    "exception": (MAKE, "raise ValueError('boom')", 1, "ValueError: boom"),
    "exception-in-with": (
        "proxy = tcpproxy.Proxy(sys.argv[1]).__enter__()",
        "with __import__('contextlib').ExitStack() as stack: stack.push(proxy); raise ValueError('boom')",
        1,
        "ValueError: boom",
    ),
    "interrupt": (MAKE, "os.kill(os.getpid(), signal.SIGINT); time.sleep(60)", -2, "KeyboardInterrupt"),
    "stopped-first": (MAKE, "proxy.stop()", 0, ""),
    "stopped-twice-at-once": (MAKE, "threading.Thread(target=proxy.stop).start(); proxy.stop()", 0, ""),
    "forgotten": (MAKE, "del proxy; gc.collect()", 0, ""),
    "grace": ("proxy = tcpproxy.Proxy(sys.argv[1], grace=3600).start()", "", 0, ""),
    "several": (f"{MAKE}; others = [tcpproxy.Proxy(sys.argv[1]).start() for _ in range(5)]", "", 0, ""),
    "daemon-thread": (f"{MAKE}; threading.Thread(target=view, daemon=True).start()", "", 0, ""),
    "daemon-thread-waits": (f"{MAKE}; threading.Thread(target=proxy.wait, daemon=True).start()", "", 0, ""),
    "callback-stuck": (
        "proxy = tcpproxy.Proxy(sys.argv[1], on_event=lambda event: threading.Event().wait()).start()",
        "",
        0,
        "",
    ),
    "started-by-a-thread": (
        "def make(): global proxy; proxy = tcpproxy.Proxy(sys.argv[1]).start()\n"
        "thread = threading.Thread(target=make); thread.start(); thread.join()",
        "",
        0,
        "",
    ),
}


def script(stack: contextlib.ExitStack, text: str, *args: str) -> subprocess.Popen[str]:
    """A Python program with pipes on its stdin, stdout and stderr; it and its children are ended after the test."""
    argv = [sys.executable, "-X", "faulthandler", "-c", text, *args]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(argv, cwd="/", text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]
    stack.enter_context(process)
    stack.callback(end_group, process)
    return process


def end_group(process: subprocess.Popen[str]) -> None:
    if os.name != "posix":  # where a process has no children that go on without it: there is no fork
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def tell(process: subprocess.Popen[str]) -> None:
    """Lets a script go on that reads a line."""
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def ask(process: subprocess.Popen[str], what: str) -> str:
    """The next line of a script. It is ended, and the test fails, if that does not come."""
    assert process.stdout
    late = threading.Timer(TIMEOUT / 2, end_group, (process,))
    late.start()
    line = process.stdout.readline()
    late.cancel()
    assert line, what
    return line.rstrip("\n")


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=interrupts_itself if how == "interrupt" else ()) for how in EXITS]
)
def test_interpreter_exit_with_live_connections(stack: contextlib.ExitStack, upstream: Upstream, how: str) -> None:
    """Row 100: no crash and no hang, the program's own exit code, no words on stderr, and the peers are told."""
    before, after, code, words = EXITS[how]
    process = script(stack, BEGIN.format(before=before, after=after), upstream.name)
    address = ("127.0.0.1", int(ask(process, "it does not start")))
    idle = stack.enter_context(connect(address))
    idle_server = stack.enter_context(upstream.accept())
    busy = stack.enter_context(connect(address))
    busy_server = stack.enter_context(upstream.accept())

    def send() -> None:
        with contextlib.suppress(OSError):
            while True:
                busy.sendall(bytes(1 << 16))

    with in_background(send), in_background(is_over, busy_server):
        start = time.monotonic()
        _, stderr = process.communicate("\n", TIMEOUT)
        assert time.monotonic() - start < 5
        assert process.returncode == code
        lines = stderr.splitlines()
        assert (lines[-1] if lines else "") == words
        assert len(lines) == 0 or lines[0].startswith("Traceback")
        assert stderr.count("Traceback") <= 1
        for sock in (idle, idle_server):
            assert is_over(sock)


VIEWS = """
import sys, threading, tcpproxy
proxy = tcpproxy.Proxy(sys.argv[1], workers=2).start()
print(proxy.address[1], flush=True)
sys.stdin.readline()
def look():
    for _ in range(500 if sys.platform != "win32" else 50):  # 5 to 50 ms each under wine
        assert len(proxy.connections()) == proxy.stats().active == 1
threads = [threading.Thread(target=look) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("done", flush=True)
"""


def test_views_from_several_threads(stack: contextlib.ExitStack, echo: Echo) -> None:
    """Row 72: several threads may look at the connections of one proxy at the same time."""
    process = script(stack, VIEWS, echo.name)
    with connect(("127.0.0.1", int(ask(process, "it does not start")))) as client:
        assert echoes(client)
        tell(process)
        assert ask(process, "a thread waits for ever") == "done"
    assert process.wait(TIMEOUT) == 0


# --- fork ---

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

FORK = """
import os, sys, tcpproxy
def descriptors(): return len(os.listdir("/proc/self/fd"))
before = descriptors()
proxy = tcpproxy.Proxy(sys.argv[1], workers=2).start()
print(proxy.address[1], flush=True)
sys.stdin.readline()
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.close(writer)
    assert proxy.connections() == [] and proxy.stats().active == 0
    assert descriptors() == before + 1, (descriptors(), before)
    proxy.stop()
    own = tcpproxy.Proxy(sys.argv[1], workers=2).start()
    print(own.address[1], flush=True)
    os.read(reader, 1)
    sys.exit(7)
os.close(reader)
sys.stdin.readline()
proxy.stop()
print("stopped", flush=True)
sys.stdin.readline()
os.close(writer)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@needs_fork
def test_a_forked_child_holds_nothing(stack: contextlib.ExitStack, upstream: Upstream) -> None:
    """Rows 73, 100: resets and ends still reach the peers, the port is free, and the child can have its own proxy."""
    process = script(stack, FORK, upstream.name)

    def pair(port: int) -> tuple[socket.socket, socket.socket]:
        client = stack.enter_context(connect(("127.0.0.1", port)))
        server = stack.enter_context(upstream.accept())
        client.sendall(b"x")
        assert server.recv(1) == b"x"
        return client, server

    port = int(ask(process, "it does not start"))
    pairs = [pair(port) for _ in range(5)]
    stalled = pair(port)
    fill(stalled[0])  # bulk, of which something is in the hands of the proxy at the fork
    tell(process)
    own = int(ask(process, "the child's proxy does not start"))
    for near, far in (pairs[0], pairs[1][::-1]):  # a reset, both ways
        reset(near)
        with pytest.raises(ConnectionResetError):
            far.recv(1)
    client, server = pairs[2]  # an end of file, and then a full close: nobody answers any more
    client.close()
    assert server.recv(1) == b""
    server.close()
    pairs.append(pair(port))  # the parent still accepts
    for client, server in pairs[3:]:
        client.sendall(b"parent")
        assert read_exactly(server, 6) == b"parent"
    of_child = pair(own)
    tell(process)
    assert ask(process, "the parent does not stop") == "stopped"
    for client, server in pairs[3:]:
        for sock in (client, server):
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(("127.0.0.1", port))
    of_child[0].sendall(b"child")
    assert read_exactly(of_child[1], 5) == b"child"
    tell(process)
    assert ask(process, "the child does not end") == "7"
    for sock in of_child:
        assert is_over(sock)
    assert process.wait(TIMEOUT) == 0


FORKS = """
import os, sys, threading, tcpproxy
sys.setswitchinterval(1e-6)
proxy = tcpproxy.Proxy(sys.argv[1], workers=2).start()
def wait():
    while not proxy.wait(0): pass
for _ in range(3):
    threading.Thread(target=wait, daemon=True).start()
print(proxy.address[1], flush=True)
for _ in range(150):
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
print("done", flush=True)
sys.stdin.readline()
"""


@needs_fork
def test_many_forks_while_bytes_flow(stack: contextlib.ExitStack, echo: Echo) -> None:
    """Rows 73, 100: whatever the threads of the parent are doing, each child gets away, and no byte is lost."""
    process = script(stack, FORKS, echo.name)
    done = threading.Event()
    with connect(("127.0.0.1", int(ask(process, "it does not start")))) as client:

        def rounds() -> int:
            data = payload(200_000)
            count = 0
            while not done.is_set():
                with in_background(client.sendall, data):
                    assert read_exactly(client, len(data)) == data
                count += 1
            return count

        with in_background(rounds) as count:
            try:
                assert ask(process, "a forked child hangs") == "done"
            finally:
                done.set()
        assert count[0]
    process.communicate("\n", TIMEOUT)
    assert process.returncode == 0


# --- outputs that fail ---


def listening_port(process: Command) -> int:
    """Asked of the kernel, where the process cannot say it."""
    needs_proc()

    def ports() -> list[int]:
        handles = Path(f"/proc/{process.process.pid}/fd")
        inodes = {os.readlink(handle)[8:-1] for handle in handles.iterdir() if handle.is_symlink()}
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return [int(line[1].partition(":")[2], 16) for line in lines if line[3] == "0A" and line[9] in inodes]

    found: list[int] = []

    def look() -> bool:
        with contextlib.suppress(FileNotFoundError):  # a descriptor was closed meanwhile
            found[:] = ports()
        return bool(found)

    eventually(look, TIMEOUT, "it does not listen")
    return found[0]


def full_pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    """Reading and writing end of a pipe that takes no more; the writing end blocks."""
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    stack.callback(os.close, writer)
    os.set_blocking(writer, False)
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(size))
    os.set_blocking(writer, True)
    return reader, writer


def broken_pipe(stack: contextlib.ExitStack) -> int:
    reader, writer = os.pipe()
    os.close(reader)
    stack.callback(os.close, writer)
    return writer


def dev_full(stack: contextlib.ExitStack) -> int:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    return stack.enter_context(open("/dev/full", "wb", buffering=0)).fileno()


FAILING = {"dev-full": dev_full, "broken-pipe": broken_pipe, "full-pipe": lambda stack: full_pipe(stack)[1]}


def assert_relays_and_ends(process: Command) -> None:
    address = ("127.0.0.1", listening_port(process))
    with connect(address) as early:
        for _ in range(20):
            with connect(address) as client, in_background(send_and_shut, client, payload(100_000)):
                assert read_all(client) == payload(100_000)
        assert echoes(early)
        early.shutdown(socket.SHUT_WR)
        assert read_all(early) == b""
    process.signal(signal.SIGTERM)
    assert process.wait(10) == 0


@pytest.mark.parametrize("which", [("stdout",), ("stderr",), ("stdout", "stderr")], ids="+".join)
@pytest.mark.parametrize("kind", FAILING)
def test_output_that_fails(
    stack: contextlib.ExitStack, command: Start, echo: Echo, kind: str, which: list[str]
) -> None:
    """Row 101: bytes flow and the exit is clean, whatever becomes of the lines."""
    process = command(echo.name, "-d", **{name: FAILING[kind](stack) for name in which})
    assert_relays_and_ends(process)
    if "stderr" not in which and kind != "full-pipe":
        assert "22 log lines could not be written" in process.stderr  # one listener, 21 connections


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_output_that_is_closed(command: Start, echo: Echo, closed: str) -> None:
    """Row 101: the numbers 0 to 2 are not given to sockets; else a log line would reach a peer."""
    needs("sh")
    process = command(echo.name, "-d", wrapper=("sh", "-c", f'exec "$@" {closed}', "sh"))
    assert_relays_and_ends(process)


def test_disk_that_is_full_for_a_while(command: Start, echo: Echo, tmp_path: Path) -> None:
    """Row 101: bytes flow; once there is room again lines are whole, and those that are not are counted."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = command(echo.name, "--workers", "1", stdout=file)
    eventually(lambda: b"\n" in log.read_bytes(), TIMEOUT)
    address = ("127.0.0.1", listening_port(process))
    names = []

    def relay(times: int) -> None:
        for _ in range(times):
            with connect(address) as client:
                names.append(name_of(client))
                assert echoes(client)

    # The limit of a file's size does to writes what a full disk does: the last one is cut, the next ones fail.
    pid, full = process.process.pid, log.stat().st_size + len(f"New connection from {address}") * 3 // 2
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
    relay(20)
    eventually(lambda: log.stat().st_size == full)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    relay(5)
    process.signal(signal.SIGTERM)
    assert process.wait(10) == 0
    lines = log.read_text().splitlines()
    whole = [line for line in lines[1:] if line.removeprefix("New connection from ") in names]
    assert whole[-5:] == [f"New connection from {name}" for name in names[-5:]]
    assert len(lines) <= 1 + len(whole) + 1
    assert process.stderr == [f"{25 - len(whole)} log lines could not be written"]


def test_lines_that_nobody_reads_are_dropped_and_counted(
    stack: contextlib.ExitStack, command: Start, echo: Echo
) -> None:
    """Row 101: 5000 connections while stdout blocks; when it is read at last, lines and drops add up."""
    reader, writer = full_pipe(stack)
    process = command(echo.name, "--workers", "1", stdout=writer)
    address = ("127.0.0.1", listening_port(process))
    for _ in range(5000):
        reset(connect(address))
    with connect(address) as client:
        assert echoes(client)
        os.set_blocking(reader, False)
        said = bytearray()

        def dropped() -> int:
            with contextlib.suppress(BlockingIOError):
                said.extend(os.read(reader, 1 << 16))
            found = [
                re.fullmatch(r"(\d+) log records were dropped: output is too slow", line) for line in process.stderr
            ]
            return sum(int(match[1]) for match in found if match)

        eventually(lambda: dropped() + said.count(b"New connection from ") == 5001, 10, "they do not add up")
        assert dropped() > 0
        assert echoes(client)
        assert len(process.stderr) == 1


# --- what it says ---


def test_the_words_of_the_original(command: Start, upstream: Upstream) -> None:
    """Row 102, and the command's documentation: exactly these lines, each on its stream."""
    process = command(upstream.name, "-d")
    with connect(process.address) as client, upstream.accept() as server:
        name = name_of(client)
        send_and_shut(client, b"hello")
        assert read_all(server) == b"hello"
        send_and_shut(server, b"goodbye")
        assert read_all(client) == b"goodbye"
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.stdout == [f"Listening on 127.0.0.1:{process.address[1]}", f"New connection from {name}"]
    assert process.stderr[:2] == [
        f"Transferred 5 bytes from proxy client {name} to upstream server",
        f"Transferred 7 bytes from upstream server to proxy client {name}",
    ]
    assert re.fullmatch(
        rf"Closed {re.escape(name)} after \d+\.\d{{3}} s, connected in \d+\.\d ms: client-eof", process.stderr[2]
    )
    assert len(process.stderr) == 3


def test_words_without_debug(command: Start, echo: Echo) -> None:
    """Stdout as with -d, and nothing on stderr."""
    process = command(echo.name, "--workers", "1")  # lines of several workers may be a little out of order
    names = []
    for _ in range(3):
        with connect(process.address) as client:
            names.append(name_of(client))
            assert echoes(client)
    eventually(lambda: len(process.stdout) == 4)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.stdout[1:] == [f"New connection from {name}" for name in names]
    assert process.stderr == []


def test_quiet(command: Start, echo: Echo) -> None:
    """With -q no line for a new connection; with -d besides, its end is still told."""
    process = command(echo.name, "-q", "-d")
    with connect(process.address) as client:
        assert echoes(client)
    eventually(lambda: len(process.stderr) == 3)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.stdout == [f"Listening on 127.0.0.1:{process.address[1]}"]


def test_words_with_ipv6(command: Start, echo: Echo) -> None:
    """IPv6 addresses are in brackets; with both families there is a line for each, with one port."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    process = command(echo.name, "-b", "localhost")
    port = process.address[1]
    eventually(lambda: len(process.stdout) == 2)
    assert sorted(process.stdout) == [f"Listening on 127.0.0.1:{port}", f"Listening on [::1]:{port}"]
    with connect(("::1", port)) as client:
        assert echoes(client)
        eventually(lambda: len(process.stdout) == 3)
        assert process.stdout[2] == f"New connection from {name_of(client)}"


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of loopback that refuses: bound, so that nobody else gets it, but not listening."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def be_refused(address: tuple[str, int], times: int) -> None:
    """Connects, and is turned away; perhaps before connect() has returned."""
    for _ in range(times):
        with contextlib.suppress(ConnectionResetError), connect(address) as client:
            assert is_over(client)


def test_words_about_a_refused_connection(command: Start, closed_port: int) -> None:
    """Rows 40, 102: one line on stderr, with what the system said."""
    process = command(f"127.0.0.1:{closed_port}")
    be_refused(process.address, 1)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    name = process.stdout[1].removeprefix("New connection from ")
    refused = errno.ECONNREFUSED
    text = f"Error establishing upstream connection: {describe(refused)} (os error {refused})"
    assert process.stderr == [f"{text} (127.0.0.1:{closed_port} for client {name})"]


def end_by(reason: str, process: Command, client: socket.socket, server: socket.socket) -> None:
    near, far = (client, server) if reason.startswith("client") else (server, client)
    if reason.endswith("-eof"):
        near.close()
        assert is_over(far)
    elif reason.endswith("-reset"):
        reset(near)
        assert is_over(far)
    elif reason == "half-close-timeout":
        client.shutdown(socket.SHUT_WR)
        assert is_over(client)
    elif reason == "shutdown":
        process.signal(signal.SIGTERM)
        assert is_over(client)
    else:
        assert is_over(client)
    far.close()


REASONS = ["client-eof", "upstream-eof", "client-reset", "upstream-reset", "half-close-timeout", "idle", "shutdown"]


@pytest.mark.parametrize("reason", REASONS)
def test_json_lines_and_reasons(command: Start, upstream: Upstream, reason: str) -> None:
    """Row 102: each line of both streams is an object, and says why the connection ended."""
    options = ("--half-close-timeout", "100ms" if reason == "half-close-timeout" else "60s", "--grace", "0")
    options += ("--idle-timeout", "100ms" if reason == "idle" else "off")
    process = command(upstream.name, "-d", "--log-format", "json", *options)
    eventually(lambda: process.stdout, TIMEOUT)
    listening = json.loads(process.stdout[0])
    host, _, port = listening["text"].rpartition(":")
    before = time.time()
    with connect((host, int(port))) as client, upstream.accept() as server:
        name = name_of(client)
        client.sendall(b"12345")
        assert read_exactly(server, 5) == b"12345"
        end_by(reason, process, client, server)
    eventually(lambda: process.stderr)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    stdout, stderr = ([json.loads(line) for line in lines] for lines in (process.stdout, process.stderr))
    assert [line["kind"] for line in stdout] == ["listening", "new"]
    assert stdout[1]["client"] == name
    assert [line["kind"] for line in stderr] == ["end"]
    end = stderr[0]
    assert end["reason"] == reason
    assert (end["client"], end["upstream"]) == (name, upstream.name)
    assert (end["to_upstream"], end["to_client"]) == (5, 0)
    assert 0 < end["connect_time"] <= end["duration"] < 5
    assert before - 1 <= end["time"] <= time.time() + 1


def test_json_of_a_refused_connection(command: Start, closed_port: int) -> None:
    """Row 40."""
    process = command(f"127.0.0.1:{closed_port}", "--log-format", "json")
    eventually(lambda: process.stdout, TIMEOUT)
    be_refused(("127.0.0.1", int(json.loads(process.stdout[0])["text"].rpartition(":")[2])), 1)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    (line,) = map(json.loads, process.stderr)
    assert (line["kind"], line["reason"], line["error"]) == ("failed", "connect-refused", 111)
    assert line["upstream"] == f"127.0.0.1:{closed_port}"


EVIL = "a\x9b2Jb\x9dc\u2028d\u202ee.invalid"
"""CSI and OSC of the C1 set, which terminals obey, a line separator and a turn of the direction of writing."""


@pytest.mark.parametrize("kind", ["warning", "failed", "listening", "new", "end", "lost"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_control_characters_in_an_event(form: str, kind: str) -> None:
    """Row 102: whatever an event carries, it makes no further line, and has nothing that a terminal obeys."""
    reader, writer = os.pipe()
    evil = f"{EVIL}\r\nNew connection from 192.0.2.1:1\x1b[2J\x00\x7f\udc80"
    printer = logs.Printer(debug=True, json=form == "json", stdout=writer, stderr=writer)
    printer(tcpproxy.Event(kind, "client-eof", 5, evil, evil, text=evil))
    os.close(writer)
    with open(reader, "rb") as file:
        text = file.read().decode()
    assert printer.unwritten == 0
    lines = text.removesuffix("\n").split("\n")
    assert len(lines) == (3 if kind == "end" and form == "text" else 1)
    assert all(line.isprintable() for line in lines), repr(text)
    if form == "json":
        assert json.loads(text)["client"] == evil


@pytest.mark.parametrize(
    "remote", [f"{EVIL}:80", f"{EVIL}\r\n:80", "\x1b[2J\n:80", "127.0.0.1:80\nx", f"127.0.0.1:{EVIL}"]
)
@pytest.mark.parametrize("bind", ["127.0.0.1", EVIL])
def test_control_characters_in_what_is_refused(command: Start, remote: str, bind: str) -> None:
    """Rows 95, 102: one line, exit code 2."""
    process = command(remote, "-b", bind, env={**os.environ, "PYTHONUTF8": "1"})
    assert process.wait() == 2
    assert process.stdout == []
    (line,) = process.stderr
    assert line.isprintable(), repr(line)


# --- floods ---

REFUSED = "Error establishing upstream connection: "
MORE = re.compile(r"(\d+) more lines of the kind failed \(connect-refused\) were not shown")


def refused_and_counted(process: Command) -> tuple[int, int]:
    counts = [int(match[1]) for line in process.stderr if (match := MORE.fullmatch(line))]
    return sum(line.startswith(REFUSED) for line in process.stderr), sum(counts)


def test_a_flood_of_refused_connections(command: Start, closed_port: int) -> None:
    """Row 103: ten lines a second at most; the rest is counted, and said without another connection."""
    process = command(f"127.0.0.1:{closed_port}")
    start = time.monotonic()
    be_refused(process.address, 500)
    seconds = time.monotonic() - start
    eventually(lambda: sum(refused_and_counted(process)) == 500, 10, "lines and counts do not add up")
    shown, counted = refused_and_counted(process)
    assert 10 <= shown <= 10 * (seconds + 2)
    assert len(process.stderr) - shown <= seconds + 3
    assert counted > 0


def test_a_flood_that_ends_with_the_process(command: Start, closed_port: int) -> None:
    """Row 103: what was held back in the last second is counted all the same."""
    process = command(f"127.0.0.1:{closed_port}")
    be_refused(process.address, 100)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert sum(refused_and_counted(process)) == 100


# --- what it keeps ---


def rss(process: Command) -> int:
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


def mixed_batch(process: Command, upstream: Upstream) -> None:
    """100 connections at once: a third is reset, by either side; the others end in order, some without a byte."""
    clients = [connect(process.address) for _ in range(100)]
    for number, client in enumerate(clients):
        if number % 6 == 1:
            client.close()
        else:
            client.sendall(bytes([number]))
    for server in [upstream.accept() for _ in clients]:
        if head := server.recv(1):
            client = clients[head[0]]
            match head[0] % 6:
                case 0:
                    reset(client)
                case 3:
                    reset(server)
                case 4:
                    send_and_shut(server, payload(20_000))
        server.close()
    for client in clients:
        client.close()


@pytest.mark.parametrize("options", [("-q",), ("-d",)], ids="".join)
def test_ten_thousand_mixed_connections(command: Start, upstream: Upstream, options: tuple[str, ...]) -> None:
    """Row 106, scaled to 10,000: descriptors as before, at most 1 MiB more memory."""
    process = command(upstream.name, "--zero-copy", "auto", *options)  # no pipes, which may stay for later
    handles = Path(f"/proc/{process.process.pid}/fd")

    def count() -> int:
        return len(list(handles.iterdir()))

    process.address  # noqa: B018  it listens
    baseline = count()
    for _ in range(20):
        mixed_batch(process, upstream)
    eventually(lambda: count() == baseline, 10, f"{count()} descriptors, {baseline} before")
    before = rss(process)
    for _ in range(100):
        mixed_batch(process, upstream)
    eventually(lambda: count() == baseline, 10, f"{count()} descriptors, {baseline} before")
    assert rss(process) - before <= MIB
    if "-d" in options:
        eventually(lambda: sum(line.startswith("Closed ") for line in process.stderr) == 12_000, 10, "ends are missing")
