"""The same faults, seed and bytes have the same effects, however the network has segmented the bytes."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import Command
from support.peers import Echo, connect
from support.preloaded import Shim
from support.streams import payload, read_exactly
from support.waiting import TIMEOUT, eventually

from tcpproxy.faults import Fault

READS = (1, 7, 65536)
CONNECTIONS = 14
DATA = payload(1500)

SCHEDULES = {
    "up": [
        "to_upstream:limit_data=1300,toxicity=40%,end=reset",
        "to_upstream:close,after_bytes=0,nth=3",
        "to_upstream:stall,after_bytes=50,every=7",
        "to_upstream:limit_data=900,end=stall,nth=5",
    ],
    "down": [
        "reset_peer,after_bytes=700,toxicity=40%",
        "close,after_bytes=0,nth=3",
        "limit_data=1499,end=close,nth=1",
        "stall,after_bytes=50,every=7",
    ],
}
"""Of one direction at a time: which of two directions comes first to its cut is left to chance."""

BESIDE = ["both:latency=1ms,jitter=1ms,toxicity=50%", "both:slicer=40,size_variation=30,toxicity=50%"]
"""Beside them, so that bytes are held and cut into pieces: when they act for the first time depends on the reads."""


@pytest.mark.parametrize("stream", list(SCHEDULES))
def test_the_same_log(command: Callable[..., Command], echo: Echo, tmp_path: Path, stream: str, rounds: int) -> None:
    """Of connections, positions and what was done there. `--rounds 9` plays the schedule 54 times."""
    shim = Shim(tmp_path)
    faults = [text for fault in (*SCHEDULES[stream], *BESIDE) for text in ("--fault", fault)]
    logs = {}
    for number in range(rounds):
        for size in READS:
            for workers in (1, 2):
                shim.set(0, read_most=size)
                options = ("--log-format=json", f"--workers={workers}", "--grace=0", "--seed=8123")
                proxy = command(*options, *faults, echo.name, env=shim.environment)
                logs[number, size, workers] = play(proxy, stream)
    first = logs[0, 1, 1]
    assert {key: log for key, log in logs.items() if log != first} == {}, first
    print(f"{len(logs)} logs of {len(first)} lines are the same")
    kinds = {Fault.parse(text).kind for text in SCHEDULES[stream]}
    assert {what for _, what, _ in first} == kinds | {"end: fault", "end: client-eof", "end: shutdown"}


def play(proxy: Command, stream: str) -> list[tuple[int, str, int]]:
    """Its log: (connection, what was done, position in the direction), in the order of connections."""
    eventually(lambda: proxy.stdout, TIMEOUT)
    host, _, port = json.loads(proxy.stdout[0])["listener"].rpartition(":")
    for number in range(1, CONNECTIONS + 1):
        with connect((host, int(port))) as client, contextlib.suppress(ConnectionError):  # it was cut
            client.sendall(DATA)
            with contextlib.suppress(OSError):  # that it is not connected any more
                client.shutdown(socket.SHUT_WR)
            if number % 7 == 0:
                eventually(lambda it=number: acted(proxy, it, "stall"), TIMEOUT)
                read_exactly(client, 50 if stream == "down" else 0)
                continue
            while client.recv(65536):
                pass
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0, proxy.stderr
    position = "to_upstream" if stream == "up" else "to_client"
    log = []
    for event in map(json.loads, proxy.stdout):
        if event["kind"] == "fault" and event["text"].partition("_")[0] not in ("latency", "slicer"):
            log.append((event["id"], event["text"].rpartition("_to_")[0], event[position]))
        elif event["kind"] == "end":
            log.append((event["id"], f"end: {event['reason']}", event[position]))
    return sorted(log)


def acted(proxy: Command, number: int, kind: str) -> bool:
    return any(
        f'"id": {number},' in line and '"kind": "fault"' in line and kind in line for line in proxy.stdout.copy()
    )
