"""What the command inherits from whoever starts it: signals, descriptors, devices, a terminal, limits."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.command import Command
from support.machine import needs, needs_proc
from support.peers import Echo, connect, free_port, relays
from support.streams import echoes
from support.waiting import TIMEOUT, eventually

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no such signals, descriptors and devices")

Start = Callable[..., Command]


def python(code: str) -> tuple[str, ...]:
    """A wrapper that runs some Python and then the command, in the same process."""
    return (sys.executable, "-c", f"import os, signal, sys\n{code}\nos.execv(sys.argv[1], sys.argv[1:])")


def namespace(*args: str) -> tuple[str, ...]:
    """A wrapper that runs the command under `unshare` with these arguments, or skips the test."""
    needs("unshare", "mount")
    kinds = [arg for arg in args if arg.startswith("-")][:1]
    if subprocess.run(["unshare", *kinds, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make a namespace")
    return (str(shutil.which("unshare")), *args)


def answers(address: tuple[str, int]) -> bool:
    """Does a proxy listen there, and relay?"""
    with contextlib.suppress(ConnectionRefusedError):
        return relays(address)
    return False


def children(pid: int) -> list[int]:
    """Those of a process, also zombies."""
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


@pytest.mark.parametrize("devices", [True, False], ids=["", "no /dev/tty"])
def test_a_hang_up_with_a_terminal(command: Start, echo: Echo, terminal: tuple[int, str], devices: bool) -> None:
    """The terminal is gone, and with it whoever started the command: it ends as by SIGTERM."""
    session = "os.setsid(); os.dup2(os.open(sys.argv.pop(1), os.O_RDWR), 0)"  # the terminal becomes its own
    wrapper = (*python(session), terminal[1])
    if not devices:
        wrapper += namespace("--mount", "sh", "-c", 'mount -t tmpfs none /dev && exec "$0" "$@"')
    proxy = command(echo.name, wrapper=wrapper)
    with connect(proxy.address) as client:
        assert echoes(client)
        proxy.signal(signal.SIGHUP)
        client.close()
        assert proxy.wait() == 0, proxy.stderr


EARLY = """
import importlib.abc, os, signal, sys

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), number)

number = int(sys.argv.pop(1))
from tcpproxy.__main__ import main
sys.meta_path.insert(0, Interrupt())
main()
"""
"""The command, which gets a signal during its imports."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_process_during_its_start(number: signal.Signals) -> None:
    """The kernel drops a signal to PID 1 that has no handler: a `docker stop` in the first moment would be lost."""
    argv = [*namespace("-pf"), sys.executable, "-c", EARLY, str(int(number))]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", timeout=TIMEOUT, check=False)
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr == ""


def test_a_hang_up_during_the_start(echo: Echo) -> None:
    """Without a terminal it means no end, however early it comes; with the next one it is said once."""
    argv = [sys.executable, "-c", EARLY, str(int(signal.SIGHUP)), echo.name]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/", start_new_session=True
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline().startswith("Listening on ")
        process.send_signal(signal.SIGHUP)
        process.terminate()
        assert len(process.stderr.readlines()) == 1
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_signals_that_wait(command: Start, echo: Echo, number: signal.Signals) -> None:
    """A blocked signal that was sent before arrives when it is unblocked: what it does must be set by then."""
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


# --- descriptors, devices, limits ---


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("devices", [True, False], ids=["", "no /dev/null"])
def test_closed_standard_descriptors(command: Start, echo: Echo, closed: str, devices: bool) -> None:
    """They never become sockets of the relay, which log lines would go to; and a container may have no devices."""
    hide = "" if devices else "mount -t tmpfs none /dev && "
    wrapper = ("sh", "-c", f'{hide}exec "$0" "$@" {closed}')
    if not devices:
        wrapper = namespace("--mount", *wrapper)
    port = free_port()
    proxy = command("-l", str(port), echo.name, wrapper=wrapper)
    eventually(lambda: answers(("127.0.0.1", port)), TIMEOUT)
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


