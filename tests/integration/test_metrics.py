"""Metrics: their values, how they are served, and what hostile peers of the server can do."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain_text
from support.command import Command
from support.machine import needs, needs_proc
from support.peers import Echo, Upstream, connect, free_port, relays, reset
from support.streams import echoes, is_over, read_all
from support.stuck import stuck
from support.waiting import TIMEOUT, eventually, in_background

import tcpproxy
from tcpproxy.metrics import Collector

Start = Callable[..., Command]
MakeProxy = Callable[..., tcpproxy.Proxy]

posix = pytest.mark.skipif(os.name == "nt", reason="no such signals and sockets")


def samples(*proxies: tcpproxy.Proxy) -> dict[str, float]:
    """The samples that a registry gets, by name and labels without `listener`."""
    registry = CollectorRegistry()
    registry.register(Collector(*proxies))
    return parsed(generate_latest(registry).decode())


def parsed(text: str, parse: Callable[..., object] = plain_text) -> dict[str, float]:
    found = {}
    for family in parse(text):  # type: ignore[attr-defined]
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sample.labels.items() if name != "listener")
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return {name.removeprefix("tcpproxy_"): value for name, value in found.items()}


def ask(place: tuple[str, int] | str, path: str, *headers: str, method: str = "GET") -> tuple[int, str, str]:
    """Status, headers and body."""
    family = socket.AF_UNIX if isinstance(place, str) else socket.AF_INET
    with socket.socket(family) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(place)
        lines = [f"{method} {path} HTTP/1.1", "Host: a", *headers, "", ""]
        connection.sendall("\r\n".join(lines).encode())
        head, _, body = read_all(connection).decode().partition("\r\n\r\n")
    return int(head.split()[1]), head, body


def is_clean(text: str) -> bool:
    """Has promtool, where it is installed, nothing to say?"""
    if not shutil.which("promtool"):
        return True
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return True


def is_turned_away(address: tuple[str, int]) -> None:
    """The reset may be there before connect() has returned."""
    with contextlib.suppress(ConnectionResetError), connect(address) as client:
        assert is_over(client)


@pytest.fixture
def serving(command: Start, echo: Echo) -> Callable[..., tuple[Command, tuple[str, int]]]:
    """Starts the command with metrics; where they are."""

    def start(*options: str, target: str = "") -> tuple[Command, tuple[str, int]]:
        port = free_port()
        process = command("--metrics", str(port), *options, target or echo.name)
        process.address  # noqa: B018  it listens
        return process, ("127.0.0.1", port)

    return start


# --- what they say ---


@pytest.mark.parametrize("workers", [1, 2])
def test_numbers_of_connections(make_proxy: MakeProxy, upstream: Upstream, workers: int) -> None:
    """Live while connections live: bytes of one that is open, ends by reason, times in the right bucket."""
    proxy = make_proxy(upstream.name, workers=workers, idle_timeout="1s")
    with connect(proxy.address) as client, upstream.accept() as server:
        client.sendall(b"x" * 1000)
        server.sendall(b"y" * 10)
        assert client.recv(10) == b"y" * 10
        assert len(server.recv(1000, socket.MSG_WAITALL)) == 1000
        # A worker counts bytes when it has sent them: a peer may be faster.
        eventually(lambda: samples(proxy)["to_upstream_bytes_total"] == 1000)
        eventually(lambda: samples(proxy)["to_client_bytes_total"] == 10)
        now = samples(proxy)
        assert now["connections_active"] == now["connections_accepted_total"] == 1
        assert now[f"connect_duration_seconds_count{{target={upstream.name}}}"] == 1
        assert now["connection_duration_seconds_count"] == 0
        assert is_over(client)
    for ending in ("client-eof", "upstream-eof", "client-reset"):
        client = connect(proxy.address)
        server = upstream.accept()
        if ending == "client-reset":
            reset(client)
            server.close()
            continue
        first, second = (client, server) if ending == "client-eof" else (server, client)
        first.shutdown(socket.SHUT_WR)
        assert second.recv(1) == b""
        second.close()
        first.close()
    eventually(lambda: proxy.stats().ended == 4)
    now = samples(proxy)
    by_reason = {name: value for name, value in now.items() if name.startswith("connections_ended_total")}
    expected = {"idle": 1, "client-eof": 1, "upstream-eof": 1, "client-reset": 1}
    assert {re.findall("=(.*)}", name)[0]: value for name, value in by_reason.items() if value} == expected
    assert sum(by_reason.values()) == now["connection_duration_seconds_count"] == 4
    assert now["connection_duration_seconds_sum"] >= 1
    assert now["connection_duration_seconds_bucket{le=0.1}"] <= now["connection_duration_seconds_bucket{le=1.0}"] <= 3
    assert now["connection_duration_seconds_bucket{le=86400.0}"] == 4
    assert now["draining"] == 0
    assert now["max_connections"] == proxy._crew.limit  # type: ignore[union-attr]
    proxy.stop()
    assert {**samples(proxy), "draining": 0} == now, "they can be asked for after the end, too"


def test_failures(make_proxy: MakeProxy, echo: Echo) -> None:
    """By reason; a client that is turned away at once is no connection."""
    refused = f"127.0.0.1:{free_port()}"
    proxy = make_proxy(refused, max_connections_per_source=1)
    for _ in range(3):
        is_turned_away(proxy.address)
    eventually(lambda: proxy.stats().ended == 3)
    now = samples(proxy)
    failures = {name: value for name, value in now.items() if name.startswith("connect_failures_total")}
    assert failures.pop(f"connect_failures_total{{reason=connect-refused,target={refused}}}") == 3
    assert set(failures.values()) == {0}
    assert now["connections_ended_total{reason=connect-refused}"] == proxy.stats().failed == 3
    assert now[f"connect_duration_seconds_count{{target={refused}}}"] == 0
    proxy = make_proxy(echo.name, max_connections_per_source=1)
    with connect(proxy.address) as client:
        assert echoes(client)
        is_turned_away(proxy.address)
    assert samples(proxy)["clients_refused_total{reason=limit}"] == 1


def test_records_that_are_dropped_are_counted_all_the_same(make_proxy: MakeProxy, echo: Echo) -> None:
    """A log that is stuck loses no count."""
    gate = threading.Event()
    proxy = make_proxy(echo.name, workers=2, on_event=lambda _event: gate.wait(TIMEOUT * 3))
    try:

        def many() -> None:
            while not proxy.stats().events_lost:
                for client in [connect(proxy.address) for _ in range(100)]:
                    client.close()

        with in_background(many), in_background(many):
            pass
        eventually(lambda: not proxy.stats().active, TIMEOUT)
        now, stats = samples(proxy), proxy.stats()
        assert now["events_lost_total"] == stats.events_lost > 0
        assert now["connection_duration_seconds_count"] == stats.ended == stats.accepted
        assert sum(value for name, value in now.items() if name.startswith("connections_ended")) == stats.ended
    finally:
        gate.set()


def test_several_proxies_in_one_registry(make_proxy: MakeProxy, echo: Echo) -> None:
    """Their samples differ by `listener`; a proxy that has not been started has none."""
    first, second = make_proxy(echo.name), make_proxy(echo.name)
    assert relays(first.address)
    registry = CollectorRegistry()
    registry.register(Collector(first, second, tcpproxy.Proxy(echo.name)))
    for proxy, accepted in ((first, 1), (second, 0)):
        labels = {"listener": f"127.0.0.1:{proxy.port}"}
        assert registry.get_sample_value("tcpproxy_connections_accepted_total", labels) == accepted
    assert generate_latest(registry).count(b"tcpproxy_connections_active{") == 2
    with pytest.raises(TypeError):
        Collector()
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(Collector(second))


@posix
def test_what_is_served(serving: Callable[..., tuple[Command, tuple[str, int]]]) -> None:
    """In both formats, which their parsers and promtool accept; with metrics of the process."""
    process, place = serving("--sandbox", "require" if sys.platform == "linux" else "auto")
    with connect(process.address) as client:
        assert echoes(client)
        status, head, text = ask(place, "/metrics?x=1")
        assert status == 200
        assert "\r\nContent-Type: text/plain; version=0.0.4" in head
        now = parsed(text)
        assert now["connections_active"] == 1
        assert now["build_info{version=" + tcpproxy.__version__ + "}"] == 1
        assert sys.platform != "linux" or now["process_open_fds"] > 5
        _, head, other = ask(place, "/metrics", "Accept: application/openmetrics-text; version=1.0.0")
        assert "\r\nContent-Type: application/openmetrics-text; version=1.0.0" in head
        assert now.keys() == parsed(other, openmetrics).keys()
        assert (
            ask(place, "/metrics", "Accept: text/plain; version=x, application/openmetrics-text; version=y")[0] == 200
        )
    assert ask(place, "/metrics", method="HEAD")[2] == ""
    needs("promtool")
    assert is_clean(text)


# --- probes ---


@posix
def test_ready_until_it_drains(serving: Callable[..., tuple[Command, tuple[str, int]]]) -> None:
    """Metrics and health are served until the end."""
    process, place = serving("--grace", "1h")
    assert ask(place, "/readyz")[::2] == (200, "ok\n")
    assert ask(place, "/healthz")[::2] == (200, "ok\n")
    assert ask(place, "/")[0] == ask(place, "/metricsx")[0] == 404
    with connect(process.address) as client:
        assert echoes(client)
        process.signal(signal.SIGTERM)
        eventually(lambda: ask(place, "/readyz")[::2] == (503, "draining\n"))
        assert ask(place, "/healthz")[::2] == (200, "ok\n")
        assert parsed(ask(place, "/metrics")[2])["draining"] == 1
    assert process.wait() == 0
    assert process.complaints == []


@posix
def test_not_ready_when_it_is_full(serving: Callable[..., tuple[Command, tuple[str, int]]]) -> None:
    process, place = serving("--max-connections", "1")
    with connect(process.address) as client:
        assert echoes(client)
        assert ask(place, "/readyz")[::2] == (503, "1 of 1 connections\n")
    eventually(lambda: ask(place, "/readyz")[0] == 200)


@posix
def test_ready_while_upstream_is_down(serving: Callable[..., tuple[Command, tuple[str, int]]]) -> None:
    process, place = serving(target=f"127.0.0.1:{free_port()}")
    is_turned_away(process.address)
    assert ask(place, "/readyz")[0] == ask(place, "/healthz")[0] == 200


def test_health_is_that_of_the_workers(serving: Callable[..., tuple[Command, tuple[str, int]]]) -> None:
    process, place = serving("--workers", "2")
    with stuck(process.process.pid):
        assert ask(place, "/healthz")[::2] == (503, "a worker does not answer\n")
        assert ask(place, "/metrics")[0] == 200
    assert ask(place, "/healthz")[::2] == (200, "ok\n")


@posix
@pytest.mark.parametrize("workers", [1, 2])
def test_several_forwards(make_proxy: MakeProxy, echo: Echo, tmp_path: Path, workers: int) -> None:
    """Each has samples of its own, also one of a UNIX socket; what is of the whole proxy has all of their names."""
    path = f"{tmp_path}/s"
    refused = f"127.0.0.1:{free_port()}"
    forwards = [f"0:{echo.name}", f"{path}:{echo.name}", f"0:{refused}"]
    proxy = make_proxy(None, forwards=forwards, workers=workers, zero_copy="always", max_rate="1GB/s")
    tcp, local, closed = (f"127.0.0.1:{it.port}" if it.port else it.address for it in proxy.forwards)
    registry = CollectorRegistry()
    registry.register(Collector(proxy))

    def value(name: str, listener: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"tcpproxy_{name}", {"listener": listener, **labels})

    with connect(proxy.forwards[0].address) as client, socket.socket(socket.AF_UNIX) as other:
        other.settimeout(TIMEOUT)
        other.connect(path)
        assert echoes(client, bytes(1000))
        assert echoes(other, bytes(10))
        eventually(lambda: value("to_client_bytes_total", tcp) == 1000 and value("to_client_bytes_total", local) == 10)
        assert value("connections_active", tcp) == value("connections_active", local) == 1
        assert value("spliced_bytes_total", tcp) in (0, 2000), "0 where there is no splice"
    for _ in range(3):
        is_turned_away(proxy.forwards[2].address)
    proxy.wait_for(ended=5)
    assert [value("connections_accepted_total", it) for it in (tcp, local, closed)] == [1, 1, 3]
    assert [value("connections_active", it) for it in (tcp, local, closed)] == [0, 0, 0]
    assert [value("connection_duration_seconds_count", it) for it in (tcp, local, closed)] == [1, 1, 3]
    assert value("connections_ended_total", closed, reason="connect-refused") == 3
    assert value("connect_failures_total", closed, target=refused, reason="connect-refused") == 3
    assert value("connect_failures_total", tcp, target=echo.name, reason="connect-refused") == 0
    assert value("connect_duration_seconds_count", local, target=echo.name) == 1
    assert value("throttled_seconds_total", tcp) is not None
    everything = f"{tcp},{local},{closed}"
    assert value("draining", everything) == value("events_lost_total", everything) == 0
    assert value("max_connections", everything) == proxy._crew.limit  # type: ignore[union-attr]
    assert value("target_up", tcp, target=echo.name) is None, "nothing is known of a target that is alone"
    assert is_clean(generate_latest(registry).decode())


@pytest.mark.parametrize("workers", [1, 2])
def test_targets_of_a_fallback(make_proxy: MakeProxy, echo: Echo, workers: int) -> None:
    """Each that was tried has its failures, also where another one was reached; and whether it was, the last time."""
    refused = f"127.0.0.1:{free_port()}"
    proxy = make_proxy(f"{refused},{echo.name}", workers=workers)
    assert samples(proxy)[f"target_up{{target={refused}}}"] == 1, "it was not tried yet"
    for _ in range(4):
        assert relays(proxy.address)
    proxy.wait_for(ended=4)
    now = samples(proxy)
    assert now[f"connect_failures_total{{reason=connect-refused,target={refused}}}"] == 4
    assert now[f"connect_failures_total{{reason=connect-refused,target={echo.name}}}"] == 0
    assert now[f"connect_duration_seconds_count{{target={echo.name}}}"] == now["connections_accepted_total"] == 4
    assert now[f"connect_duration_seconds_count{{target={refused}}}"] == now["connections_active"] == 0
    assert now[f"target_up{{target={echo.name}}}"] == 1
    assert now["connections_ended_total{reason=connect-refused}"] == proxy.stats().failed == 0
    echo.close()
    is_turned_away(proxy.address)
    proxy.wait_for(ended=5)
    now = samples(proxy)
    assert now[f"connect_failures_total{{reason=connect-refused,target={echo.name}}}"] == 1
    assert now[f"connect_failures_total{{reason=connect-refused,target={refused}}}"] == 5
    assert now[f"target_up{{target={echo.name}}}"] == now[f"target_up{{target={refused}}}"] == 0
    assert now["connections_ended_total{reason=connect-refused}"] == 1


# --- where it is served ---


@posix
def test_an_address_that_is_taken(command: Start, echo: Echo) -> None:
    """Nothing starts."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = command("--metrics", str(port), echo.name)
        assert process.wait() == 1
    text = f"tcpproxy: cannot serve metrics at 127.0.0.1:{port}: {os.strerror(errno.EADDRINUSE)}"
    assert [process.stdout, process.stderr] == [[], [text]]


