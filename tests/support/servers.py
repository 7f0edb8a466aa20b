"""Servers that tests start: real programs, on a free port, until the test ends."""

from __future__ import annotations

import contextlib
import glob
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable

import pytest

from support.machine import needs
from support.peers import free_port
from support.waiting import TIMEOUT, eventually


def serve(
    stack: contextlib.ExitStack, argv: Callable[[str], list[str]], ready: str, user: dict[str, object] | None = None
) -> int:
    """Starts a server on a free port, which its arguments name, and waits until it says that it is ready.

    Another process may have taken the port meanwhile: then the server ends at once, and is started on another one.
    Returns the port.
    """
    log = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / "log"
    for _ in range(3):
        port = free_port()
        command = argv(str(port))
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output, **(user or {})
            )
        stack.callback(end, process)
        eventually(
            lambda it=process: it.poll() is not None or ready in log.read_text(), TIMEOUT, f"{command} is silent"
        )
        if process.poll() is None:
            return port
    raise AssertionError(log.read_text())


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a server: for all servers here SIGINT means a clean end at once."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def run(*argv: str, data: bytes | None = None, **popen: object) -> str:
    """Runs a client to its end, which must be a good one. Returns what it wrote to stdout and stderr."""
    done = subprocess.run(
        argv, input=data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=3 * TIMEOUT, check=False, **popen
    )
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, said
    return said


def redis_server(stack: contextlib.ExitStack) -> int:
    """The port of a Redis, which ends with `stack`."""
    needs("redis-server")
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tcpproxy-redis-"))
    options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
    return serve(stack, lambda port: ["redis-server", "--port", port, *options], "Ready to accept connections")


def postgres_program(name: str) -> str:
    """Its path. The real one: a distribution's wrapper on PATH wants a cluster that is registered with it."""
    folders = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: float(path.split("/")[-2]), reverse=True)
    found = shutil.which(name, path=os.pathsep.join([*folders, os.environ["PATH"]]))
    if not found:
        pytest.skip(f"needs the command {name}")
    return found


def postgres_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def postgres_server(stack: contextlib.ExitStack) -> int:
    """The port of a PostgreSQL, which ends with `stack`. Its user is postgres, without a password."""
    initdb, postgres = postgres_program("initdb"), postgres_program("postgres")
    user: dict[str, object] = {"env": postgres_environment()}
    # Not below pytest's own folder: another user may not enter that one.
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tcpproxy-postgres-"))
    if os.geteuid() == 0:  # which PostgreSQL refuses
        user |= {"user": "nobody", "group": os.stat(folder).st_gid, "extra_groups": []}
        shutil.chown(folder, "nobody")
    data = f"{folder}/data"
    run(initdb, "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", cwd="/", **user)
    options = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
    ready = "ready to accept connections"
    return serve(stack, lambda port: [postgres, "-D", data, "-p", port, *options], ready, user)
