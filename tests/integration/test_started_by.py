"""What the command inherits from whoever starts it: signals, descriptors, devices, a terminal, limits."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from support.command import Command
from support.machine import needs
from support.peers import Echo, connect, free_port, relays
from support.streams import echoes
from support.waiting import TIMEOUT, eventually

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no such signals, descriptors and devices")

Start = Callable[..., Command]


def python(code: str) -> tuple[str, ...]:
    """A wrapper that runs some Python and then the command, in the same process."""
    return (sys.executable, "-c", f"import os, signal, sys\n{code}\nos.execv(sys.argv[1], sys.argv[1:])")


# --- signals ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_were_blocked(command: Start, echo: Echo, number: signal.Signals) -> None:
    wrapper = python("signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))")
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
    """logrotate and `ExecReload=kill -HUP` mean no end: it is ignored, and said once."""
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


def test_a_hang_up_with_a_terminal(command: Start, echo: Echo) -> None:
    """The terminal is gone, and with it whoever started the command: it ends as by SIGTERM."""
    session = (
        "import fcntl, termios\nos.setsid()\nfcntl.ioctl(os.open(sys.argv.pop(1), os.O_RDWR), termios.TIOCSCTTY, 0)"
    )
    leader, terminal = os.openpty()
    try:
        proxy = command(echo.name, wrapper=(*python(session), os.ttyname(terminal)))
        with connect(proxy.address) as client:
            assert echoes(client)
            proxy.signal(signal.SIGHUP)
            client.close()
            assert proxy.wait() == 0, proxy.stderr
    finally:
        os.close(leader)
        os.close(terminal)


FIRST = """
import importlib.abc, os, signal, sys

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            sys.meta_path.remove(self)
            assert os.getpid() == 1
            os.kill(1, int(sys.argv[1]))

from tcpproxy.__main__ import main
sys.meta_path.insert(0, Interrupt())
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_process_during_its_start(number: signal.Signals) -> None:
    """The kernel drops a signal to PID 1 that has no handler: a `docker stop` in the first moment would be lost."""
    needs("unshare")
    argv = ["unshare", "-pf", sys.executable, "-c", FIRST, str(int(number))]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", timeout=TIMEOUT, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip("needs the right to make a process namespace")
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr == ""


# --- descriptors, devices, limits ---


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("devices", [True, False], ids=["", "no /dev/null"])
def test_closed_standard_descriptors(command: Start, echo: Echo, closed: str, devices: bool) -> None:
    """They never become sockets of the relay, which log lines would go to; and a container may have no devices."""
    hide = "" if devices else "mount -t tmpfs none /dev && "
    wrapper = ("sh", "-c", f'{hide}exec "$0" "$@" {closed}')
    if not devices:
        needs("unshare", "mount")
        wrapper = ("unshare", "--mount", *wrapper)
        if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
            pytest.skip("needs the right to make a mount namespace")
    port = free_port()
    proxy = command("-l", str(port), echo.name, wrapper=wrapper)

    def relay() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            return relays(("127.0.0.1", port))
        return False

    eventually(relay, TIMEOUT)
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0


@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize("output", ["full", "closed", "broken"])
def test_help_that_nobody_can_read(option: str, output: str) -> None:
    """One sentence, and no traceback. A closed output is like /dev/null."""
    argv = [sys.executable, "-m", "tcpproxy", option]
    if output == "closed":
        argv = ["sh", "-c", 'exec "$0" "$@" >&-', *argv]
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full, os.fdopen(writer, "w") as broken:
        stdout = {"full": full, "broken": broken}.get(output)
        done = subprocess.run(argv, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd="/", check=False)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1, done.stderr
    assert done.returncode == (0 if output == "closed" else 1)


@pytest.mark.parametrize("files", [12, 16, 20, 24])
def test_few_descriptors(echo: Echo, files: int) -> None:
    """Too few to start: one sentence, exit 1. Enough to listen and not for a connection: that is said."""
    argv = [
        "sh",
        "-c",
        f'ulimit -n {files}; exec "$0" "$@"',
        sys.executable,
        "-m",
        "tcpproxy",
        "--workers",
        "1",
        echo.name,
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/") as process:
        assert process.stdout
        assert process.stderr
        first = process.stdout.readline()
        if first:
            address = first.split()[-1].rpartition(":")
            with contextlib.suppress(ConnectionResetError):
                assert relays((address[0], int(address[2])))
        process.terminate()
        errors = process.stderr.read()
    assert "Traceback" not in errors
    assert process.returncode == (0 if first else 1)
    if not first:
        assert errors.startswith("tcpproxy: "), errors
        assert len(errors.splitlines()) == 1


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
