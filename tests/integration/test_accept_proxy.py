"""--accept-proxy: who the client is, and what happens without a valid header."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import Command
from support.headers import BAD, ENDED, GOOD, LATE, LOCAL, NO_SIGNATURE, SIGNATURE, Good, binary, line, packed, tlv
from support.machine import needs
from support.peers import Echo, Upstream, connect, reset
from support.servers import serve
from support.streams import echoes, payload, read_all, read_exactly, send_and_shut
from support.waiting import TIMEOUT, eventually, in_background, pause

import tcpproxy

MakeProxy = Callable[..., tcpproxy.Proxy]
HERE = "127.0.0.0/8"
HEADER = line("TCP4 192.0.2.1 198.51.100.7 56324 443")


def is_reset(client: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        return client.recv(1) == b"?"  # an end of file is no reset
    return True


def kinds(events: list[tcpproxy.Event], kind: str) -> list[tcpproxy.Event]:
    return [event for event in events if event.kind == kind]


# --- good headers ---


@pytest.mark.parametrize("good", GOOD.values(), ids=GOOD)
def test_good(good: Good, echo: Echo, make_proxy: MakeProxy, events: list[tcpproxy.Event]) -> None:
    """Rows 107 and 109: with payload in the same segment, and with none. The header is no byte of the client."""
    proxy = make_proxy(echo.name, accept_proxy=HERE)
    peers = []
    for together in (True, False):
        with connect(proxy.address) as client:
            peers.append("{}:{}".format(*client.getsockname()))
            client.sendall(good.header + (b"hello" if together else b""))
            if not together:
                client.sendall(b"hello")
            assert read_exactly(client, 5) == b"hello"
            seen = proxy.connections()[-1]
            assert (seen.client, seen.via) == ((good.client, peers[-1]) if good.client else (peers[-1], ""))
        eventually(lambda: proxy.stats().active == 0)
    proxy.stop(grace=TIMEOUT)
    ends = kinds(events, "end")
    assert [(event.to_upstream, event.to_client) for event in ends] == [(5, 5), (5, 5)]
    told = [(good.client, peer) if good.client else (peer, "") for peer in peers]
    assert [(event.client, event.via) for event in kinds(events, "new")] == told
    assert sorted((event.client, event.via) for event in ends) == sorted(told)


@pytest.mark.parametrize("name", ["v1 TCP4", "v1 UNKNOWN, longest", "v2 TCP6", "v2 LOCAL", "v2 checksum between"])
@pytest.mark.parametrize("workers", [1, 2])
def test_cut_at_every_byte(name: str, workers: int, echo: Echo, make_proxy: MakeProxy) -> None:
    """Row 110: in two segments, cut anywhere."""
    good = GOOD[name]
    proxy = make_proxy(echo.name, accept_proxy=HERE, workers=workers)
    clients = []
    for size in range(1, len(good.header)):
        client = connect(proxy.address)
        client.sendall(good.header[:size])
        clients.append((client, good.header[size:]))
    eventually(lambda: _read_so_far(proxy, clients))
    for client, rest in clients:
        client.sendall(rest + b"hello")
        assert read_exactly(client, 5) == b"hello"
        client.close()
    assert proxy.stats().accepted == len(clients)


def _read_so_far(proxy: tcpproxy.Proxy, clients: list[object]) -> bool:
    """All of them are with a worker, none is a connection yet."""
    proxy._crew.sync()  # type: ignore[union-attr]
    return proxy.stats().accepted == 0 and proxy.connections() == []


@pytest.mark.parametrize("name", ["v1 TCP6", "v2 TLVs"])
def test_byte_by_byte(name: str, echo: Echo, make_proxy: MakeProxy) -> None:
    """Row 110."""
    good = GOOD[name]
    proxy = make_proxy(echo.name, accept_proxy=HERE)
    with connect(proxy.address) as client:
        for byte in good.header:
            client.sendall(bytes([byte]))
            pause(0.002)
        assert echoes(client)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("zero_copy", ["off", "always"])
def test_bytes_behind_it(workers: int, zero_copy: str, upstream: Upstream, make_proxy: MakeProxy) -> None:
    """Both ways, by copy and by splice, sent with the header: nothing is lost, doubled or late."""
    up, down = payload(4 << 20, 1), payload(4 << 20, 2)
    proxy = make_proxy(upstream.name, accept_proxy=HERE, workers=workers, zero_copy=zero_copy)
    received: list[bytes] = []
    with contextlib.ExitStack() as ends:
        client = ends.enter_context(connect(proxy.address))
        ends.enter_context(in_background(send_and_shut, client, GOOD["v2 TCP6"].header + up))
        server = ends.enter_context(upstream.accept())
        ends.enter_context(in_background(send_and_shut, server, down))
        ends.enter_context(in_background(lambda: received.append(read_all(server))))
        assert read_all(client) == down
    assert received == [up]


def test_nothing_happens_before(upstream: Upstream, make_proxy: MakeProxy) -> None:
    """Row 110: upstream hears of nobody until the header is complete."""
    proxy = make_proxy(upstream.name, accept_proxy=HERE)
    with connect(proxy.address) as client:
        client.sendall(HEADER[:-1])
        proxy._crew.sync()  # type: ignore[union-attr]
        assert select.select([upstream.socket], [], [], 0.2)[0] == []
        client.sendall(HEADER[-1:])
        upstream.accept().close()


def test_half_closed_behind_it(upstream: Upstream, make_proxy: MakeProxy) -> None:
    """A client that has ended waits for its answer, as without a header."""
    proxy = make_proxy(upstream.name, accept_proxy=HERE)
    with connect(proxy.address) as client:
        send_and_shut(client, HEADER + b"question")
        with upstream.accept() as server:
            assert read_all(server) == b"question"
            send_and_shut(server, b"answer")
            assert read_all(client) == b"answer"


@pytest.mark.parametrize("buffer_size", [1024, 65536])
def test_longest(buffer_size: int, echo: Echo, make_proxy: MakeProxy) -> None:
    """It need not fit the buffer of a read."""
    proxy = make_proxy(echo.name, accept_proxy=HERE, buffer_size=buffer_size)
    with connect(proxy.address) as client:
        client.sendall(GOOD["v2 longest"].header)
        assert echoes(client)


# --- bad headers ---


@pytest.mark.parametrize(("header", "problem"), BAD.values(), ids=BAD)
def test_bad(
    header: bytes, problem: str, upstream: Upstream, make_proxy: MakeProxy, events: list[tcpproxy.Event]
) -> None:
    """Row 108: the peer is reset, upstream hears of nobody, and the reason names the first wrong thing."""
    proxy = make_proxy(upstream.name, accept_proxy=HERE)
    with connect(proxy.address) as client:
        name = "{}:{}".format(*client.getsockname())
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            client.sendall(header)
        assert is_reset(client)
    eventually(lambda: kinds(events, "failed"))
    (event,) = kinds(events, "failed")
    assert (event.reason, event.error, event.client, event.via) == ("proxy-header", 0, name, "")
    assert event.text == f"{problem}: {header[:16]!r}"
    assert kinds(events, "new") == []
    assert select.select([upstream.socket], [], [], 0)[0] == []
    stats = proxy.stats()
    assert (stats.accepted, stats.refused, stats.active) == (0, 1, 0)


@pytest.mark.parametrize("how", [socket.socket.close, reset, lambda sock: sock.shutdown(socket.SHUT_WR)])
@pytest.mark.parametrize("begin", [b"", b"PROXY TCP4"])
def test_peer_that_leaves(
    how: Callable[[socket.socket], None], begin: bytes, echo: Echo, make_proxy: MakeProxy, events: list[tcpproxy.Event]
) -> None:
    """Row 110: a health check or a scan of ports that sends nothing is counted, and told to nobody."""
    proxy = make_proxy(echo.name, accept_proxy=HERE)
    client = connect(proxy.address)
    client.sendall(begin)
    how(client)
    eventually(lambda: proxy.stats().refused == 1)
    client.close()
    with connect(proxy.address) as other:
        other.sendall(HEADER)
        assert echoes(other)
    eventually(lambda: kinds(events, "connected"))
    told = [(event.reason, event.text) for event in kinds(events, "failed")]
    if how is not reset:  # which may come before its bytes are read
        assert told == ([("proxy-header", f"{ENDED}: {begin!r}")] if begin else [])
    assert len(told) <= len(begin)
    assert proxy.stats().accepted == 1


@pytest.mark.parametrize("begin", [b"", b"PROXY TC", SIGNATURE + b"\x21\x11\0\x0c"])
def test_time_out(begin: bytes, echo: Echo, make_proxy: MakeProxy, events: list[tcpproxy.Event]) -> None:
    """Row 110: who sends no complete header in time is reset; what came of it does not begin the time anew."""
    proxy = make_proxy(echo.name, accept_proxy=HERE, proxy_header_timeout=3)
    start = time.monotonic()
    with connect(proxy.address) as client:
        for byte in begin:
            client.sendall(bytes([byte]))
        assert is_reset(client)
    assert time.monotonic() - start > 2.9
    eventually(lambda: kinds(events, "failed"))
    (event,) = kinds(events, "failed")
    assert event.reason == "proxy-header"
    assert event.text == (f"{LATE}: {begin!r}" if begin else LATE)
    assert proxy.stats().active == 0


def test_only_from_listed_peers(echo: Echo, make_proxy: MakeProxy, events: list[tcpproxy.Event]) -> None:
    """Row 111: from elsewhere come clients, whose bytes are theirs, also if they look like a header."""
    proxy = make_proxy(echo.name, accept_proxy=["127.0.0.2", "::1"], bind="::")
    address = ("127.0.0.1", proxy.port)
    with socket.create_connection(address, TIMEOUT, ("127.0.0.1", 0)) as plain:
        assert echoes(plain, HEADER + b"hello")
    with socket.create_connection(address, TIMEOUT, ("127.0.0.2", 0)) as listed:
        listed.sendall(HEADER)
        assert echoes(listed)
    with connect(("::1", proxy.port)) as listed:
        listed.sendall(HEADER)
        assert echoes(listed)
    with socket.create_connection(address, TIMEOUT, ("127.0.0.2", 0)) as listed:
        listed.sendall(b"hello, this is no header")
        assert is_reset(listed)
    eventually(lambda: kinds(events, "failed"))
    clients = [(event.client.rpartition(":")[0], event.via.rpartition(":")[0]) for event in kinds(events, "new")]
    assert clients == [("127.0.0.1", ""), ("192.0.2.1", "127.0.0.2"), ("192.0.2.1", "[::1]")]
    assert [event.text for event in kinds(events, "failed")] == [f"{NO_SIGNATURE}: b'hello, this is n'"]


def test_unix(tmp_path: Path, echo: Echo, make_proxy: MakeProxy, events: list[tcpproxy.Event]) -> None:
    """The word stands for all peers of a UNIX socket, and only for those."""
    path = tmp_path / "s"
    proxy = make_proxy(echo.name, bind=path, accept_proxy="unix")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        client.connect(str(path))
        client.sendall(HEADER)
        assert echoes(client)
        (seen,) = proxy.connections()
        assert (seen.client, seen.via.partition("=")[0]) == ("192.0.2.1:56324", "unix:uid")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""
    proxy = make_proxy(echo.name, accept_proxy="unix")
    with connect(proxy.address) as client:
        assert echoes(client, HEADER)
    proxy = make_proxy(echo.name, bind=tmp_path / "t", accept_proxy="127.0.0.1")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        client.connect(str(tmp_path / "t"))
        assert echoes(client, HEADER)


@pytest.mark.parametrize("end", ["upstream", "client"])
def test_resets_of_a_unix_client(end: str, tmp_path: Path, upstream: Upstream, make_proxy: MakeProxy) -> None:
    """What its socket is decides how it ends, not the address that the header says."""
    proxy = make_proxy(upstream.name, bind=tmp_path / "s", accept_proxy="unix", keepalive=1)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        client.connect(str(tmp_path / "s"))
        client.sendall(HEADER + b"hello")
        server = upstream.accept()
        assert read_exactly(server, 5) == b"hello"
        pause(1.2)  # keepalive is set by then, where there is any
        assert len(proxy.connections()) == 1
        if end == "upstream":
            server.sendall(b"bye")
            reset(server)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(100) in (b"bye", b"")
        else:
            client.close()
            with contextlib.suppress(ConnectionResetError):
                assert server.recv(1) == b""
            server.close()
        eventually(lambda: proxy.stats().active == 0)


# --- the effective address ---


def test_allow_and_deny(echo: Echo, make_proxy: MakeProxy, events: list[tcpproxy.Event]) -> None:
    """Row 60: they are about the client of the header; a peer's own connection needs no further leave."""
    proxy = make_proxy(echo.name, accept_proxy=HERE, allow="192.0.2.0/24", deny="192.0.2.66")
    for address, welcome in (("192.0.2.1", True), ("192.0.2.66", False), ("198.51.100.1", False), ("127.0.0.1", False)):
        with connect(proxy.address) as client:
            client.sendall(line(f"TCP4 {address} 198.51.100.7 56324 443"))
            assert echoes(client) if welcome else is_reset(client)
    for header in (line("UNKNOWN"), binary(LOCAL, 0, b"")):
        with connect(proxy.address) as client:
            client.sendall(header)
            assert echoes(client)
    eventually(lambda: len(kinds(events, "failed")) == 3)
    refused = kinds(events, "failed")
    assert {event.reason for event in refused} == {"denied"}
    assert [event.client for event in refused] == ["192.0.2.66:56324", "198.51.100.1:56324", "127.0.0.1:56324"]
    assert all(event.via.startswith("127.0.0.1:") for event in refused)
    assert (proxy.stats().accepted, proxy.stats().refused) == (3, 3)


