"""What tests share: peers with real sockets, links between two of them (direct or proxied), the command."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import random
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import tcpproxy
from tcpproxy._core.worker import POLLER

try:
    import fcntl
    import resource
    import termios
except ImportError:  # empty: see absent() for a test that uses them
    fcntl, resource, termios = map(ModuleType, ("fcntl", "resource", "termios"))


TIMEOUT = 20.0
"""Seconds after which a peer that waits for something fails its test; nothing waits this long on purpose."""


class Upstream:
    """A listening socket on loopback that hands out the connections it gets."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, backlog: int = 4096) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.create_server((host, port), family=family, backlog=backlog)
        self.socket.settimeout(TIMEOUT)
        self.host, self.port = self.socket.getsockname()[:2]

    @property
    def name(self) -> str:
        """As the command and Proxy want it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def accept(self) -> socket.socket:
        connection, _ = self.socket.accept()
        connection.settimeout(TIMEOUT)
        return connection

    def close(self) -> None:
        self.socket.close()


class Serving(Upstream):
    """Serves each connection in a thread of its own.

    Nothing of that outlives `close`: a descriptor that is closed later would be missing in the next test's count.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(host, port)
        self.socket.settimeout(None)
        self._live: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def serve(self, connection: socket.socket) -> None:
        """One connection, to its end or an OSError; it is closed afterwards."""
        raise NotImplementedError

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                thread = threading.Thread(target=self._run, args=(connection,), daemon=True)
                with self._lock:
                    self._live[connection] = thread
                thread.start()

    def _run(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self.serve(connection)
        with self._lock:  # its number must not be another's when `close` shuts it down
            connection.close()
            del self._live[connection]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        super().close()
        self._acceptor.join(TIMEOUT)
        with self._lock:
            threads = list(self._live.values())
            for connection in self._live:
                with contextlib.suppress(OSError):  # reset meanwhile
                    connection.shutdown(socket.SHUT_RDWR)  # wakes its thread
        for thread in threads:
            thread.join(TIMEOUT)


class Echo(Serving):
    """Sends everything back, and passes an end of file on."""

    def serve(self, connection: socket.socket) -> None:
        while data := connection.recv(65536):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)


class Link:
    """Makes pairs of connected sockets. `near` and `far` are the client's and the upstream's end, or swapped."""

    def __init__(self, upstream: Upstream, proxy: tcpproxy.Proxy | None, swapped: bool) -> None:
        self.upstream, self.proxy, self._swapped = upstream, proxy, swapped

    def pair(self, early: bytes = b"") -> tuple[socket.socket, socket.socket]:
        """`early`: bytes that `near` sends at once; a client does not wait until the upstream has accepted."""
        address = self.proxy.address if self.proxy else (self.upstream.host, self.upstream.port)
        client = connect(address)
        if not self._swapped:
            client.sendall(early)
        server = self.upstream.accept()
        if self._swapped:
            server.sendall(early)
        return (server, client) if self._swapped else (client, server)

    @property
    def direct(self) -> bool:
        return self.proxy is None