def test_a_bad_address(command: Start, echo: Echo) -> None:
    process = command("--metrics", ":9464", echo.name)
    assert process.wait() == 2
    assert process.stdout == []
    assert process.stderr[0].endswith("or /PATH; for all addresses: --metrics 0.0.0.0:9464")


@posix
def test_other_machines(command: Start, echo: Echo) -> None:
    port = free_port()
    process = command("--metrics", f"0.0.0.0:{port}", echo.name)
    process.address  # noqa: B018
    assert ask(("127.0.0.1", port), "/healthz")[0] == 200
    eventually(lambda: process.stderr)
    assert process.stderr == [f"warning: serving metrics at 0.0.0.0:{port}, which other machines may reach"]


@posix
def test_a_unix_socket(command: Start, echo: Echo, tmp_path: Path) -> None:
    """The file of a process that has ended is taken over; one that is in use, or no socket, is not."""
    path = tmp_path / "metrics"
    for end in (signal.SIGKILL, signal.SIGTERM, signal.SIGTERM):
        process = command("--metrics", f"unix:{path}", echo.name)
        process.address  # noqa: B018
        assert ask(str(path), "/readyz")[0] == 200
        other = command("--metrics", f"unix:{path}", echo.name)
        assert other.wait() == 1
        assert other.stderr == [f"tcpproxy: cannot serve metrics at {path}: {os.strerror(errno.EADDRINUSE)}"]
        assert ask(str(path), "/readyz")[0] == 200
        process.signal(end)
        process.wait()
    path.unlink()
    path.write_text("precious")
    process = command("--metrics", f"unix:{path}", echo.name)
    assert process.wait() == 1
    assert path.read_text() == "precious"
    long = tmp_path / ("x" * 120)
    process = command("--metrics", f"unix:{long}", echo.name)
    assert process.wait() == 2
    assert "expected at most" in process.stderr[0]