@pytest.mark.parametrize("workers", [1, 2])
def test_per_source(workers: int, echo: Echo, make_proxy: MakeProxy, events: list[tcpproxy.Event]) -> None:
    """Row 59: the client of the header counts, once its header is there, and until its end."""
    proxy = make_proxy(echo.name, accept_proxy=HERE, max_connections_per_source=1, workers=workers)
    silent = [connect(proxy.address) for _ in range(5)]
    for _ in range(3):
        with connect(proxy.address) as one, connect(proxy.address) as two, connect(proxy.address) as other:
            one.sendall(HEADER)
            assert echoes(one)
            two.sendall(HEADER)
            assert is_reset(two)
            other.sendall(line("TCP4 192.0.2.2 198.51.100.7 56324 443"))
            assert echoes(other)
        eventually(lambda: proxy.stats().active == 0)
    assert {(event.reason, event.client) for event in kinds(events, "failed")} <= {("limit", "192.0.2.1:56324")}
    for client in silent:
        client.close()


def test_those_who_wait_count(echo: Echo, make_proxy: MakeProxy) -> None:
    """A listed peer without a header takes a place of --max-connections, for as long as its time-out."""
    proxy = make_proxy(echo.name, accept_proxy="127.0.0.2", max_connections=2)
    held = [socket.create_connection(proxy.address, TIMEOUT, ("127.0.0.2", 0)) for _ in range(2)]
    with connect(proxy.address) as client:
        client.sendall(b"hello")
        assert select.select([client], [], [], 0.3)[0] == []
        held.pop().close()
        assert read_exactly(client, 5) == b"hello"
    held.pop().close()


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_chain(version: str, upstream: Upstream, make_proxy: MakeProxy) -> None:
    """Row 112: the addresses go on as they came; of a peer's own connection the real ones."""
    proxy = make_proxy(upstream.name, accept_proxy=HERE, send_proxy=version)
    second = make_proxy(proxy.address, send_proxy=version, bind="127.0.0.7")
    ends = ("192.0.2.1", 56324), ("198.51.100.7", 443)
    expected = HEADER if version == "v1" else binary(body=packed(*ends))
    with connect(proxy.address) as client:
        client.sendall(HEADER + b"hello")
        with upstream.accept() as server:
            assert read_exactly(server, len(expected) + 5) == expected + b"hello"
    with connect(second.address) as client, upstream.accept() as server:
        ends = client.getsockname(), client.getpeername()
        expected = binary(body=packed(*ends))
        if version == "v1":
            expected = line(f"TCP4 {ends[0][0]} {ends[1][0]} {ends[0][1]} {ends[1][1]}")
        assert read_exactly(server, len(expected)) == expected
    with connect(proxy.address) as client:
        client.sendall(line("UNKNOWN"))
        with upstream.accept() as server:
            ends = client.getsockname(), client.getpeername()
            expected = binary(body=packed(*ends))
            if version == "v1":
                expected = line(f"TCP4 {ends[0][0]} {ends[1][0]} {ends[0][1]} {ends[1][1]}")
            assert read_exactly(server, len(expected)) == expected


