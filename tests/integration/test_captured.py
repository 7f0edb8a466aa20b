"""Captures at length: cut anywhere, after a kill, of 10,000 connections, and decoded by who knows the protocol."""

from __future__ import annotations

import random
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support import captures
from support.command import Command
from support.machine import needs
from support.peers import Echo, Upstream, connect
from support.streams import echoes, is_over, payload, read_all, read_exactly, send_and_shut
from support.waiting import eventually, in_background

import tcpproxy

Make = Callable[..., tcpproxy.Proxy]
Start = Callable[..., Command]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.pcapng"


# --- a file that is cut ---


def boundaries(data: bytes) -> list[int]:
    """Where blocks end."""
    found = [0]
    while found[-1] < len(data):
        found.append(found[-1] + int.from_bytes(data[found[-1] + 4 : found[-1] + 8], "little"))
    return found


def readable(data: bytes) -> list[object]:
    """The whole blocks at the beginning of what may be cut, as a strict reader sees them."""
    import pcapng
    import pcapng.exceptions

    found: list[object] = []
    try:
        for block in captures.scan(data):
            found.append(block)
    except (pcapng.exceptions.StreamEmpty, pcapng.exceptions.TruncatedFile, pcapng.exceptions.CorruptedFile):
        pass
    return found


def test_a_file_that_is_cut_anywhere(make_proxy: Make, echo: Echo, file: Path) -> None:
    """At every byte: all whole packets before can be read."""
    proxy = make_proxy(echo.name, capture=str(file))
    for size in (1, 50):
        with connect(proxy.address) as client:
            assert echoes(client, payload(size))
    eventually(lambda: proxy.stats().active == 0)
    proxy.stop()
    data = file.read_bytes()
    ends = boundaries(data)
    assert ends[-1] == len(data)
    for size in range(ends[1], len(data) + 1):
        assert len(readable(data[:size])) == sum(end <= size for end in ends[1:]), size


def test_a_large_file_that_is_cut(make_proxy: Make, echo: Echo, file: Path) -> None:
    """At some places, read by tshark as well, which says that it is cut and shows the rest."""
    needs("tshark")
    proxy = make_proxy(echo.name, capture=str(file))
    data = payload(2 << 20)
    with connect(proxy.address) as client, in_background(send_and_shut, client, data):
        assert read_all(client) == data
    eventually(lambda: proxy.stats().active == 0)
    proxy.stop()
    whole = file.read_bytes()
    ends = boundaries(whole)
    packets = len(captures.packets(whole))
    cut = file.with_name("cut.pcapng")
    chance = random.Random(1)
    for size in sorted(chance.sample(range(ends[3], len(whole)), 8)):
        cut.write_bytes(whole[:size])
        count = sum(end <= size for end in ends)
        assert len(readable(whole[:size])) == count - 1
        done = subprocess.run(["tshark", "-r", str(cut)], capture_output=True, text=True, check=False, timeout=60)
        shown = done.stdout.splitlines()
        assert len(shown) == sum(end <= size for end in ends[1:]) - (len(ends) - 2 - packets)
        assert size in ends or "cut short" in done.stderr


def test_a_killed_process_leaves_what_it_had_written(command: Start, echo: Echo, file: Path) -> None:
    """kill -9 while bulk passes: a prefix of the bytes, in whole packets."""
    process = command("-q", "--capture", str(file), echo.name)
    data = payload(256 << 20)
    with connect(process.address) as client, in_background(swallow, client, data):
        eventually(lambda: file.stat().st_size > 20 << 20)
        process.process.kill()
        process.process.wait()
    left = file.read_bytes()
    import pcapng

    found = [block for block in readable(left) if isinstance(block, pcapng.blocks.EnhancedPacket)]
    streams = captures.reassembled([captures.packet(block) for block in found])
    assert len(streams) == 2
    assert sum(map(len, streams.values())) > 15 << 20
    assert all(data.startswith(stream) for stream in streams.values())


