"""--max-rate and --max-rate-per-connection: how fast bytes pass."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from support.peers import Upstream, connect, reset
from support.streams import payload, read_all, read_exactly
from support.waiting import TIMEOUT, bounds, eventually

from tcpproxy import Proxy, UsageError

MakeProxy = Callable[..., Proxy]
MB = 1_000_000


class Flow:
    """Pairs of a client and its upstream; one end of each sends all the time, and what arrives at the other is counted.

    Args:
        up: clients send; else upstreams do.
    """

    def __init__(self, proxy: Proxy, upstream: Upstream, count: int, *, up: bool) -> None:
        self.counts = [0] * count
        self._ends: list[socket.socket] = []
        pairs = []
        for _ in range(count):
            client = connect(proxy.address)
            self._ends.append(client)
            peer = upstream.accept()
            self._ends.append(peer)
            pairs.append((client, peer) if up else (peer, client))
        targets = [(_send, (sender,)) for sender, _ in pairs]
        targets += [(self._count, (number, receiver)) for number, (_, receiver) in enumerate(pairs)]
        self._threads = [threading.Thread(target=target, args=args) for target, args in targets]

    def __enter__(self) -> Flow:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(TIMEOUT)
        for end in self._ends:
            end.close()

    def _count(self, number: int, receiver: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := receiver.recv(65536):
                self.counts[number] += len(data)

    def measure(self, seconds: float) -> list[float]:
        """Bytes per second of each, over so many seconds."""
        before, start = list(self.counts), time.monotonic()
        time.sleep(seconds)
        after, took = list(self.counts), time.monotonic() - start
        return [(now - then) / took for now, then in zip(after, before, strict=True)]


def _send(sender: socket.socket) -> None:
    data = bytes(65536)
    with contextlib.suppress(OSError):
        while True:
            sender.sendall(data)


@bounds(0.3, 0.97)  # a machine that is busy with others cannot keep a rate up
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
@pytest.mark.parametrize("zero_copy", ["off", "auto", "always"])
def test_rate(make_proxy: MakeProxy, upstream: Upstream, workers: int, up: bool, zero_copy: str, bound: float) -> None:
    """1 MB/s within 3 % over 5 s."""
    proxy = make_proxy(upstream.name, workers=workers, zero_copy=zero_copy, max_rate="1MB/s")
    with Flow(proxy, upstream, 1, up=up) as flow:
        eventually(lambda: flow.counts[0])
        (rate,) = flow.measure(5)
    assert bound * MB < rate < 1.03 * MB


@bounds(0.3, 0.9)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_hundred_share_it(make_proxy: MakeProxy, upstream: Upstream, workers: int, bound: float) -> None:
    """Each has its hundredth, within 10 %, whichever worker it has; and together they have all of it."""
    proxy = make_proxy(upstream.name, workers=workers, max_rate="1MB/s")
    with Flow(proxy, upstream, 100, up=False) as flow:
        eventually(lambda: all(flow.counts), within=10)
        rates = flow.measure(8)
    assert (bound + 0.07) * MB < sum(rates) < 1.03 * MB
    assert min(rates) > bound * MB / 100
    assert max(rates) < (2 - bound) * MB / 100


@bounds(0.3, 0.97)
def test_one_connection_on_eight_workers(make_proxy: MakeProxy, upstream: Upstream, bound: float) -> None:
    """It has the whole rate."""
    proxy = make_proxy(upstream.name, workers=8, max_rate="2MB/s")
    with Flow(proxy, upstream, 1, up=False) as flow:
        eventually(lambda: flow.counts[0])
        (rate,) = flow.measure(4)
    assert bound * 2 * MB < rate < 1.03 * 2 * MB


@bounds(0.3, 0.95)
def test_each_connection(make_proxy: MakeProxy, upstream: Upstream, bound: float) -> None:
    """The rate of a connection, and that of all together, which is lower than their sum."""
    proxy = make_proxy(upstream.name, workers=2, max_rate="500kB/s", max_rate_per_connection="200kB/s")
    with Flow(proxy, upstream, 1, up=True) as flow:
        eventually(lambda: flow.counts[0])
        assert bound * 200_000 < flow.measure(3)[0] < 1.05 * 200_000
    with Flow(proxy, upstream, 4, up=True) as flow:
        eventually(lambda: all(flow.counts))
        rates = flow.measure(4)
    assert bound * 500_000 < sum(rates) < 1.05 * 500_000
    assert min(rates) > (bound - 0.1) * 125_000
    assert max(rates) < (2.1 - bound) * 125_000


def test_one_direction(make_proxy: MakeProxy, upstream: Upstream) -> None:
    """The other one has no limit."""
    proxy = make_proxy(upstream.name, max_rate="up=100kB/s")
    with Flow(proxy, upstream, 1, up=True) as flow, Flow(proxy, upstream, 1, up=False) as other:
        eventually(lambda: flow.counts[0])
        assert flow.measure(2)[0] < 120_000
        eventually(lambda: other.counts[0] > 20 * MB, within=10)


@bounds(0.1, 0.9)
def test_fast(make_proxy: MakeProxy, upstream: Upstream, bound: float) -> None:
    """A rate that is far above what a copy needs: bytes are spliced, and the rate holds."""
    proxy = make_proxy(upstream.name, max_rate="60MB/s")
    with Flow(proxy, upstream, 1, up=False) as flow:
        eventually(lambda: flow.counts[0])
        (rate,) = flow.measure(3)
        stats = proxy.stats()
    assert bound * 60 * MB < rate < 1.03 * 60 * MB
    if stats.bytes_spliced or hasattr(socket, "SPLICE"):
        assert stats.bytes_spliced > 0.9 * stats.bytes_to_client


@pytest.mark.parametrize("zero_copy", ["off", "always"])
@pytest.mark.parametrize("workers", [1, 2])
def test_all_bytes_arrive(make_proxy: MakeProxy, upstream: Upstream, zero_copy: str, workers: int) -> None:
    """In both directions, with an end of each behind the last byte."""
    data = payload(300_000)
    proxy = make_proxy(upstream.name, zero_copy=zero_copy, workers=workers, max_rate="400kB/s")
    with connect(proxy.address) as client, upstream.accept() as peer:
        threads = [threading.Thread(target=_send_all, args=(end, data)) for end in (client, peer)]
        for thread in threads:
            thread.start()
        start = time.monotonic()
        answers: list[bytes] = []
        reader = threading.Thread(target=lambda: answers.append(read_all(peer)))
        reader.start()
        assert read_all(client) == data
        reader.join(TIMEOUT)
        assert answers == [data]
        assert time.monotonic() - start > 0.6
        for thread in threads:
            thread.join(TIMEOUT)


def _send_all(sender: socket.socket, data: bytes) -> None:
    sender.sendall(data)
    sender.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("fault", ["both:latency=20ms", "bandwidth=400kB/s"])
def test_beside_a_fault(make_proxy: MakeProxy, upstream: Upstream, fault: str) -> None:
    """The lower rate holds, and all bytes arrive."""
    data = payload(150_000)
    proxy = make_proxy(upstream.name, max_rate="100kB/s", faults=fault)
    with connect(proxy.address) as client, upstream.accept() as peer:
        thread = threading.Thread(target=_send_all, args=(peer, data))
        thread.start()
        start = time.monotonic()
        assert read_all(client) == data
        assert 1.3 < time.monotonic() - start < 6
        thread.join(TIMEOUT)


# --- what is not delayed ---


@pytest.fixture
def slow(make_proxy: MakeProxy, upstream: Upstream) -> Iterator[tuple[Proxy, socket.socket, socket.socket]]:
    """A connection of which neither direction may read for some 7 seconds: each has had its first bytes."""
    proxy = make_proxy(upstream.name, max_rate_per_connection="200B/s", idle_timeout="1s")
    with connect(proxy.address) as client, upstream.accept() as peer:
        for sender, receiver in ((client, peer), (peer, client)):
            sender.sendall(bytes(3 * 1448))
            read_exactly(receiver, 3 * 1448)
        yield proxy, client, peer


def test_end_without_bytes(slow: tuple[Proxy, socket.socket, socket.socket]) -> None:
    """Is passed on at once."""
    _, client, peer = slow
    start = time.monotonic()
    client.shutdown(socket.SHUT_WR)
    assert peer.recv(1) == b""
    peer.close()
    assert client.recv(1) == b""
    assert time.monotonic() - start < 5


def test_reset_without_bytes(slow: tuple[Proxy, socket.socket, socket.socket]) -> None:
    _, client, peer = slow
    start = time.monotonic()
    reset(client)
    with pytest.raises(ConnectionResetError):
        peer.recv(1)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("size", [1, 5000])
def test_idle_time_does_not_run(slow: tuple[Proxy, socket.socket, socket.socket], size: int) -> None:
    """While bytes wait for the rate. It ends who really is idle."""
    proxy, client, peer = slow
    client.sendall(bytes(size))
    time.sleep(2.5)
    assert [it.state for it in proxy.connections()] == ["relaying"]
    if size == 1:
        eventually(lambda: not proxy.connections(), within=20)
        assert peer.recv(1) == b"\0"
        assert proxy.connections(ended=True)[-1].reason == "idle"


def test_idle_connections_end(make_proxy: MakeProxy, upstream: Upstream) -> None:
    proxy = make_proxy(upstream.name, max_rate="1kB/s", idle_timeout="0.5s")
    with connect(proxy.address) as client, upstream.accept():
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert proxy.connections(ended=True)[-1].reason == "idle"


def test_killed_and_aborted(slow: tuple[Proxy, socket.socket, socket.socket]) -> None:
    """With an alarm that is still set."""
    proxy, client, _ = slow
    client.sendall(bytes(5000))
    eventually(lambda: proxy.stats().bytes_to_upstream == 3 * 1448)
    assert proxy.kill() == 1
    with connect(proxy.address) as other:
        other.sendall(bytes(10_000))
        eventually(lambda: proxy.stats().accepted == 2)
        proxy.stop(0)


@pytest.mark.parametrize("how", ["upstream", "kill"])
def test_those_who_are_gone_are_not_waited_for(how: str, make_proxy: MakeProxy, upstream: Upstream) -> None:
    """What they have reserved of a shared rate is free again: here 50 portions of 0.7 s each."""
    proxy = make_proxy(upstream.name, max_rate="2kB/s")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(proxy.address)) for _ in range(50)]
        peers = [stack.enter_context(upstream.accept()) for _ in clients]
        for client in clients:
            client.sendall(bytes(1448))
        eventually(lambda: proxy.stats().bytes_to_upstream >= 2 * 1448)
        if how == "kill":
            proxy.kill()
        else:
            for peer in peers:
                reset(peer)
        eventually(lambda: proxy.stats().active == 0)
        start = time.monotonic()
        with connect(proxy.address) as client, upstream.accept() as last:
            client.sendall(b"x")
            assert read_exactly(last, 1) == b"x"
        assert time.monotonic() - start < 10


def test_paused(make_proxy: MakeProxy, upstream: Upstream) -> None:
    proxy = make_proxy(upstream.name, max_rate="100kB/s")
    with Flow(proxy, upstream, 1, up=False) as flow:
        eventually(lambda: flow.counts[0])
        proxy.pause()
        before = proxy.stats().bytes_to_client
        time.sleep(0.5)
        assert proxy.stats().bytes_to_client == before
        proxy.resume()
        eventually(lambda: proxy.stats().bytes_to_client > before + 20_000)


def test_interactive_bytes_beside_bulk(make_proxy: MakeProxy, upstream: Upstream) -> None:
    """A byte waits for one turn of each of the others, some 4 ms, and not for all that they have to send."""
    proxy = make_proxy(upstream.name, workers=2, max_rate="2MB/s")
    with Flow(proxy, upstream, 8, up=False) as flow:
        eventually(lambda: all(flow.counts))
        with connect(proxy.address) as client, upstream.accept() as peer:
            times = []
            for _ in range(30):
                start = time.monotonic()
                peer.sendall(b"x")
                read_exactly(client, 1)
                times.append(time.monotonic() - start)
    assert sorted(times)[15] < 0.1


def test_recorded(make_proxy: MakeProxy, upstream: Upstream) -> None:
    data = payload(100_000)
    proxy = make_proxy(upstream.name, max_rate="200kB/s", record=True)
    with connect(proxy.address) as client, upstream.accept() as peer:
        client.sendall(data)
        assert read_exactly(peer, len(data)) == data
    proxy.wait_for(ended=1)
    (recording,) = proxy.recordings
    assert recording.to_upstream == data


def test_slow_reader(make_proxy: MakeProxy, upstream: Upstream) -> None:
    """Back-pressure: what may be read and is not taken stays where it is."""
    proxy = make_proxy(upstream.name, max_rate="50MB/s", socket_buffer="16KiB")
    with connect(proxy.address) as client, upstream.accept() as peer:
        thread = threading.Thread(target=_send, args=(peer,))
        thread.start()
        eventually(lambda: proxy.stats().bytes_to_client > 0)
        time.sleep(0.5)
        waits = proxy.connections()[0].waiting_for_client
        assert waits <= 65536
        assert len(read_exactly(client, 5 * MB)) == 5 * MB
        reset(client)
        thread.join(TIMEOUT)


# --- what is refused ---


@pytest.mark.parametrize(
    ("rate", "sentence"),
    [
        ("10MB", "max_rate '10MB' is not a rate, expected '10MB/s'"),
        (False, "max_rate False is not a rate, expected a number with B/s or bit/s, like 100kB/s"),
        ("500k", "max_rate '500k' has no unit, expected '500kB/s' or '500kbit/s'"),
        (500, "max_rate 500 has no unit, expected '500B/s'"),
        ("0B/s", "max_rate '0B/s' is out of range, expected 1B/s to 1000GB/s"),
        (
            "up=1MB/s,up=2MB/s",
            "max_rate 'up=1MB/s,up=2MB/s' has 'up=2MB/s', expected RATE or to_upstream=RATE,to_client=RATE",
        ),
        ("left=1MB/s", "max_rate 'left=1MB/s' has 'left=1MB/s', expected RATE or to_upstream=RATE,to_client=RATE"),
        ("up=1MB/s,5MB/s", "max_rate 'up=1MB/s,5MB/s' has '5MB/s', expected RATE or to_upstream=RATE,to_client=RATE"),
        ("up=fast", "max_rate 'fast' is not a rate, expected a number with B/s or bit/s, like 100kB/s"),
    ],
)
def test_bad_rate(rate: object, sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        Proxy("db:1", max_rate=rate)  # type: ignore[arg-type]
    assert str(error.value) == sentence


def test_rates_as_shown() -> None:
    rates = Proxy("db:1", max_rate="up=8Mbit/s", max_rate_per_connection="1KiB/s").config.rates
    assert (rates.max_rate, rates.max_rate_per_connection) == ((1_000_000, 0), (1024, 1024))
    for words in ("to_upstream=1MB/s,to_client=2MB/s", "down=2MB/s,up=1MB/s", "upstream=1MB/s,downstream=2MB/s"):
        assert Proxy("db:1", max_rate=words).config.rates.max_rate == (1_000_000, 2_000_000)
    assert Proxy("db:1").config.rates.max_rate == (0, 0)
    for off in ("off", "0", 0, None, "up=off,down=0"):
        assert Proxy("db:1", max_rate=off).config.rates.max_rate == (0, 0)  # type: ignore[arg-type]
    assert Proxy("db:1", max_rate="up=0,down=1kB/s").config.rates.max_rate == (0, 1000)