def test_with_a_record(echo: Echo, make_proxy: MakeProxy) -> None:
    """A recording begins behind the header, and has the client's address."""
    proxy = make_proxy(echo.name, accept_proxy=HERE, record=True)
    with connect(proxy.address) as client:
        client.sendall(HEADER + b"hello")
        assert read_exactly(client, 5) == b"hello"
        (recording,) = proxy.recordings
        assert (recording.to_upstream, recording.client) == (b"hello", "192.0.2.1:56324")


def test_with_faults(echo: Echo, make_proxy: MakeProxy) -> None:
    """A fault for a network takes the client of the header. One that changes meanwhile does no harm."""
    proxy = make_proxy(echo.name, accept_proxy=HERE, faults=["reset_peer,client=192.0.2.0/24"])
    with connect(proxy.address) as client, connect(proxy.address) as other:
        client.sendall(HEADER[:10])
        other.sendall(HEADER[:10])
        fault = proxy.fault("latency=1ms")
        client.sendall(HEADER[10:])
        assert is_reset(client)
        other.sendall(line("TCP4 203.0.113.1 198.51.100.7 56324 443")[10:])
        assert echoes(other)
        fault.remove()


@pytest.mark.parametrize("how", ["kill", "abort", "stop", "down"])
def test_ends_while_it_waits(how: str, echo: Echo, make_proxy: MakeProxy, events: list[tcpproxy.Event]) -> None:
    """Who has sent no header yet is reset; there is no `new` of it, and no descriptor stays."""
    proxy = make_proxy(echo.name, accept_proxy=HERE, workers=2)
    clients = [connect(proxy.address) for _ in range(4)]
    for client in clients:
        client.sendall(HEADER[:5])
    eventually(lambda: _read_so_far(proxy, clients))
    if how == "stop":
        proxy.stop(grace=0)
    else:
        getattr(proxy, how)()
    assert all(map(is_reset, clients))
    assert kinds(events, "new") == []
    for client in clients:
        client.close()