def swallow(client: socket.socket, data: bytes) -> None:
    """Sends, and reads what comes, until it is cut."""
    try:
        with in_background(client.sendall, data):
            while client.recv(1 << 20):
                pass
    except OSError:
        pass


# --- many ---

MANY, TOGETHER = 10_000, 100


@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", [1, 2], ids=["1worker", "2workers"])
def test_ten_thousand_connections(make_proxy: Make, upstream: Upstream, file: Path, workers: int) -> None:
    """Each is there once, with its bytes and both ends."""
    proxy = make_proxy(upstream.name, workers=workers, capture=str(file))
    for start in range(0, MANY, TOGETHER):
        clients = [connect(proxy.address) for _ in range(TOGETHER)]
        for number, client in enumerate(clients, start):
            client.sendall(b"question %6d" % number)
        for _ in clients:
            with upstream.accept() as server:
                server.sendall(read_exactly(server, 15).replace(b"question", b"answer"))
        for number, client in enumerate(clients, start):
            with client:
                assert read_exactly(client, 13) == b"answer %6d" % number
                assert is_over(client)
    eventually(lambda: proxy.stats().active == 0)
    proxy.stop()
    assert proxy.capture
    assert (proxy.capture.connections, proxy.capture.left_out) == (MANY, 0)
    data = file.read_bytes()
    assert data.count(b"question ") == data.count(b"answer ") == MANY
    # Ports are used again, which is true. The streams are told apart all the same.
    assert [line for line in captures.analysis(file) if "[TCP Port numbers reused]" not in line] == []
    found = captures.fields(file, "tcp.stream", "tcp.completeness", "tcp.payload")
    streams = {stream: complete for stream, complete, _ in found}
    assert len(streams) == MANY
    assert set(streams.values()) == {"31"}
    said = sorted(bytes.fromhex(text) for _, _, text in found if text)
    assert said == sorted(b"%s %6d" % (what, number) for number in range(MANY) for what in (b"question", b"answer"))


# --- protocols ---


@pytest.fixture
def somewhere() -> str:
    """An address of this machine where nobody listens on a port that has a meaning."""
    return f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.{random.randint(2, 254)}"


def startup() -> bytes:
    body = b"\x00\x03\x00\x00user\x00me\x00database\x00db\x00\x00"
    return (len(body) + 4).to_bytes(4, "big") + body


QUERY = b"Q\x00\x00\x00\x0dSELECT 1\x00"
READY = b"R\x00\x00\x00\x08\x00\x00\x00\x00Z\x00\x00\x00\x05I"
REQUEST = b"GET /needle HTTP/1.1\r\nHost: localhost\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    ("port", "talk", "shown", "expected"),
    [
        (5432, [(startup(), READY), (QUERY, b"C\x00\x00\x00\x0dSELECT 1\x00")], "pgsql.query", "SELECT 1"),
        (6379, [(b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n")], "resp.string", "PONG"),
        (8080, [(REQUEST, RESPONSE)], "http.request.uri,http.response.code", "/needle,200"),
    ],
    ids=["postgresql", "redis", "http"],
)
def test_protocols_by_the_port_of_upstream(
    make_proxy: Make,
    somewhere: str,
    file: Path,
    port: int,
    talk: list[tuple[bytes, bytes]],
    shown: str,
    expected: str,
) -> None:
    """The client has connected to another port; the capture is as if it had not."""
    needs("tshark")
    try:
        server = socket.create_server((somewhere, port))
    except OSError as error:
        pytest.skip(f"no place for a server: {error}")
    with server:
        proxy = make_proxy(f"{somewhere}:{port}", capture=str(file))
        with connect(proxy.address) as client, server.accept()[0] as peer:
            for question, answer in talk:
                client.sendall(question)
                assert read_exactly(peer, len(question)) == question
                peer.sendall(answer)
                assert read_exactly(client, len(answer)) == answer
    proxy.stop()
    names = shown.split(",")
    rows = captures.fields(file, *names)
    assert ",".join(value for column in zip(*rows, strict=True) for value in column if value) == expected
    assert captures.analysis(file) == []
