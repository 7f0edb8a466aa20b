"""--allow and --deny with real clients: who is reset, before anything else happens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import Command
from support.peers import Echo, Upstream, connect, relays
from support.streams import echoes, payload, read_exactly
from support.waiting import TIMEOUT, eventually

import tcpproxy


def from_(source: str, address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, TIMEOUT, (source, 0))


def is_reset(source: str, address: tuple[str, int]) -> bool:
    with contextlib.suppress(ConnectionResetError), from_(source, address) as client:
        return client.recv(1) == b"?"  # an end of file is no reset
    return True


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("bind", ["127.0.0.1", "::"])
def test_allow_and_deny(
    workers: int, bind: str, echo: Echo, make_proxy: Callable[..., tcpproxy.Proxy], events: list[tcpproxy.Event]
) -> None:
    """Row 60: an address that is not allowed is reset, whichever socket it comes to; others are relayed."""
    proxy = make_proxy(echo.name, bind=bind, workers=workers, allow=["127.0.0.0/24", "::1"], deny="127.0.0.2,127.0.1.7")
    address = ("127.0.0.1", proxy.address[1])
    for _ in range(10):
        for denied in ("127.0.0.2", "127.0.1.1", "127.0.1.7"):
            assert is_reset(denied, address)
        for allowed in ("127.0.0.1", "127.0.0.3", "127.0.0.255"):
            with from_(allowed, address) as client:
                assert echoes(client)
    stats = proxy.stats()
    assert (stats.accepted, stats.refused, stats.failed) == (30, 30, 0)
    eventually(lambda: sum(event.kind == "failed" for event in events) == 30)
    refused = [event for event in events if event.kind == "failed"]
    assert {(event.reason, event.error, event.upstream) for event in refused} == {("denied", 0, "")}
    assert {event.client.partition(":")[0] for event in refused} == {"127.0.0.2", "127.0.1.1", "127.0.1.7"}
    assert all(event.id for event in refused)
    assert {event.client.partition(":")[0] for event in events if event.kind == "new"} == {
        "127.0.0.1",
        "127.0.0.3",
        "127.0.0.255",
    }


def test_nothing_happens_for_them(upstream: Upstream, make_proxy: Callable[..., tcpproxy.Proxy]) -> None:
    """Row 60: for a denied client upstream is not connected to, and its source is not counted."""
    proxy = make_proxy(upstream.name, deny="127.0.0.2", max_connections_per_source=1)
    for _ in range(5):
        assert is_reset("127.0.0.2", proxy.address)
    client = from_("127.0.0.1", proxy.address)
    server = upstream.accept()
    client.sendall(b"first")
    assert read_exactly(server, 5) == b"first"
    upstream.socket.settimeout(0)
    with pytest.raises(BlockingIOError):
        upstream.socket.accept()
    assert proxy.stats().active == 1
    client.close()
    server.close()


def test_no_descriptor_is_left(echo: Echo, make_proxy: Callable[..., tcpproxy.Proxy]) -> None:
    """Row 60: of a client that is denied, the descriptor is closed too."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    proxy = make_proxy(echo.name, allow="127.0.0.1")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        assert is_reset("127.0.0.2", proxy.address)
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)
    assert relays(proxy.address)


@pytest.mark.parametrize("zero_copy", ["off", "always"])
def test_bytes_of_those_who_may(zero_copy: str, echo: Echo, make_proxy: Callable[..., tcpproxy.Proxy]) -> None:
    """Both ways, by copy and by splice, as without a list."""
    data = payload(3 << 20)
    proxy = make_proxy(echo.name, allow="127.0.0.1", workers=2, zero_copy=zero_copy)
    with connect(proxy.address) as client:
        for start in range(0, len(data), 1 << 16):
            assert echoes(client, data[start : start + (1 << 16)])


def test_unix_sockets_are_exempt(tmp_path: Path, echo: Echo, make_proxy: Callable[..., tcpproxy.Proxy]) -> None:
    """Who may write to the file may connect."""
    proxy = make_proxy(echo.name, bind=tmp_path / "s", allow="192.0.2.1", deny="0.0.0.0/0,::/0")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        client.connect(proxy.address)
        assert echoes(client)


def test_public_and_chosen(echo: Echo, make_proxy: Callable[..., tcpproxy.Proxy], events: list[tcpproxy.Event]) -> None:
    """With --allow there is no warning that other machines can reach the port; with only --deny there is."""
    make_proxy(echo.name, bind="0.0.0.0", allow="10.0.0.0/8")
    assert [event.text for event in events if event.kind == "warning"] == []
    make_proxy(echo.name, bind="0.0.0.0", deny="10.0.0.0/8")
    assert ["which other machines may reach" in event.text for event in events if event.kind == "warning"] == [True]


def test_command(echo: Echo, command: Callable[..., Command]) -> None:
    """Row 60: lists may be repeated; a flood makes a few lines."""
    process = command("--allow", "127.0.0.1,::1", "--allow", "127.0.0.3", "--deny", "127.0.0.4", echo.name)
    assert relays(process.address)
    with from_("127.0.0.3", process.address) as client:
        assert echoes(client)
    for _ in range(20):
        assert is_reset("127.0.0.4", process.address)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    lines = [line.partition(":")[0] for line in process.complaints]
    assert lines[:10] == ["Refused 127.0.0.4"] * 10
    assert all(line.endswith(": its address is not allowed") for line in process.complaints[:10])
    assert process.complaints[10:] == ["10 more lines of the kind failed (denied) were not shown"]
    assert [line for line in process.stdout if "127.0.0.4" in line] == []


def test_command_as_json(echo: Echo, command: Callable[..., Command]) -> None:
    process = command("--log-format", "json", "-l", "0", "--deny", "127.0.0.2", echo.name)
    eventually(lambda: process.stdout)
    host, _, port = json.loads(process.stdout[0])["listener"].rpartition(":")
    assert is_reset("127.0.0.2", (host, int(port)))
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    (line,) = [each for each in map(json.loads, process.stdout) if each["kind"] == "failed"]
    assert (line["reason"], line["level"], line["client"].partition(":")[0]) == ("denied", "warning", "127.0.0.2")


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--allow", "localhost"], "--allow 'localhost' is no network, expected"),
        (["--deny", "10.0.0.1/8"], "--deny '10.0.0.1/8' has host bits set, expected 10.0.0.0/8 or"),
        (["--allow", ""], "--allow '' is no network, expected"),
        (["--allow"], "option --allow has no value, expected NETWORK,..."),
    ],
)
def test_bad_lists(args: list[str], error: str, command: Callable[..., Command]) -> None:
    process = command("localhost:1", *args)
    assert process.wait() == 2
    assert process.stdout == []
    assert process.stderr[0].startswith(f"tcpproxy: {error}")
