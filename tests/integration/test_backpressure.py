"""A reader that stops, stops its sender: no memory, no processor time and no byte is lost over it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from networks import Namespace
from support.command import Command, strace
from support.machine import cpu_seconds, descriptors, fcntl, needs, needs_proc, termios
from support.peers import Link, Upstream, connect, reset
from support.streams import KIB, MIB, choke, fill, payload, read_all, read_exactly, send_and_shut, send_until_full
from support.waiting import TIMEOUT, at_best, eventually, in_background, pause

import tcpproxy

Pair = tuple[socket.socket, socket.socket]


def own_memory(pid: int) -> int:
    """Bytes of memory that the process has for itself, files and sockets not counted."""
    needs_proc()
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status).group(1)) * KIB  # type: ignore[union-attr]


def pairs_through(address: tuple[str, int], upstream: Upstream, count: int) -> list[Pair]:
    return [(connect(address), upstream.accept()) for _ in range(count)]


def block_both_ways(pairs: list[Pair]) -> int:
    """Sends on both ends of each pair until nothing more is taken. Returns how many bytes went."""
    total = 0
    ends = [end for pair in pairs for end in pair]
    for end in ends:
        end.setblocking(False)
    while ready := select.select([], ends, [], 0.3)[1]:
        for end in ready:
            with contextlib.suppress(BlockingIOError):
                total += end.send(bytes(MIB))
    for end in ends:
        end.settimeout(20)
    return total


def close(pairs: list[Pair]) -> None:
    for pair in pairs:
        for end in pair:
            end.close()


def test_memory_is_bounded_by_the_buffer_size(command: Callable[..., Command], upstream: Upstream) -> None:
    """Row 27: eight connections that are stuck in both directions cost at most a buffer per direction."""
    proxy = command(upstream.name, "--buffer-size", "256KiB", "--quiet", "--workers", "1")
    warm_up = pairs_through(proxy.address, upstream, 8)  # what a first use costs is not what a slow reader costs
    for near, far in warm_up:
        for source, sink in ((near, far), (far, near)):
            with in_background(source.sendall, bytes(MIB)):
                read_exactly(sink, MIB)
    before = own_memory(proxy.process.pid)
    sent = 0

    def full() -> bool:  # tried again, for a proxy that stands still for a moment takes nothing either
        nonlocal sent
        sent += block_both_ways(warm_up)
        return sent > 32 * MIB

    eventually(full, TIMEOUT)
    growth = own_memory(proxy.process.pid) - before
    close(warm_up)
    assert growth <= 16 * 256 * KIB + 512 * KIB


def in_the_kernel(namespace: Namespace, *ports: int) -> int:
    """Bytes of memory that sockets with these numbers for their own or their peer's port hold in this namespace.

    Not from /proc/net/sockstat: its memory figure is the whole machine's, in every namespace.
    """
    needs("ss")
    which = " or ".join(f"{end} = :{port}" for port, end in zip(ports, ("sport", "dport"), strict=True))
    argv = [*namespace.wrapper, "ss", "-tmnH", "state", "established", which]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return sum(int(size) for size in re.findall(r"[(,][rw](\d+),", said))


def held_when_full(sender: socket.socket, namespace: Namespace, ports: tuple[int, int], at_least: int) -> int:
    """What the kernel holds of a stalled direction.

    Fills it again while that is not enough, for a proxy that stands still for a moment takes nothing either.
    """
    held = 0

    def full() -> bool:
        nonlocal held
        fill(sender)
        held = in_the_kernel(namespace, *ports)
        return held > at_least

    eventually(full, TIMEOUT, f"never more than {at_least} bytes")
    return held


@pytest.mark.parametrize("swapped", [False, True], ids=["client-to-upstream", "upstream-to-client"])
@pytest.mark.parametrize("zero_copy", ["off", "always"])
def test_socket_buffer_bounds_the_kernel(
    command: Callable[..., Command], stack: contextlib.ExitStack, zero_copy: str, swapped: bool
) -> None:
    """Row 29: what a stalled direction holds in the kernel, with and without a bound, as control."""
    here = stack.enter_context(contextlib.closing(Namespace()))
    held: list[int] = []
    for bound in ("64KiB", "off"):
        upstream = stack.enter_context(contextlib.closing(here.call(Upstream)))
        options = ("--socket-buffer", bound, "--zero-copy", zero_copy, "--quiet", "--workers", "1")
        proxy = command(upstream.name, *options, wrapper=here.wrapper)
        client = stack.enter_context(here.call(connect, proxy.address))
        server = stack.enter_context(upstream.accept())
        at_least = 4 * held[0] if held else 64 * KIB
        ports = proxy.address[1], upstream.port
        held.append(held_when_full(server if swapped else client, here, ports, at_least))
    # Two sockets with 64 KiB each, which Linux doubles for its own needs, and up to one packet of loopback's on top.
    assert held[0] <= 2 * 2 * 64 * KIB + 2 * 64 * KIB, held


def test_socket_buffer_beyond_what_the_system_allows(command: Callable[..., Command], upstream: Upstream) -> None:
    """It is said at the start, since the kernel takes less without a word."""
    allowed = int(Path("/proc/sys/net/core/wmem_max").read_text())
    if allowed >= 1000 * MIB:
        pytest.skip("the system allows more than can be asked for")
    proxy = command(upstream.name, "--socket-buffer", "1000MiB")
    modest = command(upstream.name, "--socket-buffer", str(min(allowed, 65536)))
    for process in (proxy, modest):
        connect(process.address).close()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    sentence = (
        f"--socket-buffer 1048576000 is more than the system allows for sending: {allowed} bytes (net.core.wmem_max)"
    )
    assert proxy.complaints == [f"warning: {sentence}"]
    assert modest.complaints == []


def test_no_processor_time_while_blocked(command: Callable[..., Command], upstream: Upstream) -> None:
    """Row 28: nothing runs while all wait for their readers."""
    proxy = command(upstream.name, "--quiet", "--workers", "2")
    pairs = pairs_through(proxy.address, upstream, 4)

    def used_in_a_second() -> float:
        block_both_ways(pairs)  # also what the kernel, moving bytes about, has made room for since
        before = cpu_seconds(proxy.process.pid)
        pause(1)
        return cpu_seconds(proxy.process.pid) - before

    at_best(used_in_a_second, 0.005)  # the clock ticks in hundredths
    close(pairs)


def test_closed_window_for_a_while_then_resume(link: Link) -> None:
    """Row 30, with 1.5 seconds for minutes: the reader stops long enough for window probes, then goes on."""
    near, far = link.pair()
    with near, far:
        stuck = choke(near)
        pause(1.5)
        stuck += fill(near)  # probes may have found a little room
        rest = payload(8 * MIB)
        with in_background(send_and_shut, near, rest):
            assert read_exactly(far, stuck) == bytes(stuck)
            assert read_all(far) == rest


@pytest.mark.parametrize("workers", [1, 2], ids=["1worker", "2workers"])
def test_stop_while_bytes_are_stuck(upstream: Upstream, workers: int) -> None:
    """Row 31: a proxy that is stopped while it still holds bytes for slow readers leaves nothing behind."""
    before, threads = descriptors(), threading.active_count()
    events: list[tcpproxy.Event] = []
    proxy = tcpproxy.Proxy(upstream.name, workers=workers, on_event=events.append).start()
    pairs = pairs_through(proxy.address, upstream, 8)
    block_both_ways(pairs)
    for near, _ in pairs[:4]:
        near.shutdown(socket.SHUT_WR)  # the end waits behind the bytes
    proxy.stop()
    assert [event.reason for event in events if event.kind == "end"] == ["shutdown"] * 8
    for _, far in pairs:
        with pytest.raises(ConnectionResetError):  # a stream that is cut does not end like a whole one
            read_all(far)
    close(pairs)
    assert proxy.stats().active == 0
    assert threading.active_count() <= threads
    del proxy
    assert descriptors() <= before


def test_termination_while_bytes_are_stuck(command: Callable[..., Command], upstream: Upstream) -> None:
    """Row 31: the command ends in order, after its grace, with a reader that never reads."""
    proxy = command(upstream.name, "--quiet", "--grace", "300ms")
    pairs = pairs_through(proxy.address, upstream, 4)
    block_both_ways(pairs)
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0
    assert proxy.complaints == []
    close(pairs)


def test_termination_waits_for_a_slow_reader(command: Callable[..., Command], upstream: Upstream) -> None:
    """Row 31: what is delivered within the grace is delivered whole."""
    proxy = command(upstream.name, "--quiet", "--grace", "20s")
    [(near, far)] = pairs_through(proxy.address, upstream, 1)
    with near, far:
        stuck = fill(far)
        far.close()
        near.shutdown(socket.SHUT_WR)
        proxy.signal(signal.SIGTERM)
        assert read_all(near) == bytes(stuck)
    assert proxy.wait() == 0


PATTERN = payload(MIB - 7)
"""Not a round size, so that a block that is lost, doubled or moved shifts everything behind it."""


def pour(sock: socket.socket, size: int) -> None:
    whole, rest = divmod(size, len(PATTERN))
    for _ in range(whole):
        sock.sendall(PATTERN)
    send_and_shut(sock, PATTERN[:rest])


def check_poured(sock: socket.socket, size: int) -> None:
    buffer = bytearray(len(PATTERN))
    view = memoryview(buffer)
    while size:
        piece, start = min(size, len(PATTERN)), 0
        while start < piece:
            got = sock.recv_into(view[start:piece])
            assert got, f"end of file with {size - start} bytes missing"
            start += got
        assert buffer.startswith(PATTERN[:piece])  # views are compared byte by byte, five times as slowly
        size -= piece
    assert sock.recv(1) == b""


def test_a_quarter_of_a_gibibyte(link: Link) -> None:
    """Row 37, a part of it: each way round."""
    near, far = link.pair()
    with near, far, in_background(pour, near, 256 * MIB + 12345):
        check_poured(far, 256 * MIB + 12345)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [1], ids=["1worker"])
@pytest.mark.parametrize("swapped", [True], ids=["upstream-to-client"])
def test_more_than_32_bits_of_bytes(make_link: Callable[..., Link], events: list[tcpproxy.Event], rounds: int) -> None:
    """Row 37: one connection carries more than 2**32 bytes, exactly, and all numbers say so.

    With more than one round 5 GiB go each way at the same time.
    """
    if os.name != "posix":
        pytest.skip("takes minutes where a system call costs as much as under wine")
    down, up = ((1 << 32) + 98_765, 12_345) if rounds == 1 else (5 << 30, (5 << 30) + 12_345)
    link = make_link()
    assert link.proxy
    server, client = link.pair()
    with (
        server,
        client,
        in_background(pour, server, down),
        in_background(pour, client, up),
        in_background(check_poured, server, up),
    ):
        check_poured(client, down)
    eventually(lambda: any(event.kind == "end" for event in events))
    stats = link.proxy.stats()  # not sooner: the last turn's bytes are added when it is over, behind the end of file
    assert (stats.bytes_to_upstream, stats.bytes_to_client) == (up, down)
    assert (events[-1].to_upstream, events[-1].to_client) == (up, down)


def test_reads_of_odd_sizes(link: Link) -> None:
    """Row 38: the reader takes odd amounts from a full connection, so that the relay's sends go through in parts."""
    near, far = link.pair()
    data = payload(12 * MIB)
    received = bytearray()
    with near, far, in_background(send_and_shut, near, data):
        size = 1
        while part := far.recv(size):
            received += part
            size = size * 3 % 100_003
        assert received == data


