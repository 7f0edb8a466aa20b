"""Bulk bytes move inside the kernel, and nobody can tell. These tests need splice, so they are for Linux."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import Command, strace
from support.machine import descriptors, needs_splice
from support.peers import Link, Upstream, connect, reset
from support.streams import MIB, fill, payload, read_all, read_exactly, send_and_shut
from support.waiting import TIMEOUT, at_best, eventually, in_background

import tcpproxy
from tcpproxy._core.worker import POLLER

pytestmark = needs_splice

PIPES = 32
"""A worker's pipes at one time."""

MakeProxy = Callable[..., tcpproxy.Proxy]


@pytest.fixture(params=["auto", "always"])
def mode(request: pytest.FixtureRequest) -> str:
    """`auto` as people get it, `always` from the first byte on."""
    return request.param


@pytest.fixture
def spliced(make_proxy: MakeProxy, upstream: Upstream, swapped: bool, mode: str) -> Link:
    """A link that splices, both ways round."""
    return Link(upstream, make_proxy(upstream.name, zero_copy=mode), swapped)


def moved_by_splice(link: Link) -> int:
    assert link.proxy
    return link.proxy.stats().bytes_spliced


def idle_descriptors(proxy: tcpproxy.Proxy) -> int:
    """Open descriptors once no connection is left; at most all pipes that may wait in the pool are among them."""
    eventually(lambda: proxy.stats().active == 0)
    return descriptors()


@pytest.mark.parametrize("size", [1, 1000, MIB, 64 * MIB])
def test_bytes_are_exact(spliced: Link, size: int) -> None:
    """Row 78: small, middle and large; the counters agree, and large ones took the short way."""
    near, far = spliced.pair()
    data = payload(size)
    with near, far, in_background(send_and_shut, near, data):
        assert read_all(far) == data
    proxy = spliced.proxy
    assert proxy
    eventually(lambda: proxy.stats().ended == 1)  # counted when the turn is over, a moment after the last byte
    stats = proxy.stats()
    assert stats.bytes_to_upstream + stats.bytes_to_client == size
    assert stats.bytes_spliced <= size
    if size > 16 * MIB:
        assert stats.bytes_spliced > size / 2


def test_reader_at_end_of_file(spliced: Link) -> None:
    """Row 78: bulk one way, and both ends of file at once."""
    near, far = spliced.pair()
    data = payload(8 * MIB)
    with near, far:
        far.shutdown(socket.SHUT_WR)
        with in_background(send_and_shut, near, data):
            assert near.recv(1) == b""
            assert read_all(far) == data


def test_off_never_splices(make_proxy: MakeProxy, upstream: Upstream) -> None:
    """Row 78: --zero-copy off copies."""
    link = Link(upstream, make_proxy(upstream.name, zero_copy="off"), swapped=False)
    near, far = link.pair()
    data = payload(16 * MIB)
    with near, far, in_background(send_and_shut, near, data):
        assert read_all(far) == data
    assert moved_by_splice(link) == 0


def test_more_than_a_pipe_with_both_ends_slow(spliced: Link) -> None:
    """Rows 67, 79: the pipe is full, the sink is full, the source dries up, again and again."""
    near, far = spliced.pair()
    data = payload(12 * MIB)

    def in_bursts() -> None:
        for start in range(0, len(data), 700_001):
            near.sendall(data[start : start + 700_001])
        near.shutdown(socket.SHUT_WR)

    with near, far, in_background(in_bursts):
        received = bytearray()
        while part := far.recv(4096 if len(received) % 3 else 100_000):
            received += part
        assert received == data


def test_small_segments_through_a_pipe(make_proxy: MakeProxy, upstream: Upstream, swapped: bool) -> None:
    """Rows 67, 68: tiny segments fill a pipe's slots long before its bytes; no stall when it is drained."""
    link = Link(upstream, make_proxy(upstream.name, zero_copy="always"), swapped)
    near, far = link.pair()
    data = payload(60_000)

    def dribble() -> None:
        for byte in data:
            near.send(bytes([byte]))
        near.shutdown(socket.SHUT_WR)

    with near, far, in_background(dribble):
        assert read_all(far) == data


