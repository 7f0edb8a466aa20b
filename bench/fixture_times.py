"""How long a fixture takes: `fixture_times.py UPSTREAM_PORT TIMES` starts and stops proxies one after the other.

Speaks with the bench like load.c, in microseconds.
"""

from __future__ import annotations

import json
import sys
import time

from tcpproxy.fixtures import ProxyFactory


def turn(upstream: int) -> float:
    """Starts a proxy as a test does, and stop it as the end of the test does. Returns the microseconds."""
    begun = time.perf_counter()
    with ProxyFactory("a test") as tcpproxy:
        tcpproxy(upstream)
    return (time.perf_counter() - begun) * 1e6


def main(upstream: int, times: int) -> None:
    """Warm up, wait for the word, take the times, print the figures."""
    turn(upstream)
    print("ready", flush=True)
    sys.stdin.readline()
    taken = sorted(turn(upstream) for _ in range(times))
    figures = {"count": times, "p50": taken[times // 2], "p99": taken[int(times * 0.99)]}
    print(json.dumps(figures), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
