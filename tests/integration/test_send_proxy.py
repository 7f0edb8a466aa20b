"""--send-proxy: what upstream gets first, and that all the rest is as without."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from networks import Closed
from support.command import Command
from support.headers import SIGNATURE, binary, line, packed
from support.machine import needs
from support.peers import Upstream, connect, free_port, reset
from support.servers import serve
from support.streams import payload, read_all, read_exactly, send_and_shut
from support.waiting import TIMEOUT, eventually, in_background

import tcpproxy

MakeProxy = Callable[..., tcpproxy.Proxy]
LOCAL = SIGNATURE + b"\x20\0\0\0"


def expected(version: str, client: socket.socket) -> bytes:
    """The header for a client that has connected: its own address, and the one that it has connected to."""
    ends = [end[:2] for end in (client.getsockname(), client.getpeername())]
    family = 4 if "." in ends[0][0] else 6
    if version == "v1":
        return line(f"TCP{family} {ends[0][0]} {ends[1][0]} {ends[0][1]} {ends[1][1]}")
    return binary(family=0x11 if family == 4 else 0x21, body=packed(*ends))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(
    ("bind", "to"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("0.0.0.0", "127.0.0.7"), ("::", "127.0.0.7"), ("::", "::1")],
)
def test_header(
    workers: int,
    version: str,
    bind: str,
    to: str,
    upstream: Upstream,
    make_proxy: MakeProxy,
    events: list[tcpproxy.Event],
) -> None:
    """Row 112: exact bytes, before any of the client's and without waiting for one. No byte of it is counted."""
    proxy = make_proxy(upstream.name, bind=bind, workers=workers, send_proxy=version)
    for silent in (True, False):
        with connect((to, proxy.port)) as client:
            if not silent:
                client.sendall(b"hello")
            with upstream.accept() as server:
                header = expected(version, client)
                assert read_exactly(server, len(header)) == header
                if silent:
                    client.sendall(b"hello")
                assert read_exactly(server, 5) == b"hello"
                send_and_shut(server, b"and back")
                assert read_all(client) == b"and back"
    proxy.stop(grace=TIMEOUT)
    stats = proxy.stats()
    assert (stats.bytes_to_upstream, stats.bytes_to_client) == (10, 16)
    assert [(event.to_upstream, event.to_client) for event in events if event.kind == "end"] == [(5, 8)] * 2


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("zero_copy", ["off", "auto", "always"])
def test_bytes_behind_it(version: str, zero_copy: str, upstream: Upstream, make_proxy: MakeProxy) -> None:
    """Both ways, by copy and by splice, with a client that sends at once: nothing is lost, doubled or late."""
    up, down = payload(4 << 20, 1), payload(4 << 20, 2)
    proxy = make_proxy(upstream.name, workers=2, send_proxy=version, zero_copy=zero_copy)
    client = connect(proxy.address)
    header = expected(version, client)
    received: list[bytes] = []
    with contextlib.ExitStack() as ends:
        ends.enter_context(client)
        ends.enter_context(in_background(send_and_shut, client, up))
        server = ends.enter_context(upstream.accept())
        ends.enter_context(in_background(send_and_shut, server, down))
        ends.enter_context(in_background(lambda: received.append(read_all(server))))
        assert read_all(client) == down
    assert received == [header + up]


@pytest.mark.parametrize("workers", [1, 2])
def test_behind_other_targets(workers: int, upstream: Upstream, closed: Closed, make_proxy: MakeProxy) -> None:
    """A target that is tried later gets the same header, of forwards that are not the first one, too."""
    other = "127.0.0.9:0:127.0.0.1:1,127.0.0.1:2"
    forwards = [other, f"127.0.0.8:0:{closed.name},{upstream.name}"]
    proxy = make_proxy(None, forwards=forwards, workers=workers, send_proxy="v1")
    with connect(proxy.forwards[1].address) as client, upstream.accept() as server:
        header = expected("v1", client)
        client.sendall(b"hello")
        assert read_exactly(server, len(header) + 5) == header + b"hello"


def test_at_a_rate(upstream: Upstream, make_proxy: MakeProxy) -> None:
    """The header waits for no rate; all bytes come behind it."""
    data = payload(100_000)
    proxy = make_proxy(upstream.name, send_proxy="v2", max_rate_per_connection="200kB/s")
    with connect(proxy.address) as client, in_background(send_and_shut, client, data), upstream.accept() as server:
        assert read_all(server) == expected("v2", client) + data


