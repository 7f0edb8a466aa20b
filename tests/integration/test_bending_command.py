"""The command with faults: what it prints, and that they are in force."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest
from support.command import Command
from support.peers import Echo, answers, connect
from support.streams import echoes, read_all
from support.waiting import eventually


def test_faults_and_seed_are_printed(command: Callable[..., Command], echo: Echo) -> None:
    """And what each fault has done: on a connection, at its end, and in the summary."""
    proxy = command(
        "-d", "--fault", "limit_data=3,first=1", "--fault", "to_upstream:latency=1ms", "--seed", "7", echo.name
    )
    with connect(proxy.address) as client:
        client.sendall(b"hello")
        assert read_all(client) == b"hel"
    with connect(proxy.address) as client:
        assert echoes(client)
    eventually(lambda: any("fault" not in line and "#2" in line for line in proxy.stderr))
    proxy.process.send_signal(signal.SIGTERM)
    eventually(lambda: any("has acted on 2" in line for line in proxy.stderr))
    text = "".join(f"{line.rstrip()}\n" for line in proxy.stderr)
    assert "Faults: limit_data=3,first=1, to_upstream:latency=1ms; seed 7 (dice 1)\n" in text
    assert "Fault limit_data_to_client acts on " in text
    assert "after 5 bytes to upstream, 3 to the client #1\n" in text
    assert ": fault #1\n" in text
    assert "fault limit_data_to_client has acted on 1 connection\n" in text
    assert "fault latency_to_upstream has acted on 2 connections\n" in text


def test_json(command: Callable[..., Command], echo: Echo) -> None:
    proxy = command("--log-format", "json", "--fault", "both:latency=1ms,name=slow", "--seed", "8123", echo.name)
    eventually(lambda: proxy.stdout)
    host, _, port = json.loads(proxy.stdout[0])["listener"].rpartition(":")
    with connect((host, int(port))) as client:
        assert echoes(client)
    eventually(lambda: any('"kind": "end"' in line for line in proxy.stdout))
    records = [json.loads(line) for line in proxy.stdout]
    listening, fault, end = [next(it for it in records if it["kind"] == kind) for kind in ("listening", "fault", "end")]
    assert listening["faults"] == ["both:latency=1ms,name=slow"]
    assert (listening["seed"], listening["dice"]) == (8123, 1)
    assert (fault["text"], fault["id"], fault["level"]) == ("slow", 1, "info")
    assert end["faults"] == ["slow"]


def test_windows(command: Callable[..., Command], echo: Echo) -> None:
    """The port refuses for a while, also in the sandbox."""
    proxy = command("--fault", "refuse,start=300ms,for=300ms", echo.name)
    assert answers(proxy.address)
    eventually(lambda: not answers(proxy.address))
    eventually(lambda: answers(proxy.address))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems cannot let clients hang")
def test_clients_that_hang(command: Callable[..., Command], echo: Echo) -> None:
    """For a while, also in the sandbox; no line is printed for clients that hang."""
    proxy = command("-d", "--fault", "hang,start=300ms,for=2s", echo.name)
    assert answers(proxy.address)
    eventually(lambda: not connects(proxy.address))
    eventually(lambda: answers(proxy.address))
    proxy.process.send_signal(signal.SIGTERM)
    assert proxy.wait() == 0
    assert not any("has acted" in line for line in proxy.stderr)


def connects(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=0.2).close()
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--fault", "latency=100"], "'100' has no unit, expected '100ms' or '100s'"),
        (["--fault", "bandwidth=100"], "'100' has no unit, expected '100B/s'"),
        (["--fault", "lattency=1s"], "there is no lattency, did you mean latency?"),
        (["--preset", "5g"], "there is no preset '5g', expected one of 2g,"),
        (["--seed", "x"], "--seed 'x' is not a whole number"),
        (["--fault", "slicer=10", "--fault", "slicer=20"], "another slicer has this direction"),
    ],
)
def test_wrong_faults(args: list[str], words: str) -> None:
    argv = [sys.executable, "-m", "tcpproxy", *args, "localhost:1"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, cwd="/")
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stdout == ""


def test_help() -> None:
    argv = [sys.executable, "-m", "tcpproxy", "--help-faults"]
    text = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30, cwd="/").stdout
    from tcpproxy.faults import Fault

    assert [kind for kind in Fault.kinds if kind not in text] == []
