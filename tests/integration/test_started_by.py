"""What the command inherits from whoever starts it: signals, a terminal, children. Also see test_started_with.py."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.command import Command, namespace, python
from support.machine import needs_proc
from support.peers import Echo, answers, connect, free_port, relays
from support.streams import echoes
from support.waiting import TIMEOUT, eventually

if os.name == "nt":  # not a mark: what follows names such signals
    pytest.skip("no such signals, descriptors and devices", allow_module_level=True)

Start = Callable[..., Command]


def children(pid: int) -> list[int]:
    """The children of a process, also zombies."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            stats[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
    return [number for number, fields in stats.items() if int(fields[1]) == pid]


# --- signals ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_were_blocked(command: Start, echo: Echo, number: signal.Signals) -> None:
    wrapper = python("signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())")
    proxy = command(echo.name, wrapper=wrapper)
    assert relays(proxy.address)
    proxy.signal(number)
    assert proxy.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_what_was_ignored_stays_ignored(command: Start, echo: Echo, number: signal.Signals) -> None:
    """SIGINT is, for a script's `tcpproxy ... &`; SIGHUP by nohup."""
    proxy = command(echo.name, wrapper=python(f"signal.signal({int(number)}, signal.SIG_IGN)"))
    with connect(proxy.address) as client:
        proxy.signal(number)
        for _ in range(3):
            assert echoes(client)
    assert relays(proxy.address)
    proxy.signal(signal.SIGINT if number == signal.SIGTERM else signal.SIGTERM)
    assert proxy.wait() == 0
    assert proxy.complaints == []


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_who_wants_to_see_its_state_does_not_kill_it(command: Start, echo: Echo, number: signal.Signals) -> None:
    proxy = command(echo.name)
    with connect(proxy.address) as client:
        assert echoes(client)
        proxy.signal(number)
        assert echoes(client)
    assert relays(proxy.address)


def test_a_hang_up_without_a_terminal(command: Start, echo: Echo) -> None:
    """logrotate and `ExecReload=kill -HUP` send SIGHUP: it is ignored, with one warning."""
    proxy = command(echo.name, start_new_session=True)
    with connect(proxy.address) as client:
        for _ in range(3):
            assert echoes(client)
            proxy.signal(signal.SIGHUP)
        eventually(lambda: proxy.stderr, TIMEOUT)
        assert echoes(client)
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0
    assert len([line for line in proxy.stderr if "SIGHUP" in line]) == 1


@pytest.mark.parametrize("devices", [True, False], ids=["", "no /dev/tty"])
def test_a_hang_up_with_a_terminal(command: Start, echo: Echo, terminal: tuple[int, str], devices: bool) -> None:
    """The terminal has been closed: the command ends as by SIGTERM."""
    session = "os.setsid(); os.dup2(os.open(sys.argv.pop(1), os.O_RDWR), 0)"  # the terminal becomes its own
    wrapper = (*python(session), terminal[1])
    if not devices:
        wrapper += namespace("--mount", "sh", "-c", 'mount -t tmpfs none /dev && exec "$0" "$@"')
    proxy = command(echo.name, wrapper=wrapper)
    with connect(proxy.address) as client:
        assert echoes(client)
        for times in range(3):  # the kernel sends one, and so do shells that end
            proxy.signal(signal.SIGHUP)
            eventually(lambda: any(line.startswith("Stopping: ") for line in proxy.stderr))
            assert echoes(client), times
        client.close()
        assert proxy.wait() == 0, proxy.stderr


EARLY = """
import importlib.abc, os, signal, sys

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), number)

number = int(sys.argv[1])
del sys.argv[1:5]  # and "python -m tcpproxy"
from tcpproxy.__main__ import main
sys.meta_path.insert(0, Interrupt())
main()
"""
"""The command, which gets a signal during its imports."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_process_during_its_start(command: Start, echo: Echo, number: signal.Signals) -> None:
    """The kernel drops a signal to PID 1 that has no handler: a `docker stop` in the first moment would be lost."""
    wrapper = (*namespace("-pf", "--kill-child"), sys.executable, "-c", EARLY, str(int(number)))
    proxy = command(echo.name, wrapper=wrapper)
    assert proxy.wait() == 128 + number
    assert (proxy.stdout, proxy.stderr) == ([], [])


def test_a_hang_up_during_the_start(command: Start, echo: Echo) -> None:
    """Without a terminal it ends nothing, however early it arrives; together with a later one it gives one warning."""
    wrapper = (sys.executable, "-c", EARLY, str(int(signal.SIGHUP)))
    proxy = command(echo.name, wrapper=wrapper, start_new_session=True)
    assert relays(proxy.address)
    proxy.signal(signal.SIGHUP)
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0
    assert len(proxy.complaints) == 1


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_signals_that_wait(command: Start, echo: Echo, number: signal.Signals) -> None:
    """A pending signal is delivered when it is unblocked: its handler must be set before."""
    wrapper = python(
        f"signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()); os.kill(os.getpid(), {int(number)})"
    )
    proxy = command(echo.name, wrapper=wrapper, start_new_session=True)
    if number != signal.SIGTERM:
        assert relays(proxy.address)
        proxy.signal(signal.SIGTERM)
    assert proxy.wait() == (-signal.SIGTERM if number == signal.SIGTERM else 0)
    assert len(proxy.complaints) == (number == signal.SIGHUP), proxy.stderr


# --- a terminal with job control ---

SHELL = """
import ctypes, fcntl, os, signal, sys, termios