def test_short_writes(command: Callable[..., Command], upstream: Upstream, tmp_path: Path) -> None:
    """Row 38: a send that the kernel took a part of, as seen in the trace, is continued with the rest."""
    trace = tmp_path / "trace"
    tracer = strace("-e", "trace=sendto", "-s", "0", "-o", str(trace))
    proxy = command(upstream.name, "--quiet", "--zero-copy", "off", "--buffer-size", "1MiB", wrapper=tracer)
    near = connect(proxy.address)
    far = upstream.accept()
    with near, far:
        stuck = fill(near)
        rest = payload(4 * MIB)
        with in_background(send_and_shut, near, rest):
            assert read_exactly(far, stuck) == bytes(stuck)
            assert read_all(far) == rest
    proxy.signal(signal.SIGKILL)
    proxy.wait()
    sends = re.findall(r'sendto\(\d+, ""\.\.\., (\d+), .*\) = (\d+)', trace.read_text())
    assert any(0 < int(taken) < int(offered) for offered, taken in sends)


# --- a receiver that is slow, but steady ---

tells_unsent = pytest.mark.skipif(os.name == "nt", reason="needs a system that tells how much it has not sent yet")


def sip(socks: list[socket.socket], seconds: float, each_time: bytes = b"") -> list[bytes]:
    """Reads from each of them 80 KB a second, and sends as often what is given. Returns what they got."""
    got: list[list[bytes]] = [[] for _ in socks]
    for _ in range(int(seconds / 0.2)):
        for sock, parts in zip(socks, got, strict=True):
            parts.append(sock.recv(16 * KIB))
            assert parts[-1], "end of file"
            if each_time:
                sock.sendall(each_time)
        pause(0.2)
    return [b"".join(parts) for parts in got]


