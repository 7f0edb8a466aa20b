"""Recordings: what passed through each connection, exact at the moment of the question."""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from networks import Closed
from support.command import run
from support.machine import descriptors
from support.peers import Echo, Upstream, connect
from support.streams import MIB, echoes, is_over, payload, read_all, read_exactly, send_and_shut
from support.waiting import TIMEOUT, eventually, in_background, pause

import tcpproxy
from tcpproxy import Chunk, Proxy, Recording, UsageError, WaitTimeout
from tcpproxy._core.capture import TapReader
from tcpproxy._core.worker import ZERO_COPY, Worker

MakeProxy = Callable[..., Proxy]


@pytest.fixture(params=[1, 2])
def proxy(request: pytest.FixtureRequest, make_proxy: MakeProxy, echo: Echo) -> Proxy:
    return make_proxy(echo.name, record=True, workers=request.param)


def end_of(proxy: Proxy, number: int = -1) -> Recording:
    """The recording of a connection, once it is over."""
    recording = proxy.recordings[number]
    eventually(lambda: recording.reason)
    return recording


# --- what is kept ---


def test_what_has_been_received_is_recorded(proxy: Proxy) -> None:
    """Without any wait: the bytes are recorded before they are sent."""
    with connect(proxy.address) as client:
        for turn in range(300):
            message = b"%d " % turn * (turn + 1)
            assert echoes(client, message)
            recording = proxy.recordings[-1]
            assert recording.to_client.endswith(message)
            assert recording.to_upstream == recording.to_client


def test_what_upstream_has_received_is_recorded(make_proxy: MakeProxy, upstream: Upstream) -> None:
    proxy = make_proxy(upstream.name, record=True)
    with connect(proxy.address) as client, upstream.accept() as server:
        for turn in range(300):
            message = b"%d." % turn
            client.sendall(message)
            read_exactly(server, len(message))
            assert proxy.recordings[-1].to_upstream.endswith(message)
            assert proxy.recordings[-1].to_client == b""


def test_a_client_that_has_just_connected(proxy: Proxy) -> None:
    """It has a recording, though the proxy may not have accepted it before the question."""
    with contextlib.ExitStack() as stack:
        for number in range(1, 51):
            stack.enter_context(connect(proxy.address))
            assert len(proxy.recordings) == number


def test_facts_of_a_connection(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy.address) as client:
        assert echoes(client, b"hello")
        recording = proxy.recordings[-1]
        host, port = client.getsockname()
        assert (recording.id, recording.client, recording.upstream) == (1, f"{host}:{port}", echo.name)
        assert (recording.reason, recording.truncated) == ("", False)
        assert repr(recording) == f"<Recording #1 {host}:{port} -> {echo.name}, 5 and 5 bytes, live>"
    assert end_of(proxy).reason == "client-eof"
    assert "ended: client-eof" in repr(recording)


def test_reads_in_their_order(make_proxy: MakeProxy, upstream: Upstream) -> None:
    proxy = make_proxy(upstream.name, record=True)
    with connect(proxy.address) as client, upstream.accept() as server:
        for question, answer in ((b"one", b"1"), (b"two", b"22"), (b"three", b"333")):
            client.sendall(question)
            read_exactly(server, len(question))
            server.sendall(answer)
            read_exactly(client, len(answer))
        chunks = proxy.recordings[0].chunks
    assert [chunk[:2] for chunk in chunks] == [
        *(("to_upstream", b"one"), ("to_client", b"1"), ("to_upstream", b"two")),
        *(("to_client", b"22"), ("to_upstream", b"three"), ("to_client", b"333")),
    ]
    assert isinstance(chunks[0], Chunk)
    times = [chunk.time for chunk in chunks]
    assert times == sorted(times)
    assert 0 < times[0] <= times[-1] < TIMEOUT


def test_each_connection_has_its_own(proxy: Proxy) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(proxy.address)) for _ in range(20)]
        for number, client in enumerate(clients):
            assert echoes(client, b"I am %d" % number)
        found = proxy.recordings
        assert [each.id for each in found] == list(range(1, 21))
        ports = {client.getsockname()[1]: b"I am %d" % number for number, client in enumerate(clients)}
        assert {int(each.client.split(":")[1]): each.to_client for each in found} == ports


@pytest.mark.parametrize("size", [1, 1000, 65536, 3 * MIB])
def test_first_bytes_are_kept(make_proxy: MakeProxy, echo: Echo, size: int) -> None:
    proxy = make_proxy(echo.name, record=size, workers=2)
    data = payload(2 * MIB)
    with connect(proxy.address) as client, in_background(send_and_shut, client, data):
        assert read_all(client) == data
    recording = end_of(proxy)
    assert recording.to_upstream == recording.to_client == data[:size]
    assert recording.truncated == (size < len(data))
    assert b"".join(chunk.data for chunk in recording.chunks if chunk.direction == "to_client") == data[:size]


