"""--capture: what Wireshark reads of real connections, and what becomes of the traffic when the file fails."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from networks import Closed
from support import captures
from support.command import Command, run
from support.machine import needs
from support.peers import Echo, Upstream, connect, reset
from support.streams import echoes, is_over, payload, read_all, read_exactly, send_and_shut
from support.waiting import TIMEOUT, eventually, in_background, pause

import tcpproxy

Make = Callable[..., tcpproxy.Proxy]
Start = Callable[..., Command]

needs_fifo = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
both = pytest.mark.parametrize("workers", [1, 2], ids=["1worker", "2workers"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.pcapng"


def blocks(path: Path) -> list[str]:
    return [type(block).__name__ for block in captures.blocks(path.read_bytes())]


# --- what is in the file ---


@both
def test_what_wireshark_reads(make_proxy: Make, upstream: Upstream, file: Path, workers: int) -> None:
    """Connections that end in each way: Wireshark finds nothing wrong, and each has the bytes and the end it had."""
    proxy = make_proxy(upstream.name, workers=workers, capture=str(file), half_close_timeout="100ms")
    sent, ports = [], []

    def pair() -> tuple[socket.socket, socket.socket]:
        client = connect(proxy.address)
        ports.append(client.getsockname()[1])
        return client, upstream.accept()

    def exchange(client: socket.socket, server: socket.socket, up: bytes, down: bytes) -> None:
        with in_background(client.sendall, up):
            assert read_exactly(server, len(up)) == up
        with in_background(server.sendall, down):
            assert read_exactly(client, len(down)) == down
        sent.append((up, down))

    def finish(count: int) -> None:
        eventually(lambda: proxy.stats().active == 0, what=f"connection {count}")

    for first, up, down in (
        (0, b"", b""),
        (0, b"question", b"answer"),
        (1, payload(300_000, 2), payload(3_000_000, 3)),
    ):
        pairs = pair()
        exchange(*pairs, up, down)
        for end, other in (pairs[first], pairs[1 - first]), (pairs[1 - first], pairs[first]):
            end.shutdown(socket.SHUT_WR)
            assert is_over(other)
        for end in pairs:
            end.close()
        finish(len(sent))
    for first in (0, 1):
        pairs = pair()
        exchange(*pairs, b"to be reset", b"so it is")
        reset(pairs[first])
        with pytest.raises(ConnectionResetError):
            pairs[1 - first].recv(1)
        pairs[1 - first].close()
        finish(len(sent))
    client, server = pair()
    exchange(client, server, b"half", b"")
    client.shutdown(socket.SHUT_WR)
    finish(len(sent))
    client.close()
    server.close()
    proxy.stop()
    assert proxy.capture
    assert proxy.capture.failure is None
    assert (proxy.capture.connections, proxy.capture.left_out) == (6, 0)
    assert proxy.capture.size == file.stat().st_size
    packets = captures.packets(file.read_bytes())
    assert proxy.capture.packets == len(packets)
    assert {packet.destination[1] for packet in packets if packet.flags == captures.SYN} == {
        proxy.config.forwards[0].target.port
    }
    assert captures.analysis(file) == []
    # With two workers streams need not be in the order of accept.
    streams = captures.clients(file)
    completeness = captures.completeness(file)
    assert [completeness[streams.index(port)] for port in ports] == [23, 31, 31, 47, 47, 63]
    assert [captures.followed(file, streams.index(port)) for port in ports] == sent
    last = sorted(packet.comment.split()[:2] for packet in packets if " after " in packet.comment)
    reasons = ["client-eof", "client-eof", "upstream-eof", "client-reset", "upstream-reset", "half-close-timeout"]
    assert last == [[f"#{number}", reason] for number, reason in enumerate(reasons, 1)]


def test_failed_connections(make_proxy: Make, closed: Closed, file: Path) -> None:
    proxy = make_proxy(closed.name, capture=str(file))
    for _ in range(3):
        with contextlib.suppress(ConnectionError), connect(proxy.address) as client:
            assert client.recv(1) == b""
    eventually(lambda: proxy.stats().failed == 3)
    proxy.stop()
    assert captures.completeness(file) == [37] * 3
    assert captures.analysis(file) == []


@both
def test_many_at_once(make_proxy: Make, echo: Echo, file: Path, workers: int) -> None:
    """The count of connections and bytes is exact, whoever serves them."""
    proxy = make_proxy(echo.name, workers=workers, capture=str(file))

    def one(number: int) -> None:
        data = payload(10_000 + number, number)
        with connect(proxy.address) as client, in_background(send_and_shut, client, data):
            assert read_all(client) == data

    threads = [threading.Thread(target=lambda n=n: [one(n * 10 + each) for each in range(10)]) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    eventually(lambda: proxy.stats().active == 0)
    proxy.stop()
    streams = captures.reassembled(captures.packets(file.read_bytes()))
    assert sorted(map(len, streams.values())) == sorted([10_000 + number for number in range(200)] * 2)
    for (source, destination), data in streams.items():
        assert streams[destination, source] == data
    assert captures.analysis(file) == []


def test_file_is_current(make_proxy: Make, echo: Echo, file: Path) -> None:
    """What a client has received is in the file soon, while the connection lives."""
    proxy = make_proxy(echo.name, capture=str(file))
    with connect(proxy.address) as client:
        assert echoes(client, b"needle")
        eventually(lambda: file.read_bytes().count(b"needle") == 2)
        assert captures.analysis(file) == []


def test_blocks(make_proxy: Make, echo: Echo, file: Path) -> None:
    proxy = make_proxy(echo.name.replace("127.0.0.1", "localhost"), capture=str(file))
    with connect(proxy.address) as client:
        assert echoes(client)
    proxy.stop()
    found = captures.blocks(file.read_bytes())
    kinds = [type(block).__name__ for block in found]
    assert kinds[:3] == ["SectionHeader", "InterfaceDescription", "NameResolution"]
    assert kinds[-1] == "InterfaceStatistics"
    assert set(kinds[3:-1]) <= {"NameResolution", "EnhancedPacket"}
    assert found[0].options["shb_userappl"] == f"tcpproxy {tcpproxy.__version__}"
    assert found[1].options["if_name"] == f"127.0.0.1:{proxy.port}"
    assert found[1].options["if_description"] == str(proxy.config.remote)
    assert found[-1].options["isb_ifrecv"] == kinds.count("EnhancedPacket")


def test_with_recordings(make_proxy: Make, echo: Echo, file: Path) -> None:
    proxy = make_proxy(echo.name, capture=str(file), record=True)
    with connect(proxy.address) as client:
        assert echoes(client, b"both")
        assert proxy.recordings[0].to_client == b"both"
    proxy.stop()
    assert b"both" in captures.reassembled(captures.packets(file.read_bytes())).values()


# --- the file ---


@pytest.mark.skipif(os.name == "nt", reason="no modes here")
def test_only_the_owner_may_read_it(make_proxy: Make, echo: Echo, file: Path) -> None:
    """An old file is overwritten, and its mode is changed."""
    file.write_bytes(bytes(100_000))
    file.chmod(0o644)
    make_proxy(echo.name, capture=str(file)).stop()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert blocks(file) == ["SectionHeader", "InterfaceDescription", "InterfaceStatistics"]


def test_summary(command: Start, echo: Echo, file: Path) -> None:
    """-q does not leave it out."""
    process = command("-q", "--capture", str(file), echo.name)
    with connect(process.address) as client:
        assert echoes(client)
    process.signal(signal.SIGINT)
    assert process.wait() == 0
    packets = len(captures.packets(file.read_bytes()))
    size = f"{file.stat().st_size / 1024:.1f}"
    assert process.complaints == [f"{file}: {packets} packets of 1 connection, {size} KiB, nothing left out"]


OF_A_FOLDER = "Permission denied" if os.name == "nt" else "Is a directory"


@pytest.mark.parametrize(("path", "why"), [("{}", OF_A_FOLDER), ("{}/no/a", "No such file or directory")])
def test_a_file_that_cannot_be_opened(command: Start, echo: Echo, tmp_path: Path, path: str, why: str) -> None:
    """Nothing has listened."""
    path = path.format(tmp_path)
    process = command("--capture", path, echo.name)
    assert process.wait() == 1
    assert len(process.stderr) == 1
    assert process.stderr[0].startswith(f"tcpproxy: cannot open the capture file {path!r}: {why}")
    assert process.stdout == []
    proxy = tcpproxy.Proxy(echo.name, capture=path)
    with pytest.raises(tcpproxy.StartError, match=why):
        proxy.start()
    assert proxy.addresses == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--capture="], "--capture '' is not the path of a file"),
        (["--capture-rotate=1M"], "--capture-rotate needs --capture with the path of a file"),
        (["--capture=-", "--capture-rotate=1M"], "--capture-rotate needs --capture with the path of a file"),
        (["--capture=a", "--capture-files=2"], "--capture-files needs --capture-rotate with the size of a file"),
        (["--capture=a", "--capture-rotate=1K"], "--capture-rotate '1K' is out of range"),
    ],
)
def test_usage(command: Start, options: list[str], text: str) -> None:
    process = command(*options, "localhost:1")
    assert process.wait() == 2
    assert process.stderr[0].startswith(f"tcpproxy: {text}")
    assert process.stdout == []


# --- a pipe ---


def test_stdout(command: Start, echo: Echo, file: Path) -> None:
    """All text goes to stderr then."""
    with file.open("wb") as output:
        process = command("--capture", "-", echo.name, stdout=output)
        eventually(lambda: len(process.stderr) > 0)
        host, port = process.stderr[0].removeprefix("Listening on ").split(":")
        with connect((host, int(port))) as client:
            assert echoes(client, b"needle")
        process.signal(signal.SIGINT)
        assert process.wait() == 0
    assert blocks(file)[-1] == "InterfaceStatistics"
    assert file.read_bytes().count(b"needle") == 2
    assert process.stderr[1].startswith("New connection from ")
    assert process.stderr[-1].startswith("stdout: ")


def test_stdout_that_is_appended_to(command: Start, echo: Echo, file: Path) -> None:
    """Sections may follow each other in a file."""
    for _ in range(2):
        with file.open("ab") as output:
            process = command("--capture", "-", echo.name, stdout=output)
            eventually(lambda: len(process.stderr) > 0)  # noqa: B023
            process.signal(signal.SIGINT)
            assert process.wait() == 0
    assert blocks(file) == ["SectionHeader", "InterfaceDescription", "InterfaceStatistics"] * 2


@pytest.mark.skipif(os.name == "nt", reason="no terminals here")
def test_stdout_that_is_no_place_for_a_capture(command: Start, echo: Echo, file: Path) -> None:
    import pty

    controller, terminal = pty.openpty()
    process = command("--capture", "-", echo.name, stdout=terminal)
    os.close(terminal)
    assert process.wait() == 2
    assert "stdout, which is a terminal" in process.stderr[0]
    os.close(controller)
    with file.open("wb") as output:
        assert command("--capture", "-", echo.name, stdout=output, stderr=subprocess.STDOUT).wait() == 2
    assert "where stderr goes as well" in file.read_text()


@pytest.mark.skipif(os.name == "nt", reason="files have no numbers that say which they are")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("mode", ["wb", "ab"])
def test_a_file_with_lines_of_text_is_no_place_for_a_capture(
    command: Start, echo: Echo, file: Path, stream: str, mode: str
) -> None:
    """Lines and packets would be mixed, or written over each other."""
    file.write_bytes(b"what was there\n")
    with file.open(mode) as output:
        process = command("--capture", str(file), echo.name, **{stream: output})
        assert process.wait() == 2
    said = "".join(process.stderr) + file.read_text()
    assert f"capture '{file}' is where {stream} goes as well; expected a file of its own" in said
    assert mode == "wb" or "what was there" in said


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/stdout is a file of its own")
def test_stdout_by_another_name(command: Start, echo: Echo) -> None:
    process = command("--capture", "/dev/stdout", echo.name)
    assert process.wait() == 2
    assert process.stderr == [
        "tcpproxy: capture '/dev/stdout' is where stdout goes as well; expected a file of its own"
    ]


def test_a_start_that_fails_leaves_an_old_file_as_it_was(command: Start, echo: Echo, file: Path) -> None:
    file.write_bytes(b"an old capture")
    process = command("--capture", str(file), "-l", str(echo.port), "localhost:1")
    assert process.wait() == 1
    process = command("--capture", str(file), "-b", "192.0.2.1", echo.name)
    assert process.wait() == 1
    assert file.read_bytes() == b"an old capture"


def test_a_new_capture_is_shorter_than_an_old_one(make_proxy: Make, echo: Echo, file: Path) -> None:
    file.write_bytes(bytes(100_000))
    make_proxy(echo.name, capture=str(file)).stop()
    assert blocks(file) == ["SectionHeader", "InterfaceDescription", "InterfaceStatistics"]


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@needs_fifo
def test_named_pipe(command: Start, echo: Echo, fifo: Path, file: Path) -> None:
    """It waits for who reads the pipe, and does not listen before."""
    process = command("--capture", str(fifo), echo.name)
    eventually(lambda: process.stderr == [f"Waiting for a program that reads {fifo}"])
    assert process.stdout == []
    with fifo.open("rb") as reader, in_background(lambda: file.write_bytes(reader.read())):
        with connect(process.address) as client:
            assert echoes(client, b"needle")
        process.signal(signal.SIGINT)
        assert process.wait() == 0
    assert blocks(file)[-1] == "InterfaceStatistics"
    assert file.read_bytes().count(b"needle") == 2


@needs_fifo
def test_named_pipe_that_nobody_reads(command: Start, echo: Echo, fifo: Path) -> None:
    process = command("--capture", str(fifo), echo.name)
    eventually(lambda: process.stderr)
    process.signal(signal.SIGINT)
    assert process.wait() != 0
    assert process.stdout == []


@needs_fifo
def test_a_start_that_waits_can_be_stopped(echo: Echo, fifo: Path, events: list[tcpproxy.Event]) -> None:
    proxy = tcpproxy.Proxy(echo.name, capture=str(fifo), on_event=events.append)
    refused = []

    def start() -> None:
        with pytest.raises(tcpproxy.StartError) as raised:
            proxy.start()
        refused.append(raised.value)

    thread = threading.Thread(target=start)
    thread.start()
    eventually(lambda: proxy.abort() or not thread.is_alive())  # type: ignore[func-returns-value]
    assert len(refused) == 1
    assert proxy.addresses == []


def drained(reader: int) -> Iterator[bytes]:
    """What comes out of the pipe until its writer has closed it."""
    os.set_blocking(reader, True)
    while data := os.read(reader, 1 << 20):
        yield data


@needs_fifo
def test_a_slow_reader_holds_up_the_traffic_and_misses_nothing(
    make_proxy: Make, upstream: Upstream, fifo: Path, file: Path
) -> None:
    """One who reads nothing stalls a stream after some MiB; then it goes on where it was."""
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    proxy = make_proxy(upstream.name, capture=str(fifo), idle_timeout="500ms")
    data = payload(24 << 20)
    with connect(proxy.address) as client, upstream.accept() as server, in_background(send_and_shut, client, data):
        got = bytearray()
        server.settimeout(0.7)
        with contextlib.suppress(TimeoutError):
            while chunk := server.recv(1 << 20):
                got += chunk
        assert 1 << 20 < len(got) < 20 << 20
        server.settimeout(TIMEOUT)
        with in_background(lambda: file.write_bytes(b"".join(drained(reader)))):
            got += read_all(server)
            assert got == data
            server.close()
            client.close()
            eventually(lambda: proxy.stats().active == 0)
            proxy.stop()
    os.close(reader)
    assert data in captures.reassembled(captures.packets(file.read_bytes())).values()
    assert captures.analysis(file) == []


@needs_fifo
@both
def test_a_slow_reader_is_named_once(command: Start, upstream: Upstream, fifo: Path, file: Path, workers: int) -> None:
    """After a second in which it held traffic up; a pause without traffic is none of its faults."""
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    process = command("--capture", str(fifo), "--workers", str(workers), upstream.name)
    said = f"warning: the capture {fifo} holds traffic up: less than 1 MiB of it a second is taken"
    data = payload(24 << 20)
    with connect(process.address) as client, upstream.accept() as server, in_background(send_and_shut, client, data):
        got = bytearray()
        with in_background(lambda: got.extend(read_all(server))):
            eventually(lambda: process.complaints == [said])
            before = len(got)
            with in_background(lambda: file.write_bytes(b"".join(drained(reader)))):
                eventually(lambda: len(got) == len(data))
                client.close()
                server.close()
                process.signal(signal.SIGTERM)
                assert process.wait() == 0
    os.close(reader)
    assert before < len(data)
    assert got == data
    assert process.complaints[:-1] == [said]
    assert process.complaints[-1].endswith(", nothing left out")


@needs_fifo
def test_lines_beside_a_capture_that_stands_still(command: Start, echo: Echo, fifo: Path) -> None:
    """The bytes of a dump come from the same reader; the lines that wait for them do so for a moment only."""
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    process = command("-x", "-d", "--capture", str(fifo), echo.name)
    with connect(process.address) as client:
        for _ in range(20):
            assert echoes(client, payload(50_000))  # more than the pipe takes, and less than would hold traffic up
    for number in (1, 2):
        with connect(process.address) as client:
            assert echoes(client)
        eventually(lambda: len([line for line in process.stderr if line.startswith("Closed ")]) > number)  # noqa: B023
    os.close(reader)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


@needs_fifo
def test_a_reader_of_an_idle_proxy_may_sleep(command: Start, echo: Echo, fifo: Path, file: Path) -> None:
    """The control: the pipe is full, but nobody waits for it."""
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    process = command("--capture", str(fifo), echo.name)
    with connect(process.address) as client:
        for _ in range(20):
            assert echoes(client, payload(10_000))
        pause(1.5)  # longer than a write that is slow
        assert process.complaints == []
    with in_background(lambda: file.write_bytes(b"".join(drained(reader)))):
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    os.close(reader)
    assert process.complaints[-1].endswith(", nothing left out")
    assert len(process.complaints) == 1


@needs_fifo
def test_a_reader_that_has_stopped_for_ever_does_not_stop_the_end(
    command: Start, upstream: Upstream, fifo: Path
) -> None:
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    process = command("--capture", str(fifo), upstream.name)
    with connect(process.address) as client, upstream.accept() as server:
        client.setblocking(False)
        server.settimeout(0.5)
        with contextlib.suppress(BlockingIOError, TimeoutError):
            while True:
                with contextlib.suppress(BlockingIOError):
                    client.send(bytes(1 << 20))
                server.recv(1 << 22)
        process.signal(signal.SIGTERM)
        eventually(lambda: any(line.startswith("Stopping") for line in process.stderr))
        process.signal(signal.SIGTERM)
        assert process.wait(10) == 1
    os.close(reader)
    assert ", ended: " in process.stderr[-1]


# --- a file that fails ---


def assert_goes_on(address: tuple[str, int], live: socket.socket) -> None:
    assert echoes(live)
    with connect(address) as client, in_background(send_and_shut, client, payload(1 << 20)):
        assert read_all(client) == payload(1 << 20)


@needs_fifo
def test_a_reader_that_goes(command: Start, echo: Echo, fifo: Path) -> None:
    """Wireshark was closed: the traffic goes on, and the exit code is 0."""
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    process = command("--capture", str(fifo), echo.name)
    with connect(process.address) as client:
        assert echoes(client)
        os.close(reader)
        assert_goes_on(process.address, client)
        said = (
            rf"capture {re.escape(str(fifo))} ended: Broken pipe; (1 connection goes|[23] connections go) on uncaptured"
        )
        eventually(lambda: process.complaints, TIMEOUT)
        assert re.fullmatch(said, process.complaints[0])
        assert_goes_on(process.address, client)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert len(process.complaints) == 2
    assert ", ended: Broken pipe, 3 connections left out" in process.complaints[1]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_disk_that_is_full(make_proxy: Make, echo: Echo, events: list[tcpproxy.Event]) -> None:
    """Row 104."""
    proxy = make_proxy(echo.name, capture="/dev/full")
    assert proxy.capture
    with connect(proxy.address) as client:
        assert_goes_on(proxy.address, client)
        eventually(lambda: proxy.capture.failure)
        assert isinstance(proxy.capture.failure, OSError)
        assert proxy.capture.failure.errno == errno.ENOSPC
        assert_goes_on(proxy.address, client)
    eventually(
        lambda: [event.text[:31] for event in events if event.kind == "lost"] == ["capture /dev/full ended: No spa"]
    )
    proxy.stop()
    assert (proxy.capture.packets, proxy.capture.size) == (0, 0)
    assert proxy.capture.left_out == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_disk_that_is_full_from_the_start(make_proxy: Make, echo: Echo, events: list[tcpproxy.Event]) -> None:
    """Nobody goes on uncaptured, and nothing is said of it."""
    proxy = make_proxy(echo.name, capture="/dev/full")
    expected = ["capture /dev/full ended: No space left on device"]
    eventually(lambda: [event.text for event in events if event.kind == "lost"] == expected)
    proxy.stop()


def test_a_file_that_may_not_grow(command: Start, echo: Echo, file: Path) -> None:
    """RLIMIT_FSIZE: the file ends with the last whole block, the traffic goes on, the exit code is 1."""
    needs("sh")
    process = command("--capture", str(file), echo.name, wrapper=("sh", "-c", 'ulimit -f 999; exec "$@"', "sh"))
    with connect(process.address) as client:
        for _ in range(3):
            assert_goes_on(process.address, client)
    process.signal(signal.SIGTERM)
    assert process.wait() == 1
    assert process.complaints[0].startswith(f"capture {file} ended: File too large; ")
    count = len(captures.packets(file.read_bytes()))
    assert process.complaints[1].startswith(f"{file}: {count:,} packets of ")
    assert len(process.complaints) == 2
    size = file.stat().st_size
    assert 300_000 < size <= 999 * 1024
    assert blocks(file)[-1] == "EnhancedPacket"
    assert captures.analysis(file) == []


def test_json(command: Start, echo: Echo) -> None:
    import json

    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    process = command("--capture", "/dev/full", "--log-format", "json", echo.name)
    eventually(lambda: '"kind": "lost"' in "".join(process.stdout), TIMEOUT)
    process.signal(signal.SIGTERM)
    assert process.wait() == 1
    assert [json.loads(line)["kind"] for line in process.stdout] == ["listening", "lost", "summary", "capture"]


# --- a rotation ---


@pytest.mark.parametrize("sandbox", ["off", "auto"])
def test_rotation(command: Start, echo: Echo, file: Path, sandbox: str) -> None:
    """Connections go on in the next file; the oldest files go; every file is whole."""
    process = command(
        *("--capture", str(file), "--capture-rotate", "1M", "--capture-files", "3", "--sandbox", sandbox), echo.name
    )
    data = payload(4 << 20)
    with connect(process.address) as client, in_background(send_and_shut, client, data):
        assert read_all(client) == data
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    (summary,) = process.complaints
    found = sorted(file.parent.glob("*.pcapng"))
    assert len(found) == 3
    for path in found:
        assert re.fullmatch(r"a_000\d\d_20\d{12}\.pcapng", path.name)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert blocks(path)[-1] == "InterfaceStatistics"
        assert path.stat().st_size < 1_200_000
        assert captures.analysis(path) == []
    names = [path.name for path in found]
    numbers = [int(name.split("_")[1]) for name in names]
    assert numbers == list(range(numbers[-1] - 2, numbers[-1] + 1))
    assert numbers[-1] >= 7
    assert summary.endswith(f" in {numbers[-1]} files, 3 of them kept, nothing left out")


def test_one_file_of_a_rotation(make_proxy: Make, echo: Echo, file: Path) -> None:
    proxy = make_proxy(echo.name, capture=str(file), capture_rotate="1M")
    proxy.stop()
    assert str(proxy.capture).endswith(" in 1 file, nothing left out")


def test_rotated_files_are_one_capture(make_proxy: Make, echo: Echo, file: Path) -> None:
    proxy = make_proxy(echo.name, capture=str(file), capture_rotate="1M")
    data = payload(4 << 20)
    with connect(proxy.address) as client, in_background(send_and_shut, client, data):
        assert read_all(client) == data
    eventually(lambda: proxy.stats().active == 0)
    proxy.stop()
    found = sorted(file.parent.glob("*.pcapng"))
    assert len(found) > 5
    packets = [packet for path in found for packet in captures.packets(path.read_bytes())]
    assert list(captures.reassembled(packets).values()) == [data, data]
    assert proxy.capture
    assert proxy.capture.size == sum(path.stat().st_size for path in found)
    assert proxy.capture.packets == len(packets)


def test_one_file_that_is_full(make_proxy: Make, echo: Echo, file: Path, events: list[tcpproxy.Event]) -> None:
    proxy = make_proxy(echo.name, capture=str(file), capture_rotate="1M", capture_files=1)
    with connect(proxy.address) as client:
        assert_goes_on(proxy.address, client)
        eventually(lambda: [event.text for event in events if event.kind == "lost"])
        assert_goes_on(proxy.address, client)
    proxy.stop()
    [path] = file.parent.glob("*.pcapng")
    assert blocks(path)[-1] == "InterfaceStatistics"
    assert proxy.capture
    assert proxy.capture.failure is None
    assert proxy.capture.left_out == 3


def test_next_file_that_cannot_be_opened(
    make_proxy: Make, echo: Echo, tmp_path: Path, events: list[tcpproxy.Event]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    proxy = make_proxy(echo.name, capture=str(folder / "a.pcapng"), capture_rotate="1M")
    folder.rename(tmp_path / "moved")
    with connect(proxy.address) as client:
        assert_goes_on(proxy.address, client)
        assert proxy.capture
        eventually(lambda: proxy.capture.failure)
        assert_goes_on(proxy.address, client)
    proxy.stop()
    assert isinstance(proxy.capture.failure, OSError)
    assert proxy.capture.failure.errno == errno.ENOENT


# --- the process ---


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_leaves_the_file_alone(file: Path) -> None:
    program = """if True:
    import os, sys, socket, tcpproxy
    server = socket.create_server(("127.0.0.1", 0))
    with tcpproxy.Proxy(server.getsockname(), capture=sys.argv[1]) as proxy:
        with socket.create_connection(proxy.address) as client:
            accepted = server.accept()[0]
            client.sendall(b"before")
            assert accepted.recv(6) == b"before"
            child = os.fork()
            if child == 0:
                open_files = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                              if os.path.exists(f"/proc/self/fd/{n}")] if os.path.exists("/proc/self/fd") else []
                os._exit(sys.argv[1] in open_files)
            assert os.waitpid(child, 0)[1] == 0
            client.sendall(b"behind")
            assert accepted.recv(6) == b"behind"
            accepted.close()
    server.close()
    assert proxy.capture.failure is None
    """
    done = run(program, str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert b"beforebehind" in captures.reassembled(captures.packets(file.read_bytes())).values()


def test_a_stop_by_the_thread_that_opens_files(echo: Echo, file: Path) -> None:
    """Garbage may be collected in any thread, and its `__del__` may stop the proxy."""
    program = """if True:
    import socket, sys, threading, time, tcpproxy
    stopped = threading.Event()
    def hook(event, args):
        if event == "open" and threading.current_thread().name == "tcpproxy-tap" and not stopped.is_set():
            began = time.monotonic()
            proxy.stop()
            assert time.monotonic() - began < 2
            stopped.set()
    sys.addaudithook(hook)
    proxy = tcpproxy.Proxy(int(sys.argv[1]), capture=sys.argv[2], capture_rotate="64KiB", on_event=lambda _: None)
    with proxy, socket.create_connection(proxy.address) as client:
        try:
            while not stopped.is_set():
                client.sendall(bytes(10000))
                client.recv(10000)
        except ConnectionError:
            pass
        assert stopped.wait(10)
        assert proxy.wait(10)
    assert proxy.capture.failure is None, proxy.capture.failure
    print(proxy)
    """
    done = run(program, str(echo.port), str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("stopped>\n")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_no_descriptor_is_left(echo: Echo, file: Path) -> None:
    def opened() -> set[str]:
        return {
            os.readlink(f"/proc/self/fd/{n}")
            for n in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{n}")
        }

    with tcpproxy.Proxy(echo.name, capture=str(file), on_event=lambda _: None):
        assert str(file) in opened()
    assert str(file) not in opened()
    taken = tcpproxy.Proxy((lambda s: s)(echo.name), capture=str(file), bind="192.0.2.1", on_event=lambda _: None)
    with pytest.raises(tcpproxy.StartError):
        taken.start()
    assert str(file) not in opened()
