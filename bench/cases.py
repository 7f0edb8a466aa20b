"""The cases: each measures one peer once and returns its figures. README.md says what they mean."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from bench.base import Bench, BenchError
from bench.measure import WAITING, memory, settle, system_calls
from bench.peers import Peer, Running
from bench.process import Client, client, echo_server, iperf3_server, read_line, spawn
from bench.programs import find_rust
from bench.targets import BARE, BARE_SPLICE, SAME_WAY, Case, Figures, Metric, Target

FORKS_HELD, QUICK_HELD = 100, 2000
BULK_TRIES = 5


def cost(work: Client, target: Running) -> tuple[Figures, float | None]:
    """Let the client work; return its figures and the proxy's CPU seconds, with those for tidying up after the work."""
    before = target.cpu()
    figures = work.go()
    target.settle()
    return figures, target.cpu() - before if target.pid else None


def bulk(bench: Bench, peer: Peer, *options: str) -> Figures:
    """Runs iperf3: as many bytes as go through, and the CPU time they took.

    With --bidir a run through a proxy now and then carries no byte one way, or never ends; probably iperf3 tells its
    two streams apart by their order of arrival. Such a try is made again, and the number of tries is kept.
    """
    length: tuple[str, ...] = ("-t", "2")
    if bench.quick or "-t" in options:
        length = () if "-t" in options else ("-t", "1") if "--bidir" in options else ("-n", "250M")
    for tries in range(1, BULK_TRIES + 1):
        try:
            return _iperf3_once(bench, peer, *length, *options) | {"tries": float(tries)}
        except (BenchError, subprocess.TimeoutExpired):
            if "--bidir" not in options or tries == BULK_TRIES:
                raise
    raise BenchError("not reached")


def _iperf3_once(bench: Bench, peer: Peer, *options: str) -> Figures:
    with iperf3_server(bench) as port, peer.run(bench, port) as target:
        argv = [*bench.place.client, "iperf3", "-c", target.host, "-p", str(target.port), "-J", *options]
        before = target.cpu()
        done = subprocess.run(argv, capture_output=True, text=True, timeout=12, check=False)
        target.settle()
        used = target.cpu() - before
    said = json.loads(done.stdout or "{}")
    if "end" not in said or "sum_received" not in said["end"]:
        raise BenchError(f"iperf3: {said.get('error', done.stderr)}")
    sums = [said["end"][name] for name in ("sum_received", "sum_received_bidir_reverse") if name in said["end"]]
    if not all(one["bytes"] for one in sums):
        raise BenchError("iperf3: no byte came through")
    figures = {"gbps": sum(one["bits_per_second"] for one in sums) / 1e9}
    return figures | {"cpu_gb": used * 1e9 / sum(one["bytes"] for one in sums)} if target.pid else figures


def ping(bench: Bench, peer: Peer, connections: int = 1, seconds: float | None = None) -> Figures:
    """Round trips of 64 bytes in a closed loop on every connection."""
    return _round_trips(bench, peer, [bench.load, "ping"], connections, seconds or bench.seconds(2, 0.3))


def slow_ping(bench: Bench, peer: Peer) -> Figures:
    """Round trips of a client that works for 50 microseconds in between."""
    script = str(Path(__file__).with_name("slow_client.py"))
    return _round_trips(bench, peer, [sys.executable, script], bench.seconds(2, 0.3))


def _round_trips(bench: Bench, peer: Peer, program: list[object], *arguments: object) -> Figures:
    with (
        echo_server(bench) as port,
        peer.run(bench, port) as target,
        client(bench, *program, target.host, target.port, *arguments) as work,
    ):
        figures, used = cost(work, target)
    kept = {key: figures[key] for key in ("p50", "p99", "rate", "max")}
    return kept if used is None else kept | {"cpu": used * 1e6 / figures["count"]}


def connections(bench: Bench, peer: Peer, most: int = 5000) -> Figures:
    """A connection for each request, eight at a time."""
    # Few enough that a round does not run out of local ports, which stay in TIME_WAIT.
    count = min(most, 1000) if bench.quick or peer.forks else most
    with echo_server(bench) as port, peer.run(bench, port) as target:
        with client(bench, bench.load, "conn", target.host, target.port, 200, 8) as warm_up:
            warm_up.go()
        target.settle()
        with client(bench, bench.load, "conn", target.host, target.port, count, 8) as work:
            figures, used = cost(work, target)
    kept = {key: figures[key] for key in ("rate", "p50", "p99")}
    return kept if used is None else {"cpu": used * 1e6 / count} | kept


def syscalls(bench: Bench, peer: Peer) -> Figures:
    """System calls a round trip on 50 busy connections, and a connection, counted by strace (which slows all of it)."""
    return _traced_round_trips(bench, peer) | _traced_connections(bench, peer)