def test_default_size(make_proxy: MakeProxy, echo: Echo) -> None:
    proxy = make_proxy(echo.name, record=True)
    data = payload(MIB + 1)
    with connect(proxy.address) as client, in_background(send_and_shut, client, data):
        assert read_all(client) == data
    assert end_of(proxy).to_upstream == data[:MIB]
    assert end_of(proxy).truncated


def test_an_end_and_a_reset(make_proxy: MakeProxy, upstream: Upstream) -> None:
    proxy = make_proxy(upstream.name, record=True)
    with connect(proxy.address) as client, upstream.accept() as server:
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert read_all(server) == b"question"
        server.sendall(b"half an answer")
        read_exactly(client, 14)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.close()
        assert is_over(client)
    recording = end_of(proxy)
    assert (recording.to_upstream, recording.to_client) == (b"question", b"half an answer")
    assert recording.reason == "upstream-reset"


def test_upstream_that_is_not_there(make_proxy: MakeProxy, closed: Closed) -> None:
    proxy = make_proxy(closed.name, record=True)
    with contextlib.suppress(ConnectionResetError), connect(proxy.address) as client:  # it may be reset in connect()
        assert is_over(client)
    eventually(lambda: proxy.recordings)
    recording = end_of(proxy)
    assert (recording.reason, recording.upstream) == ("connect-refused", "")
    assert recording.chunks == []


def test_client_that_is_turned_away(make_proxy: MakeProxy, echo: Echo) -> None:
    proxy = make_proxy(echo.name, record=True, max_connections_per_source=1)
    with connect(proxy.address) as client:
        assert echoes(client)
        with contextlib.suppress(ConnectionResetError), connect(proxy.address) as other:  # it may be reset in connect()
            assert is_over(other)
        eventually(lambda: len(proxy.recordings) == 2)
        assert end_of(proxy).reason == "limit"
        assert [each.id for each in proxy.recordings] == [1, 2]


# --- how long it is kept ---


def test_after_the_end_of_the_proxy(echo: Echo) -> None:
    with Proxy(echo.name, record=True) as proxy, connect(proxy.address) as client:
        assert proxy.recordings == [] or proxy.recordings[0].id == 1
        assert echoes(client, b"last words")
    (recording,) = proxy.recordings
    assert recording.to_client == b"last words"
    assert recording.reason in ("shutdown", "client-eof")


def test_after_the_proxy_is_gone(echo: Echo) -> None:
    with Proxy(echo.name, record=True) as proxy, connect(proxy.address) as client:
        assert echoes(client, b"last words")
        recording = proxy.recordings[0]
    del proxy
    assert recording.to_client == b"last words"
    assert recording.chunks[0].data == b"last words"


def test_a_thousand_are_kept(make_proxy: MakeProxy, echo: Echo) -> None:
    """The oldest ones that have ended go; one that lives stays, and so does one that the program holds."""
    proxy = make_proxy(echo.name, record=100)
    with connect(proxy.address) as first:
        assert echoes(first, b"the first")
        for number in range(1100):
            with connect(proxy.address) as client:
                assert echoes(client, b"%d" % number)
            if number == 0:
                held = end_of(proxy)
        found = proxy.recordings
        assert len(found) == 1000
        assert found[0].id == 1
        assert found[-1].to_client == b"1099"
        assert found[1].id > 2
        assert held.to_client == b"0"
        assert echoes(first, b", still")
        assert found[0].to_client == b"the first, still"


def test_more_than_a_thousand_at_once(make_proxy: MakeProxy, echo: Echo) -> None:
    """All of them are kept while they live; the oldest ones go when they end."""
    proxy = make_proxy(echo.name, record=100)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(proxy.address)) for _ in range(1100)]
        for client in clients:
            assert echoes(client)
        assert len(proxy.recordings) == 1100
    eventually(lambda: proxy.stats().active == 0)
    eventually(lambda: len(proxy.recordings) == 1000)
    with connect(proxy.address) as client:
        assert echoes(client, b"one more")
        assert len(proxy.recordings) == 1000
        assert proxy.recordings[-1].to_client == b"one more"


def test_without_record(make_proxy: MakeProxy, echo: Echo) -> None:
    proxy = Proxy(echo.name)
    with pytest.raises(RuntimeError, match="nothing is recorded, expected Proxy"):
        _ = proxy.recordings
    assert Proxy(echo.name, record=True).recordings == []