@posix
def test_the_rights_of_its_file(command: Start, echo: Echo, tmp_path: Path) -> None:
    """Also if no other UNIX socket is there: --unix-mode is for the file of the metrics, too."""
    path = tmp_path / "metrics"
    process = command("--metrics", str(path), "--unix-mode", "0660", echo.name)
    process.address  # noqa: B018
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_without_the_library(echo: Echo) -> None:
    program = """
import sys
sys.modules["prometheus_client"] = None
sys.argv = ["tcpproxy", "--metrics", sys.argv[1], sys.argv[2]]
from tcpproxy.__main__ import main
main()
"""
    argv = [sys.executable, "-c", program, str(free_port()), echo.name]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", timeout=TIMEOUT, check=False)
    text = "tcpproxy: --metrics needs prometheus-client, which is not installed: pip install 'tcpproxy[metrics]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", text)
    program = "import sys; sys.modules['prometheus_client'] = None; import tcpproxy.metrics"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd="/", check=False)
    assert "ImportError: tcpproxy.metrics needs prometheus-client: pip install 'tcpproxy[metrics]'" in done.stderr


def test_without_the_option_nothing_of_it_is_imported() -> None:
    program = "import sys, tcpproxy.command.cli; print({'http.server', 'prometheus_client'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd="/", check=True)
    assert done.stdout == "set()\n"


