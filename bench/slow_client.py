"""A client that thinks between two requests: `slow_client.py HOST PORT SECONDS`. It speaks with the bench like load.c.

A turn is one round trip of 64 bytes, timed, then 50 microseconds of pure Python work. To a proxy that is a gap long
enough to fall asleep in, and short enough for the waking to be most of what it costs.
"""

from __future__ import annotations

import json
import socket
import sys
import time

WORK = 50_000
MESSAGE = b"e" * 64


def turn(connection: socket.socket) -> int:
    """Do one round trip and the work after it; return the nanoseconds of the round trip."""
    start = time.perf_counter_ns()
    connection.sendall(MESSAGE)
    got = len(connection.recv(64))
    while 0 < got < 64:
        more = len(connection.recv(64 - got))
        got = got + more if more else 0
    if not got:
        raise ConnectionError("the proxy closed the connection")
    end = time.perf_counter_ns()
    while time.perf_counter_ns() - end < WORK:
        pass
    return end - start


def main(host: str, port: int, seconds: float) -> None:
    """Warm up, wait for the word, do turns for `seconds`, print the figures."""
    with socket.create_connection((host, port), 10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(None)  # a timeout would put a poll(2) before each recv
        for _ in range(1000):
            turn(connection)
        print("ready", flush=True)
        sys.stdin.readline()
        begun = time.monotonic()
        taken = []
        while time.monotonic() < begun + seconds:
            taken.append(turn(connection) / 1000)
        elapsed = time.monotonic() - begun
        taken.sort()
        figures = {"count": len(taken), "seconds": elapsed, "rate": len(taken) / elapsed, "max": taken[-1]}
        figures |= {"p50": taken[len(taken) // 2], "p99": taken[int(len(taken) * 0.99)]}
        print(json.dumps(figures), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