@pytest.mark.parametrize("value", ["many", -1, 0, 1.5, "2GiB", b"1"])
def test_sizes_that_are_none(value: object) -> None:
    with pytest.raises(UsageError, match=r"^record "):
        Proxy("localhost:1", record=value)  # type: ignore[arg-type]


# --- waiting ---


def test_wait_for_what_comes_later(proxy: Proxy) -> None:
    with connect(proxy.address) as client:
        assert echoes(client, b"BEGIN;")
        recording = proxy.recordings[0]
        with in_background(recording.wait_for, b"COMMIT", "to_upstream", TIMEOUT) as found:
            for part in (b"COM", b"MIT;"):  # a match across two reads
                assert echoes(client, part)
        (match,) = found
        assert isinstance(match, re.Match)
        assert match.start() == 6


def test_wait_for_what_has_passed(proxy: Proxy) -> None:
    with connect(proxy.address) as client:
        assert echoes(client, b"a number: 42.")
        recording = proxy.recordings[0]
        assert recording.wait_for(re.compile(rb"(\d+)\."))[1] == b"42"
        assert recording.wait_for(b".", "to_client").start() == 12


def test_wait_in_vain(make_proxy: MakeProxy, upstream: Upstream) -> None:
    proxy = make_proxy(upstream.name, record=True)
    with connect(proxy.address) as client, upstream.accept() as server:
        client.sendall(b"COMMIT")
        read_exactly(server, 6)
        with pytest.raises(WaitTimeout, match=r"b'COMMIT' did not pass to client within 0\.01 s\n(?s:.*)") as caught:
            proxy.recordings[0].wait_for(b"COMMIT", "to_client", timeout=0.01)
        assert "43 4f 4d 4d 49 54" in str(caught.value)
        assert isinstance(caught.value, TimeoutError)


def test_wait_ends_with_the_connection(proxy: Proxy) -> None:
    with connect(proxy.address) as client:
        assert echoes(client)
        recording = proxy.recordings[0]
    with pytest.raises(WaitTimeout, match=r"before connection #1 ended \(client-eof\)"):
        recording.wait_for(b"never", timeout=TIMEOUT)


def test_wait_beyond_what_is_kept(make_proxy: MakeProxy, echo: Echo) -> None:
    proxy = make_proxy(echo.name, record=4)
    with connect(proxy.address) as client:
        assert echoes(client, b"COMMIT")
        with pytest.raises(WaitTimeout, match="only the first 4 of 6 and 4 of 6 bytes are recorded"):
            proxy.recordings[0].wait_for(b"COMMIT", timeout=0.01)


def test_a_direction_that_is_none(proxy: Proxy) -> None:
    with connect(proxy.address) as client:
        assert echoes(client)
        with pytest.raises(UsageError, match="expected to_upstream or to_client"):
            proxy.recordings[0].wait_for(b"", "left")  # type: ignore[arg-type]
        for word in ("to_upstream", "up", "upstream", "to_client", "down", "downstream"):
            assert proxy.recordings[0].wait_for(b"", word)  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [math.nan, "soon", True])
def test_a_timeout_that_is_none(proxy: Proxy, timeout: float) -> None:
    with connect(proxy.address) as client:
        assert echoes(client)
        with pytest.raises(UsageError, match=r"^timeout "):
            proxy.recordings[0].wait_for(b"never", timeout=timeout)


@pytest.mark.parametrize("timeout", [0, -1, "10ms"])
def test_a_timeout_as_elsewhere(proxy: Proxy, timeout: float | str) -> None:
    """What has been received is found without any time."""
    with connect(proxy.address) as client:
        assert echoes(client, b"needle")
        proxy.recordings[0].wait_for(b"needle", "to_client", timeout)
        with pytest.raises(WaitTimeout):
            proxy.recordings[0].wait_for(b"never", timeout=timeout)