def _traced_round_trips(bench: Bench, peer: Peer) -> Figures:
    with echo_server(bench) as port, peer.run(bench, port) as target:
        assert target.pid
        argv = [bench.load, "ping", target.host, target.port, 50, bench.seconds(1, 0.3)]
        with client(bench, *argv) as work, system_calls(target.pid, bench.scratch) as counts:
            done = work.go()["count"]
    waits = sum(counts.get(name, 0) for name in WAITING)
    calls = sum(counts.values())
    if not calls:
        raise BenchError("strace counted nothing")
    return {"rt_calls": (calls - waits) / done, "rt_wait": waits / done, "rt_ctl": counts.get("epoll_ctl", 0) / done}


def _traced_connections(bench: Bench, peer: Peer) -> Figures:
    count = 200 if peer.forks else 1000
    with echo_server(bench) as port, peer.run(bench, port) as target:
        assert target.pid
        argv = [bench.load, "conn", target.host, target.port, count, 8]
        with client(bench, *argv) as work, system_calls(target.pid, bench.scratch) as counts:
            work.go()
            settle(target.pid, quiet=0.1)
    waits = sum(counts.get(name, 0) for name in WAITING)
    return {"conn_calls": sum(counts.values()) / count, "conn_wait": waits / count}


def idle(bench: Bench, peer: Peer, most: int | None = None) -> Figures:
    """Memory and CPU time for connections over which nothing moves; `most` of them at most."""
    most = most or (FORKS_HELD if peer.forks else QUICK_HELD if bench.quick else bench.connections)
    held = min(bench.connections, most)
    with echo_server(bench) as port, peer.run(bench, port) as target:
        assert target.pid
        private, _ = memory(target.pid)
        with client(bench, bench.load, "hold", target.host, target.port, held):
            # A line for each new connection may still be in the writing; ours sets keepalive after a second of life.
            settle(target.pid, quiet=1.1, patience=5.0)
            more, resident = memory(target.pid)
            seconds, before = bench.seconds(4, 0.5), target.cpu()
            time.sleep(seconds)
            used = (target.cpu() - before) / seconds
    return {"bytes": (more - private) / held, "rss": resident / 2**20, "cpu_s": used, "held": float(held)}


def beside_bulk(bench: Bench, peer: Peer) -> Figures:
    """A ping-pong while four bulk streams go through the same proxy."""
    with (
        echo_server(bench) as port,
        peer.run(bench, port) as target,
        client(bench, bench.load, "push", target.host, target.port, 4) as streams,
    ):
        before = streams.go()
        with client(bench, bench.load, "ping", target.host, target.port, 1, bench.seconds(4, 0.6)) as work:
            figures = work.go()
        after = streams.go()
    bulk_gbps = (after["bytes"] - before["bytes"]) * 8e-3 / (after["us"] - before["us"])
    return {key: figures[key] for key in ("p99", "p50", "max", "rate")} | {"gbps": bulk_gbps}


def start(bench: Bench, peer: Peer) -> Figures:
    """Milliseconds from the start of the command to its first line of output."""
    argv = {
        "ours": [sys.executable, "-m", "tcpproxy", "127.0.0.1:9"],
        "rust": [str(find_rust()), "127.0.0.1:9"],
        "click": [sys.executable, "-c", "import click; print('imported', flush=True)"],
    }[peer.name]
    errors, times = bench.scratch / "start.err", []
    for _ in range(5):
        begun = time.perf_counter()
        with spawn(argv, errors, stdout=subprocess.PIPE) as process:
            read_line(process, errors)
            times.append((time.perf_counter() - begun) * 1e3)
    return {"ms": sorted(times)[2]}


