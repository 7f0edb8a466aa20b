"""Cases of what bends the stream, beside toxiproxy with the same toxic. README.md says what they mean."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.base import Bench
from bench.cases import CPU_GB, CPU_TRIP, RATE, cost, ping
from bench.peers import Peer
from bench.process import client, echo_server
from bench.programs import ours
from bench.targets import Case, Figures, Metric, Target
from bench.toxiproxy import Api, with_toxic

LATENCY, RATE_LIMIT, MANY = 50, 10e6, 2000
PEERS = ("ours", "toxiproxy")


def bent(fault: str, kind: str, **attributes: int) -> Callable[[Peer], Peer]:
    """Returns what gives each of the two the fault, which they spell differently."""

    def bend(peer: Peer) -> Peer:
        if peer.name == "ours":
            return dataclasses.replace(peer, command=ours("--fault", fault))
        return with_toxic(peer, kind, **attributes)

    return bend


_latency = bent(f"latency={LATENCY}ms", "latency", latency=LATENCY)
_jitter = bent("latency=200ms,jitter=100ms", "latency", latency=200, jitter=100)
_bandwidth = bent("bandwidth=10MB/s", "bandwidth", rate=10_000)  # in KB of 1000 bytes


def late(bench: Bench, peer: Peer) -> Figures:
    """Round trips whose answer is held back, on one connection."""
    figures = ping(bench, _latency(peer), seconds=bench.seconds(6, 1))
    times = {key: figures[key] / 1000 for key in ("p50", "p99")}
    errors = {f"off{key[1:]}": abs(value - LATENCY) for key, value in times.items()}
    return times | errors | {"cpu": figures["cpu"]}


def slow(bench: Bench, peer: Peer) -> Figures:
    """Bulk to one client at a limited rate, and how long its first bytes take."""
    seconds = bench.seconds(5, 1)
    with (
        echo_server(bench) as port,
        _bandwidth(peer).run(bench, port) as target,
        client(bench, bench.load, "pull", target.host, target.port, seconds) as work,
    ):
        figures, used = cost(work, target)
    rate = figures["bytes"] / figures["seconds"]
    figures = {"off": abs(rate / RATE_LIMIT - 1) * 100, "mbps": rate / 1e6, "first": figures["first"]}
    return figures | {"cpu_gb": (used or 0.0) * 1e9 / (rate * seconds)}


def many(bench: Bench, peer: Peer) -> Figures:
    """Round trips on 2,000 connections, each answer with a delay of its own."""
    figures = ping(bench, _jitter(peer), MANY, bench.seconds(4, 1.5))
    return {key: figures[key] for key in ("cpu", "rate")} | {key: figures[key] / 1000 for key in ("p50", "p99")}


def fixture(bench: Bench, peer: Peer) -> Figures:
    """A proxy of one's own, started and stopped: by the factory of the pytest plugin; by two calls of the API."""
    times = 40 if bench.quick else 200
    if peer.name == "ours":
        script = Path(__file__).with_name("fixture_times.py")
        with echo_server(bench) as port, client(bench, sys.executable, script, port, times) as work:
            figures = work.go()
        return {key: figures[key] / 1000 for key in ("p50", "p99")}
    with echo_server(bench) as port, peer.run(bench, port):
        api, taken = Api(bench.scratch), []
        for _ in range(times + 1):
            begun = time.perf_counter()
            api.call("POST", "/proxies", {"name": "one", "listen": "127.0.0.1:0", "upstream": f"127.0.0.1:{port}"})
            api.call("DELETE", "/proxies/one")
            taken.append((time.perf_counter() - begun) * 1e3)
    taken = sorted(taken[1:])  # the first has made the connection too
    return {"p50": taken[times // 2], "p99": taken[int(times * 0.99)]}


P50_MS, P99_MS = Metric("p50", "p50 ms", digits=2), Metric("p99", "p99 ms", digits=2)
LATE = (
    P50_MS,
    P99_MS,
    Metric("off50", "p50 off by ms", digits=2),
    Metric("off99", "p99 off by ms", digits=2),
    CPU_TRIP,
)
LATE_TARGETS = (
    Target("p50", LATENCY + 1),
    Target("p99", LATENCY + 2),
    Target("off50", 1.0, "toxiproxy"),
    Target("off99", 1.0, "toxiproxy"),
    Target("cpu", 1.0, "toxiproxy"),
)
SLOW = (Metric("off", "off by %", digits=2), Metric("mbps", "MB/s", digits=2), Metric("first", "first byte us"), CPU_GB)

CASES = (
    Case("faults-latency", f"{LATENCY} ms of latency", late, LATE, LATE_TARGETS, PEERS),
    Case("faults-bandwidth", "10 MB/s", slow, SLOW, (Target("off", 2.0), Target("first", 1000.0)), PEERS),
    Case(
        "faults-many",
        "2,000 connections with latency and jitter",
        many,
        (CPU_TRIP, RATE, P50_MS, P99_MS),
        (Target("cpu", 1.0, "toxiproxy"),),
        PEERS,
    ),
    Case("faults-fixture", "a proxy started and stopped", fixture, (P50_MS, P99_MS), (Target("p50", 5.0),), PEERS),
)