def test_a_wait_for_ever(proxy: Proxy) -> None:
    with connect(proxy.address) as client:
        assert echoes(client)
        with in_background(proxy.recordings[0].wait_for, b"needle", None, None) as found:
            assert echoes(client, b"needle")
        assert found


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_wait_in_a_coroutine(loop: str, proxy: Proxy) -> None:
    """The peers may be tasks of the same event loop: it goes on meanwhile."""
    anyio = pytest.importorskip("anyio")
    pytest.importorskip(loop)

    async def main() -> None:
        client = await anyio.connect_tcp(*proxy.address)
        await client.send(b"BEGIN;")
        await client.receive()
        recording = proxy.recordings[0]

        async def go_on() -> None:
            for part in (b"COM", b"MIT;"):
                await client.send(part)
                await client.receive()
            await client.aclose()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(go_on)
            match = await recording.wait_for_async(b"COMMIT", "to_upstream", TIMEOUT)
        assert match.start() == 6
        with pytest.raises(WaitTimeout, match=r"b'never' did not pass before connection #1 ended"):
            await recording.wait_for_async(b"never", timeout=TIMEOUT)
        with anyio.move_on_after(0.01) as scope:
            async with await anyio.connect_tcp(*proxy.address):
                await proxy.wait_for_async(accepted=2)
                await proxy.recordings[1].wait_for_async(b"never", timeout=None)
        assert scope.cancelled_caught

    anyio.run(main, backend=loop)


@pytest.mark.parametrize("pattern", ["text", bytearray(b"needle"), None, re.compile("text")])
def test_a_pattern_that_is_none(proxy: Proxy, pattern: bytes) -> None:
    with connect(proxy.address) as client:
        assert echoes(client)
        with pytest.raises(UsageError, match="is neither bytes nor a compiled regular expression of bytes"):
            proxy.recordings[0].wait_for(pattern)


def test_text_of_a_wait_in_vain_is_bounded(make_proxy: MakeProxy, echo: Echo) -> None:
    """It shows the last bytes, with their offsets."""
    proxy = make_proxy(echo.name, record="16MiB")
    data = payload(4 * MIB)
    with connect(proxy.address) as client, in_background(send_and_shut, client, data):
        assert read_all(client) == data
    recording = end_of(proxy)
    with pytest.raises(WaitTimeout, match="these are the last 16384") as caught:
        recording.wait_for(bytes(100_000))
    text = str(caught.value)
    assert len(text) < 200_000
    offset, _, rest = text.splitlines()[-1].partition("  ")
    assert bytes.fromhex(rest[:48]) == data[int(offset, 16) :]  # lines begin where a read does, or the text


