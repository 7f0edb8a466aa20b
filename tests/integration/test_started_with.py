"""What the command is started with: descriptors, devices, limits, files of the system, an environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import Command, namespace, python
from support.machine import needs_proc
from support.peers import Echo, answers, free_port, relays
from support.waiting import TIMEOUT, eventually

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no such descriptors, devices and limits")

Start = Callable[..., Command]


# --- descriptors, devices, limits ---


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("devices", [True, False], ids=["", "no /dev/null"])
def test_closed_standard_descriptors(command: Start, echo: Echo, closed: str, devices: bool) -> None:
    """They never become sockets of the relay, into which log lines would go; also in a container without devices."""
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
def test_few_descriptors(command: Start, echo: Echo, files: int) -> None:
    """Too few to start, or for a single connection: one sentence, exit 1. Else it works."""
    wrapper = ("sh", "-c", f'ulimit -n {files}; exec "$0" "$@"')
    proxy = command("--workers", "1", echo.name, wrapper=wrapper)
    eventually(lambda: proxy.stdout or proxy.process.poll() is not None, TIMEOUT)
    if proxy.stdout:
        assert relays(proxy.address)
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        assert proxy.complaints == []
    else:
        assert proxy.wait() == 1
        assert len(proxy.stderr) == 1
        assert proxy.stderr[0].startswith("tcpproxy: "), proxy.stderr


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
    """As in a container from scratch: numeric addresses need none of them, and localhost is the loopback."""
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
    """The policy itself, as systemd sets it by MemoryDenyWriteExecute."""
    needs_proc()
    if subprocess.run([*python("import ctypes; sys.exit(-ctypes.CDLL(None).prctl(65, 1, 0, 0, 0))")]).returncode:
        pytest.skip("needs PR_SET_MDWE, of Linux 6.3")
    proxy = command(echo.name, wrapper=python("import ctypes; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)"))
    assert relays(proxy.address)
    assert proxy.complaints == []


# --- environment ---


@pytest.mark.parametrize(
    "code",
    [
        "os.umask(0o777)",
        "os.environ.clear()",
        "os.environ.update(HOME='/nowhere', TZ='No/Zone', TERM='', COLUMNS='x')",
        "os.environ.update(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0', PYTHONIOENCODING='utf-16')",
        "os.environ.update(LC_ALL='xx_YY', PYTHONWARNINGS='error', PYTHONOPTIMIZE='2', PYTHONDEVMODE='1')",
        "os.mkdir(sys.argv[1] + '.d'); os.chdir(sys.argv[1] + '.d'); os.rmdir(sys.argv[1] + '.d')",
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL); signal.signal(signal.SIGALRM, signal.SIG_IGN)",
        "[signal.signal(number, signal.SIG_IGN) for number in (signal.SIGCHLD, signal.SIGCONT, signal.SIGQUIT)]",
        "os.nice(19); os.setpgid(0, 0); signal.alarm(1000)",
        "[os.set_inheritable(os.open('/', os.O_RDONLY), True) for _ in range(100)]",
    ],
)
def test_environments(command: Start, echo: Echo, tmp_path: Path, code: str) -> None:
    """None of them makes a difference."""
    code = code.replace("sys.argv[1]", repr(str(tmp_path / "gone")))
    proxy = command(echo.name, wrapper=python(code))
    assert relays(proxy.address)
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0
    assert proxy.complaints == []


def test_files_that_must_not_grow(command: Start, echo: Echo, tmp_path: Path) -> None:
    """RLIMIT_FSIZE: what cannot be written is counted, and no signal ends the relay."""
    port = free_port()
    wrapper = python("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))")
    with open(tmp_path / "log", "wb") as log:
        proxy = command("-q", "-l", str(port), echo.name, wrapper=wrapper, stdout=log)
    eventually(lambda: answers(("127.0.0.1", port)), TIMEOUT)
    proxy.signal(signal.SIGTERM)
    assert proxy.wait() == 0
    assert proxy.complaints == ["1 log line could not be written"]