def nothing(sender: socket.socket, receiver: socket.socket) -> None:
    pass


def reset_it(sender: socket.socket, receiver: socket.socket) -> None:
    reset(sender)


def end_the_other_way(sender: socket.socket, receiver: socket.socket) -> None:
    receiver.shutdown(socket.SHUT_WR)
    assert sender.recv(1) == b""


@tells_unsent
@pytest.mark.parametrize(
    ("options", "then", "seconds"),
    [
        pytest.param({}, reset_it, 7, id="behind a reset"),
        pytest.param({"half_close_timeout": 0}, end_the_other_way, 7, id="after the first end"),
        pytest.param({"half_close_timeout": 2}, end_the_other_way, 5, id="half-close-timeout"),
        pytest.param({"idle_timeout": 2}, nothing, 5, id="idle-timeout"),
    ],
)
def test_slow_receiver_gets_everything(
    upstream: Upstream,
    make_proxy: Callable[..., tcpproxy.Proxy],
    stack: contextlib.ExitStack,
    options: dict[str, float],
    then: Callable[[socket.socket, socket.socket], None],
    seconds: float,
) -> None:
    """Row 27: all buffers on the way are full, and it takes longer than a time-out until the proxy's are so empty that
    the kernel takes more. Meanwhile bytes cross the wire, so the connection is not idle.
    """
    proxy = make_proxy(upstream.name, workers=2, **options)
    pairs = [Link(upstream, proxy, swapped).pair() for swapped in (False, True)]
    data = payload(48 * MIB)
    for end in (end for pair in pairs for end in pair):
        stack.enter_context(end)
    with in_background(send_until_full, pairs[0][0], data) as sent:
        sent_by_server = send_until_full(pairs[1][0], data)
    counts = [int(str(sent[0])), sent_by_server]
    for number, (sender, receiver) in enumerate(pairs):
        if options == {"half_close_timeout": 0}:  # no more is read
            counts[number] = sum(item.to_client if number else item.to_upstream for item in proxy.connections())
        if then is reset_it:  # what the sender's own kernel still has is lost, directly too
            counts[number] -= struct.unpack("i", fcntl.ioctl(sender, termios.TIOCOUTQ, bytes(4)))[0]
        then(sender, receiver)
    for (_, receiver), got, count in zip(pairs, sip([receiver for _, receiver in pairs], seconds), counts, strict=True):
        received = got + read_exactly(receiver, count - len(got))
        assert received == data[:count]


