"""Upstream on a local port that the kernel also gives to outgoing connections, where nobody listens (row 33).

The kernel may then connect the relay's socket to itself: the client would get its own bytes back, and the real server
would find its port taken.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.machine import needs

SCRIPT = """if True:  # an even port: the kernel takes the odd ones of the range only after these
    import socket, subprocess, sys
    from collections import Counter
    import tcpproxy

    upstream, workers, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    open("/proc/sys/net/ipv4/ip_local_port_range", "w").write("40000 40015")
    events, seen = [], Counter()
    with tcpproxy.Proxy(upstream, port=39000, workers=workers, zero_copy=mode, on_event=events.append) as proxy:
        for _ in range(200):
            with socket.socket() as client:
                client.settimeout(10)
                client.bind(("127.0.0.1", 0))
                try:
                    client.connect(proxy.address)
                    client.sendall(b"hello")
                    seen["echo" if client.recv(5) else "end of file"] += 1
                except ConnectionError:
                    seen["reset"] += 1
        proxy.abort()
        reasons = Counter(event.reason for event in events if event.kind in ("end", "failed"))
        host, port = upstream.rsplit(":", 1)
        family = socket.AF_INET6 if "[" in host else socket.AF_INET
        socket.create_server((host.strip("[]").replace("localhost", "127.0.0.1"), int(port)), family=family).close()
    print(dict(seen), dict(reasons))
"""


@pytest.mark.parametrize("upstream", ["127.0.0.1:40006", "[::1]:40006", "localhost:40006"])
@pytest.mark.parametrize(("workers", "mode"), [(1, "off"), (2, "always")])
def test_nobody_listens_there(upstream: str, workers: int, mode: str) -> None:
    """Each client is reset, with the reason of a refused connection, and the port is free for its server."""
    needs("unshare", "ip")
    argv = ["unshare", "-n", sys.executable, "-c", SCRIPT, upstream, str(workers), mode]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", timeout=50, check=False)
    if "Operation not permitted" in done.stderr and not done.stdout:
        pytest.skip("needs the right to make a network namespace")
    assert done.stdout.strip() == "{'reset': 200} {'connect-refused': 200}", done.stdout + done.stderr
