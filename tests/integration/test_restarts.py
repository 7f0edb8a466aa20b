"""Restarts under load that refuse no client and reset none: the recipes of docs/operating.md."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest
from support.command import Command
from support.load import Load
from support.machine import needs, needs_proc
from support.manager import Manager, passing
from support.peers import Echo, connect, free_port
from support.streams import echoes
from support.waiting import TIMEOUT, eventually

from tcpproxy import Proxy
from tcpproxy.command.signals import _Run

if os.name == "nt":
    pytest.skip("no descriptors are passed here, and no UNIX sockets exist", allow_module_level=True)

pytestmark = pytest.mark.timeout(180)

Start = Callable[..., Command]

RESTARTS = 20


@pytest.fixture
def listener(stack: contextlib.ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))


OPTIONS = ("--workers", "2", "--grace", "30s", "-q")


def test_the_socket_of_a_unit(command: Start, echo: Echo, listener: socket.socket) -> None:
    """Row 105: one process after the other; new clients wait in the socket meanwhile."""
    load = Load(listener.getsockname())
    process = command(*OPTIONS, echo.name, **passing([listener]))
    with load.running():
        for _ in range(RESTARTS):
            load.more()
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
            process = command(*OPTIONS, echo.name, **passing([listener]))
        load.more()


def test_the_store(command: Start, echo: Echo, tmp_path: Path, stack: contextlib.ExitStack) -> None:
    """Row 105: the same without a unit for the socket."""
    manager = stack.enter_context(contextlib.closing(Manager(str(tmp_path / "notify"))))
    options = (*OPTIONS, "-l", str(free_port()), echo.name)
    process = command(*options, env={**os.environ, **manager.environ, "FDSTORE": "16"})
    load = Load(process.address)
    manager.told("READY")
    with load.running():
        for _ in range(RESTARTS):
            load.more()
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
            process = command(*options, **passing(manager.store, **manager.environ, FDSTORE="16"))
        load.more()


def test_two_instances(
    command: Start, echo: Echo, tmp_path: Path, listener: socket.socket, stack: contextlib.ExitStack
) -> None:
    """Row 105: the new one starts first, so that no client waits; open connections go on in the old one."""
    load = Load(listener.getsockname())
    process = command(*OPTIONS, echo.name, **passing([listener]))
    with load.running(), contextlib.ExitStack() as stay:
        for number in range(RESTARTS):
            manager = stack.enter_context(contextlib.closing(Manager(str(tmp_path / str(number)))))
            load.more()
            staying = stay.enter_context(connect(load.address))
            assert echoes(staying)
            following = command(*OPTIONS, echo.name, **passing([listener], **manager.environ))
            manager.told("READY")
            process.signal(signal.SIGTERM)
            load.more()
            assert echoes(staying)
            stay.close()
            assert process.wait() == 0
            process = following


def test_a_loop_in_a_shell(echo: Echo) -> None:
    """A shell keeps the socket, and starts the next process when one has ended."""
    needs_proc()
    needs("systemd-socket-activate")
    port = free_port()
    run = shlex.join([sys.executable, "-m", "tcpproxy", *OPTIONS, echo.name])
    script = f'while :; do sh -c "LISTEN_PID=\\$\\$ exec {run}"; done'
    argv = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "sh", "-c", script]
    shell = subprocess.Popen(argv, cwd="/", stderr=subprocess.PIPE, start_new_session=True)
    load = Load(("127.0.0.1", port))
    children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children")
    try:
        assert shell.stderr
        assert shell.stderr.readline().startswith(b"Listening on")
        with load.running():
            for _ in range(5):
                load.more()
                relay = int(children.read_text())
                os.kill(relay, signal.SIGTERM)
                eventually(lambda relay=relay: children.read_text() not in ("", f"{relay} "), 60)
            load.more()
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.communicate()


@pytest.mark.parametrize("workers", [1, 2])
def test_proxies_of_a_program(echo: Echo, listener: socket.socket, workers: int) -> None:
    """Row 105: the next one with the same sockets, then the old one stops."""
    load = Load(listener.getsockname())
    proxy = Proxy(echo.name, sockets=[listener], workers=workers, on_event=lambda _event: None).start()
    with load.running():
        for _ in range(RESTARTS):
            load.more()
            following = Proxy(echo.name, sockets=[listener], workers=workers, on_event=lambda _event: None).start()
            proxy.stop("30s")
            proxy = following
    proxy.stop()


class SlowStart(Proxy):
    """Listens, and returns from `start` when it may."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type, misc]
        self.listens, self.may_return = threading.Event(), threading.Event()

    def start(self) -> Self:
        super().start()
        self.listens.set()
        assert self.may_return.wait(TIMEOUT)
        return self


def test_a_signal_before_the_start_has_returned(echo: Echo, listener: socket.socket) -> None:
    """Clients that came meanwhile get the grace, as later ones do: workers run before the start returns."""
    proxy = SlowStart(echo.name, sockets=[listener], on_event=lambda _event: None, grace="30s")
    reader, writer = socket.socketpair()
    with reader, writer:
        run = _Run(proxy, writer, None, lambda: None)
        run.start()
        assert proxy.listens.wait(TIMEOUT)
        with connect(listener.getsockname()) as client:
            assert echoes(client)
            run.stop(may_abort=True)
            proxy.may_return.set()
            proxy.wait()
            assert echoes(client)
        reader.settimeout(TIMEOUT)
        assert reader.recv(1) == b"\0"
        run.join(TIMEOUT)
        assert run.error is None