def test_one_read(upstream: Upstream, make_proxy: MakeProxy) -> None:
    """The header comes in one segment: receivers exist that read once. So it does together with the first bytes."""
    proxy = make_proxy(upstream.name, send_proxy="v2")
    for early in (b"", b"hello"):
        for _ in range(50):
            with connect(proxy.address) as client:
                client.sendall(early)
                with upstream.accept() as server:
                    assert server.recv(1 << 16)[:28] == expected("v2", client)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/fd")
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_first_bytes_are_not_held_back(version: str, upstream: Upstream, make_proxy: MakeProxy) -> None:
    """Nagle's algorithm would hold them back until the header is acknowledged: TCP_NODELAY is set by then."""
    proxy = make_proxy(upstream.name, send_proxy=version)
    with connect(proxy.address) as client, upstream.accept() as server:
        header = expected(version, client)
        assert read_exactly(server, len(header)) == header
        with contextlib.closing(_own_end(server)) as end:
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def _own_end(server: socket.socket) -> socket.socket:
    """The proxy's socket of this connection, which is in this process."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found = socket.socket(fileno=os.dup(int(name)))
            if found.getsockname() == server.getpeername() and found.getpeername() == server.getsockname():
                return found
            found.close()
    raise AssertionError("the proxy has no such socket")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_clients_of_a_unix_socket(
    version: str, tmp_path: Path, upstream: Upstream, make_proxy: MakeProxy, events: list[tcpproxy.Event]
) -> None:
    """Row 112: they have no address, and the header says so. It is said once, at the start, too."""
    proxy = make_proxy(upstream.name, bind=tmp_path / "s", send_proxy=version)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(proxy.address)
        client.sendall(b"hello")
        with upstream.accept() as server:
            header = b"PROXY UNKNOWN\r\n" if version == "v1" else LOCAL
            assert read_exactly(server, len(header) + 5) == header + b"hello"
    warnings = [event.text for event in events if event.kind == "warning"]
    assert warnings == [f"clients of {tmp_path / 's'} have no address that upstream could be told"]


def test_upstream_is_a_unix_socket(tmp_path: Path, make_proxy: MakeProxy) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        listener.settimeout(TIMEOUT)
        proxy = make_proxy(str(tmp_path / "s"), send_proxy="v1")
        with connect(proxy.address) as client, listener.accept()[0] as server:
            header = expected("v1", client)
            client.sendall(b"hello")
            assert read_exactly(server, len(header) + 5) == header + b"hello"


def test_several_forwards(make_proxy: MakeProxy) -> None:
    """Each with its own listener: the destination is the one that the client has connected to."""
    with contextlib.closing(Upstream()) as one, contextlib.closing(Upstream()) as two:
        forwards = [f"localhost:0:{one.name}", f"127.0.0.1:0:{two.name}"]
        proxy = make_proxy(None, forwards=forwards, send_proxy="v1", workers=2)
        for upstream, address in zip((one, one, two), proxy.addresses, strict=True):
            with connect(address[:2]) as client, upstream.accept() as server:
                header = expected("v1", client)
                assert read_exactly(server, len(header)) == header


def test_after_down_and_up(upstream: Upstream, make_proxy: MakeProxy) -> None:
    proxy = make_proxy(upstream.name, send_proxy="v1")
    proxy.down()
    proxy.up()
    with connect(proxy.address) as client, upstream.accept() as server:
        header = expected("v1", client)
        assert read_exactly(server, len(header)) == header


def test_only_the_winner_gets_it(make_proxy: MakeProxy) -> None:
    """Of the addresses of a name only the one that is used sees a header: the other one comes too late."""
    with contextlib.closing(Upstream()) as upstream, contextlib.closing(Upstream("::1", upstream.port)) as other:
        proxy = make_proxy(f"localhost:{upstream.port}", bind="127.0.0.5", send_proxy="v1")
        with connect(proxy.address) as client:
            found = select.select([upstream.socket, other.socket], [], [], TIMEOUT)[0]
            with found[0].accept()[0] as server:
                header = expected("v1", client)
                assert read_exactly(server, len(header)) == header
            assert select.select([upstream.socket, other.socket], [], [], 0)[0] == []


@pytest.mark.parametrize("how", [socket.socket.close, reset])
def test_upstream_that_leaves_at_once(
    how: Callable[[socket.socket], None], upstream: Upstream, make_proxy: MakeProxy, events: list[tcpproxy.Event]
) -> None:
    """It ends as without a header: by an end of file or a reset, and the client hears of it."""
    proxy = make_proxy(upstream.name, send_proxy="v2")
    for _ in range(20):
        client = connect(proxy.address)
        how(upstream.accept())
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        client.close()
    eventually(lambda: proxy.stats().active == 0)
    proxy.stop(grace=TIMEOUT)
    assert {event.reason for event in events if event.kind == "end"} <= {"upstream-eof", "upstream-reset"}
    assert sum(event.kind == "end" for event in events) == 20


def test_upstream_refuses(make_proxy: MakeProxy, events: list[tcpproxy.Event]) -> None:
    proxy = make_proxy(f"127.0.0.1:{free_port()}", send_proxy="v2")
    with contextlib.suppress(ConnectionResetError), connect(proxy.address) as client:
        assert client.recv(1) == b"?"
    eventually(lambda: any(event.kind == "failed" for event in events))
    assert [event.reason for event in events if event.kind == "failed"] == ["connect-refused"]


def test_with_faults_and_pauses(upstream: Upstream, make_proxy: MakeProxy) -> None:
    """A header is no byte of the client: neither a delay nor a pause holds it up."""
    proxy = make_proxy(upstream.name, send_proxy="v1", faults=["to_upstream:latency=10s"])
    with connect(proxy.address) as client, upstream.accept() as server:
        client.sendall(b"later")
        header = expected("v1", client)
        assert server.recv(1 << 16) == header
    proxy = make_proxy(upstream.name, send_proxy="v1")
    proxy.pause()
    with connect(proxy.address) as client, upstream.accept() as server:
        client.sendall(b"later")
        header = expected("v1", client)
        assert server.recv(1 << 16) == header
        proxy.resume()
        assert read_exactly(server, 5) == b"later"


def test_record_has_no_header(upstream: Upstream, make_proxy: MakeProxy) -> None:
    """A recording has what the client has sent."""
    proxy = make_proxy(upstream.name, send_proxy="v1", record=True)
    with connect(proxy.address) as client:
        client.sendall(b"hello")
        with upstream.accept() as server:
            header = expected("v1", client)
            assert read_exactly(server, len(header) + 5) == header + b"hello"
            assert proxy.recordings[0].to_upstream == b"hello"


# --- real receivers ---

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log stderr notice;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port} proxy_protocol;
    return 200 "$proxy_protocol_addr:$proxy_protocol_port $proxy_protocol_server_addr:$proxy_protocol_server_port\\n";
  }}
}}
"""