terminal, where, blocked, *argv = sys.argv[1:]
os.setsid()
terminal = os.open(terminal, os.O_RDWR)  # which becomes that of the session
modes = termios.tcgetattr(terminal)
modes[3] |= termios.TOSTOP
termios.tcsetattr(terminal, termios.TCSANOW, modes)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
ready, go = os.pipe()
job = os.fork()
if job == 0:
    os.read(ready, 1)
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    if blocked == "blocked":
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it ends with this process
    os.dup2(terminal, 1)
    os.execv(argv[0], argv)
os.setpgid(job, job)
if where == "foreground":
    os.tcsetpgrp(terminal, job)
signal.signal(signal.SIGTERM, lambda *_: os.kill(job, signal.SIGTERM))
os.write(go, b"!")
_, status = os.waitpid(job, os.WUNTRACED)
sys.exit(100 + os.WSTOPSIG(status) if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status))
"""
"""A shell with one job, in the foreground or background of a terminal where that makes a difference for writing. Exit
code: that of the job; 100 and the signal if that stopped it."""


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """A terminal: the descriptor of its user's end, and the name of the other one."""
    user, other = os.openpty()
    yield user, os.ttyname(other)
    os.close(user)
    os.close(other)


@pytest.fixture
def job(command: Start, echo: Echo, terminal: tuple[int, str]) -> Callable[..., tuple[Command, tuple[str, int]]]:
    """Starts the command as the job of a shell; where it listens."""

    def job(where: str, blocked: str = "") -> tuple[Command, tuple[str, int]]:
        needs_proc()
        port = free_port()
        wrapper = (sys.executable, "-c", SHELL, terminal[1], where, blocked)
        return command("-l", str(port), echo.name, wrapper=wrapper), ("127.0.0.1", port)

    return job


def test_background_of_a_terminal(job: Callable[..., tuple[Command, tuple[str, int]]]) -> None:
    """`stty tostop`: a line on the terminal must not stop the relay."""
    shell, address = job("background")
    eventually(lambda: shell.process.poll() is not None or answers(address), TIMEOUT)
    for _ in range(3):
        assert relays(address), shell.wait()
    shell.signal(signal.SIGTERM)
    assert shell.wait() == 0
    assert shell.complaints == []


@pytest.mark.parametrize("blocked", ["", "blocked"])
def test_ctrl_z(job: Callable[..., tuple[Command, tuple[str, int]]], terminal: tuple[int, str], blocked: str) -> None:
    """It stops the command, which is what the user wants."""
    shell, address = job("foreground", blocked)
    eventually(lambda: shell.process.poll() is not None or answers(address), TIMEOUT)
    os.write(terminal[0], b"\x1a")
    assert shell.wait() == 100 + signal.SIGTSTP


# --- children ---

PARENT = """
def child():
    if os.fork():
        return False
    if os.fork():
        os._exit(0)  # a zombie, and an orphan
    os.read(int(sys.argv[1]), 1)
    os._exit(0)
if child() or os.fork() == 0:
    os.read(int(sys.argv[1]), 1)
    os._exit(0)
del sys.argv[1]
"""


@pytest.mark.parametrize("first", [False, True], ids=["", "PID 1"])
def test_children_that_are_not_its_own(command: Start, echo: Echo, first: bool) -> None:
    """Those of a script that became the command, and orphans in a container, leave no zombies."""
    needs_proc()
    reader, writer = os.pipe()
    with os.fdopen(reader), os.fdopen(writer, "wb") as life:
        wrapper = (*(namespace("-pf", "--kill-child") if first else ()), *python(PARENT), str(reader))
        proxy = command(echo.name, wrapper=wrapper, pass_fds=(reader,))
        assert relays(proxy.address)
        pid = proxy.process.pid
        if first:
            (pid,) = children(pid)
        assert len(children(pid)) == 1 + first
        life.close()
        eventually(lambda: not children(pid), TIMEOUT, "there are zombies")
    assert relays(proxy.address)
    os.kill(pid, signal.SIGTERM)
    assert proxy.wait() == 0
    assert proxy.complaints == []


# --- the end ---


@pytest.mark.parametrize("count", [0, 1, 2])
def test_it_says_what_it_waits_for(command: Start, echo: Echo, count: int) -> None:
    with contextlib.ExitStack() as stack:
        proxy = command("--grace", "20s", echo.name)
        assert proxy.address
        for _ in range(count):
            assert echoes(stack.enter_context(connect(proxy.address)))
        proxy.signal(signal.SIGINT)
        if count:
            eventually(lambda: proxy.stderr, TIMEOUT)
            what = "1 connection" if count == 1 else "2 connections"
            expected = f"Stopping: waiting up to 20 s for {what} to end; a second signal stops at once"
            assert proxy.stderr == [expected]
            proxy.signal(signal.SIGINT)
        assert proxy.wait() == 0
        assert len(proxy.stderr) == min(count, 1)