def free_port() -> int:
    """A port that nothing uses; not one of those that the kernel gives to tests running at the same time (32768 on)."""
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def connect(address: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(address, timeout=TIMEOUT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def name_of(sock: socket.socket) -> str:
    """The address of its own end, as log lines write it."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def echoes(connection: socket.socket, data: bytes = b"still there") -> bool:
    connection.sendall(data)
    return read_exactly(connection, len(data)) == data


def relays(address: tuple[str, int], data: bytes = b"hello") -> bool:
    with connect(address) as client:
        return echoes(client, data)


def is_over(connection: socket.socket) -> bool:
    """Reads until the end, by end of file or reset."""
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(1 << 16):
            pass
    return True


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the end of file."""
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = sock.recv(min(size, 1 << 20))
        assert part, f"end of file with {size} bytes missing"
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def reset(sock: socket.socket) -> None:
    """Closes with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def payload(size: int, seed: int = 1) -> bytes:
    """Bytes that do not repeat, the same for the same seed."""
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(size)


@contextlib.contextmanager
def in_background(function: Callable[..., object], *args: object) -> Iterator[list[object]]:
    """Runs a function in a thread beside the block; joins it, raises what it raised; yields a list for its result."""
    result: list[object] = []
    trouble: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function(*args))
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield result
    thread.join(TIMEOUT * 2)
    if trouble:
        raise trouble[0]
    assert not thread.is_alive(), f"{function} did not end"


def send_and_shut(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def talk(client: socket.socket, server: socket.socket, turns: int = 1, thinking: float = 0) -> None:
    """Round trips; the client waits before each."""
    message = b"m" * 64
    for _ in range(turns):
        if thinking:
            pause(thinking)
        client.sendall(message)
        read_exactly(server, len(message))
        server.sendall(message)
        read_exactly(client, len(message))


@contextlib.contextmanager
def bulk(pairs: list[tuple[socket.socket, socket.socket]]) -> Iterator[Callable[[], int]]:
    """Sends on the first and reads on the second of each pair, as one thread can; yields a count of the bytes."""
    stop = threading.Event()
    chunk, scratch = bytes(256 << 10), bytearray(256 << 10)
    sources, sinks = zip(*pairs, strict=True)
    moved = 0

    def run() -> None:
        nonlocal moved
        for end in (*sources, *sinks):
            end.setblocking(False)
        while not stop.is_set():
            readable, writable, _ = select.select(sinks, sources, [], 0.1)
            with contextlib.suppress(BlockingIOError):
                for sink in readable:
                    moved += sink.recv_into(scratch)
                for source in writable:
                    source.send(chunk)

    with in_background(run):
        try:
            yield lambda: moved
        finally:
            stop.set()


def fill(sock: socket.socket, quiet: float = 0.3) -> int:
    """Sends until nothing has been taken for `quiet` seconds. Returns how many bytes went."""
    total = 0
    sock.setblocking(False)
    chunk = bytes(1 << 16)
    while select.select([], [sock], [], quiet)[1]:
        with contextlib.suppress(BlockingIOError):
            total += sock.send(chunk)
    sock.settimeout(TIMEOUT)
    return total


def send_until_full(sock: socket.socket, data: bytes) -> int:
    """Like `fill`, with these bytes, of which there must be enough. Returns how many of them went."""
    sent = 0
    sock.setblocking(False)
    while sent < len(data) and select.select([], [sock], [], 0.3)[1]:
        with contextlib.suppress(BlockingIOError):
            sent += sock.send(data[sent : sent + (1 << 16)])
    sock.settimeout(TIMEOUT)
    assert sent < len(data), "the connection took everything"
    return sent


def choke(sock: socket.socket) -> int:
    """Like `fill`, but to the last byte: also the room that is left when a poller no longer says "writable"."""
    total = refusals = 0
    sock.setblocking(False)
    while refusals < 10:
        try:
            total += sock.send(bytes(1 << 16))
            refusals = 0
        except BlockingIOError:
            refusals += 1
            threading.Event().wait(0.04)  # a window probe, 200 ms later, finds room that was too little to announce
    sock.settimeout(TIMEOUT)
    return total


def pause(seconds: float) -> None:
    """Lets time pass, where time is what a test is about."""
    threading.Event().wait(seconds)


def eventually(condition: Callable[[], object], within: float = 5.0, what: str = "") -> None:
    """Waits for something that no socket tells. Fails after `within` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, what or f"not within {within} s"
        threading.Event().wait(0.002)


def at_best(measure: Callable[[], float], bound: float, tries: int = 1) -> list[float]:
    """Measures, at least so many times, until one result is below the bound. Returns all results.

    For durations: only a machine that is slow for as long as `TIMEOUT` can fail it, yet what always takes longer does.
    """
    deadline = time.monotonic() + TIMEOUT
    results = [measure()]
    while len(results) < tries or min(results) >= bound:
        assert time.monotonic() < deadline, f"never below {bound}: {results}"
        results.append(measure())
    return results


def bounds(loose: float, tight: float) -> pytest.MarkDecorator:
    """Runs a test with each as its argument `bound`; with the tight one, which a slow machine misses, as `timed`."""
    return pytest.mark.parametrize(
        "bound", [pytest.param(loose, id="loose"), pytest.param(tight, id="tight", marks=pytest.mark.timed)]
    )


def descriptors() -> int:
    """Open descriptors of this process."""
    if os.name != "posix":
        pytest.skip("needs /dev/fd")
    return len(os.listdir("/dev/fd"))


def sockets() -> int:
    """Open sockets of this process; unlike `descriptors` without the pipes, a few of which a worker keeps for later."""
    needs_proc()
    total = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            total += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
    return total


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    needs_proc()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes of memory that a process has in use."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


RUN = ("-m", "tcpproxy")
if os.name == "nt":
    # Ctrl-C reaches all processes of a console: each command has its own, and types it itself for a byte on stdin.
    RUN = (
        "-c",
        """if True:
        import ctypes, os, runpy, sys, threading
        def type_ctrl_c():
            while os.read(0, 1):
                ctypes.windll.kernel32.GenerateConsoleCtrlEvent(0, 0)
        threading.Thread(target=type_ctrl_c, daemon=True).start()
        runpy.run_module("tcpproxy", run_name="__main__")""",
    )


class Command:
    """The `tcpproxy` command as a process. Lines of stdout and stderr are read as they come."""

    def __init__(self, *args: str, wrapper: tuple[str, ...] = (), **popen: object) -> None:
        popen.setdefault("stdout", subprocess.PIPE)
        popen.setdefault("stderr", subprocess.PIPE)
        argv = [*wrapper, sys.executable, *RUN, *args]
        if os.name == "nt":
            popen = {"stdin": subprocess.PIPE, "creationflags": subprocess.CREATE_NEW_CONSOLE, **popen}
        # Away from the source tree, so that the installed package runs.
        self.process = subprocess.Popen(argv, cwd="/", **popen)  # type: ignore[call-overload]
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self._readers = []
        for stream, lines in ((self.process.stdout, self.stdout), (self.process.stderr, self.stderr)):
            if stream:
                reader = threading.Thread(target=self._read, args=(stream, lines), daemon=True)
                reader.start()
                self._readers.append(reader)

    @staticmethod
    def _read(stream: object, lines: list[str]) -> None:
        for line in stream:  # type: ignore[attr-defined]
            lines.append(line.decode().rstrip("\r\n"))

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, once it has said so."""
        prefix = "Listening on "
        eventually(lambda: self.stdout or self.process.poll() is not None, TIMEOUT, "no line on stdout")
        assert self.stdout, f"it ended: {self.stderr}"
        assert self.stdout[0].startswith(prefix), self.stdout
        host, _, port = self.stdout[0].removeprefix(prefix).rpartition(":")
        return host.strip("[]"), int(port)

    def signal(self, number: signal.Signals) -> None:
        if os.name == "nt":
            if number != signal.SIGINT:
                pytest.skip(f"this platform has no {number.name} for another process")
            self.process.stdin.write(b"c")  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]
        else:
            self.process.send_signal(number)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Its exit code, once it has ended and all its output was read."""
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(timeout)
        return code

    def end(self) -> None:
        """Ends it, whatever state it is in."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError, AttributeError):  # there is no SIGCONT on Windows
                self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()


@contextlib.contextmanager
def frozen(process: Command) -> Iterator[None]:
    """All that happens in the block comes to the process in one batch, after it."""
    process.signal(signal.SIGSTOP)
    eventually(lambda: Path(f"/proc/{process.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    yield
    process.signal(signal.SIGCONT)


def proxy_threads() -> list[str]:
    """Wait for their end: `stop` waits no longer than 3 s for the log thread, which may be stuck in a callback."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tcpproxy")]