# --- a reader that stands still ---


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_questions_while_a_capture_stands_still(tmp_path: Path) -> None:
    """The reader of the taps waits for who reads the pipe. A wait ends in its time, and Ctrl-C ends any question."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    program = """if True:
    import os, signal, socket, sys, threading, time, tcpproxy
    reader = os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)
    server = socket.create_server(("127.0.0.1", 0))
    proxy = tcpproxy.Proxy(server.getsockname(), record="64KiB", capture=sys.argv[1], on_event=lambda _: None).start()
    client = socket.create_connection(proxy.address)
    peer = server.accept()[0]
    client.sendall(b"first")
    peer.recv(5)
    (recording,) = proxy.recordings
    for end in (client, peer):
        end.settimeout(0.2)
    try:
        while True:
            client.sendall(bytes(65536))
            peer.recv(65536)
    except TimeoutError:
        pass
    began = time.monotonic()
    try:
        recording.wait_for(b"never", timeout=0.2)
    except tcpproxy.WaitTimeout:
        assert time.monotonic() - began < 3
    def interrupt(*_):
        raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        recording.to_upstream
    except KeyboardInterrupt:
        print("interrupted")
    os.close(reader)
    proxy.stop()
    for end in (client, peer, server):
        end.close()
    """
    done = run(program, str(pipe))
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted\n", "", 0)


# --- a reader that is slow ---


class Untended:
    """Workers with taps that nobody reads until `tend`."""

    def __init__(self, stack: contextlib.ExitStack, echo: Echo, workers: int, **settings: float) -> None:
        wakeup, _other = (stack.enter_context(end) for end in socket.socketpair())
        wakeup.setblocking(False)
        numbers = {"log_wakeup": wakeup.fileno(), "lookup_wakeup": wakeup.fileno(), "buffer_size": 65536}
        numbers |= {"connect_timeout": 10, "half_close_timeout": 60, "idle_timeout": 0, "keepalive": 0}
        numbers |= {
            "socket_buffer": 0,
            "ephemeral_first": 0,
            "ephemeral_last": 0,
            "busy_poll_us": 0,
            "send_header": 0,
            "header_timeout": 10,
            "tap": 1,
            "paused": 0,
            "upstreams": 1,
        }
        numbers |= {"zero_copy": ZERO_COPY["auto"], **settings}  # type: ignore[dict-item]
        self.workers = [Worker(numbers) for _ in range(workers)]  # type: ignore[arg-type]
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self.address = listener.getsockname()
        for worker in self.workers:
            worker.set_addresses(0, [(socket.inet_aton(echo.host), echo.port, 0)], None)
            worker.listen(listener.dup().detach(), 0)
        listener.close()
        Worker.link(self.workers, limit=100, per_source=0)
        self.reader = TapReader(self.workers, record=64 * MIB)
        self.threads = [threading.Thread(target=worker.run, daemon=True) for worker in self.workers]
        for thread in self.threads:
            thread.start()
        self.tending = threading.Thread(target=self.reader.run, daemon=True)
        stack.callback(self.close)

    def tend(self) -> None:
        self.tending.start()

    def moved(self) -> int:
        return sum(worker.counters()["bytes_to_upstream"] for worker in self.workers)

    def close(self) -> None:
        for worker in self.workers:
            worker.stop(abort=True)
        for thread in self.threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()
        self.reader.finish()
        if self.tending.ident is None:
            self.tend()
        self.tending.join(TIMEOUT)
        assert not self.tending.is_alive()
        for worker in self.workers:
            worker.close()
        self.reader.close()


def stands_still(untended: Untended) -> int:
    """Waits until no more bytes move. Returns how many did."""
    seen = [0]

    def still() -> bool:
        seen.append(untended.moved())
        return len(seen) > 100 and len(set(seen[-100:])) == 1 and seen[-1] > 0

    eventually(still, TIMEOUT)
    return seen[-1]


@pytest.mark.parametrize("workers", [1, 2])
def test_no_room_holds_the_traffic_up_and_loses_nothing(stack: contextlib.ExitStack, echo: Echo, workers: int) -> None:
    untended = Untended(stack, echo, workers)
    data = payload(16 * MIB)
    clients = [stack.enter_context(connect(untended.address)) for _ in range(4)]
    got: list[bytes] = []
    with contextlib.ExitStack() as threads:
        for client in clients:
            threads.enter_context(in_background(send_and_shut, client, data))
            threads.enter_context(in_background(lambda client=client: got.append(read_all(client))))
        assert stands_still(untended) < 4 * MIB * workers, "the ring is full, and the bytes wait in the kernel"
        for _ in range(20):  # connections that end meanwhile, of which the ring cannot take a record
            with connect(untended.address):
                pass
        untended.tend()
    assert got == [data] * 4
    eventually(lambda: untended.reader.sync() or all(each.facts()[3] for each in untended.reader.recordings()), TIMEOUT)
    found = untended.reader.recordings()
    assert [each.id for each in found] == list(range(1, 25))
    assert {each.data(0) for each in found} <= {data, b""}
    assert [each.data(1) for each in found].count(data) == 4


def test_timers_do_not_end_what_waits_for_room(stack: contextlib.ExitStack, echo: Echo) -> None:
    untended = Untended(stack, echo, 1, idle_timeout=1, half_close_timeout=1)
    data = payload(8 * MIB)
    with connect(untended.address) as client, in_background(send_and_shut, client, data):
        with in_background(read_all, client) as got:
            assert stands_still(untended) < 4 * MIB
            pause(2.5)
            untended.tend()
        assert got == [data]


def test_abort_while_there_is_no_room(stack: contextlib.ExitStack, echo: Echo) -> None:
    untended = Untended(stack, echo, 2)
    client = stack.enter_context(connect(untended.address))
    with in_background(fill, client):
        stands_still(untended)
        untended.close()
        stack.pop_all()
    (recording,) = untended.reader.recordings()
    assert recording.facts()[2:4] == ("shutdown", True)


def fill(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            client.sendall(bytes(65536))


# --- the rest of the process ---


def test_descriptors_are_given_back(echo: Echo) -> None:
    before = descriptors()
    with Proxy(echo.name, record=True, workers=2) as proxy, connect(proxy.address) as client:
        assert echoes(client)
    eventually(lambda: descriptors() == before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_no_recordings(echo: Echo) -> None:
    """It says so: their memory may be copied in the middle of a change."""
    program = """if True:
    import os, signal, socket, sys, tcpproxy
    with tcpproxy.Proxy(int(sys.argv[1]), record=True) as proxy, socket.create_connection(proxy.address) as client:
        client.sendall(b"hello")
        client.recv(5)
        (recording,) = proxy.recordings
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            for ask in ("to_client", "chunks", "reason", "dump"):
                try:
                    value = getattr(recording, ask)
                    value()
                except RuntimeError as error:
                    assert "not in a forked one" in str(error)
            assert repr(recording) == "<Recording #1, of another process>"
            assert proxy.recordings == []
            del recording
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert recording.to_client == b"hello"
    """
    done = run(program, str(echo.port))
    assert (done.returncode, done.stderr) == (0, "")


def test_public_names() -> None:
    assert {"Chunk", "Recording", "WaitTimeout"} <= set(tcpproxy.__all__)