def test_question_and_answer_when_forced(make_proxy: MakeProxy, upstream: Upstream) -> None:
    """Row 83: no SPLICE_F_MORE: the last bytes are not held back for 200 ms."""
    link = Link(upstream, make_proxy(upstream.name, zero_copy="always"), swapped=False)
    near, far = link.pair()
    times = []
    with near, far:
        for size in range(1, 200):
            start = os.times().elapsed
            near.sendall(bytes(size))
            read_exactly(far, size)
            far.sendall(b"!")
            assert near.recv(1) == b"!"
            times.append(os.times().elapsed - start)
    assert sorted(times)[len(times) // 2] < 0.1
    assert moved_by_splice(link) > 0


def test_bulk_and_small_take_turns(make_proxy: MakeProxy, upstream: Upstream, swapped: bool) -> None:
    """Rows 78, 84: bulk, then questions and answers, then bulk: each at its own pace, every byte in its place."""
    link = Link(upstream, make_proxy(upstream.name, zero_copy="auto"), swapped)
    near, far = link.pair()
    bulk = payload(20 * MIB)
    with near, far:
        for _ in range(2):
            with in_background(near.sendall, bulk):
                assert read_exactly(far, len(bulk)) == bulk
            near.sendall(b"?")  # what has been sent is counted a moment later, but before this passes
            assert far.recv(1) == b"?"
            before = moved_by_splice(link)
            for number in range(100):
                near.sendall(b"question %d" % number)
                assert read_exactly(far, len(b"question %d" % number)) == b"question %d" % number
            assert moved_by_splice(link) - before < 100, "small messages are copied again after a few"


def test_urgent_byte_in_a_spliced_stream(spliced: Link) -> None:
    """Rows 82, 86: splice stops at the mark and says "would block" or "end" with bytes unread; a recv knows better."""
    near, far = spliced.pair()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    data = payload(4 * MIB)
    with near, far:

        def send() -> None:
            for start in range(0, len(data), MIB):
                near.sendall(data[start : start + MIB])
                near.send(b"!", socket.MSG_OOB)
            near.shutdown(socket.SHUT_WR)

        with in_background(send):
            received = read_all(far)
    expected = b"".join(data[start : start + MIB] + b"!" for start in range(0, len(data), MIB))
    assert received == expected


def test_reset_of_the_sink_while_splicing(spliced: Link) -> None:
    """Rows 19, 23: splice has no MSG_NOSIGNAL; the process survives, the writer hears of the reset."""
    near, far = spliced.pair()
    fill(near)
    reset(far)
    with near, pytest.raises((ConnectionResetError, BrokenPipeError)):
        near.sendall(bytes(256 * MIB))


def test_sigpipe_of_the_program_is_its_own(tmp_path: Path) -> None:
    """Row 23: in a program that takes SIGPIPE as a death sentence, a reset sink does not kill it."""
    script = tmp_path / "program.py"
    script.write_text(
        "import signal, socket, struct, tcpproxy\n"
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "with tcpproxy.Proxy('127.0.0.1:%d' % server.getsockname()[1], zero_copy='always') as proxy:\n"
        "    for _ in range(20):\n"
        "        client = socket.create_connection(proxy.address)\n"
        "        upstream = server.accept()[0]\n"
        "        client.setblocking(False)\n"
        "        try:\n"
        "            while True: client.send(bytes(1 << 20))\n"
        "        except BlockingIOError: pass\n"
        "        upstream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\n"
        "        upstream.close()\n"
        "        client.setblocking(True)\n"
        "        try:\n"
        "            while client.recv(1): pass\n"
        "        except ConnectionResetError: pass\n"
        "        client.close()\n"
        "print('alive')\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=50, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alive\n"


def test_more_stalled_bulk_streams_than_pipes(make_proxy: MakeProxy, upstream: Upstream) -> None:
    """Rows 63, 85: pipes are few; who gets none is copied, and all bytes are exact in the end."""
    proxy = make_proxy(upstream.name, zero_copy="always")
    link = Link(upstream, proxy, swapped=False)
    data = payload(8 * MIB)
    before = idle_descriptors(proxy)
    with contextlib.ExitStack() as stack:
        pairs = [link.pair() for _ in range(PIPES + 8)]
        for near, far in pairs:
            stack.enter_context(near)
            stack.enter_context(far)
            stack.enter_context(in_background(send_and_shut, near, data))
        # Nobody reads yet: every stream that got a pipe holds it, and the others live without one.
        for _, far in pairs:
            assert read_all(far) == data
    assert idle_descriptors(proxy) <= before + 2 * PIPES


def test_a_dirty_pipe_is_nobodys(make_proxy: MakeProxy, upstream: Upstream) -> None:
    """Row 85: streams that die with bytes in their pipes; the next ones see only their own bytes."""
    proxy = make_proxy(upstream.name, zero_copy="always")
    link = Link(upstream, proxy, swapped=False)
    for number in range(60):
        near, far = link.pair()
        fill_quickly(near)
        reset(near) if number % 2 else reset(far)
        (far if number % 2 else near).close()
        near, far = link.pair()
        own = payload(100_000, seed=number)
        with near, far, in_background(send_and_shut, near, own):
            assert read_all(far) == own


def fill_quickly(sock: socket.socket) -> None:
    """Sends until the kernel takes no more at this moment."""
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(64):
            sock.send(bytes(MIB))
    sock.settimeout(20)


def test_pipes_go_back(make_proxy: MakeProxy, upstream: Upstream) -> None:
    """Row 85: a hundred bulk streams one after the other need a pipe or two, not a hundred."""
    proxy = make_proxy(upstream.name, zero_copy="always")
    link = Link(upstream, proxy, swapped=False)
    before = idle_descriptors(proxy)
    for number in range(100):
        near, far = link.pair()
        data = payload(300_000, seed=number)
        with near, far, in_background(send_and_shut, near, data):
            assert read_all(far) == data
    assert idle_descriptors(proxy) <= before + 4


@pytest.mark.parametrize(
    "fault",
    [
        "splice:error=EINVAL",
        "splice:error=ENOSYS",
        "splice:error=EINVAL:when=5+7",
        "splice:error=EINTR:when=1+3",
        # the poll poller has a pipe of its own, without which it would not start
        *(["pipe2:error=EMFILE"] if POLLER == "epoll" else []),
    ],
)
def test_faults_fall_back_to_copying(command: Callable[..., Command], fault: str, tmp_path: Path) -> None:
    """Rows 63, 80, 81: refused, interrupted, no pipe: no error to anybody, every byte in its place."""
    upstream = Upstream()
    trace = tmp_path / "trace"
    process = command(
        "--zero-copy=always",
        upstream.name,
        wrapper=strace("-o", str(trace), "-e", "trace=splice,pipe2,fcntl", "-e", f"inject={fault}"),
    )
    data = payload(3 * MIB)
    with contextlib.closing(upstream):
        for _ in range(3):
            near = connect(process.address)
            far = upstream.accept()
            with near, far:
                with in_background(near.sendall, data):
                    assert read_exactly(far, len(data)) == data
                with in_background(send_and_shut, far, data):
                    assert read_all(near) == data
                near.shutdown(socket.SHUT_WR)
                assert read_all(far) == b""
    assert "INJECTED" in trace.read_text()
    assert process.complaints == []


def test_five_streams_share_a_budget(make_proxy: MakeProxy, upstream: Upstream) -> None:
    """Row 84: streams that splice at full speed take turns; none is left behind."""
    proxy = make_proxy(upstream.name, zero_copy="always")
    link = Link(upstream, proxy, swapped=False)
    stop = threading.Event()
    counts = [0] * 5

    def pour(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                sock.sendall(bytes(MIB))

    def drink(number: int, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := sock.recv(MIB):
                counts[number] += len(part)

    with contextlib.ExitStack() as stack:
        for number in range(5):
            near, far = link.pair()
            stack.enter_context(in_background(drink, number, far))
            stack.enter_context(in_background(pour, near))
            stack.callback(near.shutdown, socket.SHUT_RDWR)

        def inequality() -> float:
            """How many times as much as the slowest the fastest moves, while all of them move so much."""
            before = counts.copy()
            eventually(lambda: sum(counts) - sum(before) > 300 * MIB, TIMEOUT)
            moved = [now - then for now, then in zip(counts, before, strict=True)]
            return max(moved) / max(1, min(moved))

        at_best(inequality, 10)
        stop.set()