# --- hostile peers ---

STRANGE = {
    "a large request": b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000,
    "many headers": b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 1000 + b"\r\n",
    "a large body": b"POST /metrics HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000,
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 30 + b"\n\n",
    "nothing": b"\r\n\r\n",
    "a bad version": b"GET / HTTP/9.x\r\n\r\n",
    "a bad header": b"GET /metrics HTTP/1.1\r\nno colon\r\n\r\n",
    "a bad path": b"GET \xff\xfe\x00 HTTP/1.1\r\n\r\n",
    "a charset of its own": b"GET /metrics HTTP/1.1\r\nContent-Type: multipart/x; boundary*=undefined''x\r\n\r\n",
    "a long number": b"GET /metrics HTTP/1.1\r\nContent-Type: multipart/x; boundary*" + b"9" * 5000 + b"*=x\r\n\r\n",
    "another method": b"BREW /metrics HTTP/1.1\r\n\r\n",
    "two requests": b"GET /healthz HTTP/1.1\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n",
}


@posix
def test_strange_requests(serving: Callable[..., tuple[Command, tuple[str, int]]]) -> None:
    """Each has an answer, or is closed; all others are answered meanwhile and afterwards."""
    process, place = serving()
    answers = {}
    for name, request in STRANGE.items():
        with connect(place) as peer:
            with contextlib.suppress(ConnectionError):
                peer.sendall(request)
                peer.shutdown(socket.SHUT_WR)
            answers[name] = b""
            with contextlib.suppress(ConnectionError):
                answers[name] = read_all(peer)
        assert ask(place, "/healthz")[0] == 200, name
    assert answers["another method"].startswith(b"HTTP/1.1 501 ")
    assert answers["many headers"].startswith(b"HTTP/1.1 431 ")
    assert answers["a charset of its own"].startswith(b"HTTP/1.1 400 ")
    assert answers["a long number"].startswith(b"HTTP/1.1 400 ")
    assert answers["two requests"].count(b"HTTP/1.1 200 ") == 1
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert process.complaints == []


