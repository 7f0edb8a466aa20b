"""The library as a program: `library_proxy.py HOST PORT UPSTREAM NAME=VALUE...`; the latter are arguments of Proxy."""

from __future__ import annotations

import signal
import sys
from typing import Any

import tcpproxy


def main(host: str, port: int, upstream: str, options: list[str]) -> None:
    """Relay until the process is ended."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen: dict[str, Any] = dict(option.split("=", 1) for option in options)
    with tcpproxy.Proxy(upstream, bind=host, port=port, **chosen) as proxy:
        try:
            proxy.wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:])
