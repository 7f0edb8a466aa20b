"""A worker whose poller fails, while another one hands connections over to it."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import Command
from support.machine import needs
from support.peers import connect, free_port
from support.waiting import TIMEOUT, eventually
from traffic import Server

from tcpproxy._core.worker import POLLER


def tracer(thread: int) -> bool:
    """Is the thread traced?"""
    return "TracerPid:\t0\n" not in Path(f"/proc/{thread}/status").read_text()


@pytest.mark.skipif(POLLER != "epoll", reason="the call that fails is epoll's")
def test_every_connection_has_an_end(
    command: Callable[..., Command], server: Server, stack: contextlib.ExitStack
) -> None:
    """The second worker's wait takes 5 s and fails then. What it was handed meanwhile is reset, and said to be."""
    needs("strace")
    port = free_port()
    proxy = command("-d", "--workers=2", "--log-format=json", f"--local-port={port}", server.name)
    eventually(lambda: proxy.stdout, TIMEOUT)
    tasks = sorted(map(int, os.listdir(f"/proc/{proxy.process.pid}/task")))
    second = tasks[3]  # the main thread, the one that starts the proxy, the workers
    inject = "inject=epoll_wait,epoll_pwait,epoll_pwait2:error=EBADF:delay_enter=5000000"
    argv = ["strace", "-qq", "-o", os.devnull, "-e", inject, "-p", str(second)]
    strace = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    stack.callback(strace.wait, TIMEOUT)
    stack.callback(strace.kill)
    eventually(lambda: strace.poll() is not None or tracer(second), TIMEOUT)
    for _ in range(12):
        stack.enter_context(contextlib.suppress(ConnectionError))
        stack.enter_context(connect(("127.0.0.1", port)))
    assert proxy.wait() == 1
    lines = [json.loads(line) for line in proxy.stdout + proxy.stderr]
    kinds = collections.Counter(line["kind"] for line in lines)
    assert (kinds["listening"], kinds["fatal"]) == (1, 1), lines
    over = [line for line in lines if line["kind"] in ("end", "failed")]
    assert sorted(line["id"] for line in over) == list(range(1, len(over) + 1)), lines
    assert len(over) == 12, lines
    assert {line["reason"] for line in over} == {"shutdown"}, lines
    assert kinds["failed"] > 2, "nothing was handed over"
