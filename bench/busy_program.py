"""A program with a proxy in it whose main thread never rests: `busy_program.py UPSTREAM_PORT`; prints the proxy's port.

Pure Python work holds the interpreter's lock for its switch interval (5 ms) at a time. A relay that needs the lock
waits for it.
"""

from __future__ import annotations

import sys

import tcpproxy


def main(upstream: int) -> None:
    """Relay and compute until the process is ended."""
    with tcpproxy.Proxy(f"127.0.0.1:{upstream}") as proxy:
        print(proxy.address[1], flush=True)
        total = 0
        while True:
            total = (total * 31 + 7) % 1_000_003


if __name__ == "__main__":
    main(int(sys.argv[1]))