@pytest.mark.parametrize("files", range(8, 20))
def test_few_descriptors(echo: Echo, files: int) -> None:
    """Too few to start, or for a single connection: one sentence, exit 1. Else it works."""
    argv = ["sh", "-c", f'ulimit -n {files}; exec "$0" "$@"', sys.executable, "-m", "tcpproxy", "--workers", "1"]
    with subprocess.Popen(
        [*argv, echo.name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
    ) as process:
        assert process.stdout
        assert process.stderr
        first = process.stdout.readline()
        if first:
            address = first.split()[-1].rpartition(":")
            assert relays((address[0], int(address[2])))
        process.terminate()
        errors = process.stderr.read().splitlines()
    assert process.returncode == (0 if first else 1)
    if first:
        assert [line for line in errors if not line.startswith("Stopping: ")] == []
    else:
        assert len(errors) == 1
        assert errors[0].startswith("tcpproxy: "), errors


NO_MEMORY = """
import importlib.abc, sys

class Limit(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            raise MemoryError

from tcpproxy.__main__ import main
sys.meta_path.insert(0, Limit())
main()
"""


@pytest.mark.parametrize("module", ["tcpproxy._core.worker", "click", "tcpproxy.proxy"])
def test_too_little_memory_to_start(module: str) -> None:
    argv = [sys.executable, "-c", NO_MEMORY, module]
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", timeout=TIMEOUT, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "tcpproxy: cannot start: Cannot allocate memory\n"


# --- files and libraries of the system ---


ETC = {
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
    "nsswitch.conf": "hosts: files dns\n",
    "services": "echo 7/tcp\n",
}


@pytest.mark.parametrize("missing", [*ETC, "all"])
def test_missing_files_of_etc(command: Start, echo: Echo, tmp_path: Path, missing: str) -> None:
    """As in a container that was made of nothing: numbers need none of them, and localhost is the loopback."""
    for name, text in ETC.items():
        if missing not in (name, "all"):
            (tmp_path / name).write_text(text)
    wrapper = namespace("--mount", "sh", "-c", f'mount --bind {tmp_path} /etc && exec "$0" "$@"')
    for remote, *options in ((echo.name,), (f"localhost:{echo.port}",), (echo.name, "-b", "localhost")):
        proxy = command(*options, remote, wrapper=wrapper)
        assert relays(proxy.address)
        assert proxy.complaints == []


NO_CTYPES = """
import importlib.abc, sys

class Refusal(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "ctypes":
            raise MemoryError

from tcpproxy.__main__ import main
sys.meta_path.insert(0, Refusal())
del sys.argv[1:4]  # "python -m tcpproxy"
main()
"""


def test_libffi_that_refuses(command: Start, echo: Echo) -> None:
    """Where memory must not be writable and executable, the import of ctypes may raise MemoryError: it is as if the
    kernel had no sandbox.
    """
    wrapper = (sys.executable, "-c", NO_CTYPES)
    proxy = command(echo.name, wrapper=wrapper)
    assert relays(proxy.address)
    assert proxy.complaints == []
    proxy = command("--sandbox", "require", echo.name, wrapper=wrapper)
    assert proxy.wait() == 1
    assert proxy.stdout == []
    assert len(proxy.stderr) == 1
    assert proxy.stderr[0].startswith("tcpproxy: cannot enter the sandbox that is required: "), proxy.stderr


def test_memory_that_is_never_writable_and_executable(command: Start, echo: Echo) -> None:
    """The policy itself, as of systemd's MemoryDenyWriteExecute."""
    needs_proc()
    if subprocess.run([*python("import ctypes; sys.exit(-ctypes.CDLL(None).prctl(65, 1, 0, 0, 0))")]).returncode:
        pytest.skip("needs PR_SET_MDWE, of Linux 6.3")
    proxy = command(echo.name, wrapper=python("import ctypes; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)"))
    assert relays(proxy.address)
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