def run(program: str, *args: str, within: float = 30) -> subprocess.CompletedProcess[str]:
    # Away from the source tree, so that the installed package runs. Every warning is an error on stderr.
    argv = [sys.executable, "-X", "dev", "-W", "error", "-c", program, *args]
    return subprocess.run(argv, capture_output=True, text=True, cwd="/", timeout=within)


needs_splice = pytest.mark.skipif(
    not sys.platform.startswith("linux") or POLLER == "kqueue", reason="a build without splice, as on macOS and BSD"
)


def absent(error: BaseException) -> str:
    """What a test that failed so has asked of a platform that is not Linux and does not have it; "": nothing like that.

    Only what a test's own code asks for counts: the same mistake in the package is a failure.
    """
    if sys.platform == "linux":
        return ""
    if isinstance(error, pytest.fail.Exception) and "ConnectionResetError" in str(error) and not tells_resets():
        return "news of a reset for a reader who comes later"
    if isinstance(error, FileNotFoundError):
        special = re.match(r"/(proc|sys|dev)/", str(error.filename).replace("\\", "/"))
        return special[0] if special else ""
    if found := re.fullmatch(r"(pass_fds|preexec_fn)( is)? not supported on Windows.*", str(error)):
        return found[1]
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    if not last or not Path(last.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parent):
        return ""
    if isinstance(error, OSError) and error.errno == errno.ENOPROTOOPT:
        return "such a socket option"
    if isinstance(error, AttributeError) and error.obj in (fcntl, os, resource, select, signal, socket, termios):
        return f"{error.obj.__name__}.{error.name}"
    return ""


@functools.cache
def tells_resets() -> bool:
    """Does recv fail on a connection that was reset before? Under wine it answers with an end of file."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as end:
        reset(listener.accept()[0])
        end.settimeout(TIMEOUT)
        select.select([end], [], [])
        try:
            return bool(end.recv(1))
        except ConnectionResetError:
            return True


def needs(*programs: str) -> None:
    """Skips the test where one of these programs is missing."""
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"needs the command {program}")


def strace(*options: str) -> tuple[str, ...]:
    """What to put before a command to run it under strace; the process is the command, not strace."""
    needs("strace")
    return ("strace", "-D", "-f", "-qq", *options)


def needs_proc() -> None:
    """Skips the test where there is no /proc to look at a process."""
    if sys.platform != "linux":
        pytest.skip("needs /proc")


def allow_descriptors(count: int) -> None:
    """Lets this process open so many files, or skips the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        if hard != resource.RLIM_INFINITY and hard < count:
            pytest.skip(f"only {hard} open files are allowed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def lowest_free_descriptor(pid: int) -> int:
    """The number that the next descriptor of a process will get."""
    needs_proc()
    taken = {int(number) for number in os.listdir(f"/proc/{pid}/fd")}
    return next(number for number in range(len(taken) + 1) if number not in taken)


def limit_descriptors(pid: int, free: int) -> tuple[int, int]:
    """Leaves a running process so many descriptors more, from now on. Returns its limit before."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free_descriptor(pid) + free, before[1]))
    return before