@posix
@pytest.mark.parametrize(
    "request_",
    [b"\r\n\r\n", b"\n\n", b"\r\n" * 100, b"\r\nGET /healthz HTTP/1.1\r\n\r\n"],
    ids=["two", "bare", "many", "first"],
)
def test_empty_lines_are_answered_at_once(
    serving: Callable[..., tuple[Command, tuple[str, int]]], request_: bytes
) -> None:
    """The client may wait for the answer, with its side open."""
    _, place = serving()
    since = time.monotonic()
    with connect(place) as peer:
        peer.sendall(request_)
        assert read_all(peer).startswith(b"HTTP/1.1 400 ")
    assert time.monotonic() - since < 4, "it was the end of its time"


@posix
def test_a_peer_that_never_finishes(serving: Callable[..., tuple[Command, tuple[str, int]]]) -> None:
    """Single bytes do not extend its time, and neither does an answer that it never reads."""
    _, place = serving()
    since = time.monotonic()
    with connect(place) as slow, connect(place) as deaf, connect(place) as silent:
        deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < since + TIMEOUT:
                slow.sendall(b"x")
                threading.Event().wait(0.2)
        assert 4 < time.monotonic() - since < TIMEOUT
        assert is_over(silent)


@posix
def test_many_peers(serving: Callable[..., tuple[Command, tuple[str, int]]]) -> None:
    """They cost a bounded number of descriptors and one thread, and do not keep Prometheus out."""
    needs_proc()
    process, place = serving()
    proc = Path(f"/proc/{process.process.pid}")
    ask(place, "/healthz")
    descriptors, threads = len(list(proc.glob("fd/*"))), len(list(proc.glob("task/*")))
    with contextlib.ExitStack() as stack:
        for number in range(300):
            stack.enter_context(connect(place))
            if number % 100 == 99:
                assert ask(place, "/metrics")[0] == 200
        assert len(list(proc.glob("fd/*"))) <= descriptors + 17
        assert len(list(proc.glob("task/*"))) == threads
        assert relays(process.address)
