"""Urgent bytes stay in the stream at their place, and segments of any size pass."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from networks import Namespace
from support.command import Command, strace
from support.machine import cpu_seconds, fcntl
from support.peers import Link, Upstream, connect
from support.streams import MIB, payload, read_all, read_exactly, send_and_shut
from support.waiting import TIMEOUT, at_best, eventually, in_background, pause

FIN_WAIT2 = 5  # a socket's state once its end of file, and so everything before it, has reached the other kernel

Part = tuple[bytes, int]
"""Bytes and the flags to send them with: socket.MSG_OOB makes the last of them urgent."""


def urgent(data: bytes = b"!") -> Part:
    return data, socket.MSG_OOB


def plain(data: bytes) -> Part:
    return data, 0


def send_parts(sock: socket.socket, parts: list[Part]) -> None:
    for data, flags in parts:
        while data:
            data = data[sock.send(data, flags) :]


def joined(parts: list[Part]) -> bytes:
    return b"".join(data for data, _ in parts)


def inline_pair(link: Link) -> tuple[socket.socket, socket.socket]:
    """A pair whose ends keep an urgent byte in the stream. Without the option the kernel takes it out, relay or not."""
    link.upstream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # what it accepts inherits it
    near, far = link.pair()
    for sock in (near, far):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    return near, far


def assert_asleep(link: Link) -> None:
    """No worker is woken for half a second: an urgent mark that nobody consumes must not be reported for ever."""
    proxy = link.proxy
    if proxy is None:
        return

    def wakeups() -> int:
        before = proxy.stats().wakeups
        pause(0.5)
        return proxy.stats().wakeups - before

    at_best(wakeups, 6)


def test_one_urgent_byte_mid_stream(link: Link) -> None:
    """Row 86: nothing of the stream is lost, nothing stalls, and no worker keeps spinning."""
    near, far = inline_pair(link)
    with near, far:
        send_parts(near, [plain(b"before"), urgent(), plain(b"after")])
        assert read_exactly(far, 12) == b"before!after"
        far.sendall(b"answer")
        assert read_exactly(near, 6) == b"answer"
        assert_asleep(link)
        send_and_shut(near, b"end")
        assert read_all(far) == b"end"


def test_urgent_byte_with_nothing_around_it(link: Link) -> None:
    """Row 86: it arrives at once, again and again, without a byte behind it that would push it through."""
    near, far = inline_pair(link)
    with near, far:
        for number in range(50):
            byte = bytes([number])
            near.send(byte, socket.MSG_OOB)
            assert far.recv(10) == byte
            far.sendall(byte)
            assert near.recv(10) == byte
        assert_asleep(link)


def test_many_urgent_bytes_in_a_bulk_stream(link: Link) -> None:
    """Row 86: several marks, at odd places of 8 MiB, while the reader keeps up."""
    near, far = inline_pair(link)
    data = payload(8 * MIB)
    parts: list[Part] = []
    start = 0
    while start < len(data):
        size = 1 + len(parts) * 7919 % 200_000
        parts += [plain(data[start : start + size]), urgent(data[start + size : start + size + 3])]
        start += size + 3
    parts = [part for part in parts if part[0]]
    with near, far, in_background(lambda: (send_parts(near, parts), near.shutdown(socket.SHUT_WR))):
        assert read_all(far) == data


def test_urgent_bytes_both_ways_at_once(link: Link) -> None:
    """Row 86."""
    near, far = inline_pair(link)
    there = [part for number in range(200) for part in (plain(payload(3000, number)), urgent())]
    back = [part for number in range(200) for part in (urgent(b"ab"), plain(payload(4097, number)))]
    with (
        near,
        far,
        in_background(lambda: (send_parts(near, there), near.shutdown(socket.SHUT_WR))),
        in_background(lambda: (send_parts(far, back), far.shutdown(socket.SHUT_WR))),
        in_background(read_all, far) as there_read,
    ):
        assert read_all(near) == joined(back)
    assert there_read == [joined(there)]


def test_urgent_bytes_before_a_reader_that_stalls(link: Link) -> None:
    """Row 86: marks wait in every queue on the way; that costs no wake-up, and then all of it arrives."""
    near, far = inline_pair(link)
    sent = bytearray()
    with near, far:
        near.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while len(sent) < 64 * MIB:
                chunk = payload(30_000, len(sent))
                sent += chunk[: near.send(chunk)]
                sent += b"!"[: near.send(b"!", socket.MSG_OOB)]
        near.settimeout(TIMEOUT)
        assert_asleep(link)
        with in_background(send_parts, near, [urgent(), plain(b"end")]):
            assert read_exactly(far, len(sent) + 4) == bytes(sent) + b"!end"
        assert_asleep(link)


def test_urgent_byte_before_upstream_is_there(upstream: Upstream, workers: int, make_link: Callable[..., Link]) -> None:
    """Rows 46, 86, 87: a client sends, urgently, and ends before anybody has taken the connection."""
    link = make_link()
    upstream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    for parts in ([urgent()], [plain(b"early"), urgent()], [urgent(), plain(b"early")]):
        with connect(link.proxy.address if link.proxy else (upstream.host, upstream.port)) as client:
            send_parts(client, parts)
            client.shutdown(socket.SHUT_WR)
            with upstream.accept() as server:
                assert read_all(server) == joined(parts)


# --- urgent byte and end of file in one batch: the process sleeps while they come ---

BATCHES = {
    "middle": [plain(b"before"), urgent(), plain(b"after")],
    "last": [plain(b"before"), urgent()],
    "first": [urgent(), plain(b"after")],
    "alone": [urgent()],
    "twice": [plain(b"a"), urgent(), plain(b"b"), urgent(), plain(b"c")],
    "in-a-row": [urgent(), urgent(), urgent()],
    # The reads of the proxy below are 4096 bytes long: the mark right before, at and behind the end of one.
    "one-read-before": [plain(payload(4096)), urgent(), plain(payload(4096))],
    "ends-a-read": [plain(payload(4095)), urgent()],
    "short-before-mark": [plain(payload(4095)), urgent(), plain(payload(4096))],
    "reads-behind": [plain(b"a"), urgent(), plain(payload(20_000))],
}


def cpu_in_half_a_second(pid: int) -> float:
    before = cpu_seconds(pid)
    pause(0.5)
    return cpu_seconds(pid) - before


def is_stopped(pid: int) -> bool:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return {(thread / "stat").read_text().rpartition(")")[2].split()[0] for thread in threads} == {"T"}


class Process:
    """Pairs of sockets through the command, which can be put to sleep; or direct ones."""

    def __init__(self, upstream: Upstream, command: Command | None, swapped: bool) -> None:
        self.upstream, self.command, self._swapped = upstream, command, swapped
        upstream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)

    def pair(self) -> tuple[socket.socket, socket.socket]:
        client = connect(self.command.address if self.command else (self.upstream.host, self.upstream.port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        server = self.upstream.accept()
        # A round, so that the relay is established and has nothing left to do when it is stopped.
        client.sendall(b"?")
        assert server.recv(1) == b"?"
        return (server, client) if self._swapped else (client, server)

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        if self.command is None:
            yield
            return
        pid = self.command.process.pid
        self.command.signal(signal.SIGSTOP)
        eventually(lambda: is_stopped(pid))
        try:
            yield
        finally:
            self.command.signal(signal.SIGCONT)


@pytest.fixture
def process(upstream: Upstream, workers: int, swapped: bool, command: Callable[..., Command]) -> Process:
    options = ("--workers", str(workers), "--buffer-size", "4096", "--half-close-timeout", "5s")
    return Process(upstream, command(*options, upstream.name) if workers else None, swapped)


def test_urgent_byte_and_end_of_file_in_one_batch(process: Process) -> None:
    """Row 87: all bytes, then the end of file; the other direction lives on."""
    for name, parts in BATCHES.items():
        near, far = process.pair()
        with near, far:
            with process.asleep():
                send_parts(near, parts)
                near.shutdown(socket.SHUT_WR)
                eventually(lambda near=near: near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == FIN_WAIT2)
            assert read_all(far) == joined(parts), name
            send_and_shut(far, b"answer")
            assert read_all(near) == b"answer", name


def test_urgent_bytes_in_one_batch_without_an_end(process: Process) -> None:
    """Row 86: as above, but the connection stays open, so that no hang-up helps; then no CPU is used."""
    for name, parts in BATCHES.items():
        near, far = process.pair()
        with near, far:
            with process.asleep():
                send_parts(near, parts)
            assert read_exactly(far, len(joined(parts))) == joined(parts), name
            far.sendall(b"answer")
            assert read_exactly(near, 6) == b"answer", name
            if name == "middle" and process.command:
                at_best(functools.partial(cpu_in_half_a_second, process.command.process.pid), 0.025)


def test_both_ends_urgent_and_ended_in_one_batch(process: Process) -> None:
    """Rows 9, 87: both sides send an urgent byte and end while the proxy sleeps."""
    near, far = process.pair()
    with near, far:
        with process.asleep():
            for sock in (near, far):
                send_parts(sock, BATCHES["middle"])
                sock.shutdown(socket.SHUT_WR)
        assert read_all(far) == b"before!after"
        assert read_all(near) == b"before!after"


def test_would_block_at_an_urgent_mark(command: Callable[..., Command], upstream: Upstream, tmp_path: Path) -> None:
    """Row 86: with a signal pending (a stop, say), recv says so at a mark, and no event tells of the bytes there."""
    trace = tmp_path / "trace"
    fault = "inject=recvfrom:error=EAGAIN:when=7+7"  # beyond what the log's thread receives
    process = command(upstream.name, wrapper=strace("-o", str(trace), "-e", "trace=recvfrom", "-e", fault))
    near, far = Process(upstream, process, swapped=False).pair()
    with near, far:
        for number in range(100):
            near.send(bytes([number]), socket.MSG_OOB)
            assert far.recv(10) == bytes([number])
    assert trace.read_text().count("INJECTED") > 10


# --- small segments ---


def exchange(one: socket.socket, other: socket.socket, size: int) -> None:
    """Sends `size` bytes each way at once and compares them."""
    there, back = payload(size, 1), payload(size, 2)
    with (
        in_background(send_and_shut, one, there),
        in_background(send_and_shut, other, back),
        in_background(read_all, other) as there_read,
    ):
        assert read_all(one) == back
    assert there_read == [there]


def test_segments_of_88_bytes(upstream: Upstream, make_link: Callable[..., Link], workers: int) -> None:
    """Row 88: the smallest segments that TCP allows, both ways at once."""
    link = make_link()
    upstream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 88)
    with socket.socket() as client:
        client.settimeout(TIMEOUT)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 88)
        client.connect(link.proxy.address if link.proxy else (upstream.host, upstream.port))
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 88
        with upstream.accept() as server:
            exchange(client, server, MIB)


def test_writes_of_all_small_sizes(link: Link) -> None:
    """Row 88: sizes from 1 byte up, each sent on its own."""
    near, far = link.pair()
    data = payload(600 * 601 // 2)
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send() -> None:
        start = 0
        for size in range(1, 601):
            near.sendall(data[start : start + size])
            start += size
        near.shutdown(socket.SHUT_WR)

    with near, far, in_background(send):
        assert read_all(far) == data


def switch_offload_off(interface: str) -> None:
    """TSO, GSO and GRO off, as ethtool -K would: what is sent as small segments is received as such."""
    siocethtool, commands = 0x8946, (0x1F, 0x24, 0x2C)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        for number in commands:
            value = ctypes.create_string_buffer(struct.pack("II", number, 0), 8)
            request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(value))
            fcntl.ioctl(handle, siocethtool, request)


@pytest.fixture
def narrow(namespaces: Callable[[], Namespace]) -> tuple[Namespace, Namespace]:
    """Two namespaces, 10.0.0.1 and 10.0.0.2, with an MTU of 600 between them."""
    pair = namespaces(), namespaces()
    pair[0].join(pair[1])
    for number, namespace in enumerate(pair, 1):
        namespace.address("v", f"10.0.0.{number}/24")
        namespace.ip("link", "set", "v", "mtu", "600")
        namespace.call(switch_offload_off, "v")
    return pair


@pytest.mark.parametrize("workers", [0, 1, 2], ids=["direct", "1worker", "2workers"])
def test_mtu_600_without_offload(
    narrow: tuple[Namespace, Namespace],
    stack: contextlib.ExitStack,
    command: Callable[..., Command],
    workers: int,
) -> None:
    """Row 88: 4 MiB each way at once over a path of 600 bytes, nothing merged; then with urgent bytes among them."""
    peers, middle = narrow
    upstream = peers.call(Upstream, "10.0.0.1") if workers else middle.call(Upstream, "10.0.0.2")
    assert isinstance(upstream, Upstream)
    stack.enter_context(contextlib.closing(upstream))
    upstream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    address = ("10.0.0.2", upstream.port)
    if workers:
        options = ("-b", "10.0.0.2", "--workers", str(workers), upstream.name)
        address = command(*options, wrapper=middle.wrapper).address
    for urgently in (False, True):
        client = peers.call(connect, address)
        assert isinstance(client, socket.socket)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        with client, upstream.accept() as server:
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) < 600
            if not urgently:
                exchange(client, server, 4 * MIB)
                continue
            parts = [part for number in range(100) for part in (plain(payload(5000, number)), urgent())]
            for one, other in ((client, server), (server, client)):
                with in_background(send_parts, one, parts):
                    assert read_exactly(other, len(joined(parts))) == joined(parts)


STUCK_AT_THE_MARK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
ssize_t recv(int fd, void *to, size_t size, int flags)
{
    static ssize_t (*real)(int, void *, size_t, int);
    char first;
    if (!real)
        real = (ssize_t (*)(int, void *, size_t, int))dlsym(RTLD_NEXT, "recv");
    if (real(fd, &first, 1, MSG_PEEK | MSG_DONTWAIT) == 1 && first == '!' && access(getenv("GO_ON"), F_OK) != 0) {
        errno = EAGAIN;
        return -1;
    }
    return real(fd, to, size, flags);
}
"""
"""Says "would block" at an urgent mark, with bytes queued, as a kernel does while a signal is pending: for longer."""


def test_urgent_byte_that_cannot_be_read_yet(
    command: Callable[..., Command], upstream: Upstream, tmp_path: Path
) -> None:
    """Rows 67, 87: the worker asks again, but serves its other connections in between."""
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("a C compiler is missing")
    (tmp_path / "stuck.c").write_text(STUCK_AT_THE_MARK)
    library, go_on = tmp_path / "stuck.so", tmp_path / "go on"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "stuck.c", "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "GO_ON": str(go_on)}
    upstream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    process = command("--workers", "1", "--zero-copy", "off", upstream.name, env=environment)
    with contextlib.ExitStack() as stack:
        near, other_near = (stack.enter_context(connect(process.address)) for _ in range(2))
        far, other_far = (stack.enter_context(upstream.accept()) for _ in range(2))
        send_parts(near, [urgent()])
        for _ in range(10):
            other_near.sendall(b"hello")
            assert read_exactly(other_far, 5) == b"hello"
        go_on.touch()
        assert read_exactly(far, 1) == b"!"