HAPROXY = """
defaults
  mode http
  timeout connect 10s
  timeout client 10s
  timeout server 10s
frontend f
  bind 127.0.0.1:{port} accept-proxy
  http-request return status 200 content-type text/plain lf-string "%[src]:%[src_port] %[dst]:%[dst_port]\\n"
"""


@pytest.fixture(params=["nginx", "haproxy"])
def receiver(request: pytest.FixtureRequest, stack: contextlib.ExitStack, tmp_path: Path) -> int:
    """The port of a server that expects a header, and answers with what it says."""
    program = request.param
    needs(program)

    def argv(port: str) -> list[str]:
        text = (NGINX if program == "nginx" else HAPROXY).format(folder=tmp_path, port=port)
        (tmp_path / "conf").write_text(text)
        if program == "nginx":
            return ["nginx", "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "conf")]
        return ["haproxy", "-db", "-V", "-f", str(tmp_path / "conf")]

    port = serve(stack, argv, "")
    eventually(lambda: _listens(port), TIMEOUT, f"{program} does not listen")
    return port


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("workers", [1, 2])
def test_real_receivers(version: str, workers: int, receiver: int, make_proxy: MakeProxy) -> None:
    """nginx and HAProxy understand it."""
    proxy = make_proxy(f"127.0.0.1:{receiver}", send_proxy=version, workers=workers)
    for _ in range(5):
        with connect(proxy.address) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            own, theirs = client.getsockname(), client.getpeername()
            answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        assert answer.rpartition(b"\r\n")[2] == f"{own[0]}:{own[1]} {theirs[0]}:{theirs[1]}\n".encode()


def _listens(port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError), connect(("127.0.0.1", port)):
        return True
    return False


# --- the command ---


def test_command(upstream: Upstream, command: Callable[..., Command]) -> None:
    process = command("--send-proxy", "v2", "-d", upstream.name)
    with connect(process.address) as client, upstream.accept() as server:
        client.sendall(b"hello")
        assert read_exactly(server, 33) == expected("v2", client) + b"hello"
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.complaints[0].startswith("Transferred 5 bytes from proxy client ")


@pytest.mark.parametrize("value", ["v3", "1", "", "on"])
def test_bad_version(value: str, command: Callable[..., Command]) -> None:
    process = command("localhost:1", "--send-proxy", value)
    assert process.wait() == 2
    assert process.stderr[0] == f"tcpproxy: --send-proxy {value!r} is unknown, expected v1 or v2"