@tells_unsent
def test_slow_receiver_that_sends(
    upstream: Upstream, make_proxy: Callable[..., tcpproxy.Proxy], stack: contextlib.ExitStack
) -> None:
    """Row 11: half_close_timeout=0; what was sent before the first end is all in the proxy's kernel. Its receiver is
    slow and goes on sending: closing would reset it, and destroy what it has not got yet.
    """
    proxy = make_proxy(upstream.name, workers=2, half_close_timeout=0)
    pairs = [Link(upstream, proxy, swapped).pair() for swapped in (False, True)]
    data = payload(MIB)
    for sender, receiver in pairs:
        stack.enter_context(sender)
        stack.enter_context(receiver)
        sender.sendall(data)
        sender.shutdown(socket.SHUT_WR)
    for (_, receiver), got in zip(pairs, sip([receiver for _, receiver in pairs], 7, b"x"), strict=True):
        assert got + read_all(receiver) == data


@pytest.mark.parametrize(
    ("options", "reason"), [({"idle_timeout": 0.5}, "idle"), ({"half_close_timeout": 0.5}, "half-close-timeout")]
)
def test_receiver_that_has_stopped_is_idle(
    upstream: Upstream,
    make_proxy: Callable[..., tcpproxy.Proxy],
    events: list[tcpproxy.Event],
    options: dict[str, float],
    reason: str,
) -> None:
    """Rows 11, 27: bytes that wait for a receiver which takes none of them keep no connection alive."""
    proxy = make_proxy(upstream.name, **options)
    for swapped in (False, True):
        near, far = Link(upstream, proxy, swapped).pair()
        with near, far:
            far.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                near.sendall(bytes(48 * MIB))
            eventually(lambda: proxy.stats().active == 0, TIMEOUT)
    eventually(lambda: sum(event.kind == "end" for event in events) == 2)
    ends = [event for event in events if event.kind == "end"]
    assert [event.reason for event in ends] == [reason] * 2
    assert min(event.duration for event in ends) >= 0.49