# --- real senders ---


def test_curl(echo: Echo, make_proxy: MakeProxy, events: list[tcpproxy.Event]) -> None:
    """Its header has its own address."""
    needs("curl")
    proxy = make_proxy(echo.name, accept_proxy=HERE)
    url = f"http://127.0.0.1:{proxy.port}/"
    argv = ["curl", "-sS", "-m", "5", "--haproxy-protocol", "--http0.9", "-o", os.devnull, url]
    subprocess.run(argv, check=False, timeout=TIMEOUT, capture_output=True)
    eventually(lambda: kinds(events, "new"))
    (new,) = kinds(events, "new")
    assert new.client == new.via
    assert kinds(events, "failed") == []


NGINX = """
load_module {module};
daemon off; master_process off; pid {folder}/pid; error_log stderr notice;
events {{ }}
stream {{
  server {{ listen 127.0.0.1:{port}; proxy_pass 127.0.0.1:{target}; proxy_protocol on; }}
}}
"""

HAPROXY = """
defaults
  mode tcp
  timeout connect 10s
  timeout client 10s
  timeout server 10s
listen f
  bind 127.0.0.1:{port}
  server s 127.0.0.1:{target} {how} check check-send-proxy inter 100ms
"""
MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


@pytest.mark.parametrize("how", ["nginx", "send-proxy", "send-proxy-v2", "send-proxy-v2-ssl-cn"])
def test_real_senders(
    how: str,
    stack: contextlib.ExitStack,
    tmp_path: Path,
    echo: Echo,
    make_proxy: MakeProxy,
    events: list[tcpproxy.Event],
) -> None:
    """nginx and HAProxy: the client's address arrives. HAProxy's health checks, which are its own, are relayed too."""
    program = "nginx" if how == "nginx" else "haproxy"
    needs(program)
    if program == "nginx" and not MODULE.exists():
        pytest.skip("nginx has no stream module here")
    proxy = make_proxy(echo.name, accept_proxy=HERE)

    def argv(port: str) -> list[str]:
        text = NGINX if program == "nginx" else HAPROXY
        names = {"folder": tmp_path, "port": port, "target": proxy.port, "how": how, "module": MODULE}
        (tmp_path / "conf").write_text(text.format(**names))
        if program == "nginx":
            return ["nginx", "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "conf")]
        return ["haproxy", "-db", "-f", str(tmp_path / "conf")]

    port = serve(stack, argv, "")
    eventually(lambda: _echoes(port), TIMEOUT, f"{program} does not relay")
    with connect(("127.0.0.1", port)) as client:
        assert echoes(client, payload(1 << 16))
        name = "{}:{}".format(*client.getsockname())
        assert name in [each.client for each in proxy.connections()]
    eventually(lambda: any(event.client == name and event.via for event in kinds(events, "end")))
    assert [event.text for event in kinds(events, "failed")] == []


def _echoes(port: int) -> bool:
    with contextlib.suppress(OSError, AssertionError), connect(("127.0.0.1", port)) as client:
        return echoes(client)
    return False


# --- the command ---


def test_command(echo: Echo, command: Callable[..., Command]) -> None:
    process = command("-d", "--accept-proxy", f"{HERE},unix", "--accept-proxy", "::1", echo.name)
    with connect(process.address) as client:
        client.sendall(HEADER)
        assert echoes(client)
        peer = "{}:{}".format(*client.getsockname())
    with connect(process.address) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\x1b[1m\r\n")
        other = "{}:{}".format(*client.getsockname())
        assert is_reset(client)
    eventually(lambda: any("Refused" in text for text in process.stderr))
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.stdout[1:] == [f"New connection from 192.0.2.1:56324 via {peer} #1"]
    assert f"Refused {other}: no valid PROXY header: {NO_SIGNATURE}: b'GET / HTTP/1.1\\r\\n' #2" in process.stderr
    assert any(text.startswith("Closed 192.0.2.1:56324 after ") for text in process.stderr)


def test_command_as_json(echo: Echo, command: Callable[..., Command]) -> None:
    process = command("--log-format", "json", "--accept-proxy", HERE, "--send-proxy", "v1", echo.name)
    eventually(lambda: process.stdout)
    host, _, port = json.loads(process.stdout[0])["listener"].rpartition(":")
    with connect((host, int(port))) as client:
        client.sendall(HEADER + b"hello")
        assert read_exactly(client, len(HEADER) + 5) == HEADER + b"hello"
        peer = "{}:{}".format(*client.getsockname())
    eventually(lambda: '"end"' in process.stdout[-1])
    for text in process.stdout[1:4]:
        record = json.loads(text)
        assert (record["client"], record["via"]) == ("192.0.2.1:56324", peer)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--accept-proxy"], "option --accept-proxy has no value, expected NETWORK|unix,..."),
        (["--accept-proxy", ""], "--accept-proxy '' is no network, expected"),
        (["--accept-proxy", "any"], "--accept-proxy 'any' is no network, expected"),
        (["--accept-proxy", "unix,"], "--accept-proxy '' is no network, expected"),
        (["--accept-proxy", "10.0.0.1/8"], "--accept-proxy '10.0.0.1/8' has host bits set"),
        (["--accept-proxy", "::1", "--proxy-header-timeout", "2.9s"], "--proxy-header-timeout '2.9s' is out of range"),
        (["--accept-proxy", "::1", "--proxy-header-timeout", "off"], "--proxy-header-timeout 'off' is not a duration"),
        (["--proxy-header-timeout", "5s"], "--proxy-header-timeout needs --accept-proxy"),
    ],
)
def test_bad_options(args: list[str], error: str, command: Callable[..., Command]) -> None:
    process = command("localhost:1", *args)
    assert process.wait() == 2
    assert process.stdout == []
    assert process.stderr[0].startswith(f"tcpproxy: {error}")


def test_no_list(make_proxy: MakeProxy) -> None:
    """A list that is empty trusts nobody, and is a mistake."""
    with pytest.raises(tcpproxy.UsageError, match="accept_proxy is empty"):
        tcpproxy.Proxy("localhost:1", accept_proxy=[])


def test_tlv_with_a_header() -> None:
    """The control: a header within a field is none."""
    assert tlv(0xEE, HEADER) in binary(body=packed(("192.0.2.1", 1), ("192.0.2.2", 2)) + tlv(0xEE, HEADER))
