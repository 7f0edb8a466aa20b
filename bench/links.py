"""Cases over links instead of loopback: three network namespaces, and cables between them. README.md says more.

Client, proxy and upstream have one each. The proxy's has the two cables and forwards packets, so that the direct
connection takes the same way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.base import Bench, BenchError, Place
from bench.cases import CONNECTIONS, CPU_GB, GBPS, QUIET, RTT, bulk, connections, ping
from bench.peers import Peer
from bench.process import read_line, spawn
from bench.targets import BARE_SPLICE, Case, Figures, Metric, Target

MTU = 1500
CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
CABLE = Path(__file__).resolve().parents[1] / "tests" / "wire.py"
CLIENT, NEAR, FAR, UPSTREAM = "10.77.1.1", "10.77.1.2", "10.77.2.1", "10.77.2.2"
Measure = Callable[[Bench, Peer], Figures]
OFFLOADS = ("tso", "gso", "gro")
FAR_AWAY = {"delay": 0.010, "loss": 0.001}
"""Of each direction: a round trip takes 20 ms."""


def _call(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()[-200:]}")


class Namespaces:
    """Three network namespaces with a cable from each of the outer ones to the one in the middle."""

    def __init__(self, bench: Bench, stack: contextlib.ExitStack) -> None:
        self._bench, self._stack = bench, stack
        self.client, self.proxy, self.upstream = (self._add(name) for name in ("client", "proxy", "upstream"))
        self._in(self.proxy, "sysctl", "-qw", "net.ipv4.ip_forward=1")

    def _add(self, name: str) -> str:
        name = f"bench-{os.getpid()}-{name}"
        _call("ip", "netns", "add", name)
        self._stack.callback(_call, "ip", "netns", "del", name)
        _call("ip", "-n", name, "link", "set", "lo", "up")
        # A new one has that of the machine, whatever this one has been given.
        self._in(name, "sysctl", "-qw", f"net.ipv4.tcp_congestion_control={CONGESTION_CONTROL.read_text().strip()}")
        return name

    def _in(self, name: str, *argv: str) -> None:
        _call("ip", "netns", "exec", name, *argv)

    def lay(self, outer: str, device: str, addresses: tuple[str, str], offloads: bool) -> None:
        """Lays a cable of virtual Ethernet between an outer namespace and the middle."""
        _call("ip", "-n", outer, "link", "add", device, "type", "veth", "peer", "name", device, "netns", self.proxy)
        self._start(outer, device, addresses)
        if not offloads:
            for name in (outer, self.proxy):
                self._in(name, "ethtool", "-K", device, *(word for it in OFFLOADS for word in (it, "off")))

    def lay_long(self, outer: str, addresses: tuple[str, str]) -> None:
        """Lays the cable of the tests, which holds packets back and loses some; see there."""
        errors = self._bench.scratch / "cable.err"
        argv = [sys.executable, str(CABLE), outer, self.proxy, json.dumps(FAR_AWAY)]
        cable = spawn(argv, errors, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if read_line(self._stack.enter_context(cable), errors) != "ready\n":
            raise BenchError(f"the cable could not be laid: {errors.read_text()[-200:]}")
        self._start(outer, "wire", addresses)

    def _start(self, outer: str, device: str, addresses: tuple[str, str]) -> None:
        for name, address in zip((outer, self.proxy), addresses, strict=True):
            _call("ip", "-n", name, "address", "add", f"{address}/24", "dev", device)
            _call("ip", "-n", name, "link", "set", device, "mtu", str(MTU), "up")
        _call("ip", "-n", outer, "route", "add", "default", "via", addresses[1])


@contextlib.contextmanager
def linked(bench: Bench, long: bool, offloads: bool) -> Iterator[Bench]:
    """Yields the bench at a place with cables: veth pairs, or to the client a long one."""
    for tool in ("ip", "ethtool"):
        if not shutil.which(tool):
            raise BenchError(f"needs {tool} (apt-get install iproute2 ethtool)")
    with contextlib.ExitStack() as stack:
        spaces = Namespaces(bench, stack)
        if long:
            spaces.lay_long(spaces.client, (CLIENT, NEAR))
        else:
            spaces.lay(spaces.client, "near", (CLIENT, NEAR), offloads)
        spaces.lay(spaces.upstream, "far", (UPSTREAM, FAR), offloads)
        client, proxy, upstream = (("ip", "netns", "exec", it) for it in (spaces.client, spaces.proxy, spaces.upstream))
        yield dataclasses.replace(bench, place=Place(client, proxy, upstream, NEAR, UPSTREAM))


def over(measure: Measure, long: bool, offloads: bool, bench: Bench, peer: Peer) -> Figures:
    """Measures at such a place, which is made anew each time, so that nothing of the last measurement is left."""
    with linked(bench, long, offloads) as there:
        return measure(there, peer)


def _bulk(options: tuple[str, ...], bench: Bench, peer: Peer) -> Figures:
    return bulk(bench, peer, *options)


def _cases(link: str, what: str, throughput: float, latency: float, *, long: bool, offloads: bool) -> tuple[Case, ...]:
    """Returns the cases over one kind of link."""
    moved = (Target("gbps", throughput, "best"), Target("cpu_gb", 0.8, "best"))
    length = ("-t", "4") if long else ()
    some = partial(connections, most=FAR_CONNECTIONS if long else 5000)

    def case(
        name: str,
        title: str,
        measure: Measure,
        metrics: tuple[Metric, ...],
        *targets: Target,
        also: tuple[str, ...] = (),
    ) -> Case:
        there = partial(over, measure, long, offloads)
        return Case(f"{link}-{name}", f"{title}, {what}", there, metrics, targets, PEERS, also=also)

    return (
        case("up", "one iperf3 stream up", partial(_bulk, length), MOVED, *moved, also=(BARE_SPLICE,)),
        case("down", "one iperf3 stream down", partial(_bulk, (*length, "-R")), MOVED, *moved, also=(BARE_SPLICE,)),
        case("eight", "eight iperf3 streams", partial(_bulk, (*length, "-P", "8")), MOVED, *moved),
        case("rtt", "64 bytes there and back", ping, RTT, Target("p50", latency, "best")),
        case(
            "connections",
            "a connection each request",
            some,
            CONNECTIONS,
            Target("cpu", 0.8, "best"),
            also=("bare", QUIET),
        ),
    )


MOVED = (GBPS, CPU_GB)
PEERS = ("direct", "ours", "haproxy", "haproxy-splice", "nginx", "go-tcpproxy", "portrelay")
FAR_CONNECTIONS = 400

# Far away the link says how much can move and how long it takes: there nobody should lose by the proxy.
CASES: tuple[Case, ...] = (
    *_cases("links", "MTU 1500", 1.1, 0.7, long=False, offloads=True),
    *_cases("links-plain", "MTU 1500 without offloads", 1.0, 0.7, long=False, offloads=False),
    *_cases("links-far", "20 ms away with 0.1 % loss", 0.95, 1.02, long=True, offloads=True),
)
BULK = tuple(case.name for case in CASES if case.metrics[0] is GBPS)
"""Those that need iperf3."""
