"""Starting and ending what the bench runs: every process is ended by its own handle, whatever happens in between."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.base import Bench, BenchError

PATIENCE = 15.0


@contextlib.contextmanager
def spawn(argv: list[str], errors: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Runs `argv` in a process group of its own, for the length of the block; its stderr goes to the file `errors`."""
    with errors.open("w") as stderr:
        process = subprocess.Popen(argv, stderr=stderr, text=True, start_new_session=True, **options)
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    """End the process and the children it forked: they share its group, which `spawn` made."""
    for stream in (process.stdin, process.stdout):
        if stream:
            with contextlib.suppress(OSError):
                stream.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(2.0)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_line(process: subprocess.Popen[str], errors: Path, patience: float = PATIENCE) -> str:
    """Returns the next line of the process's stdout, or raises BenchError with what it wrote to stderr."""
    assert process.stdout
    readable, _, _ = select.select([process.stdout], [], [], patience)
    line = process.stdout.readline() if readable else ""
    if not line:
        said = errors.read_text()[-400:].strip()
        raise BenchError(f"{Path(str(process.args[0])).name} said nothing: {said}")  # type: ignore[index]
    return line


def free_port() -> int:
    """Returns a port of the loopback address that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_listening(pid: int, port: int) -> bool:
    """Tell whether somebody listens on the port in the network namespace of the process, without connecting.

    A connection would be passed on to the upstream; iperf3 would take it for the beginning of a test.
    """
    with contextlib.suppress(OSError):
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[1].endswith(f":{port:04X}") and fields[3] == "0A":
                    return True
    return False


def wait_listening(process: subprocess.Popen[str], port: int, errors: Path, patience: float = PATIENCE) -> None:
    """Returns when `port` is listened on; raises BenchError when the process ends before, or takes too long."""
    deadline = time.monotonic() + patience
    while not is_listening(process.pid, port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchError(f"did not start: {errors.read_text()[-400:].strip()}")
        time.sleep(0.005)


class Client:
    """A load client: warm when this object exists, at work during `go`, its connections kept until the block ends."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self._process, self._errors = process, errors
        if read_line(process, errors, 60.0) != "ready\n":
            raise BenchError("the load client did not get ready")

    def go(self, patience: float = 90.0) -> dict[str, float]:
        """Let it work and return the figures it prints."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        figures: dict[str, float] = json.loads(read_line(self._process, self._errors, patience))
        return figures


@contextlib.contextmanager
def client(bench: Bench, *argv: object) -> Iterator[Client]:
    """Runs a load client (see load.c for what is said between the two)."""
    errors, command = bench.scratch / "client.err", [*bench.place.client, *map(str, argv)]
    with spawn(command, errors, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Client(process, errors)


@contextlib.contextmanager
def echo_server(bench: Bench) -> Iterator[int]:
    """Runs the echo server of load.c on a port of its own choice, and yields the port."""
    errors, place = bench.scratch / "server.err", bench.place
    argv = [*place.upstream, str(bench.load), "serve", place.upstream_address]
    with spawn(argv, errors, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield int(json.loads(read_line(process, errors))["port"])


@contextlib.contextmanager
def iperf3_server(bench: Bench) -> Iterator[int]:
    """Runs an iperf3 server and yields its port."""
    port, errors, place = free_port(), bench.scratch / "iperf3.err", bench.place
    argv = [*place.upstream, "iperf3", "-s", "-B", place.upstream_address, "-p", str(port)]
    with spawn(argv, errors, stdout=subprocess.DEVNULL) as process:
        wait_listening(process, port, errors)
        yield port
