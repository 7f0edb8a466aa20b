"""Cases of what looks at the bytes: a capture, recordings, the dump, the live view. README.md says what they mean."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.base import Bench
from bench.cases import BULK, CPU_TRIP, P50, P99, RATE, bulk, idle, ping
from bench.peers import Peer, Way
from bench.programs import ours
from bench.targets import Case, Figures, Metric, Target

HELD = 2000


def _recording(way: Way) -> list[str]:
    script, workers = str(Path(__file__).with_name("library_proxy.py")), len(os.sched_getaffinity(0))
    options = ["record=1GiB", f"workers={workers}"]  # the command has one for each processor
    return [sys.executable, script, way.host, str(way.port), way.upstream, *options]


def _top(way: Way) -> list[str]:
    return ["env", "TERM=xterm-256color", *ours("--top")(way)]


def variants(skipped: dict[str, str]) -> list[Peer]:
    """Returns tcpproxy with each of the options; what cannot run here is added to `skipped`."""
    found = [
        Peer("ours-capture", "", ours("--capture", "{directory}/capture.pcapng"), special=True),
        Peer("ours-record", "", _recording, special=True),
        Peer("ours-x", "", ours("-x"), special=True),
    ]
    if subprocess.run([sys.executable, "-c", "import rich"], capture_output=True, check=False).returncode:
        skipped["ours-top"] = f"{sys.executable} -m pip install rich"
        return found
    return [*found, Peer("ours-top", "", _top, special=True, terminal=True)]


def seen_bulk(bench: Bench, peer: Peer) -> Figures:
    """As bulk, but what is written goes to memory. A second moves less than the GiB that is recorded."""
    with bench.in_memory() as inside:
        return bulk(inside, peer, "-t", "1")


def seen_ping(bench: Bench, peer: Peer) -> Figures:
    """As ping, but what is written goes to memory."""
    with bench.in_memory() as inside:
        return ping(inside, peer)


def held(bench: Bench, peer: Peer) -> Figures:
    """CPU time of a view of 2,000 connections."""
    figures = idle(bench, peer, HELD)
    return {"cpu_s": figures["cpu_s"], "held": figures["held"]}


SEEING_BULK = (
    Target("gbps", 0.5, "haproxy", of="ours-capture"),
    Target("gbps", 5.0, "socat-x", of="ours-capture"),
    Target("gbps", 0.5, "haproxy", of="ours-record"),
    Target("gbps", 5.0, "socat-x", of="ours-record"),
)
SEEING_RTT = (Target("p50", 1.3, "ours", of="ours-capture"), Target("p50", 1.3, "ours", of="ours-record"))
SEEN = ("ours", "ours-capture", "ours-record", "ours-x")
TOP = (Metric("cpu_s", "CPU s/s", digits=4), Metric("held", "held", digits=0))

CASES = (
    Case(
        "seeing-bulk",
        "one iperf3 stream, its bytes captured to a tmpfs",
        seen_bulk,
        tuple(reversed(BULK)),
        SEEING_BULK,
        (*SEEN, "haproxy", "socat-x"),
    ),
    Case("seeing-rtt", "64 bytes, captured to a tmpfs", seen_ping, (P50, P99, CPU_TRIP, RATE), SEEING_RTT, SEEN),
    Case(
        "seeing-top",
        "a live view of 2,000 connections",
        held,
        TOP,
        (Target("cpu_s", 0.03, of="ours-top"),),
        ("ours", "ours-top"),
    ),
)