def in_process(bench: Bench, peer: Peer) -> Figures:
    """Round trips through a Proxy in a program whose main thread is busy in pure Python."""
    errors = bench.scratch / "program.err"
    with echo_server(bench) as upstream:
        argv = [sys.executable, str(Path(__file__).with_name("busy_program.py")), str(upstream)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with spawn(argv, errors, stdout=subprocess.PIPE, env=environment) as program:
            port = upstream if peer.name == "direct" else int(read_line(program, errors))
            with client(bench, bench.load, "ping", "127.0.0.1", port, 1, bench.seconds(2, 0.3)) as work:
                figures = work.go()
    return {key: figures[key] for key in ("p99", "p50", "max", "rate")}


CPU_GB = Metric("cpu_gb", "CPU s/GB", digits=3)
GBPS = Metric("gbps", "Gbit/s", more_is_better=True, digits=2)
P50, P99, MAX = Metric("p50", "p50 us"), Metric("p99", "p99 us"), Metric("max", "max us", digits=0)
RATE = Metric("rate", "per second", more_is_better=True, digits=0)
BULK = (CPU_GB, GBPS)
BULK_TARGETS = (Target("cpu_gb", 0.12, "rust"), Target("cpu_gb", 0.8, "best"), Target("gbps", 1.0, "best"))
CPU_TRIP = Metric("cpu", "CPU us/round trip", digits=2)
CPU_CONNECTION = Metric("cpu", "CPU us/connection")
START = (Metric("ms", "ms"),)
IN_PROCESS = (P99, P50, MAX, RATE)
BESIDE = (*IN_PROCESS, Metric("gbps", "bulk Gbit/s", more_is_better=True, digits=2))
RTT50 = (CPU_TRIP, RATE, P50, P99, MAX)
CONNECTIONS = (CPU_CONNECTION, RATE, P50, P99)
RTT = (P50, P99, CPU_TRIP, RATE, MAX)
BARE_TARGETS = tuple(Target(key, 1.05, SAME_WAY) for key in ("p50", "p99", "cpu"))
RTT_TARGETS = (*BARE_TARGETS, Target("p50", 1.0, "best"), Target("p99", 1.0, "best"))
ONE_WORKER, QUIET = "ours-1-worker", "ours-quiet"
CONNECTION_TARGETS = (
    *RTT_TARGETS,
    *(Target("cpu", 0.9, "best", of=of) for of in ("ours", ONE_WORKER)),
    Target("cpu", 1.05, "bare", of=ONE_WORKER),
)
SYSCALLS = (
    Metric("rt_calls", "calls/round trip but waits", digits=3),
    Metric("rt_wait", "waits/round trip", digits=3),
    Metric("rt_ctl", "epoll_ctl/round trip", digits=3),
    Metric("conn_calls", "calls/connection"),
    Metric("conn_wait", "of them waits"),
)
# Reading and sending both ways is four calls; 1% of slack, since a read that finds nothing is no fault now and then.
SYSCALL_TARGETS = (Target("rt_calls", 4.04), Target("rt_ctl", 0.0), Target("conn_calls", 0.9999, "best"))
IDLE = (
    Metric("bytes", "bytes/connection", digits=0),
    Metric("rss", "RSS MiB"),
    Metric("cpu_s", "CPU s/s", digits=5),
    Metric("held", "held", digits=0),
)
IDLE_TARGETS = (Target("bytes", 400), Target("rss", 40), Target("cpu_s", 0.001))
PROXIES = ("ours", "rust", "haproxy", "haproxy-splice", "nginx", "go-tcpproxy", "portrelay", "socat", "asyncio-uvloop")
CORKED = ("portrelay-splice",)
"""What splices with SPLICE_F_MORE and so takes 0.4 s for a round trip: too long where there are many of them."""


def _bulk_case(name: str, title: str, *options: str) -> Case:
    def measure(bench: Bench, peer: Peer) -> Figures:
        return bulk(bench, peer, *options)

    return Case(name, title, measure, BULK, BULK_TARGETS, also=(BARE_SPLICE,))


CASES = (
    _bulk_case("bulk1", "one iperf3 stream, client to upstream"),
    _bulk_case("bulk1-down", "one iperf3 stream, upstream to client", "-R"),
    _bulk_case("bulk8", "eight iperf3 streams", "-P", "8"),
    _bulk_case("bulk-bidir", "an iperf3 stream each way", "--bidir"),
    Case("rtt", "64 bytes there and back, one connection", ping, RTT, RTT_TARGETS, also=BARE),
    Case("rtt-slow", "the same, 50 us of work a turn", slow_ping, RTT, RTT_TARGETS, without=CORKED, also=BARE),
    Case("rtt50", "the same, 50 busy connections", partial(ping, connections=50), RTT50, RTT_TARGETS, also=BARE),
    Case(
        "connections",
        "a connection each request",
        connections,
        CONNECTIONS,
        CONNECTION_TARGETS,
        without=CORKED,
        also=(*BARE, ONE_WORKER, QUIET),
    ),
    Case("syscalls", "system calls", syscalls, SYSCALLS, SYSCALL_TARGETS, PROXIES),
    Case("idle", "idle connections", idle, IDLE, IDLE_TARGETS, PROXIES),
    Case("pingpong-beside-bulk", "64 bytes beside four streams", beside_bulk, BESIDE, (Target("p99", 0.7, "haproxy"),)),
    Case("start", "time to the first line", start, START, (Target("ms", 2.0, "click"),), ("ours", "rust", "click")),
    Case("inprocess", "Proxy in a busy program", in_process, IN_PROCESS, (Target("p99", 5000.0),), ("direct", "ours")),
)
