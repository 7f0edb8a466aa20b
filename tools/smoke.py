"""Relays with the tcpproxy that this Python finds, after a half-close too, and runs the command.

One line when all is well.
"""

from __future__ import annotations

import hashlib
import platform
import socket
import subprocess
import sys
import threading

import tcpproxy

SIZE = 8 << 20


def answer(listener: socket.socket) -> None:
    """Reads to the end of file, then answers with what it got: needs the half-closed direction to live on."""
    connection = listener.accept()[0]
    with connection:
        got = b"".join(iter(lambda: connection.recv(1 << 20), b""))
        connection.sendall(got)


def main() -> None:
    payload = hashlib.shake_128(b"tcpproxy").digest(SIZE)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=answer, args=(listener,), daemon=True)
        server.start()
        with tcpproxy.Proxy(f"127.0.0.1:{listener.getsockname()[1]}", workers=2) as proxy:
            with socket.create_connection(proxy.address, timeout=60) as client:
                client.sendall(payload)
                client.shutdown(socket.SHUT_WR)
                back = b"".join(iter(lambda: client.recv(1 << 20), b""))
            assert back == payload, f"{len(back)} of {len(payload)} bytes came back"
        stats = proxy.stats()
        server.join(60)
    assert stats.bytes_to_upstream == stats.bytes_to_client == SIZE, stats
    lock = getattr(sys, "_is_gil_enabled", lambda: True)()
    what = f"Python {platform.python_version()}{'' if lock else ' free-threaded'} {platform.machine()}"
    if "--library-only" not in sys.argv:
        argv = [sys.executable, "-m", "tcpproxy", "--version"]  # away from a source tree, which would come first
        done = subprocess.run(argv, cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        what += f": {done.stdout.strip()}"
    print(f"{what}: {SIZE} bytes there and back, {stats.bytes_spliced} of them spliced")


if __name__ == "__main__":
    main()
